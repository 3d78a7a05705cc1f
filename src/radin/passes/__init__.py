"""Passes: a model over data. Knows weights; knows nothing of search."""

from radin.passes.collect import MemberOutputs, collect_outputs, stream_outputs
from radin.passes.engine.local import LocalEngine
from radin.passes.evaluate import Evaluation, Evaluator
from radin.passes.outputs import OutputStore, StoredOutputs
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
    "stream_outputs",
]
