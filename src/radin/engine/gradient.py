"""The gradient of an objective with respect to a model's weights, over some examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from radin import objectives
from radin.data.batches import Batch, rows_between, to_device
from radin.data.task import user_code
from radin.engine.device import Device
from radin.engine.forward import OutOfMemoryError, memory_errors
from radin.engine.rows import Rows
from radin.errors import TaskError

_WORK = "gradients"


def accumulated(
    model: torch.nn.Module,
    device: Device,
    rows: Rows,
    objective: str,
    batches: Callable[[], Iterable[Batch]],
    progress: Callable[[int], None] | None = None,
) -> float:
    """The objective over all batches, by examples; each parameter's ``grad`` is then its derivative, or None.

    BatchNorm layers use the statistics of each batch, and change nothing they keep; dropout is off. A batch of one
    example, which has no such statistics, is left out where there are such layers. ``batches()`` reads the examples;
    again, in smaller batches, where one does not fit in memory. ``progress(examples done)``. NaN where outputs are not
    finite; then gradients mean nothing. Raises TaskError where nothing can be differentiated.
    """
    with _learning(model) as least:
        while True:
            try:
                found = _sweep(model, device, rows, objective, batches(), least, progress)
                device.fitted(_WORK)
                return found
            except OutOfMemoryError as error:
                failed = error.examples
            model.zero_grad(set_to_none=True)
            device.halve(failed, _WORK)


def _sweep(
    model: torch.nn.Module,
    device: Device,
    rows: Rows,
    objective: str,
    batches: Iterable[Batch],
    least: int,
    progress: Callable[[int], None] | None,
) -> float:
    total, examples, done = 0.0, 0, 0
    for batch in batches:
        for part in _parts(batch, device.fitting(_WORK)):
            done += part.size
            if part.size < least:
                continue
            found = _objective(model, device, rows, objective, part)
            total += found * part.size
            examples += part.size
            if progress:
                progress(done)
    if not examples:
        raise TaskError("no gradient can be had: every batch is of one example, and BatchNorm needs several")
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(examples)
    return total / examples


def _objective(model: torch.nn.Module, device: Device, rows: Rows, objective: str, batch: Batch) -> float:
    """The objective on one batch; its gradient, times the batch's examples, is added to that of the parameters."""
    # In float16 a gradient would be rounded to nothing.
    dtype = torch.bfloat16 if device.precision == "bfloat16" else None
    with torch.enable_grad(), memory_errors(batch.size):
        inputs = to_device(batch.inputs, device.device)
        with torch.autocast(device.device.type, dtype) if dtype else nullcontext():
            outputs = rows.outputs(model, inputs, batch)
        if not outputs.requires_grad:
            raise TaskError(
                "no gradient can be had of this model's outputs: outputs() or forward() works under torch.no_grad, or "
                "detaches. Let it give outputs with their graph, or choose a strategy that learns no ratios"
            )
        targets = torch.from_numpy(rows.targets(batch)).to(outputs.device)
        found = objectives.value(objective, rows.metric, outputs, targets)
        with user_code("the model's backward pass"):
            (found * batch.size).backward()
    return float(found.detach())


@contextmanager
def _learning(model: torch.nn.Module) -> Iterator[int]:
    """Gradients by all weights, BatchNorm on each batch's statistics; afterwards as before. Gives the least batch."""
    parameters = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
    before = [parameter.requires_grad for parameter in parameters]
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    tracked = [layer.track_running_stats for layer in layers]
    model.eval()
    model.zero_grad(set_to_none=True)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for layer in layers:
        layer.track_running_stats = False  # what it keeps stays as it is
        layer.train()
    try:
        yield 2 if layers else 1
    finally:
        for parameter, needs in zip(parameters, before, strict=True):
            parameter.requires_grad_(needs)
        for layer, tracks in zip(layers, tracked, strict=True):
            layer.track_running_stats = tracks
        model.eval()


def _parts(batch: Batch, size: int | None) -> Iterator[Batch]:
    step = size or batch.size
    for start in range(0, batch.size, step):
        yield rows_between(batch, start, min(start + step, batch.size))
