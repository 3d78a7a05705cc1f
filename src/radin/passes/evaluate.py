"""A model's true score over data, example by example, with its standard error."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.errors import OutputsError, TaskError
from radin.metrics import Metric
from radin.passes.batches import DataFingerprint, Progress, length, read, rebatched
from radin.passes.batchnorm import reestimate, statistics_layers
from radin.passes.engine.local import LocalEngine
from radin.passes.load import load_weights
from radin.passes.task import Task


@dataclass(frozen=True)
class Evaluation:
    """A true score. ``values``: one number per example when the metric is a mean of them, else None."""

    score: float
    stderr: float
    examples: int
    seconds: float
    data: str
    values: NDArray[np.float64] | None


@dataclass(frozen=True)
class Evaluator:
    """Evaluates weights on the task's data.

    ``calibrate=True`` re-estimates BatchNorm statistics over calibration() first, if the model has any: right for
    averaged weights, wrong for a checkpoint as it is.
    """

    task: Task
    engine: LocalEngine
    metric: Metric

    def prepare(
        self, tensors: Mapping[str, torch.Tensor], where: str, *, calibrate: bool
    ) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        """The model with these weights on the device, and the weights as they are after calibration."""
        model = self.task.build_model()
        load_weights(model, tensors, where)
        model = self.engine.place(model)
        final = dict(tensors)
        if calibrate and self.task.calibration is not None and statistics_layers(model):
            source = read(self.task.batches("calibration"), "calibration()")
            batches = rebatched(source, self.engine.batch_size)
            if reestimate(model, batches, self.engine.device) == 0:
                raise TaskError("calibration() gave no batches: BatchNorm statistics cannot be re-estimated")
            state = model.state_dict()
            for name, layer in model.named_modules():
                if layer in statistics_layers(model):
                    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                        key = f"{name}.{buffer}" if name else buffer
                        if key in final:
                            final[key] = state[key].detach().cpu().to(final[key].dtype).clone()
        return model, final

    def score(
        self,
        model: torch.nn.Module,
        split: str,
        where: str,
        *,
        expected_data: str | None = None,
        progress: Progress | None = None,
        what: str | None = None,
    ) -> Evaluation:
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
                    raise TaskError(f"{split}() gives inputs without targets: yield (inputs, targets)")
                data.update(batch)
                outputs.append(self.engine.outputs([model], batch)[0].numpy())
                targets.append(batch.targets.cpu().numpy())
                self.metric.check_batch(targets[-1], outputs[-1].shape[1])
            if progress:
                progress(what or f"{where} on {split}", index + 1, total)
        if not outputs:
            raise TaskError(f"{split}() gave no batches")
        if expected_data is not None and data.hexdigest() != expected_data:
            raise TaskError(
                f"{split}() gave other data than before: {data.examples} examples with fingerprint "
                f"{data.hexdigest()[:12]}, expected {expected_data[:12]}. It must give the same examples in the same "
                "order every time: no shuffling, no random augmentation."
            )
        whole_outputs, whole_targets = np.concatenate(outputs), np.concatenate(targets)
        seconds = time.monotonic() - started
        self.metric.check(whole_targets, whole_outputs.shape[1])
        if not np.isfinite(whole_outputs).all():
            return Evaluation(float("nan"), float("nan"), data.examples, seconds, data.hexdigest(), None)
        return evaluation(self.metric, whole_outputs, whole_targets, seconds, data.hexdigest())


def evaluation(metric: Metric, outputs: NDArray[Any], targets: NDArray[Any], seconds: float, data: str) -> Evaluation:
    """The Evaluation of outputs (examples, classes) that are already there."""
    if len(outputs) != len(targets):
        raise OutputsError(f"{len(outputs)} rows of outputs for {len(targets)} targets")
    if metric.per_example is not None:
        return from_values(metric.per_example(outputs, targets), seconds, data)
    stderr = metric.standard_error(outputs, targets)
    return Evaluation(metric.value(outputs, targets), stderr, len(targets), seconds, data, None)


def from_values(values: NDArray[np.float64], seconds: float, data: str) -> Evaluation:
    """The Evaluation of a metric that is the mean of one number per example, (examples,)."""
    stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Evaluation(float(values.mean()), stderr, len(values), seconds, data, values)
