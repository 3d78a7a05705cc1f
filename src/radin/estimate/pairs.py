"""Binding pairs: the few (example, class) pairs that decide accuracy, found in one reading of the outputs.

The averaged outputs put class j above the true class t of an example only if some member does: where every member has
y_t > y_j, every recipe has. So a pair (example, j) can bind only if y_j >= y_t for some member, and only those pairs'
outputs are read again. Axis names: members N, classes C, pairs P, examples in a block b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from radin.estimate.reading import Array, Reader, not_finite
from radin.estimate.threads import map_on_threads

# One member's rows of a block stay in L2 from reading to comparison, all members' rows near it until pairs are taken.
MEMBER_BLOCK_BYTES = 256 * 1024
BLOCK_BYTES = 16 * 2**20
# Pairs of several blocks are pruned together: each round of pruning costs the same for many examples as for few.
BLOCKS_TOGETHER = 8
BYTES_TOGETHER = 32 * 2**20  # of outputs, at most: pruning takes several times what the pairs take

T = TypeVar("T")


@dataclass(frozen=True)
class Pairs:
    """Outputs at pairs of consecutive examples, and at their true classes.

    ``first`` the first example; ``example`` (P,) ascending and ``rival`` (P,) the pairs; ``logits`` (P, N) the rivals'
    outputs and ``truth`` (b, N) the true classes', in the dtype they came in; ``targets`` (b,).
    """

    first: int
    example: Array
    rival: Array
    logits: Array
    truth: Array
    targets: Array


class Scratch:
    """One thread's buffers, and the comparison that runs in them."""

    def __init__(self, members: int, classes: int, dtype: np.dtype[np.generic]) -> None:
        """``dtype`` is float16, float32 or float64; the block holds ``rows`` examples of all members."""
        self.rows = _rows_per_block(members, classes, dtype.itemsize)
        self.block = np.empty((members, self.rows, classes), dtype)
        self.hit = np.empty((self.rows, classes), bool)
        self._flag = np.empty((self.rows, classes), bool)
        self._wide = np.empty((self.rows, classes), np.float32)
        self._zeros = np.zeros(self.rows * classes, np.promote_types(dtype, np.float32))

    def mark(self, rows: Array, targets: Array, name: str, first: int) -> None:
        """Set ``hit`` where a class is at least the true one: rows (b, C) of one member, targets (b,).

        Raises OutputsError, naming the member, at NaN or infinity.
        """
        count = len(rows)
        if rows.dtype == np.float16:
            # numpy compares half-precision numbers one at a time; torch widens them many at once.
            torch.from_numpy(self._wide[:count]).copy_(torch.from_numpy(rows))
            rows = self._wide[:count]
        # 0 * x is NaN for NaN and infinity alone, so one dot product with zeros checks at the speed of reading.
        with np.errstate(invalid="ignore"):
            if np.dot(rows.reshape(-1), self._zeros[: rows.size]) != 0:
                raise not_finite(name, rows, first)
        truth = rows[np.arange(count), targets][:, None]
        np.greater_equal(rows, truth, out=self._flag[:count])
        np.logical_or(self.hit[:count], self._flag[:count], out=self.hit[:count])

    def take(self, targets: Array, first: int) -> Pairs:
        """The outputs at the pairs marked in ``hit``; targets (b,) of examples ``first``, ``first`` + 1, ..."""
        members, _, classes = self.block.shape
        count = len(targets)
        hit = self.hit[:count]
        hit[np.arange(count), targets] = False
        flat = np.flatnonzero(hit)
        example, rival = np.divmod(flat, classes)
        logits = np.take(self.block.reshape(members, -1), flat, axis=1).T
        truth = self.block[:, np.arange(count), targets].T
        return Pairs(first, example + first, rival, logits, truth, targets)


def _rows_per_block(members: int, classes: int, itemsize: int) -> int:
    nbytes = min(MEMBER_BLOCK_BYTES, BLOCK_BYTES // members)
    return max(1, nbytes // (classes * itemsize))


def join(parts: Sequence[Pairs]) -> Pairs:
    """Pairs of one block after the other as one."""
    return Pairs(
        parts[0].first,
        np.concatenate([part.example for part in parts]),
        np.concatenate([part.rival for part in parts]),
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.targets for part in parts]),
    )


def scan(
    reader: Reader,
    members: Sequence[int],
    targets: Array,
    then: Callable[[Pairs], T],
    mark_more: Callable[[int, int, Array], None] | None = None,
) -> Iterator[T]:
    """Read these members once, on as many threads as torch uses; ``then`` gets the pairs of some examples at a time.

    ``mark_more(lo, hi, hit)`` may mark further pairs of examples lo..hi in ``hit`` (hi - lo, C).
    """
    rows = _rows_per_block(len(members), reader.classes, reader.dtype.itemsize)
    nbytes = rows * len(members) * reader.classes * reader.dtype.itemsize
    step = rows * max(1, min(BLOCKS_TOGETHER, BYTES_TOGETHER // nbytes))
    threads = max(1, min(torch.get_num_threads(), -(-reader.examples // step)))
    free = [Scratch(len(members), reader.classes, reader.dtype) for _ in range(threads)]

    def block_pairs(scratch: Scratch, lo: int, hi: int) -> Pairs:
        scratch.hit[...] = False
        for out, member in zip(scratch.block[:, : hi - lo], members, strict=True):
            reader.read(member, lo, hi, out)
            scratch.mark(out, targets[lo:hi], reader.names[member], lo)
        if mark_more is not None:
            mark_more(lo, hi, scratch.hit[: hi - lo])
        return scratch.take(targets[lo:hi], lo)

    def task(lo: int) -> T:
        scratch, end = free.pop(), min(lo + step, reader.examples)
        try:
            return then(join([block_pairs(scratch, at, min(at + rows, end)) for at in range(lo, end, rows)]))
        finally:
            free.append(scratch)

    yield from map_on_threads(task, range(0, reader.examples, step), threads)
