"""Models and data that radin knows how to build and read: a task from two short texts, and no file written by hand."""

from radin.ready.task import ready_task

__all__ = ["ready_task"]
