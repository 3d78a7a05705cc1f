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

# Numbers whose sums stay in the processor's cache from the first member to rounding; and of these a block that is
# converted and added in one step, and one whose products with several members' ratios are held.
_PART, _BLOCK, _BLOCK_OF_PRODUCTS = 1 << 17, 1 << 15, 1 << 14

# Blocks of several members are read before they are added: so many members at most, and bytes.
_TOGETHER, _TOGETHER_BYTES = 8, 8 << 20

_NOTHING = -0.0  # x + -0.0 is x for every x, -0.0 too

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
        self._in, self._out = [Buffer(files) for _ in range(_TOGETHER)], Buffer(files)
        self._sums = torch.empty(2 * LEAF, dtype=torch.float64)  # complex numbers are two reals each
        self._products = torch.empty(_TOGETHER * _BLOCK_OF_PRODUCTS, dtype=torch.float64)

    def together(self, pieces: tuple[Piece, ...]) -> None:
        """Pieces of tensors that all their members' files hold as they are: a block of each member in turn."""
        for piece in pieces:
            adding = []
            for index in self._reads[piece.name]:
                if self._is_added(index, piece.name):
                    adding.append(index)
                else:
                    self._take(piece, index, self._read(piece, index))
            if adding:
                self._sum(piece, adding)

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
                        leaf = self._take(piece, index, piece.of(flat))
                        if self._is_added(index, name):
                            self._add(sums[starts[piece] :][: self._reals(piece)], [leaf], [what.ratios[name][index]])
            if not self._is_given(name):
                continue
            for piece in group:
                part = sums[starts[piece] :][: self._reals(piece)]
                out = self._out.of(what.dtypes[name], piece.stop - piece.start)
                self._give(piece, out, self._rounded(part, reals(out)), partial(self._read_mapped, piece))

    def _sum(self, piece: Piece, members: list[int]) -> None:
        """Add up these members' blocks, and hand the sum on."""
        what = self._what
        size = LEAF * max(what.checkpoints[index].dtypes[piece.name].itemsize for index in members)
        room = max(1, min(_TOGETHER, _TOGETHER_BYTES // size))
        groups = [members[at : at + room] for at in range(0, len(members), room)]
        out = self._out.of(what.dtypes[piece.name], piece.stop - piece.start)
        numbers, finite = reals(out), True
        for group in groups:
            values = [self._take(piece, k, self._read(piece, k, at)) for at, k in enumerate(group)]
            ratios = [what.ratios[piece.name][index] for index in group]
            for start in range(0, len(numbers), _PART):
                part = slice(start, min(start + _PART, len(numbers)))
                # Where there is no further group to keep them for, all sums take the same place, which is in the cache.
                sums = self._sums[part] if len(groups) > 1 else self._sums[: part.stop - start]
                if group is groups[0]:
                    sums.fill_(_NOTHING)
                self._add(sums, [each[part] for each in values], ratios)
                if group is groups[-1]:
                    finite = self._rounded(sums, numbers[part]) and finite
        self._give(piece, out, finite, partial(self._read, piece))

    def _is_given(self, name: str) -> bool:
        """Whether an average of a tensor is wanted."""
        return self._sink is not None and is_averaged(self._what.dtypes[name])

    def _is_added(self, index: int, name: str) -> bool:
        return self._is_given(name) and index in self._what.ratios[name]

    def _reals(self, piece: Piece) -> int:
        return (piece.stop - piece.start) * (2 if self._what.dtypes[piece.name].is_complex else 1)

    def _read(self, piece: Piece, index: int, into: int = 0) -> Tensor:
        checkpoint = self._what.checkpoints[index]
        stretch = checkpoint.stretch(piece.name)
        assert stretch is not None
        return self._in[into].read(stretch, checkpoint.dtypes[piece.name], piece.start, piece.stop)

    def _read_mapped(self, piece: Piece, index: int) -> Tensor:
        with self._what.checkpoints[index].open() as reader:
            return piece.of(reader[piece.name]).clone()

    def _take(self, piece: Piece, index: int, leaf: Tensor) -> Tensor:
        """Hash or copy one member's block, whatever is to be done with it; its numbers, should they be added."""
        what, added = self._what, self._is_added(index, piece.name)
        if what.hashes(index, piece.name):
            what.digests[index].add(piece, leaf, check=not added)
        if self._sink is not None and index == what.source and not is_averaged(leaf.dtype):
            self._sink(piece, leaf)
        if added or index in what.digests:
            what.report(leaf)
        return reals(leaf)

    def _add(self, sums: Tensor, values: list[Tensor], ratios: list[float]) -> None:
        """sums += ratio * values, of one member after another, block by block.

        Each step is one call of torch's for many blocks, in which other threads run.
        """
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

    def _rounded(self, sums: Tensor, out: Tensor) -> bool:
        """Put the sums into ``out``; whether they are finite, as far as anybody has to know."""
        out.copy_(sums)
        return not self._what.digests or bool(torch.isfinite(sums.sum()))

    def _give(self, piece: Piece, out: Tensor, finite: bool, read: Callable[[int], Tensor]) -> None:
        """Hand an average on; where it is not finite, find out of which member that comes."""
        what = self._what
        assert self._sink is not None
        if not finite:
            for index in what.ratios[piece.name]:
                if what.hashes(index, piece.name):
                    what.digests[index].check(piece, read(index))
        self._sink(piece, out)
