"""Model soups within a budget of evaluations: many fine-tuned checkpoints in, one better model out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Where each public name lives. Loaded on first use, so that "import radin" does not wait for torch.
_PLACES = {
    "Answer": "radin.question",
    "CheckpointError": "radin.errors",
    "Command": "radin.engine.command",
    "Engine": "radin.engine.base",
    "Failure": "radin.question",
    "Group": "radin.recipe",
    "Kept": "radin.data.kept",
    "Metric": "radin.metrics",
    "OutputsError": "radin.errors",
    "Pool": "radin.weights",
    "PoolError": "radin.errors",
    "Question": "radin.question",
    "RadinError": "radin.errors",
    "Ray": "radin.engine.ray_cluster",
    "Recipe": "radin.recipe",
    "Result": "radin.run",
    "RunError": "radin.errors",
    "Search": "radin.search",
    "Slurm": "radin.engine.slurm",
    "Task": "radin.data.task",
    "TaskError": "radin.errors",
    "average": "radin.weights",
    "cook": "radin.run",
    "doctor": "radin.diagnose.doctor",
    "rank": "radin.search",
    "ready_task": "radin.ready",
    "save": "radin.weights",
}

if TYPE_CHECKING:
    __version__: str
    from radin.data.kept import Kept
    from radin.data.task import Task
    from radin.diagnose.doctor import doctor
    from radin.engine.base import Engine
    from radin.engine.command import Command
    from radin.engine.ray_cluster import Ray
    from radin.engine.slurm import Slurm
    from radin.errors import CheckpointError, OutputsError, PoolError, RadinError, RunError, TaskError
    from radin.metrics import Metric
    from radin.question import Answer, Failure, Question
    from radin.ready import ready_task
    from radin.recipe import Group, Recipe
    from radin.run import Result, cook
    from radin.search import Search, rank
    from radin.weights import Pool, average, save

__all__ = [
    "Answer",
    "CheckpointError",
    "Command",
    "Engine",
    "Failure",
    "Group",
    "Kept",
    "Metric",
    "OutputsError",
    "Pool",
    "PoolError",
    "Question",
    "RadinError",
    "Ray",
    "Recipe",
    "Result",
    "RunError",
    "Search",
    "Slurm",
    "Task",
    "TaskError",
    "__version__",
    "average",
    "cook",
    "doctor",
    "rank",
    "ready_task",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    raise AttributeError(f"module 'radin' has no attribute {name!r}")


def _version() -> str:
    """Of the package as it is installed; looked up when first asked for, since that takes a while."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("radin")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
