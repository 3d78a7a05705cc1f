"""Compile outputs to the small set of margin rows that decide accuracy or the predicted class.

Axis names: members N, examples M, classes C, rows R, dropped pairs D, examples in a block b.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from radin.errors import OutputsError
from radin.estimate.pairs import Pairs, Scratch, join, scan
from radin.estimate.pruning import Purpose, prune
from radin.estimate.reading import Array, Floats, Reader

_NUMBERS = 1 << 24  # margins that are compared together in float64


@dataclass(frozen=True)
class Dropped:
    """Redundant pairs: ``example``, ``rival`` (D,), and the row ``by`` (D,) that makes each redundant.

    Adding a member needs them: what is redundant for some members may not be for more.
    """

    example: Array
    rival: Array
    by: Array


@dataclass(frozen=True)
class Margins:
    """Outputs compiled to the rows that decide.

    ``example`` (R,) ascending, ``rival`` (R,) the row's class; ``logits`` (R, N) the rival's outputs and ``truth``
    (M, N) the true class's, in the dtype they came in; ``targets`` (M,); ``classes`` C.
    ``allowed`` (M,): how many of an example's rows may fail; -1 where it is always wrong, whose one row shows why.
    ``top``, ``purpose``: what the rows decide (see pruning). ``dropped``: None when no member can be added.
    """

    example: Array
    rival: Array
    logits: Array
    truth: Array
    targets: Array
    classes: int
    allowed: Array
    top: int = 1
    purpose: Purpose = "right"
    dropped: Dropped | None = None

    @property
    def members(self) -> int:
        """How many members, N."""
        return int(self.truth.shape[1])

    @property
    def examples(self) -> int:
        """How many examples, M."""
        return len(self.targets)

    def with_dropped(self, dropped: Dropped) -> Margins:
        """The same rows with another record of redundant pairs."""
        return replace(self, dropped=dropped)

    def reordered(self, order: Sequence[int]) -> Margins:
        """The same over reordered members: new member i is the old ``order[i]``."""
        columns = list(order)
        return replace(self, logits=self.logits[:, columns], truth=self.truth[:, columns])

    def among(self, members: Sequence[int]) -> Margins:
        """The same over some of the members, in this order, without the rows that decide nothing among them.

        No member can be added to it. Not of more than the best class (``top``), whose failing rows are counted alone.
        """
        some = replace(self.reordered(members), dropped=None)
        if self.top > 1 or not self.examples:
            return some
        parts, step = [], max(1, _NUMBERS // max(1, len(self.example) * len(members) // self.examples))
        for first in range(0, self.examples, step):
            lo, hi = np.searchsorted(self.example, [first, first + step])
            examples = slice(first, first + step)
            pairs = Pairs(
                first,
                self.example[lo:hi],
                self.rival[lo:hi],
                some.logits[lo:hi],
                some.truth[examples],
                self.targets[examples],
            )
            parts.append(compile_pairs(pairs, self.classes, self.top, self.purpose, False))
        return join_margins(parts)

    def of_examples(self, kept: Array) -> Margins:
        """The same over some of the examples, ``kept`` (M,) bool; no member can be added to it."""
        if kept.all():
            return self
        rows, place = kept[self.example], np.cumsum(kept) - 1
        return replace(
            self,
            example=place[self.example[rows]].astype(np.int32),
            rival=self.rival[rows],
            logits=self.logits[rows],
            truth=self.truth[kept],
            targets=self.targets[kept],
            allowed=self.allowed[kept],
            dropped=None,
        )

    def places(self) -> Array:
        """Places of the rows of examples that are not always wrong, (K,)."""
        return np.flatnonzero(self.allowed[self.example] >= 0)

    def at(self, places: Array) -> Floats:
        """The margins y_t - y_j of the rows at these places (K,), (K, N)."""
        result: Floats = self.truth[self.example[places]].astype(np.float64) - self.logits[places]
        return result

    def strict(self) -> Array:
        """Whether a row must be above zero (R,), because its class comes before the true one and would win a tie."""
        return np.asarray(self.rival < self.targets[self.example])


def compile_pairs(pairs: Pairs, classes: int, top: int, purpose: Purpose, extendable: bool) -> Margins:
    """The margin rows of some consecutive examples, numbered from 0."""
    example = pairs.example - pairs.first
    margins = pairs.truth[example].astype(np.float64) - pairs.logits
    strict = pairs.rival < pairs.targets[example]
    pruned = prune(margins, example, pairs.rival, strict, top, purpose)
    allowed = np.full(len(pairs.targets), top - 1)
    np.subtract.at(allowed, pruned.failing, 1)
    dropped = None
    if extendable:
        by = np.searchsorted(pruned.kept, pruned.by)
        dropped = Dropped(example[pruned.dropped].astype(np.int32), pairs.rival[pruned.dropped].astype(np.int32), by)
    return Margins(
        example[pruned.kept].astype(np.int32),
        pairs.rival[pruned.kept].astype(np.int32),
        pairs.logits[pruned.kept],
        pairs.truth,
        pairs.targets,
        classes,
        np.maximum(allowed, -1).astype(np.int32),
        top,
        purpose,
        dropped,
    )


def join_margins(parts: Iterable[Margins]) -> Margins:
    """Parts of consecutive examples as one."""
    pieces = list(parts)
    examples = np.cumsum([0] + [piece.examples for piece in pieces])
    rows = np.cumsum([0] + [len(piece.example) for piece in pieces])

    def column(name: str) -> Array:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    dropped = [piece.dropped for piece in pieces]
    whole = [d for d in dropped if d is not None]
    return replace(
        pieces[0],
        example=np.concatenate([p.example + np.int32(n) for p, n in zip(pieces, examples[:-1], strict=True)]),
        rival=column("rival"),
        logits=column("logits"),
        truth=column("truth"),
        targets=column("targets"),
        allowed=column("allowed"),
        dropped=None
        if len(whole) < len(pieces)
        else Dropped(
            np.concatenate([d.example + np.int32(n) for d, n in zip(whole, examples[:-1], strict=True)]),
            np.concatenate([d.rival for d in whole]),
            np.concatenate([d.by + n for d, n in zip(whole, rows[:-1], strict=True)]).astype(np.int32),
        ),
    )


def compile_margins(
    reader: Reader, targets: Array, *, top: int = 1, purpose: Purpose = "right", extendable: bool = False
) -> Margins:
    """Compile all members' outputs, reading each once. targets (M,) integers in 0..C-1.

    ``extendable``: keep what adding members needs (12 bytes per redundant pair); for accuracy (top 1) alone. Raises
    OutputsError, naming the member, at NaN or infinity.
    """
    keep = extendable and top == 1 and purpose == "right"

    def then(pairs: Pairs) -> Margins:
        return compile_pairs(pairs, reader.classes, top, purpose, keep)

    return join_margins(scan(reader, range(reader.members), targets, then))


class MarginCompiler:
    """Compiles outputs block by block, while all members' outputs are being made.

    ``add`` takes consecutive blocks of examples, ``finish`` gives the compiled form; the outputs themselves need not
    be stored. What that gives up: no member can be added and no other metric asked without new passes.
    """

    def __init__(
        self,
        members: int,
        classes: int,
        *,
        top: int = 1,
        purpose: Purpose = "right",
        names: Sequence[str] | None = None,
    ) -> None:
        self._members, self._classes, self._top, self._purpose = members, classes, top, purpose
        self._names = list(names) if names is not None else [f"member {k}" for k in range(members)]
        self._parts: list[Margins] = []
        self._examples = 0

    def add(self, block: Array, targets: Array) -> None:
        """The next examples: block (N, b, C) floating point, targets (b,) integers.

        Raises OutputsError when the shape is another, or, naming the member, at NaN or infinity.
        """
        labels = np.asarray(targets)
        shape = (self._members, len(labels), self._classes)
        if block.shape != shape or not np.issubdtype(block.dtype, np.floating):
            raise OutputsError(
                f"a block of outputs must be floating point of shape {shape}; it is {block.dtype} {block.shape}"
            )
        if len(labels) == 0:
            return
        scratch = Scratch(self._members, self._classes, block.dtype)
        found = []
        for lo in range(0, len(labels), scratch.rows):
            part = labels[lo : lo + scratch.rows]
            scratch.hit[...] = False
            for name, out, rows in zip(self._names, scratch.block[:, : len(part)], block, strict=True):
                out[...] = rows[lo : lo + scratch.rows]
                scratch.mark(out, part, name, self._examples + lo)
            found.append(scratch.take(part, lo))
        self._parts.append(compile_pairs(join(found), self._classes, self._top, self._purpose, False))
        self._examples += len(labels)

    def finish(self) -> Margins:
        """The compiled form of all blocks added. Raises OutputsError when there was none."""
        if not self._parts:
            raise OutputsError("no outputs were added: there are no examples")
        return join_margins(self._parts)
