"""The task: what a user brings. A model, data, and a metric; as a Python file or as a dataclass."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import linecache
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from radin import metrics
from radin.errors import TaskError
from radin.usercode import UserCodeError, import_module, user_code

__all__ = ["Batches", "Data", "Source", "Task", "TaskText", "UserCodeError", "user_code"]

Batches = Iterable[Any]
Data = Batches | Dataset[Any]
Source = Callable[[], Data] | Data

# Examples in a batch of a dataset that comes without a loader: small enough for most models.
USUAL_BATCH = 64


@dataclass(frozen=True)
class TaskText:
    """The text of a task file that is in no file, as radin writes it for a model and data that it knows.

    model, data: what was asked for. text: Python, with model() and validation(). notes: what to say of it. Worker
    processes load the task from it, and 'radin task' prints it.
    """

    model: str
    data: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What radin needs to know about a problem.

    model: a function returning a torch.nn.Module with the pool's architecture, or such a module.
    validation: a function returning an iterable of (inputs, targets) batches in the same order every time, or a
        DataLoader, a map-style Dataset or a list of batches. Recipes are chosen by it. A Dataset, or a DataLoader that
        reads one in order, is read by index where only some examples are wanted.
    test: the same, evaluated once, at the end. shifts: a mapping (or a function returning one) from a name to
        batches; reported, never used to choose.
    calibration: batches to re-estimate BatchNorm statistics after averaging.
    metric: a name (radin.metrics.names()), a Metric, or a function (outputs, targets) -> float; for a function,
        higher_is_better says its direction.
    outputs: a function (model, inputs) -> outputs, where calling the model on a batch's inputs is not enough.
    ignore_index: the label of tokens or pixels that do not count, for metrics by position; by default -100.
    """

    model: Callable[[], torch.nn.Module] | torch.nn.Module
    validation: Source
    test: Source | None = None
    shifts: Callable[[], Mapping[str, Source]] | Mapping[str, Source] | None = None
    calibration: Source | None = None
    metric: str | metrics.Metric | Callable[[Any, Any], float] = "accuracy"
    higher_is_better: bool | None = None
    outputs: Callable[[torch.nn.Module, Any], Any] | None = None
    ignore_index: int | None = None

    @classmethod
    def load(cls, spec: str | Path | Task | TaskText) -> Task:
        """A task from "task.py", "package.module", or either followed by ":object" (a Task, class or module).

        Or from the text of a task file. Raises TaskError when it is missing, incomplete or fails; the message carries
        the user's traceback.
        """
        if isinstance(spec, Task):
            return spec
        if isinstance(spec, TaskText):
            return cls._from_namespace(_load_text(spec), f"the task of {spec.model} and {spec.data}")
        place, _, attribute = str(spec).partition(":")
        if Path(place).suffix == ".py" or os.path.exists(place):
            module = _load_file(Path(place))
        else:
            unknown = f"no task file or module {place!r}: give a Python file with model() and validation()"
            if not all(part.isidentifier() for part in place.split(".")):
                raise TaskError(unknown)
            module = import_module(place, unknown)
        found: Any = module
        for name in filter(None, attribute.split(".")):
            with user_code(f"{place}:{attribute}"):
                if not hasattr(found, name):
                    raise TaskError(f"{place} has no {attribute!r}")
                found = getattr(found, name)
        if isinstance(found, Task):
            return found
        return cls._from_namespace(found, str(spec))

    @classmethod
    def _from_namespace(cls, namespace: Any, where: str) -> Task:
        with user_code(where):  # a module or a class may compute what it gives
            given = {f.name: getattr(namespace, f.name) for f in fields(cls) if hasattr(namespace, f.name)}
        missing = [name for name in ("model", "validation") if name not in given]
        if missing:
            raise TaskError(f"{where} must define {' and '.join(f'{name}()' for name in missing)}")
        return cls(**given)

    def get_metric(self) -> metrics.Metric:
        """The task's metric with its direction. Raises TaskError if unknown."""
        found = metrics.get(self.metric, self.higher_is_better)
        return found if self.ignore_index is None else replace(found, ignore_index=int(self.ignore_index))

    def build_model(self) -> torch.nn.Module:
        """A fresh module, in evaluation mode, on the CPU."""
        with user_code("model()"):
            model = copy.deepcopy(self.model) if isinstance(self.model, torch.nn.Module) else self.model()
        if not isinstance(model, torch.nn.Module):
            raise TaskError(f"model() must return a torch.nn.Module; got {type(model).__name__}")
        return model.eval().requires_grad_(False)

    def batches(self, split: str, batch_size: int | None = None) -> Batches:
        """A new reading of "validation", "test", "calibration" or "shifts/NAME".

        ``batch_size``: for a map-style dataset that comes without a loader; by default 64.
        """
        if split.startswith("shifts/"):
            source: Any = self.shift_sources()[split.removeprefix("shifts/")]
        else:
            source = getattr(self, split)
        return _reading(source, f"{split}()", batch_size)

    def shift_sources(self) -> dict[str, Source]:
        """Name -> batches of each shift; empty if there are none."""
        if self.shifts is None:
            return {}
        with user_code("shifts()"):
            found = self.shifts() if callable(self.shifts) else self.shifts
        if not isinstance(found, Mapping):
            raise TaskError(f"shifts() must return a mapping from name to batches; got {type(found).__name__}")
        odd = [name for name in found if not isinstance(name, str)]
        if odd:
            raise TaskError(f"shifts() must name each shift by a text; got {odd[0]!r}")
        return dict(found)


def _reading(source: Any, what: str, batch_size: int | None) -> Batches:
    with user_code(what):
        batches: Any = source() if callable(source) else source
        map_style = _is_map_style(batches)  # asks an object of the user's for its attributes
    if not callable(source) and isinstance(batches, Iterator):
        raise TaskError(
            f"{what} is a one-time iterator; it must be readable many times. "
            "Give a function that returns a new iterable, a DataLoader or a list."
        )
    if map_style:
        return DataLoader(batches, batch_size=batch_size or USUAL_BATCH)
    if not isinstance(batches, Iterable):
        raise TaskError(
            f"{what} must return an iterable of (inputs, targets) batches, or a map-style dataset; "
            f"got {type(batches).__name__}"
        )
    return batches


def _is_map_style(source: Any) -> bool:
    has_both = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return isinstance(source, Dataset) and not isinstance(source, IterableDataset) and has_both


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"no task file {path}: give a Python file with model() and validation()")
    spec = importlib.util.spec_from_file_location(f"radin_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    with user_code(f"task file {path}"):
        spec.loader.exec_module(module)
    return module


def _load_text(task: TaskText) -> ModuleType:
    name = f"radin_ready_task_{hashlib.sha256(task.text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    file = f"<{name}.py>"
    # Tracebacks show its lines; linecache forgets what has a size and is no file.
    linecache.cache[file] = (len(task.text), None, task.text.splitlines(keepends=True), file)
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    with user_code(f"the task of {task.model} and {task.data}"):
        exec(compile(task.text, file, "exec"), module.__dict__)
    return module
