"""Sums over the members of a pool, block by block, and what else is found out in the same reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import frexp

import torch
from torch import Tensor

from radin.weights.content import Digests
from radin.weights.formats import Checkpoint
from radin.weights.layout import LEAF, Piece, is_averaged, leaves, reals
from radin.weights.raw import Buffer, RawFiles

# Elements of a tensor added up between opening and closing each member that can only be read by mapping it: 64 MB of
# float32. Mapped pages stay resident for as long as their file is open.
_CHUNK = 1 << 24

_BLOCK = 1 << 15  # elements that are converted and added in the processor's cache

Sink = Callable[[Piece, Tensor], None]
"""Told a piece and its values, flat, good during the call. Several threads may call."""


@dataclass(frozen=True)
class Sum:
    """What is to be added up: members' checkpoints, and the dtypes that come out.

    ratios: by tensor, those of the members that have any in it, by index. source: of which member tensors are copied
    that are not averaged. digests: of the members whose content is to be hashed as well. hashed: the tensors that are
    done with. report: told each block that was read.
    """

    checkpoints: tuple[Checkpoint, ...]
    ratios: Mapping[str, Mapping[int, float]]
    source: int
    dtypes: Mapping[str, torch.dtype]
    digests: Mapping[int, Digests]
    hashed: set[str]
    report: Callable[[Tensor], None]

    def reads(self, name: str, *, given: bool) -> list[int]:
        """The members that must be read for a tensor. given: its values are wanted, and not its hashes alone."""
        found = {index for index in self.digests if self.hashes(index, name)}
        if given and is_averaged(self.dtypes[name]):
            found.update(self.ratios[name])
        elif given:
            found.add(self.source)
        return sorted(found)

    def hashes(self, index: int, name: str) -> bool:
        """Whether a member's tensor is still to be hashed."""
        digests = self.digests.get(index)
        return digests is not None and name in digests.sizes and name not in self.hashed


class Adder:
    """What one thread computes with: memory for a block read, for sums, and for the block that comes out.

    reads: by tensor, the members to read. sink None: nothing is wanted but hashes.
    """

    def __init__(self, what: Sum, files: RawFiles, reads: Mapping[str, list[int]], sink: Sink | None) -> None:
        self._what, self._reads, self._sink = what, reads, sink
        self._in, self._out = Buffer(files), Buffer(files)
        self._sums = torch.empty(2 * LEAF, dtype=torch.float64)  # complex numbers are two reals each
        self._product = torch.empty(2 * LEAF, dtype=torch.float64)

    def together(self, pieces: tuple[Piece, ...]) -> None:
        """Pieces of tensors that all their members' files hold as they are: a block of each member in turn."""
        for piece in pieces:
            sums = self._sums[: self._reals(piece)]
            first = True
            for index in self._reads[piece.name]:
                first = not self._take(piece, index, self._read(piece, index), sums, first) and first
            self._give(piece, sums, partial(self._read, piece))

    def one_by_one(self, name: str, size: int) -> None:
        """A whole tensor that some member's file must be mapped or unpacked for: one member after another."""
        what = self._what
        members = self._reads[name]
        whole = not all(what.checkpoints[index].mapped for index in members)
        for group in leaves({name: size}, size if whole else _CHUNK):
            starts = {piece: self._reals(Piece(name, group[0].start, piece.start)) for piece in group}
            sums = torch.empty(self._reals(Piece(name, group[0].start, group[-1].stop)), dtype=torch.float64)
            first = True
            for index in members:
                taken = False
                with what.checkpoints[index].open() as reader:
                    flat = reader[name].reshape(-1)
                    for piece in group:
                        part = sums[starts[piece] :][: self._reals(piece)]
                        taken = self._take(piece, index, piece.of(flat), part, first)
                first = first and not taken
            for piece in group:
                part = sums[starts[piece] :][: self._reals(piece)]
                self._give(piece, part, partial(self._read_mapped, piece))

    def _reals(self, piece: Piece) -> int:
        return (piece.stop - piece.start) * (2 if self._what.dtypes[piece.name].is_complex else 1)

    def _read(self, piece: Piece, index: int) -> Tensor:
        checkpoint = self._what.checkpoints[index]
        stretch = checkpoint.stretch(piece.name)
        assert stretch is not None
        return self._in.read(stretch, checkpoint.dtypes[piece.name], piece.start, piece.stop)

    def _read_mapped(self, piece: Piece, index: int) -> Tensor:
        with self._what.checkpoints[index].open() as reader:
            return piece.of(reader[piece.name]).clone()

    def _take(self, piece: Piece, index: int, leaf: Tensor, sums: Tensor, first: bool) -> bool:
        """Hash, add or copy one member's block, whatever is to be done with it; whether it was added."""
        what = self._what
        ratio = what.ratios[piece.name].get(index) if self._sink is not None and is_averaged(leaf.dtype) else None
        if what.hashes(index, piece.name):
            what.digests[index].add(piece, leaf, check=ratio is None)
        if ratio is not None:
            self._add(sums, reals(leaf), ratio, first)
        elif self._sink is not None and index == what.source and not is_averaged(leaf.dtype):
            self._sink(piece, leaf)
        if ratio is not None or index in what.digests:
            what.report(leaf)
        return ratio is not None

    def _add(self, sums: Tensor, values: Tensor, ratio: float, first: bool) -> None:
        # Product and sum are rounded apart, as in sums + ratio * values: a fused step would differ in the last bit. Not
        # so where the product is exact: that of a power of two and a number of fewer digits than the sum has.
        exact = frexp(ratio)[0] == 0.5 and values.dtype.itemsize in (2, 4)  # of one byte, torch adds nothing
        if first:
            sums.copy_(values).mul_(ratio)
            return
        if exact:
            # One step of torch's, as its optimizers take them, that goes from block to block in the processor's cache.
            torch._foreach_add_(sums.split(_BLOCK), values.split(_BLOCK), alpha=ratio)
        else:
            sums.add_(self._product[: len(values)].copy_(values).mul_(ratio))

    def _give(self, piece: Piece, sums: Tensor, read: Callable[[int], Tensor]) -> None:
        """Round the sums and hand them on; where they are not finite, find out of which member that comes."""
        what = self._what
        if self._sink is None or not is_averaged(what.dtypes[piece.name]):
            return
        out = self._out.of(what.dtypes[piece.name], piece.stop - piece.start)
        reals(out).copy_(sums)
        if what.digests and not bool(torch.isfinite(sums.sum())):
            for index in what.ratios[piece.name]:
                if what.hashes(index, piece.name):
                    what.digests[index].check(piece, read(index))
        self._sink(piece, out)
