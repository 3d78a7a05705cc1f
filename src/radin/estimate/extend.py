"""Bring a compiled form to a pool with other members, reading little more than the new members' outputs.

What was redundant is redundant still unless a new member says otherwise, and which row made it so is on record:
only pairs whose record a new member breaks, and pairs that bind anew, are read again from the known members.
Axis names: members N, rows R, dropped pairs D, pairs P.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radin.estimate.margins import Dropped, Margins, compile_pairs, join_margins
from radin.estimate.pairs import Pairs, join, scan
from radin.estimate.reading import Array, Reader

CHUNK_PAIRS = 32_768


def update_margins(old: Margins, reader: Reader, known: Sequence[int | None]) -> Margins:
    """The compiled form for the reader's members; ``known[k]``: which member of ``old`` its member k is, or None.

    Members may be added, left out and reordered. ``old.dropped`` must be there; the outputs of known members and the
    targets must be those ``old`` was compiled from.
    """
    assert old.dropped is not None
    fresh = [k for k, place in enumerate(known) if place is None]
    kept = {k: place for k, place in enumerate(known) if place is not None}
    dropped = old.dropped
    row_key, dropped_key = _keys(old, old.example, old.rival), _keys(old, dropped.example, dropped.rival)
    if fresh:
        found = _read_fresh(old, reader, fresh)
        found_key = _keys(old, found.example, found.rival)
        broken = _broken(
            old, dropped, found, np.searchsorted(found_key, row_key), np.searchsorted(found_key, dropped_key)
        )
        anew = np.setdiff1d(found_key, np.concatenate([row_key, dropped_key]), assume_unique=True)
        again = np.sort(np.concatenate([dropped_key[broken], anew]))
        key = np.sort(np.concatenate([row_key, again]))
    else:
        broken, again, key = np.zeros(len(dropped_key), bool), row_key[:0], row_key
    logits = np.empty((len(key), reader.members), reader.dtype)
    truth = np.empty((old.examples, reader.members), reader.dtype)
    was, is_again = np.searchsorted(key, row_key), np.searchsorted(key, again)
    again_example, again_rival = np.divmod(again, old.classes)
    for member, place in kept.items():
        logits[was, member], truth[:, member] = old.logits[:, place], old.truth[:, place]
        logits[is_again, member] = reader.gather(member, again_example, again_rival)
    if fresh:
        at = np.searchsorted(found_key, key)
        logits[:, fresh], truth[:, fresh] = found.logits[at], found.truth
    example, rival = np.divmod(key, old.classes)
    new = _prune_again(Pairs(0, example, rival, logits, truth, old.targets), old.classes)
    return _keep_record(new, dropped_key[~broken], row_key[dropped.by[~broken]])


def _keys(margins: Margins, example: Array, rival: Array) -> Array:
    """One ascending number per pair."""
    return np.asarray(example.astype(np.int64) * margins.classes + rival)


def _read_fresh(old: Margins, reader: Reader, fresh: Sequence[int]) -> Pairs:
    """The new members' outputs at all pairs on record and at those that bind for them."""
    assert old.dropped is not None
    example = np.concatenate([old.example, old.dropped.example])
    rival = np.concatenate([old.rival, old.dropped.rival])
    order = np.argsort(example, kind="stable")
    example, rival = example[order], rival[order]
    starts = np.searchsorted(example, np.arange(old.examples + 1))

    def mark(lo: int, hi: int, hit: Array) -> None:
        rows = slice(starts[lo], starts[hi])
        hit[example[rows] - lo, rival[rows]] = True

    return join(list(scan(reader, fresh, old.targets, lambda pairs: pairs, mark)))


def _broken(old: Margins, dropped: Dropped, found: Pairs, row_at: Array, dropped_at: Array) -> Array:
    """Whether a new member breaks what made a dropped pair redundant, (D,)."""
    by = found.logits[row_at[dropped.by]]
    logits = found.logits[dropped_at]
    strict = old.strict()[dropped.by]
    wins_tie = strict | (dropped.rival > old.targets[dropped.example])
    outdone = (by >= logits).all(axis=1) & (wins_tie | (by > logits).all(axis=1))
    truth = found.truth[dropped.example]
    never = np.where(strict, (by >= truth).all(axis=1), (by > truth).all(axis=1))
    wrong = old.allowed[dropped.example] < 0
    return np.asarray(~np.where(wrong, never, outdone))


def _prune_again(pairs: Pairs, classes: int) -> Margins:
    """Compile pairs of all examples, some examples at a time."""
    starts = np.searchsorted(pairs.example, np.arange(len(pairs.targets) + 1))
    parts, lo = [], 0
    while lo < len(pairs.targets):
        hi = max(lo + 1, int(np.searchsorted(starts, starts[lo] + CHUNK_PAIRS, side="right")) - 1)
        rows = slice(starts[lo], starts[hi])
        part = Pairs(
            lo, pairs.example[rows], pairs.rival[rows], pairs.logits[rows], pairs.truth[lo:hi], pairs.targets[lo:hi]
        )
        parts.append(compile_pairs(part, classes, 1, "right", True))
        lo = hi
    return join_margins(parts)


def _keep_record(new: Margins, dropped_key: Array, by_key: Array) -> Margins:
    """Add pairs dropped before, by rows that may since have been dropped by another, or bind no more."""
    assert new.dropped is not None
    row_key = _keys(new, new.example, new.rival)
    gone_key = _keys(new, new.dropped.example, new.dropped.rival)
    by = _find(row_key, by_key)
    if len(gone_key):
        order = np.argsort(gone_key)
        gone = _find(gone_key[order], by_key)
        by = np.where((by < 0) & (gone >= 0), new.dropped.by[order][gone], by)
    binds = by >= 0
    example, rival = np.divmod(dropped_key[binds], new.classes)
    return new.with_dropped(
        Dropped(
            np.concatenate([new.dropped.example, example.astype(np.int32)]),
            np.concatenate([new.dropped.rival, rival.astype(np.int32)]),
            np.concatenate([new.dropped.by, by[binds].astype(np.int32)]),
        )
    )


def _find(ascending: Array, values: Array) -> Array:
    """Place of each value in an ascending array, -1 where it is not there."""
    if len(ascending) == 0:
        return np.full(len(values), -1)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return np.where(ascending[at] == values, at, -1)
