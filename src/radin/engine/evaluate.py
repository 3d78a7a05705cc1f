"""A model's true score over data, example by example, with its standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from radin.data.batches import (
    Batch,
    DataFingerprint,
    copied,
    length,
    read,
    rebatched,
    selected,
    size_in_bytes,
)
from radin.data.task import Task
from radin.engine import batchnorm
from radin.engine.batchnorm import reestimate, statistics_layers
from radin.engine.device import Device
from radin.engine.load import load_weights
from radin.errors import TaskError
from radin.metrics import Metric
from radin.progress import Progress
from radin.question import Answer, answer_from_outputs

# Data up to this size, and to this share of the free memory, are held after their first reading.
HELD_BYTES = 1 << 30
_HELD_SHARE = 0.25


@dataclass(frozen=True)
class Evaluator:
    """Evaluates weights on the task's data.

    ``calibrate=True`` re-estimates BatchNorm statistics over calibration() first, if the model has any: right for
    averaged weights, wrong for a checkpoint as it is.
    """

    task: Task
    engine: Device
    metric: Metric
    _held: dict[str, tuple[str, list[Batch]]] = field(default_factory=dict, repr=False, compare=False)

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
        estimated again.
        """
        model = self.task.build_model()
        load_weights(model, tensors, where)
        model = self.engine.place(model)
        final = dict(tensors)
        if not calibrate or self.task.calibration is None or not statistics_layers(model):
            return model, final
        if statistics is not None:
            batchnorm.restore(model, statistics)
        else:
            source = read(self.task.batches("calibration"), "calibration()")
            batches = rebatched(source, self.engine.batch_size)
            if reestimate(model, batches, self.engine.device) == 0:
                raise TaskError("calibration() gave no batches: BatchNorm statistics cannot be re-estimated")
        for name, value in batchnorm.statistics(model).items():
            if name in final:
                final[name] = value.to(final[name].dtype)
        return model, final

    def calibration_examples(self) -> int:
        """How many examples calibration() gives, read without a model; 0 if the task has none."""
        if self.task.calibration is None:
            return 0
        return sum(batch.size for batch in read(self.task.batches("calibration"), "calibration()"))

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

        ``examples`` (m,): ascending indices. For metrics with a number per example only. NaN for all of them if any
        output is not finite. The split is kept in memory after its first reading when it is small. Raises TaskError
        when it is not the data with fingerprint ``expected_data``.
        """
        assert self.metric.per_example is not None
        found: list[NDArray[np.float64]] = []
        finite, done = True, 0
        for batch in selected(self._examples(split, expected_data), examples):
            assert batch.targets is not None
            outputs = self.engine.outputs([model], batch)[0].numpy()
            targets = batch.targets.cpu().numpy()
            self.metric.check_batch(targets, outputs.shape[1])
            finite = finite and bool(np.isfinite(outputs).all())
            if finite:
                found.append(self.metric.per_example(outputs, targets))
            done += batch.size
            if progress:
                progress(what or split, done, len(examples))
        return np.concatenate(found) if finite else np.full(len(examples), np.nan)

    def _examples(self, split: str, expected_data: str) -> Iterator[Batch]:
        """The split's batches, from memory where they are held, else by a reading that ends with a check."""
        data, kept = self._held.get(split, ("", None))
        if kept is not None and data == expected_data:
            yield from kept
            return
        kept = []
        room = min(HELD_BYTES, int(psutil.virtual_memory().available * _HELD_SHARE))
        fingerprint = DataFingerprint()
        for batch in rebatched(read(self.task.batches(split), f"{split}()"), self.engine.batch_size):
            if batch.targets is None:
                raise _without_targets(split)
            fingerprint.update(batch)
            room -= size_in_bytes(batch)
            if room < 0:
                kept = None
            if kept is not None:
                kept.append(copied(batch))
            yield batch
        _check_data(split, fingerprint, expected_data)
        if kept is not None:
            self._held[split] = (expected_data, kept)

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
        data = DataFingerprint()
        outputs: list[NDArray[Any]] = []
        targets: list[NDArray[Any]] = []
        source = self.task.batches(split)
        total = length(source)
        for index, whole in enumerate(read(source, f"{split}()")):
            for batch in rebatched([whole], self.engine.batch_size):
                if batch.targets is None:
                    raise _without_targets(split)
                data.update(batch)
                outputs.append(self.engine.outputs([model], batch)[0].numpy())
                targets.append(batch.targets.cpu().numpy())
                self.metric.check_batch(targets[-1], outputs[-1].shape[1])
            if progress:
                progress(what or f"{where} on {split}", index + 1, total)
        if not outputs:
            raise TaskError(f"{split}() gave no batches")
        if expected_data is not None:
            _check_data(split, data, expected_data)
        whole_outputs, whole_targets = np.concatenate(outputs), np.concatenate(targets)
        seconds = time.monotonic() - started
        self.metric.check(whole_targets, whole_outputs.shape[1])
        if not np.isfinite(whole_outputs).all():
            return Answer(float("nan"), float("nan"), data.examples, seconds, data.hexdigest())
        return answer_from_outputs(self.metric, whole_outputs, whole_targets, seconds, data.hexdigest())


def _without_targets(split: str) -> TaskError:
    return TaskError(f"{split}() gives inputs without targets: yield (inputs, targets)")


def _check_data(split: str, data: DataFingerprint, expected: str) -> None:
    if data.hexdigest() != expected:
        raise TaskError(
            f"{split}() gave other data than before: {data.examples} examples with fingerprint "
            f"{data.hexdigest()[:12]}, expected {expected[:12]}. It must give the same examples in the same "
            "order every time: no shuffling, no random augmentation."
        )
