"""BatchNorm statistics after averaging: the averaged weights see other activations than any member did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from radin.data.batches import Batch, to_device
from radin.engine.forward import forward, memory_errors


def statistics_layers(model: torch.nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the running statistics, name in the state -> buffer on the CPU."""
    layers = set(statistics_layers(model))
    return {
        f"{name}.{buffer}" if name else buffer: value.detach().cpu().clone()
        for name, layer in model.named_modules()
        if layer in layers
        for buffer, value in layer.named_buffers(recurse=False)
    }


@torch.no_grad()
def restore(model: torch.nn.Module, kept: Mapping[str, torch.Tensor]) -> None:
    """Put running statistics back that ``statistics`` has copied."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name, value in kept.items():
        buffers[name].copy_(value)


@torch.no_grad()
def reestimate(model: torch.nn.Module, batches: Iterable[Batch], device: torch.device) -> int:
    """Reset the running statistics and set them to the cumulative mean over ``batches``; returns the examples seen.

    Only the BatchNorm layers are put in training mode: dropout stays off. Changes ``model`` in place and leaves it
    in evaluation mode. As torch.optim.swa_utils.update_bn, but for dropout (Izmailov et al. 2018, section 3.1).
    """
    layers = statistics_layers(model)
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    examples = 0
    try:
        for batch in batches:
            with memory_errors(batch.size):
                inputs = to_device(batch.inputs, device)
            forward(model, inputs)
            examples += batch.size
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()
    return examples
