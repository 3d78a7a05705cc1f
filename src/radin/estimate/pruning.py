"""Prune binding pairs to the margin rows that decide each example.

A recipe p is right on an example of class t iff, for every rival j, p . (y_t - y_j) > 0 where j < t and >= 0 where
j > t: the first largest output wins, as argmax decides. Call the first kind of row strict. Then

- a row whose margins are all > 0 (not strict: all >= 0) always holds: left out,
- a row whose margins are all <= 0 (not strict: all < 0) never holds: its example is always wrong,
- a row b is redundant if a row a of its example has margins <= b's for every member, and a is strict, or b is not,
  or all its margins are < b's: where a holds, b does.

For top-k accuracy fewer than k rows may fail: a row is redundant when k others make it so, and rows that never hold
use up some of the k. For the predicted class, a class is redundant when another has outputs >= its own for every
member, and wins ties or is always above. Axis names: members N, pairs P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from radin.estimate.reading import Array, Floats

Purpose = Literal["right", "class"]

_FIRST = 12  # members compared first


@dataclass(frozen=True)
class Pruned:
    """What is left of P pairs, as places among them.

    ``kept`` (R,) ascending: the rows that decide, and one row that never holds for each example always wrong.
    ``dropped`` (D,) and ``by`` (D,): redundant pairs, and the kept one that makes each so. ``failing``: the example of
    each row that never holds, once per row.
    """

    kept: Array
    dropped: Array
    by: Array
    failing: Array


def prune(margins: Floats, example: Array, rival: Array, strict: Array, top: int, purpose: Purpose) -> Pruned:
    """Prune pairs given by their margins (P, N), example (P,) ascending, rival class (P,) and strictness (P,).

    ``purpose``: whether to decide if the target is among the ``top`` ("right") or which class is first ("class").
    """
    highest, lowest = margins.max(axis=1), margins.min(axis=1)
    binds = np.where(strict, lowest <= 0, lowest < 0)
    if purpose == "class":
        kept, by = _undominated(margins, example, rival, strict, np.flatnonzero(binds), 1, purpose)
        return Pruned(kept, np.flatnonzero(by >= 0), by[by >= 0], np.empty(0, example.dtype))
    never = np.where(strict, highest <= 0, highest < 0)
    failing = example[never]
    offset = example - example[0] if len(example) else example
    lost = np.bincount(offset[never], minlength=int(offset[-1]) + 1 if len(offset) else 0) >= top
    always_wrong = lost[offset]
    rows = np.flatnonzero(binds & ~always_wrong)
    kept, by = _undominated(margins, example, rival, strict, rows, top, purpose)
    kept = kept[~never[kept]]
    losing = np.flatnonzero(never & always_wrong)
    witness = losing[np.flatnonzero(np.diff(example[losing], prepend=-1))]
    others = np.flatnonzero(always_wrong & binds)
    by[others] = witness[np.searchsorted(example[witness], example[others])]
    by[witness] = -1
    return Pruned(np.sort(np.concatenate([kept, witness])), np.flatnonzero(by >= 0), by[by >= 0], failing)


def _undominated(
    margins: Floats, example: Array, rival: Array, strict: Array, rows: Array, top: int, purpose: Purpose
) -> tuple[Array, Array]:
    """Those of ``rows`` that fewer than ``top`` others make redundant, ascending; and for each pair (P,) the last row
    that made it redundant, else -1.

    Rows are ordered by their sum, so that a row can only be made redundant by an earlier one (of equal rows, by the
    first). Round l compares the l-th row left of every example with the later ones, all examples at once.
    """
    tie = rival if purpose == "class" else ~strict
    rows = rows[np.lexsort((rival[rows], tie[rows], margins[rows].sum(axis=1), example[rows]))]
    few = np.ascontiguousarray(margins[:, :: max(1, margins.shape[1] // _FIRST)].T)
    dominators = np.zeros(len(margins), np.int32)
    by = np.full(len(margins), -1)
    done: list[Array] = []
    turn = 0
    while len(rows):
        starts = np.flatnonzero(np.diff(example[rows], prepend=-1))
        counts = np.diff(starts, append=len(rows))
        unfinished = np.repeat(counts > turn + 1, counts)
        done.append(rows[~unfinished])
        place = np.arange(len(rows)) - np.repeat(starts, counts)
        later = np.flatnonzero(unfinished & (place > turn))
        first, second = rows[later - place[later] + turn], rows[later]
        # Most pairs differ in the first few members already; only where they do not are all compared.
        over = few[0][first] <= few[0][second]
        for column in few[1:]:
            again = np.flatnonzero(over)
            over[again] = column[first[again]] <= column[second[again]]
        again = np.flatnonzero(over)
        over[again] = (margins[first[again]] <= margins[second[again]]).all(axis=1)
        wins_tie = rival[first] < rival[second] if purpose == "class" else strict[first] | ~strict[second]
        ask = np.flatnonzero(over & ~wins_tie)
        over[ask] = (margins[first[ask]] < margins[second[ask]]).all(axis=1)
        dominators[second[over]] += 1
        by[second[over]] = first[over]
        rows = rows[unfinished]
        rows = rows[dominators[rows] < top]
        turn += 1
    left = np.sort(np.concatenate(done)) if done else rows
    by[left] = -1
    return left, by
