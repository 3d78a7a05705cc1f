"""Which of a torch file's entries are the weights: at its top, or in a dict where training scripts put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from radin.errors import CheckpointError, NoWeightsError
from radin.weights.described import Described, Odd, Quantized, Unknown, holders
from radin.weights.torch_content import Content

# Where training scripts put the weights, in order of preference. Like timm, the moving average comes first.
NESTED_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
_EMA_KEYS = NESTED_KEYS[:2]

# Running averages that are no better weights: icefall's begins with training, to be subtracted from a later one's.
_AVERAGES = ("model_avg",)

_EXTRA_STATE = "_extra_state"  # how torch.nn.Module names what a layer keeps beside its tensors


def state_dict(path: Path, content: Content, key: str | None) -> tuple[dict[str, Described | Odd], tuple[str, ...]]:
    """The tensors among a file's content or its nested dicts, and notes on what was taken."""
    outer = content.value
    if isinstance(outer, Unknown):
        _refuse(path, content.unsafe)
    if not isinstance(outer, Mapping):
        raise NoWeightsError(f"{path}: expected a dict of tensors; the file holds a {type(outer).__name__}")
    nested = nested_in(outer)
    chosen = chosen_of(nested, key)
    listed = ", ".join(name[:100] for name in nested[:20])
    if key is not None and key not in nested:
        if isinstance(outer.get(key), Unknown):
            _refuse(path, content.unsafe)
        raise CheckpointError(
            f"{path}: no state dict under the key {key!r}; "
            + (f"keys that hold tensors: {listed}" if nested else "no key holds one")
        )
    inner = outer if chosen is None else outer[chosen]
    found = {
        name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Described | Odd)
    }
    # What a layer keeps beside its tensors is left out whatever it is; any other entry may be weights.
    found = {
        name: value
        for name, value in found.items()
        if not (isinstance(value, Unknown) and name.rpartition(".")[2] == _EXTRA_STATE)
    }
    others = {name: value for name, value in inner.items() if name not in found}
    groups = {name: value for name, value in others.items() if isinstance(value, list | tuple | set)}
    if any(isinstance(value, Unknown) for value in found.values()) or holders(groups, Unknown):
        _refuse(path, content.unsafe)
    _refuse_packed(path, others)
    if not found:
        if content.unsafe and any(isinstance(outer.get(name), Unknown) for name in (*NESTED_KEYS, "net", "network")):
            _refuse(path, content.unsafe)
        hint = f"; choose one with key: {listed}" if nested else ""
        raise NoWeightsError(f"{path}: holds no tensors at its top level or under {NESTED_KEYS}{hint}")
    notes = _notes(chosen, key, inner, found)
    averages = [name for name in _AVERAGES if name in nested and name != chosen]
    if averages:
        notes += (f"left out {averages[0]}, an average over all of training; key {averages[0]} takes it",)
    if content.unsafe:
        notes += (f"names {_shown(content.unsafe)} beside its weights: not data, so it was neither run nor kept",)
    return found, notes


def nested_in(outer: Mapping[Any, Any]) -> list[str]:
    """The entries that are dicts of tensors."""
    known: dict[int, bool] = {}  # the same dict may be there under many names
    for value in outer.values():
        if id(value) not in known:
            known[id(value)] = isinstance(value, Mapping) and any(
                isinstance(entry, Described | Odd) for entry in value.values()
            )
    return [name for name, value in outer.items() if isinstance(name, str) and known[id(value)]]


def chosen_of(nested: list[str], key: str | None) -> str | None:
    """The entry that holds the weights; None: they are not nested."""
    return next((name for name in NESTED_KEYS if name in nested), None) if key is None else key


def _refuse_packed(path: Path, others: Mapping[Any, Any]) -> None:
    """Refuse weights that are not tensors of their own: torch.ao keeps a layer's, quantized, packed in a tuple.

    Left out, the rest would be averaged, and the soup's weights would be nobody's. ``others``: what is beside the
    tensors. Dicts of other tensors are let be: an optimizer's state, a layer's extra state.
    """
    groups = {name: value for name, value in others.items() if isinstance(value, list | tuple | set)}
    packed = holders(groups, Described | Odd) | holders(others, Quantized)
    names = sorted(str(name)[:100] for name in packed)
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise CheckpointError(
            f"{path}: its weights are packed or quantized ({shown}), and cannot be averaged. Average the checkpoints "
            "from before quantization, then quantize the soup."
        )


def _notes(
    chosen: str | None, key: str | None, inner: Mapping[Any, Any], found: Mapping[str, object]
) -> tuple[str, ...]:
    notes = []
    if chosen is not None:
        preferred = chosen in _EMA_KEYS and key is None
        notes.append(f"took {chosen}" + (" (the moving average, preferred where there is one)" if preferred else ""))
    left = sorted(str(name)[:100] for name in inner if name not in found)
    if left:
        shown = ", ".join(left[:5]) + ("..." if len(left) > 5 else "")
        notes.append(f"left out {len(left)} entries that are not tensors: {shown}")
    return tuple(notes)


def _refuse(path: Path, names: Sequence[str]) -> NoReturn:
    """Refuse weights that only code could make, by the names of it."""
    raise CheckpointError(
        f"{path}: refused, because it holds {_shown(names)}, which is not plain tensor data: loading it would run code "
        "from the file. If you trust its source, load it yourself with torch.load(path, weights_only=False) and "
        "save the state_dict alone: safetensors.torch.save_file(state_dict, 'model.safetensors')."
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name[:100] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
