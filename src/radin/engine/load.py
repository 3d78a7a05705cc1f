"""Put a checkpoint's tensors into the user's model, after checking by names and shapes alone that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from radin.errors import TaskError

_SHOWN = 5


def check_fits(model: torch.nn.Module, shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Raise TaskError when ``model`` cannot hold tensors of these names and shapes (from headers; nothing is read).

    A name may be missing when the model ties it to one that is there (safetensors files leave such names out).
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in wanted if name not in shapes and name not in _tied_names(model, shapes)]
    unexpected = [name for name in shapes if name not in wanted]
    wrong = [name for name in wanted if name in shapes and tuple(shapes[name]) != wanted[name]]
    if not (missing or unexpected or wrong):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of the model are not in the checkpoint: {_some(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} tensors of the checkpoint are not in the model: {_some(unexpected)}")
    if wrong:
        name = wrong[0]
        parts.append(
            f"{len(wrong)} shapes differ, first {name}: the model has {wanted[name]}, "
            f"the checkpoint {tuple(shapes[name])}"
        )
    raise TaskError(
        f"model() does not have the architecture of {where}: " + "; ".join(parts) + ". "
        "Make model() build the very network the checkpoints were saved from, its head included."
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _tied_names(model: torch.nn.Module, present: Mapping[str, object]) -> set[str]:
    """Names of the model's state that share memory with a name that is present."""
    state = model.state_dict(keep_vars=True)
    kept = {id(tensor) for name, tensor in state.items() if name in present}
    return {name for name, tensor in state.items() if name not in present and id(tensor) in kept}


def load_weights(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy ``tensors`` into ``model``. Raises TaskError, naming ``where`` they are from, when they do not fit."""
    check_fits(model, {name: tensor.shape for name, tensor in tensors.items()}, where)
    model.load_state_dict(dict(tensors), strict=False)
