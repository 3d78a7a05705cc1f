"""Put a checkpoint's tensors into the user's model, after checking by names and shapes alone that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from radin.errors import TaskError
from radin.weights.matching import renamings

_SHOWN = 5


def check_fits(model: torch.nn.Module, shapes: Mapping[str, Sequence[int]], where: str) -> str | None:
    """Raise TaskError when ``model`` cannot hold tensors of these names and shapes (from headers; nothing is read).

    A name may be missing when the model ties it to one that is there (safetensors files leave such names out). Where
    all names fit but for a wrapper's prefix, they do; returned is a note that says so, else None.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    misfits = _misfits(model, wanted, shapes)
    if misfits is None:
        return None
    found = _renamed(model, wanted, shapes)
    if found is not None:
        return f"the model's names differ from those of {where}: {found[0]} all {len(shapes)} names of the checkpoints"
    missing, unexpected, wrong = misfits
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


def _misfits(
    model: torch.nn.Module, wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Sequence[int]]
) -> tuple[list[str], list[str], list[str]] | None:
    """Names that are missing, unexpected, and of another shape; None where all fit."""
    missing = [name for name in wanted if name not in shapes]
    if missing:
        tied = _tied_names(model, shapes)
        missing = [name for name in missing if name not in tied]
    unexpected = [name for name in shapes if name not in wanted]
    wrong = [name for name in wanted if name in shapes and tuple(shapes[name]) != wanted[name]]
    return (missing, unexpected, wrong) if missing or unexpected or wrong else None


def _renamed(
    model: torch.nn.Module, wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Sequence[int]]
) -> tuple[str, dict[str, str]] | None:
    """How all names come to fit the model: what to say, and {name: name in the model}."""
    for how, names in renamings(tuple(shapes), tuple(wanted)):
        if _misfits(model, wanted, {names[name]: shape for name, shape in shapes.items()}) is None:
            return how, names
    return None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _tied_names(model: torch.nn.Module, present: Mapping[str, object]) -> set[str]:
    """Names of the model's state that share memory with a name that is present."""
    state = model.state_dict(keep_vars=True)
    kept = {id(tensor) for name, tensor in state.items() if name in present}
    return {name for name, tensor in state.items() if name not in present and id(tensor) in kept}


def load_weights(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, str]:
    """Copy ``tensors`` into ``model``; returns {name in the model: name of the tensor} where they differ.

    Raises TaskError, naming ``where`` they are from, when they do not fit.
    """
    called = names_in(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
    names = {name: own for own, name in called.items()}
    model.load_state_dict({names.get(name, name): tensor for name, tensor in tensors.items()}, strict=False)
    return called


def names_in(model: torch.nn.Module, shapes: Mapping[str, Sequence[int]], where: str) -> dict[str, str]:
    """{name in the model: name among ``shapes``} where they differ. Raises TaskError as ``check_fits`` does."""
    if check_fits(model, shapes, where) is None:
        return {}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = _renamed(model, wanted, shapes)
    assert found is not None
    return {own: name for name, own in found[1].items()}
