"""From what a torch file says of its tensors to their numbers: where these lie, which are shared, and reading them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.disks import Unmapped
from radin.errors import CheckpointError
from radin.weights.archive import Entry, unpacked
from radin.weights.described import Described, Odd, Storage
from radin.weights.layout import DTYPES, count, short
from radin.weights.limits import EXPANDED_BYTES, EXPANSION, VIEWS
from radin.weights.stored import Place
from radin.weights.torch_content import Content


def plain(path: Path, found: Mapping[str, Described | Odd]) -> dict[str, Described]:
    """The same, all of them dense tensors of a dtype that can be averaged."""
    plain = {}
    for name, tensor in found.items():
        if isinstance(tensor, Odd):
            raise CheckpointError(f"{path}: tensor {name[:100]!r} is {tensor.what}; only dense tensors can be averaged")
        if tensor.dtype not in DTYPES.values():
            raise CheckpointError(
                f"{path}: tensor {name[:100]!r} is {short(tensor.dtype)}, which cannot be averaged; "
                f"known dtypes: {', '.join(short(dtype) for dtype in DTYPES.values())}"
            )
        plain[name] = tensor
    return plain


def places_of(path: Path, tensors: Mapping[str, Described], content: Content) -> dict[str, Place]:
    """Where each tensor's numbers are. Raises ValueError unless all of them are there."""
    located: dict[Storage, tuple[int, Entry | None]] = {}
    expanded = 0
    for tensor in tensors.values():
        if tensor.storage not in located:
            entry = (located.setdefault(tensor.storage, content.locate(tensor.storage)))[1]
            if entry is not None and not entry.stored:
                expanded += entry.size
    if expanded > max(4 * EXPANDED_BYTES, EXPANSION * path.stat().st_size):
        raise ValueError(f"{expanded:,} bytes of numbers are compressed in it")
    places = {}
    for name, tensor in tensors.items():
        elements = _stretch(tensor.storage) // tensor.dtype.itemsize
        if count(tensor.size) and max(count(tensor.size), tensor.offset + _span(tensor)) > elements:
            raise CheckpointError(
                f"{path}: tensor {name[:100]!r} of shape {tensor.size} needs more than the {elements:,} values that "
                "are stored for it: an expanded view, or a damaged file. Save it with tensor.clone()."
            )
        places[name] = Place(*located[tensor.storage], tensor)
    return places


def starts_of(places: Mapping[str, Place]) -> dict[str, int]:
    """The byte at which each tensor begins whose elements are in the file as they are, in order."""
    return {
        name: place.start + place.tensor.offset * place.tensor.dtype.itemsize
        for name, place in places.items()
        if (place.entry is None or place.entry.stored)
        and not (place.tensor.conj or place.tensor.neg)
        and _is_contiguous(place.tensor)
    }


def _is_contiguous(tensor: Described) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.size), reversed(tensor.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _stretch(storage: Storage) -> int:
    """Bytes of a storage, or of that view of it."""
    return storage.nbytes if storage.view is None else storage.view[1] * storage.dtype.itemsize


def _span(tensor: Described) -> int:
    """Elements from the first to the last of a tensor that has any."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True))


def aliases_of(tensors: Mapping[str, Described]) -> dict[str, str]:
    """Tied tensors, as {alias: kept name}: the same elements of the same storage. The first name in order is kept."""
    kept: dict[object, str] = {}
    aliases = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if count(tensor.size) == 0:
            continue
        elements = (tensor.storage, tensor.offset, tensor.dtype, tensor.size, tensor.stride, tensor.conj, tensor.neg)
        if kept.setdefault(elements, name) != name:
            aliases[name] = kept[elements]
    return aliases


def refuse_views(path: Path, tensors: Mapping[str, Described], aliases: Mapping[str, str]) -> None:
    """Refuse many large views of one storage: a small file would take as long to read as a huge one."""
    bytes_of: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name in aliases:
            continue
        key = tensor.storage.key
        bytes_of[key] = bytes_of.get(key, 0) + count(tensor.size) * tensor.dtype.itemsize
        if bytes_of[key] > VIEWS * tensor.storage.nbytes:
            raise CheckpointError(
                f"{path}: its tensors are views of each other, with {VIEWS} times what is stored and more "
                f"({name[:100]!r} and others). Save them with tensor.clone()."
            )


def read_tensor(content: Any, place: Place) -> Tensor:
    """A tensor, mapped where the file is and its numbers are there as they are, and as the processor wants them."""
    tensor, size = place.tensor, place.tensor.dtype.itemsize
    if count(tensor.size) == 0:
        return torch.empty(tensor.size, dtype=tensor.dtype)
    at, bytes_ = tensor.offset * size, _span(tensor) * size
    source: Any = content
    if place.entry is not None and not place.entry.stored:
        source = bytearray(unpacked(content, place.start, place.entry))
    elif isinstance(content, Unmapped) or (place.start + at) % size:
        source, at = _writable(content[place.start + at : place.start + at + bytes_]), 0
    else:
        at += place.start
    flat = torch.frombuffer(source, dtype=tensor.dtype, count=bytes_ // size, offset=at)
    found = flat.as_strided(tensor.size, tensor.stride)
    found = found.conj().resolve_conj() if tensor.conj else found
    return torch.neg(found) if tensor.neg else found


def _writable(content: bytes | bytearray | memoryview) -> bytearray:
    """The same bytes, as memory that torch may write to."""
    return content if isinstance(content, bytearray) else bytearray(content)
