"""Reading one .pt, .pth, .ckpt or .bin file with torch.load, never running code from it."""

from __future__ import annotations

import argparse
import pickle
import re
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.weights.layout import DTYPES, find_aliases, short
from radin.weights.stored import LIGHTNING_WRAPPERS, WRAPPERS, Stored

# Where training scripts put the weights, in order of preference. Like timm, the moving average comes first.
NESTED_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
_EMA_KEYS = NESTED_KEYS[:2]

# torch keeps its list of allowed types in one global; entering and leaving it from two threads would race.
_ALLOWED_TYPES = threading.Lock()


def describe(path: Path, key: str | None) -> Stored:
    """What the file holds, with tensors nested under ``key`` or one of NESTED_KEYS taken out.

    Raises CheckpointError for a damaged file, one that would run code, or one without tensors.
    """
    _refuse_torchscript(path)
    outer = _load(path)
    found, notes = _state_dict(path, outer, key)
    for name, tensor in found.items():
        _check_plain(path, name, tensor)
    mapped = _is_zip(path)
    if not mapped:
        notes += ("legacy torch format, read whole at every use; saving it again with torch.save makes it faster",)
    is_lightning = isinstance(outer, Mapping) and "pytorch-lightning_version" in outer
    return Stored(
        shapes={name: tuple(tensor.shape) for name, tensor in found.items()},
        dtypes={name: tensor.dtype for name, tensor in found.items()},
        aliases=find_aliases(found),
        notes=notes,
        wrappers=LIGHTNING_WRAPPERS if is_lightning else WRAPPERS,
        mapped=mapped,
    )


@contextmanager
def tensors(path: Path, key: str | None) -> Iterator[Callable[[str], Tensor]]:
    """A function from stored name to tensor, memory-mapped where the format allows, good inside the context."""
    found, _ = _state_dict(path, _load(path), key)
    try:
        yield found.__getitem__
    finally:
        found.clear()


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _load(path: Path) -> Any:
    """The unpickled file, plain data only. argparse.Namespace is let through: timm and others save their options."""
    try:
        with (
            _ALLOWED_TYPES,
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore", category=UserWarning),  # what they foretell is raised as an error
        ):
            return torch.load(path, weights_only=True, map_location="cpu", mmap=_is_zip(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises EOFError, RuntimeError, KeyError, ValueError... for damaged files
        reason = str(error).split(". ")[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: truncated, damaged or not saved by torch.save ({reason}). Copy or download it again."
        ) from error


def _refusal(path: Path, message: str) -> str:
    names = _unsafe_names(path) or re.findall(r"GLOBAL (\S+)", message)
    if not names:
        reason = message.strip().splitlines()[0]
        details = re.search(r"\n\n(?:WeightsUnpickler error: )?(.+?)\n", message)
        return (
            f"{path}: damaged or not saved by torch.save; cannot be read as plain tensors "
            f"({details.group(1) if details else reason})"
        )
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"{path}: refused, because it holds {shown}, which is not plain tensor data: loading it would run code "
        "from the file. If you trust its source, load it yourself with torch.load(path, weights_only=False) and "
        "save the state_dict alone: safetensors.torch.save_file(state_dict, 'model.safetensors')."
    )


def _unsafe_names(path: Path) -> list[str]:
    """The globals that torch refuses, listed without running them; known for the zip format only."""
    if not _is_zip(path):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the file is refused either way; this only improves the message
        return []


def _refuse_torchscript(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return  # torch.load has the better message
    if scripted:
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds code. If you trust it, save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), 'model.pt')."
        )


def _state_dict(path: Path, outer: Any, key: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors among ``outer`` or its nested dicts, and notes on what was taken."""
    if not isinstance(outer, Mapping):
        raise CheckpointError(f"{path}: expected a dict of tensors; the file holds a {type(outer).__name__}")
    nested = [name for name, value in outer.items() if isinstance(name, str) and _holds_tensors(value)]
    chosen = _chosen(nested, key)
    if key is not None and key not in nested:
        raise CheckpointError(
            f"{path}: no state dict under the key {key!r}; "
            + (f"keys that hold tensors: {', '.join(nested)}" if nested else "no key holds one")
        )
    inner = outer if chosen is None else outer[chosen]
    found = {
        name: value.detach() for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not found:
        hint = f"; choose one with key: {', '.join(nested)}" if nested else ""
        raise CheckpointError(f"{path}: holds no tensors at its top level or under {NESTED_KEYS}{hint}")
    return found, _notes(chosen, key, inner, found)


def rewrapped(path: Path, key: str | None, tensors: Mapping[str, Tensor]) -> Any:
    """What the file holds, for torch.save, with ``tensors`` (by name as stored) in the place of its weights.

    Other entries with tensors in them (an optimizer's state, a moving average) are left out: none of them would be true
    of the new weights.
    """
    outer = _load(path)
    nested = [name for name, value in outer.items() if isinstance(name, str) and _holds_tensors(value)]
    chosen = _chosen(nested, key)
    inner = outer if chosen is None else outer[chosen]
    weights = OrderedDict(
        (name, tensors.get(name, value)) for name, value in inner.items() if name in tensors or not _any_tensor(value)
    )
    if hasattr(inner, "_metadata"):  # the versions of a module's own layout, which load_state_dict asks for
        vars(weights)["_metadata"] = inner._metadata
    if chosen is None:
        return weights
    return {
        name: weights if name == chosen else value
        for name, value in outer.items()
        if name == chosen or not _any_tensor(value)
    }


def _any_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_any_tensor(entry) for entry in value.values())
    return isinstance(value, Tensor) or (isinstance(value, list | tuple | set) and any(map(_any_tensor, value)))


def _chosen(nested: list[str], key: str | None) -> str | None:
    """The entry that holds the weights; None: they are not nested."""
    return next((name for name in NESTED_KEYS if name in nested), None) if key is None else key


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _notes(
    chosen: str | None, key: str | None, inner: Mapping[Any, Any], found: Mapping[str, Tensor]
) -> tuple[str, ...]:
    notes = []
    if chosen is not None:
        preferred = chosen in _EMA_KEYS and key is None
        notes.append(f"took {chosen}" + (" (the moving average, preferred where there is one)" if preferred else ""))
    left = sorted(str(name) for name in inner if name not in found)
    if left:
        shown = ", ".join(left[:5]) + ("..." if len(left) > 5 else "")
        notes.append(f"left out {len(left)} entries that are not tensors: {shown}")
    return tuple(notes)


def _check_plain(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "quantized" if tensor.is_quantized else "without data" if tensor.is_meta else str(tensor.layout)
        raise CheckpointError(f"{path}: tensor {name!r} is {what}; only dense tensors can be averaged")
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(
            f"{path}: tensor {name!r} is {short(tensor.dtype)}, which cannot be averaged; "
            f"known dtypes: {', '.join(short(dtype) for dtype in DTYPES.values())}"
        )
