"""One pass over a checkpoint's content: its fingerprint, and whether all its floats are finite.

A tensor is hashed in leaves of LEAF elements, and those hashes together: so threads can share a tensor, and read it in
any order. BLAKE3 is several times as fast as SHA-256 with the instructions that processors have for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from blake3 import blake3
from torch import Tensor

from radin.errors import CheckpointError
from radin.weights.formats import Checkpoint
from radin.weights.layout import LEAF, Piece, count, is_averaged, leaves, reals, short
from radin.weights.raw import Buffer, RawFiles

VERSION = "radin content 2"
_DIGEST = 32  # bytes
_CHUNK = 1 << 24  # elements read before a mapped file is closed and opened again, which lets go of its pages


@dataclass(frozen=True)
class Content:
    """What one pass over a checkpoint finds.

    fingerprint: of all of it. not_finite: (tensor, how many of its values are NaN or infinite). copied: (tensor, its
    hash) for those of more than one value that a soup would copy from one member, integers and bools.
    """

    fingerprint: str
    not_finite: tuple[tuple[str, int], ...] = ()
    copied: tuple[tuple[str, str], ...] = ()


class Digests:
    """What is found of one checkpoint's content, leaf by leaf, in any order and by several threads."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.sizes = {name: count(shape) for name, shape in checkpoint.shapes.items() if name not in checkpoint.aliases}
        self._leaves = {name: bytearray(_DIGEST * -(-size // LEAF)) for name, size in self.sizes.items()}
        self._not_finite: Counter[tuple[str, int]] = Counter()

    def add(self, piece: Piece, leaf: Tensor, *, check: bool = True) -> None:
        """A leaf of a tensor, flat and contiguous; unless ``check``, somebody else makes sure that it is finite."""
        at = piece.start // LEAF * _DIGEST
        self._leaves[piece.name][at : at + _DIGEST] = blake3(leaf.view(torch.uint8).numpy().data).digest()
        if check:
            self.check(piece, leaf)

    def check(self, piece: Piece, leaf: Tensor) -> None:
        """Count the values of a leaf that are not finite."""
        if is_averaged(leaf.dtype) and (bad := not_finite(leaf)):
            self._not_finite[piece.name, piece.start] = bad

    def content(self) -> Content:
        """What was found, when all leaves were added."""
        checkpoint = self.checkpoint
        hashes = {name: blake3(leaves).hexdigest() for name, leaves in self._leaves.items()}
        total = blake3(VERSION.encode())
        for name, shape in checkpoint.shapes.items():
            digest = hashes[checkpoint.aliases.get(name, name)]
            total.update(json.dumps([name, short(checkpoint.dtypes[name]), shape, digest]).encode())
        bad: Counter[str] = Counter()
        for (name, _), number in self._not_finite.items():
            bad[name] += number
        return Content(
            total.hexdigest(),
            tuple((name, bad[name]) for name in self.sizes if bad[name]),
            tuple(
                (name, hashes[checkpoint.aliases.get(name, name)])
                for name, shape in checkpoint.shapes.items()
                if count(shape) > 1 and not is_averaged(checkpoint.dtypes[name])
            ),
        )


def fingerprint(checkpoint: Checkpoint, report: Callable[[int], None] | None = None) -> str:
    """A hash (hex) over every name with its dtype, shape and bytes; the same whatever the file format.

    Wrapper prefixes, nesting, shards and metadata do not count, nor does it matter whether equal tensors are tied.
    ``report`` is told the bytes read since it was last called. Raises CheckpointError when a float is NaN or infinite.
    """
    found = examine(checkpoint, report)
    require_finite(checkpoint, found)
    return found.fingerprint


def examine(checkpoint: Checkpoint, report: Callable[[int], None] | None = None) -> Content:
    """The same as a value, without refusing anything: one pass over the content."""
    digests = Digests(checkpoint)

    def add(piece: Piece, leaf: Tensor) -> None:
        digests.add(piece, leaf)
        if report is not None:
            report(leaf.numel() * leaf.dtype.itemsize)

    stretches = {name: stretch for name in digests.sizes if (stretch := checkpoint.stretch(name)) is not None}
    in_order = sorted(stretches, key=lambda name: (stretches[name].path, stretches[name].start))
    with RawFiles() as files:
        buffer = Buffer(files)
        for group in leaves({name: digests.sizes[name] for name in in_order}):
            for piece in group:
                dtype = checkpoint.dtypes[piece.name]
                add(piece, buffer.read(stretches[piece.name], dtype, piece.start, piece.stop))
    rest = {name: size for name, size in digests.sizes.items() if name not in stretches}
    for group in leaves(rest, _CHUNK if checkpoint.mapped else max(1, sum(rest.values()))):
        with checkpoint.open() as reader:
            for name, pieces in groupby(group, key=lambda piece: piece.name):
                flat = reader[name].reshape(-1)
                for piece in pieces:
                    add(piece, flat[piece.start : piece.stop])
    return digests.content()


def require_finite(checkpoint: Checkpoint, found: Content) -> None:
    """Raise CheckpointError when the pass over the content found NaN or infinity."""
    if found.not_finite:
        (name, bad), more = found.not_finite[0], len(found.not_finite) - 1
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} has {bad:,} of {count(checkpoint.shapes[name]):,} values NaN or "
            "infinite"
            + (f", and {more} more tensor{'s' * (more > 1)} too" if more else "")
            + ". The run that wrote it diverged; leave this checkpoint out."
        )


def not_finite(flat: Tensor) -> int:
    """How many elements of a flat float or complex tensor are NaN or infinite."""
    numbers = reals(flat)
    if numbers.dtype.itemsize == 1:  # torch can neither sum float8 nor test it
        numbers = numbers.float()
    # A sum is finite only if all its terms are, and is many times faster than testing each. It can overflow, so a
    # sum that is not finite decides nothing.
    if bool(torch.isfinite(numbers.sum())):
        return 0
    wrong = ~torch.isfinite(numbers)
    return int((wrong.view(-1, 2).any(dim=1) if flat.is_complex() else wrong).sum())
