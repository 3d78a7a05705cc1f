"""Reading one .safetensors file through the safetensors library: its header alone, then tensors one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from radin.errors import CheckpointError
from radin.files import open_regular, parse_json, told
from radin.weights.layout import DTYPES
from radin.weights.limits import HEADER_BYTES, TENSORS
from radin.weights.stored import Stored

_EXPLAINED_BYTES = 2**20  # a damaged header up to this size is read again to say what is wrong with it
_QUOTED = 300  # characters of what the library says
_LENGTH_BYTES = 8  # a safetensors file starts with its header's length, little endian


def describe(path: Path) -> Stored:
    """What the header says: names, shapes, dtypes and tied tensors. Raises CheckpointError for a damaged file."""
    _check_header(path)
    shapes = {}
    dtypes = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > TENSORS:
                raise CheckpointError(f"{path}: holds more than {TENSORS:,} tensors")
            for name in names:
                entry = file.get_slice(name)
                shapes[name] = tuple(entry.get_shape())
                dtypes[name] = _dtype(path, name, entry.get_dtype())
            metadata = file.metadata() or {}
        starts = _starts(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damage(path, error)) from error
    aliases = {alias: kept for alias, kept in sorted(metadata.items()) if kept in shapes and alias not in shapes}
    for alias, kept in aliases.items():
        shapes[alias] = shapes[kept]
        dtypes[alias] = dtypes[kept]
    return Stored(shapes=shapes, dtypes=dtypes, aliases=aliases, starts=starts)


def _starts(path: Path) -> dict[str, int]:
    """The byte at which each tensor begins, of a header that the library has checked. Raises OSError."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = parse_json(file.read(length).decode("utf-8"))
    return {
        name: _LENGTH_BYTES + length + int(entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


@contextmanager
def tensors(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """A function from stored name to memory-mapped tensor, good until the context closes."""
    try:
        with ExitStack() as stack:
            with told(path, doing="read"):
                file = stack.enter_context(safe_open(path, framework="pt"))
            yield file.get_tensor
    except SafetensorError as error:
        raise CheckpointError(_damage(path, error)) from error


def metadata(path: Path) -> dict[str, str]:
    """The file's metadata strings. Raises CheckpointError for a damaged file."""
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damage(path, error)) from error


def _dtype(path: Path, name: str, stored: object) -> torch.dtype:
    if str(stored) not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} is stored as {stored}, which cannot be averaged; "
            f"known dtypes: {', '.join(DTYPES)}"
        )
    return DTYPES[str(stored)]


def _check_header(path: Path) -> None:
    """Refuse what is no regular file, and a header larger than any checkpoint's, before the library reads it."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if HEADER_BYTES < length <= size:
        raise CheckpointError(
            f"{path}: not a safetensors file, or damaged: its header has {length:,} bytes; at most {HEADER_BYTES:,} "
            "are read"
        )


def _damage(path: Path, error: Exception) -> str:
    """One sentence on what is wrong with a file that the library would not read."""
    reason = str(error)[:_QUOTED]  # it quotes the file
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_LENGTH_BYTES)
            promised = int.from_bytes(start, "little") + _LENGTH_BYTES
            if promised <= min(size, _EXPLAINED_BYTES):
                promised += _promised(file.read(promised - _LENGTH_BYTES))
    except OSError as problem:
        return f"{path}: cannot be read: {problem.strerror}"
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
        return f"{path}: not a safetensors file, or damaged: {reason}"
    if size < promised:
        return (
            f"{path}: truncated or not a safetensors file: it has {size:,} bytes, its header expects "
            f"{promised:,}. Copy or download it again."
        )
    return f"{path}: not a safetensors file, or damaged: {reason}"


def _promised(header: bytes) -> int:
    """Bytes of numbers that a header promises. Raises a LookupError, TypeError, AttributeError or ValueError."""
    entries = parse_json(header.decode("utf-8"))
    return max((int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"), default=0)
