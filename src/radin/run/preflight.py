"""What can be known before anything long starts: does the model hold the pool, do the data fit the metric."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.data.batches import Batch, DataFingerprint, read, rebatched
from radin.data.select import check_by_index, indexed
from radin.data.task import Task
from radin.engine.batchnorm import statistics_layers
from radin.engine.device import Device
from radin.engine.forward import check_finite
from radin.engine.load import check_fits, load_weights
from radin.engine.rows import Rows
from radin.errors import TaskError
from radin.metrics import Metric
from radin.run.repeat import difference, origin, tolerance


@dataclass(frozen=True)
class Preflight:
    """``first_outputs`` (b, classes): the probed member's outputs on the first batch of validation(); its targets.

    ``seconds_per_batch``: what one batch took the model, warmed up, without the loading of the data.
    """

    first_outputs: NDArray[np.float32]
    first_targets: NDArray[Any]
    seconds_per_batch: float
    batchnorm_layers: int
    notes: tuple[str, ...]


def preflight(
    task: Task,
    shapes: Mapping[str, Sequence[int]],
    member: str,
    load: Callable[[], dict[str, torch.Tensor]],
    engine: Device,
    metric: Metric,
) -> Preflight:
    """Check the task against the pool on one batch of ``member``. Raises TaskError for anything that does not fit."""
    model = task.build_model()
    renamed = check_fits(model, shapes, member)
    first = first_batch(task, "validation", engine)
    if _digest(first) != _digest(first_batch(task, "validation", engine)):
        raise TaskError(
            "validation() gave two different first batches when read twice. It must give the same examples in the same "
            "order every time: shuffle=False, no random augmentation."
        )
    by_index = indexed(task.batches("validation", engine.batch_size))
    if by_index is not None:
        check_by_index(by_index, "validation()")
    if task.test is not None:
        _check_apart(first, first_batch(task, "test", engine))
    for name in task.shift_sources():
        first_batch(task, f"shifts/{name}", engine)
    load_weights(model, load(), member)
    placed = engine.place(model)
    rows = Rows(metric, task.outputs)
    outputs = engine.outputs([placed], first, rows)[0]
    started = time.monotonic()
    again = engine.outputs([placed], first, rows)[0]
    seconds = time.monotonic() - started
    assert first.targets is not None
    check_finite(member, outputs, 0)
    differ = difference(outputs.numpy(), again.numpy(), tolerance(engine.precision))
    if differ is not None:
        where = origin(placed, lambda: engine.outputs([placed], first, rows))
        raise TaskError(
            f"the model is not deterministic: run twice on the first batch of validation(), {member} gave two "
            f"different outputs: {differ}. {where} Usual causes are dropout that is always on (F.dropout without "
            "training=self.training), noise or random augmentation in the model, and statistics that forward updates. "
            "In evaluation mode it must give the same outputs every time."
        )
    targets = rows.targets(first)
    metric.check_batch(targets, outputs.shape[1])
    metric.probe(outputs.numpy(), targets)
    layers = len(statistics_layers(model))
    notes = [] if renamed is None else [renamed]
    if layers and task.calibration is None:
        notes.append(
            f"the model has {layers} BatchNorm layers and the task no calibration(): their statistics are averaged, "
            "which is often worse than re-estimating them. Give calibration() with a few training batches."
        )
    return Preflight(outputs.numpy(), targets, seconds, layers, tuple(notes))


def first_batch(task: Task, split: str, engine: Device) -> Batch:
    """The first batch of a split. Raises TaskError when there is none, or when it has no targets."""
    for batch in rebatched(read(task.batches(split, engine.batch_size), f"{split}()"), engine.batch_size):
        if batch.targets is None:
            raise TaskError(f"{split}() gives inputs without targets: yield (inputs, targets)")
        return batch
    raise TaskError(f"{split}() gave no batches")


def _digest(batch: Batch) -> str:
    data = DataFingerprint()
    data.update(batch)
    return data.hexdigest()


def _check_apart(validation: Batch, test: Batch) -> None:
    """Raise TaskError when both start with the same examples: a test set that was chosen on says nothing."""
    shared = min(validation.size, test.size)
    heads = [next(iter(rebatched([batch], shared))) for batch in (validation, test)]
    if _digest(heads[0]) == _digest(heads[1]):
        raise TaskError(
            f"validation() and test() start with the same {shared} examples. The recipe is chosen on validation(), so "
            "test() must hold other examples; leave test() out if you have none."
        )
