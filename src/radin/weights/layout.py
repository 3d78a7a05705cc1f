"""Names, shapes and dtypes of tensors, and how to walk over them in chunks of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["float", "complex", "int", "bool"]
Shape = tuple[int, ...]

# What safetensors headers call the dtypes. The values are also the only dtypes that radin accepts from any file.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "C128": torch.complex128,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


# Elements of a tensor that are read, hashed and added at once. So many that each of these steps, which other threads
# run beside, takes far longer than handing the interpreter from one to the other: with a sixteenth of it two threads
# are slower than one. Fingerprints depend on it.
LEAF = 1 << 19


def kind(dtype: torch.dtype) -> Kind:
    """What may be done with values of this dtype: floats and complex are averaged, int and bool copied."""
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "float"
    return "bool" if dtype == torch.bool else "int"


def is_averaged(dtype: torch.dtype) -> bool:
    """Whether a soup averages tensors of this dtype (True) or copies them from one member (False)."""
    return kind(dtype) in ("float", "complex")


def short(dtype: torch.dtype) -> str:
    """The dtype's name without the leading "torch."."""
    return str(dtype).removeprefix("torch.")


def promote(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds all of these; torch defines none for float8, which bfloat16 contains."""
    distinct = sorted(set(dtypes), key=str)
    result = distinct[0]
    for dtype in distinct[1:]:
        result = torch.promote_types(_widened(result), _widened(dtype))
    return result


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype.is_floating_point and dtype.itemsize == 1 else dtype


def find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tied tensors, as {alias: kept name}: same memory, dtype, shape and strides. The first name in order is kept."""
    kept: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.numel() == 0:  # all empty tensors have the same address
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place in kept:
            aliases[name] = kept[place]
        else:
            kept[place] = name
    return aliases


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` to ``stop`` of the flattened tensor ``name``."""

    name: str
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of ``tensor`` as a flat tensor of its dtype."""
        return tensor.reshape(-1)[self.start : self.stop]


def leaves(sizes: Mapping[str, int], at_least: int = LEAF) -> Iterator[tuple[Piece, ...]]:
    """All elements of tensors with these element counts, each cut every LEAF elements, in groups of ``at_least``."""
    group: list[Piece] = []
    held = 0
    for name, size in sizes.items():
        for start in range(0, size, LEAF):
            piece = Piece(name, start, min(size, start + LEAF))
            group.append(piece)
            held += piece.stop - piece.start
            if held >= at_least:
                yield tuple(group)
                group, held = [], 0
    if group:
        yield tuple(group)


def chunks(sizes: Mapping[str, int], limit: int) -> Iterator[tuple[Piece, ...]]:
    """All elements of tensors with these element counts, in groups of at most ``limit`` elements: see ``regroup``."""
    return regroup((Piece(name, 0, size) for name, size in sizes.items()), limit)


def regroup(pieces: Iterable[Piece], limit: int) -> Iterator[tuple[Piece, ...]]:
    """The same elements in the same order, in groups of at most ``limit``; empty pieces are dropped.

    A piece larger than what is left of a group is split, so that one huge embedding costs no more memory than many
    small tensors.
    """
    group: list[Piece] = []
    room = limit
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            group.append(Piece(piece.name, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield tuple(group)
                group, room = [], limit
    if group:
        yield tuple(group)


def blocks(flat: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """The flat tensor in blocks of ``size`` elements that fit the processor's cache, each with its offset."""
    for start in range(0, len(flat), size):
        yield start, flat[start : start + size]


def reals(flat: Tensor) -> Tensor:
    """A flat tensor's real numbers: itself, or the (real, imaginary) pairs of complex numbers laid out flat."""
    return torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat


def count(shape: Shape) -> int:
    """How many elements a tensor of this shape has."""
    return math.prod(shape)
