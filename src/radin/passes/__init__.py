"""Passes: a model over data. Knows weights; knows nothing of search."""

from radin.passes.engine.local import LocalEngine
from radin.passes.evaluate import Evaluation, Evaluator
from radin.passes.outputs import MemberOutputs, OutputStore, StoredOutputs, collect_outputs
from radin.passes.task import Task, UserCodeError

__all__ = [
    "Evaluation",
    "Evaluator",
    "LocalEngine",
    "MemberOutputs",
    "OutputStore",
    "StoredOutputs",
    "Task",
    "UserCodeError",
    "collect_outputs",
]
