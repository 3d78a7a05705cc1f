"""What other libraries need to work with radin; each module imports its own library alone.

``ready_task``: models and data that radin knows how to build and read, a task from two short texts.
"""

from radin.integrations.ready import ready_task

__all__ = ["ready_task"]
