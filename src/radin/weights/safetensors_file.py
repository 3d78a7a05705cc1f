"""Reading one .safetensors file through the safetensors library: its header alone, then tensors one by one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from radin.disks import is_network, read_part
from radin.errors import CheckpointError
from radin.files import open_regular, parse_json, told
from radin.weights.layout import DTYPES, Shape
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
    if is_network(path):
        return _describe_unmapped(path)
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
    return _stored(shapes, dtypes, metadata, starts)


def _stored(
    shapes: dict[str, Shape], dtypes: dict[str, torch.dtype], metadata: Mapping[str, str], starts: dict[str, int]
) -> Stored:
    aliases = {alias: kept for alias, kept in sorted(metadata.items()) if kept in shapes and alias not in shapes}
    for alias, kept in aliases.items():
        shapes[alias] = shapes[kept]
        dtypes[alias] = dtypes[kept]
    return Stored(shapes=shapes, dtypes=dtypes, aliases=aliases, starts=starts)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header as JSON, and the byte at which its tensors' numbers begin. Raises OSError, ValueError."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = parse_json(file.read(length).decode("utf-8"))
    return header, _LENGTH_BYTES + length


def _starts(path: Path) -> dict[str, int]:
    """The byte at which each tensor begins, of a header that the library has checked. Raises OSError."""
    header, start = _header(path)
    return {name: start + int(entry["data_offsets"][0]) for name, entry in header.items() if name != "__metadata__"}


def _describe_unmapped(path: Path) -> Stored:
    """As ``describe``, by radin's own checks of the header: the library would map the file."""
    shapes, dtypes, starts, end = {}, {}, {}, 0
    try:
        header, start = _header(path)
        size = path.stat().st_size - start
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are no strings")
        if len(header) > TENSORS:
            raise CheckpointError(f"{path}: holds more than {TENSORS:,} tensors")
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (begin, stop) = entry["shape"], entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)):
                raise ValueError(f"the shape or place of {name[:100]!r} is no whole numbers")
            shapes[name], dtypes[name] = tuple(shape), _dtype(path, name, entry["dtype"])
            if begin != end or stop - begin != math.prod(shape) * dtypes[name].itemsize:
                raise ValueError(f"the numbers of {name[:100]!r} are not where they should be")
            starts[name], end = start + begin, stop
        if end != size:
            raise ValueError(f"{end:,} bytes of numbers are promised, and {size:,} are there")
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(_damage(path, error)) from error
    return _stored({name: shapes[name] for name in sorted(shapes)}, dtypes, metadata, starts)


@contextmanager
def _unmapped(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """As ``tensors``, each read in order into memory of its own."""
    stored = describe(path)

    def read(name: str) -> Tensor:
        shape, dtype = stored.shapes[name], stored.dtypes[name]
        length = math.prod(shape) * dtype.itemsize
        if not length:
            return torch.empty(shape, dtype=dtype)
        try:
            with told(path, doing="read"):
                content = read_part(path, stored.starts[name], length)
        except ValueError as error:
            raise CheckpointError(_damage(path, error)) from error
        return torch.frombuffer(content, dtype=dtype).reshape(shape)

    yield read


@contextmanager
def tensors(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """A function from stored name to memory-mapped tensor, on a network's disk read; good until the context closes."""
    if is_network(path):
        with _unmapped(path) as read:
            yield read
        return
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
        if is_network(path):
            found = _header(path)[0].get("__metadata__", {})
            return {str(name): str(text) for name, text in found.items()}
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
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
