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

# Elements that are converted and added while they and their sums are in the processor's cache: of one member at a time,
# and with room for the products of several.
_BLOCK, _BLOCK_OF_PRODUCTS = 1 << 15, 1 << 14

# Blocks of several members are read before they are added, so that sums, which are the most bytes, come to the cache
# once for all of these: at most so many members and bytes.
_TOGETHER, _TOGETHER_BYTES = 8, 8 << 20

_NOTHING = -0.0  # x + -0.0 is x for every x, -0.0 too

Sink = Callable[[Piece, Tensor], None]
"""Told a piece and its values, flat, good during the call. Several threads may call."""


@dataclass(frozen=True)
class Sum:
    """What is to be added up: members' checkpoints with their ratios by index, and the dtypes that come out.

    source: of which member tensors are copied that are not averaged. digests: of the members whose content is to be
    hashed as well. hashed: the tensors that are done with. report: told each block that was read.
    """

    checkpoints: tuple[Checkpoint, ...]
    ratios: Mapping[int, float]
    source: int
    dtypes: Mapping[str, torch.dtype]
    digests: Mapping[int, Digests]
    hashed: set[str]
    report: Callable[[Tensor], None]

    def reads(self, name: str, *, given: bool) -> list[int]:
        """The members that must be read for a tensor. given: its values are wanted, and not its hashes alone."""
        found = {index for index in self.digests if self.hashes(index, name)}
        if given and is_averaged(self.dtypes[name]):
            found.update(self.ratios)
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
        self._in, self._out = [Buffer(files) for _ in range(_TOGETHER)], Buffer(files)
        self._sums = torch.empty(2 * LEAF, dtype=torch.float64)  # complex numbers are two reals each
        self._products = torch.empty(_TOGETHER * _BLOCK_OF_PRODUCTS, dtype=torch.float64)

    def together(self, pieces: tuple[Piece, ...]) -> None:
        """Pieces of tensors that all their members' files hold as they are: blocks of some members at a time."""
        for piece in pieces:
            sums = self._sums[: self._reals(piece)].fill_(_NOTHING)
            values: list[Tensor] = []
            ratios: list[float] = []
            held = 0
            for index in self._reads[piece.name]:
                leaf = self._read(piece, index, self._in[len(values)])
                ratio = self._take(piece, index, leaf)
                if ratio is None:
                    continue
                values.append(reals(leaf))
                ratios.append(ratio)
                held += leaf.nbytes
                if len(values) == _TOGETHER or held + leaf.nbytes > _TOGETHER_BYTES:
                    self._add(sums, values, ratios)
                    values, ratios, held = [], [], 0
            self._add(sums, values, ratios)
            self._give(piece, sums, partial(self._read, piece, into=self._in[0]))

    def one_by_one(self, name: str, size: int) -> None:
        """A whole tensor that some member's file must be mapped or unpacked for: one member after another."""
        what = self._what
        members = self._reads[name]
        whole = not all(what.checkpoints[index].mapped for index in members)
        for group in leaves({name: size}, size if whole else _CHUNK):
            starts = {piece: self._reals(Piece(name, group[0].start, piece.start)) for piece in group}
            sums = torch.empty(self._reals(Piece(name, group[0].start, group[-1].stop)), dtype=torch.float64)
            sums.fill_(_NOTHING)
            for index in members:
                with what.checkpoints[index].open() as reader:
                    flat = reader[name].reshape(-1)
                    for piece in group:
                        leaf = piece.of(flat)
                        ratio = self._take(piece, index, leaf)
                        if ratio is not None:
                            self._add(sums[starts[piece] :][: self._reals(piece)], [reals(leaf)], [ratio])
            for piece in group:
                part = sums[starts[piece] :][: self._reals(piece)]
                self._give(piece, part, partial(self._read_mapped, piece))

    def _reals(self, piece: Piece) -> int:
        return (piece.stop - piece.start) * (2 if self._what.dtypes[piece.name].is_complex else 1)

    def _read(self, piece: Piece, index: int, into: Buffer) -> Tensor:
        checkpoint = self._what.checkpoints[index]
        stretch = checkpoint.stretch(piece.name)
        assert stretch is not None
        return into.read(stretch, checkpoint.dtypes[piece.name], piece.start, piece.stop)

    def _read_mapped(self, piece: Piece, index: int) -> Tensor:
        with self._what.checkpoints[index].open() as reader:
            return piece.of(reader[piece.name]).clone()

    def _take(self, piece: Piece, index: int, leaf: Tensor) -> float | None:
        """Hash or copy one member's block, whatever is to be done with it; the ratio that it is to be added with."""
        what = self._what
        ratio = what.ratios.get(index) if self._sink is not None and is_averaged(leaf.dtype) else None
        if what.hashes(index, piece.name):
            what.digests[index].add(piece, leaf, check=ratio is None)
        if self._sink is not None and index == what.source and not is_averaged(leaf.dtype):
            self._sink(piece, leaf)
        if ratio is not None or index in what.digests:
            what.report(leaf)
        return ratio

    def _add(self, sums: Tensor, values: list[Tensor], ratios: list[float]) -> None:
        """sums += ratio * values, of one member after another, block by block.

        Each step here works on all blocks in one call of torch's, in which other threads run.
        """
        if not values:
            return
        # Product and sum are rounded apart, as in sums + ratio * values: a fused step would differ in the last bit. Not
        # so where the product is exact: that of a power of two and a number of fewer digits than the sum has.
        exact = frexp(ratios[0])[0] == 0.5 and all(ratio == ratios[0] for ratio in ratios)
        if exact and all(each.dtype.itemsize in (2, 4) for each in values):  # of one byte, torch adds nothing
            blocks = list(zip(sums.split(_BLOCK), *(each.split(_BLOCK) for each in values), strict=True))
            into = [block[0] for block in blocks for _ in values]
            torch._foreach_add_(into, [each for block in blocks for each in block[1:]], alpha=ratios[0])
            return
        pieces = zip(*(each.split(_BLOCK_OF_PRODUCTS) for each in values), strict=True)
        for block, members in zip(sums.split(_BLOCK_OF_PRODUCTS), pieces, strict=True):
            products = list(self._products[: len(block) * len(members)].split(len(block)))
            torch._foreach_copy_(products, members)
            torch._foreach_mul_(products, ratios)
            torch._foreach_add_([block] * len(members), products)

    def _give(self, piece: Piece, sums: Tensor, read: Callable[[int], Tensor]) -> None:
        """Round the sums and hand them on; where they are not finite, find out of which member that comes."""
        what = self._what
        if self._sink is None or not is_averaged(what.dtypes[piece.name]):
            return
        out = self._out.of(what.dtypes[piece.name], piece.stop - piece.start)
        reals(out).copy_(sums)
        if what.digests and not bool(torch.isfinite(sums.sum())):
            for index in what.ratios:
                if what.hashes(index, piece.name):
                    what.digests[index].check(piece, read(index))
        self._sink(piece, out)
