"""True scores by radin's own engine, for data and models too large to lie in memory together, kept on disk."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from benchmarks.spending.known import Floats, Known
from benchmarks.spending.scored import Indices, Scored

from radin import Pool, Recipe, Task
from radin.data.batches import DataFingerprint, read
from radin.engine import batchnorm
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.outputs.collect import collect_outputs
from radin.outputs.store import OutputStore
from radin.progress import Progress
from radin.weights import average, geometry

_STATISTICS = 64  # soups whose BatchNorm statistics are remembered, for the parts of them that come later


class Streamed(Scored):
    """As Evaluator scores: soups averaged from the files, data read from the task, on one device.

    ``place``: the folder with the members' outputs (radin's own store, as cook --outputs shares it) and what is known.
    Outputs that are there are not made again.
    """

    def __init__(self, pool: Pool, task: Task, place: Path, device: Device, progress: Progress | None = None) -> None:
        self.pool, self.task, self.metric = pool, task, task.get_metric()
        self._require_values()
        self._evaluator = Evaluator(task, device, self.metric)
        self._store = OutputStore(place / "outputs", precision=device.precision)
        found = collect_outputs(
            task, pool, self._store, device, self.metric, progress=progress, readings=self._evaluator.readings
        )
        self.collected = found.passes
        """Members whose outputs were made now."""
        self.outputs = list(found.outputs)
        self.targets = found.targets
        self.singles = np.array([self.metric.value(outputs, self.targets) for outputs in self.outputs])
        self.gram = geometry(pool).gram
        self.shifts = tuple(task.shift_sources())
        self._known = Known(place / "known.sqlite")
        self._layers = bool(batchnorm.statistics_layers(task.build_model()))
        self._statistics: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self._extents: dict[str, tuple[str, int]] = {}
        self._model: tuple[str, torch.nn.Module] | None = None

    @cached_property
    def calibration(self) -> int:
        """K: examples that BatchNorm statistics are estimated on for each soup; 0 without BatchNorm."""
        return self._evaluator.calibration_examples() if self._layers else 0

    @cached_property
    def _calibration_print(self) -> str:
        if not self.calibration:
            return "none"
        data = DataFingerprint()
        for batch in read(self.task.batches("calibration"), "calibration()"):
            data.update(batch)
        return data.hexdigest()[:16]

    def extent(self, split: str) -> tuple[str, int]:
        """The fingerprint of a split's data, and how many examples it has; read once, without a model."""
        if split not in self._extents:
            readings = self._evaluator.readings
            for _ in readings.whole(split):
                pass
            self._extents[split] = readings.fingerprint(split), readings.examples(split)
        return self._extents[split]

    def computed(self, recipe: Recipe, split: str, examples: Indices) -> Floats:
        """As ``values``, always computed."""
        data, count = self.extent(split)
        model = self._soup(recipe)
        if len(examples) < count:
            return self._evaluator.values(model, split, examples, expected_data=data)
        found = self._evaluator.score(model, split, "the soup", expected_data=data).values
        return np.full(count, np.nan) if found is None else found

    def _soup(self, recipe: Recipe) -> torch.nn.Module:
        """The model with the soup's weights, its BatchNorm statistics estimated again unless it is one member."""
        identity = recipe.identity(self.pool.fingerprints)
        if self._model is not None and self._model[0] == identity:
            return self._model[1]
        self._model = None
        kept = self._statistics.get(identity)
        calibrate = not recipe.is_single
        model, _ = self._evaluator.prepare(
            average(self.pool, recipe), "the soup", calibrate=calibrate, statistics=kept if calibrate else None
        )
        if calibrate and self.calibration:
            self._statistics[identity] = batchnorm.statistics(model)
            if len(self._statistics) > _STATISTICS:
                self._statistics.popitem(last=False)
        self._model = identity, model
        return model
