"""A model's true score over data, example by example, with its standard error."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.data.batches import read, rebatched
from radin.data.readings import HELD_SHARE, Readings, Way, check_same
from radin.data.select import indexed
from radin.data.task import Task, user_code
from radin.engine import batchnorm
from radin.engine.batchnorm import reestimate, statistics_layers
from radin.engine.device import Device
from radin.engine.forward import OutOfMemoryError
from radin.engine.load import load_weights
from radin.engine.rows import Rows, joined
from radin.errors import TaskError
from radin.metrics import Metric
from radin.progress import Progress
from radin.question import Answer, answer_from_outputs, answer_from_totals


@dataclass(frozen=True)
class Evaluator:
    """Evaluates weights on the task's data.

    ``calibrate=True`` re-estimates BatchNorm statistics over calibration() first, if the model has any: right for
    averaged weights, wrong for a checkpoint as it is. ``held_share``: of the memory that is free, how much data that
    cannot be read by index may take, so that they need not be read again.
    """

    task: Task
    engine: Device
    metric: Metric
    held_share: float = HELD_SHARE
    readings: Readings = field(init=False, repr=False, compare=False)
    _model: list[torch.nn.Module] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = Readings(self.task, self.engine.batch_size, share=self.held_share)
        object.__setattr__(self, "readings", found)

    @property
    def rows(self) -> Rows:
        """How what the model returns becomes rows of outputs."""
        return Rows(self.metric, self.task.outputs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the data are read and run, in sentences; grows as things are found out."""
        return (*self.readings.notes, *self.engine.notes)

    def way(self, split: str = "validation") -> Way:
        """How some examples of a split are read: by "index", from memory ("held"), or by "reading" all of it.

        Known after the split's first whole reading, such as that of collect_outputs; until then "reading".
        """
        return self.readings.way(split)

    def reading_share(self, split: str = "validation", seconds_per_batch: float | None = None) -> float:
        """The share of a pass that any slice costs because all data must be read; 0 for "index" and "held".

        To two digits; ``seconds_per_batch`` of the model, as preflight measures it, for where only the data were read.
        """
        return self.readings.reading_share(split, seconds_per_batch)

    def prepare(
        self,
        tensors: Mapping[str, torch.Tensor],
        where: str,
        *,
        calibrate: bool,
        statistics: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        """The model with these weights on the device, and the weights as they are after calibration.

        ``statistics``: those of an earlier calibration of the same weights (batchnorm.statistics), put back instead of
        estimated again. The model is one object that the next call fills anew.
        """
        if not self._model:
            self._model.append(self.engine.place(self.task.build_model()))
        model = self._model[0]
        called = load_weights(model, tensors, where)
        final = dict(tensors)
        if not calibrate or self.task.calibration is None or not statistics_layers(model):
            return model, final
        if statistics is not None:
            batchnorm.restore(model, statistics)
        else:
            self._calibrate(model)
        for own, value in batchnorm.statistics(model).items():
            name = called.get(own, own)
            if name in final:
                final[name] = value.to(final[name].dtype)
        return model, final

    def _calibrate(self, model: torch.nn.Module) -> None:
        """Re-estimate BatchNorm statistics; from the start in smaller batches where a batch does not fit."""
        while True:
            size = self.engine.fitting("calibration")
            batches = rebatched(read(self.task.batches("calibration", size), "calibration()"), size)
            try:
                if reestimate(model, batches, self.engine.device) == 0:
                    raise TaskError("calibration() gave no batches: BatchNorm statistics cannot be re-estimated")
                self.engine.fitted("calibration")
                return
            except OutOfMemoryError as error:
                failed = error.examples
            self.engine.halve(failed, "calibration")

    def calibration_examples(self) -> int:
        """How many examples calibration() gives, read without a model; 0 if the task has none."""
        if self.task.calibration is None:
            return 0
        source = self.task.batches("calibration", self.engine.batch_size)
        by_index = indexed(source)
        if by_index is not None and by_index.plain:
            return by_index.examples
        return sum(batch.size for batch in read(source, "calibration()"))

    def values(
        self,
        model: torch.nn.Module,
        split: str,
        examples: NDArray[np.intp],
        *,
        expected_data: str,
        progress: Progress | None = None,
        what: str = "",
    ) -> NDArray[np.float64]:
        """The metric's number per example on some examples of a split, (m,); only these are run through the model.

        ``examples`` (m,): ascending indices. For metrics with a number per example, and by position: then totals
        (m, K). NaN for all of them, (m,), if any output is not finite. ``way`` says what is read for them. Raises
        TaskError when the split is not the data with fingerprint ``expected_data``.
        """
        found: list[NDArray[np.float64]] = []
        finite, done = True, 0
        for batch in self.readings.some(split, examples, expected_data):
            assert batch.targets is not None
            outputs = self.engine.outputs([model], batch, self.rows)[0].numpy()
            targets = self.rows.targets(batch)
            self.metric.check_batch(targets, outputs.shape[1])
            finite = finite and bool(np.isfinite(outputs).all())
            if finite:
                with user_code(f"the metric {self.metric.name!r}"):
                    found.append(self.metric.numbers(outputs, targets))
            done += batch.size
            if progress:
                progress(what or split, done, len(examples))
        return np.concatenate(found) if finite else np.full(len(examples), np.nan)

    def score(
        self,
        model: torch.nn.Module,
        split: str,
        where: str,
        *,
        expected_data: str | None = None,
        progress: Progress | None = None,
        what: str | None = None,
    ) -> Answer:
        """The model's score on "validation", "test" or "shifts/NAME". ``where`` names the weights in messages.

        Raises TaskError when the data is not the data with fingerprint ``expected_data``. Outputs with NaN or infinity
        give a NaN score, which never wins.
        """
        started = time.monotonic()
        outputs: list[NDArray[Any]] = []
        targets: list[NDArray[Any]] = []
        totals: list[NDArray[np.float64]] = []
        finite = True

        def report(done: int, total: int | None) -> None:
            if progress:
                progress(what or f"{where} on {split}", done, total)

        for batch in self.readings.whole(split, expected=expected_data, models=1, progress=report):
            assert batch.targets is not None
            rows = self.engine.outputs([model], batch, self.rows)[0].numpy()
            labels = self.rows.targets(batch)
            self.metric.check_batch(labels, rows.shape[1])
            if self.metric.totals is None:
                outputs.append(rows)
                targets.append(labels)
            elif finite := finite and bool(np.isfinite(rows).all()):
                with user_code(f"the metric {self.metric.name!r}"):
                    totals.append(self.metric.totals(rows, labels))
        if self.metric.totals is not None:
            return self._by_position(split, np.concatenate(totals) if finite else None, expected_data, started)
        whole_outputs, whole_targets = joined(outputs, self.metric), np.concatenate(targets)
        data, examples = self.readings.fingerprint(split), len(whole_targets)
        if expected_data is not None:
            check_same(split, data, examples, expected_data)
        seconds = time.monotonic() - started
        self.metric.check(whole_targets, whole_outputs.shape[1])
        if not np.isfinite(whole_outputs).all():
            return Answer(float("nan"), float("nan"), examples, seconds, data)
        return answer_from_outputs(self.metric, whole_outputs, whole_targets, seconds, data)

    def _by_position(
        self, split: str, totals: NDArray[np.float64] | None, expected_data: str | None, started: float
    ) -> Answer:
        """The answer of a metric by position from its totals (M, K); None: outputs were not finite."""
        data, examples = self.readings.fingerprint(split), self.readings.examples(split)
        if expected_data is not None:
            check_same(split, data, examples, expected_data)
        seconds = time.monotonic() - started
        if totals is None:
            return Answer(float("nan"), float("nan"), examples, seconds, data)
        return answer_from_totals(self.metric, totals, seconds, data)
