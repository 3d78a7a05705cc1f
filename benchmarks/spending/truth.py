"""True scores of soups, fast enough for thousands of them, and only of the examples asked for.

The members' weights lie in memory as one matrix, the data as batches, and one model takes every soup in turn. What
comes out is what radin.engine.evaluate.Evaluator gives; ``Truth.check`` measures it. Axis names: members N, weights P,
examples M.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.spending.known import Floats, Known
from benchmarks.spending.scored import Indices, Scored
from numpy.typing import NDArray

from radin import Pool, RadinError, Recipe, Task
from radin.data.batches import Batch, DataFingerprint, read
from radin.engine.batchnorm import reestimate, statistics_layers
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.engine.load import load_weights
from radin.outputs.collect import collect_outputs
from radin.outputs.store import OutputStore
from radin.weights import average, geometry
from radin.weights.layout import is_averaged

_BLOCK = 1 << 15  # weights summed at once: they stay in the processor's cache
_STATISTICS = 256  # soups whose BatchNorm statistics are remembered, for the parts of them that come later
_TOLERANCE = 1e-3  # share of examples on which Evaluator may differ: other batches, other rounding


@dataclass(frozen=True)
class Held:
    """A split in memory. ``starts``: the first example of each batch, and the number of examples."""

    batches: tuple[Batch, ...]
    starts: tuple[int, ...]
    targets: NDArray[Any]
    fingerprint: str

    @classmethod
    def read(cls, task: Task, split: str) -> Held:
        batches, starts, targets, data = [], [0], [], DataFingerprint()
        for batch in read(task.batches(split), f"{split}()"):
            if batch.targets is None:
                raise RadinError(f"{split}() gives inputs without targets")
            data.update(batch)
            batches.append(batch)
            starts.append(starts[-1] + batch.size)
            targets.append(batch.targets.cpu().numpy())
        if not batches:
            raise RadinError(f"{split}() gave no batches")
        return cls(tuple(batches), tuple(starts), np.concatenate(targets), data.hexdigest())

    def pick(self, examples: Indices) -> Iterator[tuple[Any, int]]:
        """Inputs of the sorted ``examples``, and how many, in batches about as large as the task's.

        Rows of several batches go together where their shapes agree; text padded to the longest of its batch may not.
        """
        largest = max(batch.size for batch in self.batches)
        waiting: list[Any] = []
        count, form = 0, None
        bounds = np.searchsorted(examples, self.starts)
        for batch, start, low, high in zip(self.batches, self.starts, bounds[:-1], bounds[1:], strict=False):
            rows = examples[low:high] - start
            if not len(rows):
                continue
            inputs = batch.inputs if len(rows) == batch.size else _rows(batch.inputs, torch.from_numpy(rows))
            shapes = _form(inputs)
            if waiting and (shapes != form or count + len(rows) > largest):
                yield _joined(waiting), count
                waiting, count = [], 0
            waiting.append(inputs)
            count, form = count + len(rows), shapes
        if waiting:
            yield _joined(waiting), count


def _rows(value: Any, index: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value[index]
    if isinstance(value, Mapping):
        return {name: _rows(part, index) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_rows(part, index) for part in value)
    return value


def _form(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape[1:]))
    if isinstance(value, Mapping):
        return {name: _form(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_form(part) for part in value)
    return value


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {name: _joined([value[name] for value in values]) for name in first}
    if isinstance(first, list | tuple):
        return tuple(_joined(parts) for parts in zip(*values, strict=True))
    return first


@dataclass(frozen=True)
class Checked:
    """Against radin's Evaluator: the largest share of validation examples with another value, over ``recipes``.

    ``pass_seconds``: processor time of one full validation pass of a soup here, averaging and BatchNorm included.
    """

    recipes: int
    differing: float
    pass_seconds: float


class Truth(Scored):
    """A pool's members and data in memory, and the true per-example values of any recipe over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = Pool.open(sorted((folder / "members").glob("*.safetensors")))
        self.task = Task.load(folder / "task.py")
        self.metric = self.task.get_metric()
        self._require_values()
        self.engine = Device.create("cpu")
        self.shifts = tuple(self.task.shift_sources())
        self._model = self.engine.place(self.task.build_model())
        self._held: dict[str, Held] = {}
        has_statistics = self.task.calibration is not None and bool(statistics_layers(self._model))
        self._calibration = list(read(self.task.batches("calibration"), "calibration()")) if has_statistics else []
        place = folder / "known"
        self._known = Known(place / "known.sqlite")
        store = OutputStore(place / f"outputs-{self.held('validation').fingerprint[:12]}")
        found = collect_outputs(self.task, self.pool, store, self.engine, self.metric)
        self.outputs = [np.asarray(outputs) for outputs in found.outputs]
        self.targets = found.targets
        self.singles = np.array([self.metric.value(outputs, self.targets) for outputs in self.outputs])
        self.gram = geometry(self.pool).gram
        self._statistics: OrderedDict[str, list[dict[str, torch.Tensor]]] = OrderedDict()
        self._loaded = ""

    @property
    def calibration(self) -> int:
        """K: examples that BatchNorm statistics are estimated on for each soup; 0 without BatchNorm."""
        return sum(batch.size for batch in self._calibration)

    def held(self, split: str) -> Held:
        """The split's data, read when first asked for."""
        if split not in self._held:
            self._held[split] = Held.read(self.task, split)
        return self._held[split]

    def extent(self, split: str) -> tuple[str, int]:
        """The fingerprint of a split's data, and how many examples it has."""
        held = self.held(split)
        return held.fingerprint, len(held.targets)

    @cached_property
    def _calibration_print(self) -> str:
        data = DataFingerprint()
        for batch in self._calibration:
            data.update(batch)
        return data.hexdigest()[:16] if self._calibration else "none"

    def computed(self, recipe: Recipe, split: str, examples: Indices) -> Floats:
        """As ``values``, always computed."""
        together = self.soup_outputs(recipe, split, examples)
        assert self.metric.per_example is not None
        values = np.array(self.metric.per_example(together, self.held(split).targets[examples]), dtype=np.float64)
        values[~np.isfinite(together).all(axis=1)] = np.nan
        return values

    def soup_outputs(self, recipe: Recipe, split: str, examples: Indices) -> NDArray[Any]:
        """What the soup's model returns on sorted ``examples`` of a split, (m, C)."""
        self._load(recipe)
        outputs = [
            self.engine.outputs([self._model], Batch(inputs, None, count))[0]
            for inputs, count in self.held(split).pick(examples)
        ]
        together: NDArray[Any] = torch.cat(outputs).numpy()
        return together

    def _load(self, recipe: Recipe) -> None:
        """Put the soup into the model, with BatchNorm statistics as Evaluator.prepare estimates them."""
        identity = recipe.identity(self.pool.fingerprints)
        if identity == self._loaded:
            return
        self._loaded = ""
        load_weights(self._model, self.soup(recipe), "soup")
        if self._calibration and not recipe.is_single:
            layers = statistics_layers(self._model)
            if identity in self._statistics:
                for layer, buffers in zip(layers, self._statistics[identity], strict=True):
                    layer.load_state_dict(buffers, strict=False)
            else:
                reestimate(self._model, self._calibration, self.engine.device)
                self._statistics[identity] = [
                    {name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers
                ]
                if len(self._statistics) > _STATISTICS:
                    self._statistics.popitem(last=False)
        self._loaded = identity

    def soup(self, recipe: Recipe) -> dict[str, torch.Tensor]:
        """As radin.weights.average: summed in float64, rounded once; integers from the member of largest weight."""
        matrix, places, copied = self._weights
        total = np.zeros(matrix.shape[1])
        scratch = np.empty(_BLOCK)
        for start in range(0, len(total), _BLOCK):
            part = total[start : start + _BLOCK]
            for k in recipe.members:
                product = np.multiply(
                    matrix[k, start : start + _BLOCK], recipe.weights[k], out=scratch[: len(part)], dtype=np.float64
                )
                part += product
        flat = torch.from_numpy(total)
        result = {
            name: flat[start : start + shape.numel()].view(shape).to(dtype) for name, start, shape, dtype in places
        }
        result.update(copied[recipe.weights.index(max(recipe.weights))])
        return {name: result[self.pool.aliases.get(name, name)] for name in self.pool.names}

    @cached_property
    def _weights(
        self,
    ) -> tuple[NDArray[Any], list[tuple[str, int, torch.Size, torch.dtype]], list[dict[str, torch.Tensor]]]:
        """Averaged weights (N, P); name, place, shape and dtype of each tensor in a row; members' other tensors."""
        aliases, dtypes, shapes = self.pool.aliases, self.pool.dtypes, self.pool.shapes
        names = [name for name in self.pool.names if name not in aliases and is_averaged(dtypes[name])]
        if any(dtypes[name].is_complex for name in names):
            raise RadinError("complex weights are not supported by this benchmark")
        places, stop = [], 0
        for name in names:
            shape = torch.Size(shapes[name])
            places.append((name, stop, shape, dtypes[name]))
            stop += shape.numel()
        wide = any(dtypes[name] == torch.float64 for name in names)
        matrix = np.empty((len(self.pool), stop), np.float64 if wide else np.float32)
        copied = []
        for k, row in enumerate(matrix):
            tensors = self.pool.tensors(k)
            for name, start, shape, _ in places:
                row[start : start + shape.numel()] = tensors[name].double().reshape(-1).numpy()
            copied.append({name: t for name, t in tensors.items() if name not in aliases and not is_averaged(t.dtype)})
        return matrix, places, copied

    def check(self) -> Checked:
        """Compare with radin's Evaluator on two soups, whole and in two parts. Raises RadinError above 0.1 %."""
        members = len(self.pool)
        rng = np.random.default_rng(0)
        recipes = [Recipe.uniform(range(members), members), Recipe.normalized(rng.dirichlet(np.ones(members)))]
        evaluator = Evaluator(self.task, self.engine, self.metric)
        everything = np.arange(len(self.targets))
        half = rng.random(len(everything)) < 0.5
        worst, seconds = 0.0, []
        for recipe in recipes:
            model, _ = evaluator.prepare(average(self.pool, recipe), "soup", calibrate=True)
            expected = evaluator.score(model, "validation", "soup").values
            if expected is None:
                raise RadinError("the outputs of a soup of all members are not finite")
            self._statistics.clear()
            self._loaded = ""
            started = time.process_time()
            found = self.computed(recipe, "validation", everything)
            seconds.append(time.process_time() - started)
            parts = np.empty(len(everything))
            for part in (half, ~half):
                parts[part] = self.computed(recipe, "validation", everything[part])
            worst = max(worst, *(float((~np.isclose(v, expected, atol=1e-4)).mean()) for v in (found, parts)))
        if worst > _TOLERANCE:
            raise RadinError(f"{self.folder}: {worst:.2%} of the values differ from radin.engine.evaluate.Evaluator's")
        return Checked(len(recipes), worst, min(seconds))
