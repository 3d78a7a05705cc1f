"""Outputs that are no single row: one example is a sequence or a picture, and the model answers at each position.

Outputs of all examples are laid out as one row per position, (P, C). The targets beside them are (P, 2) int32: the
class, and the number of the example that the position belongs to, one example after the other. Positions that do not
count are left out; an example in which none counts keeps one, of class UNCOUNTED, so that it is not forgotten. What a
metric says of an example are numbers that are summed over examples (hits and positions, say) before they become a
score.

Axis names: examples M, positions P (of all examples), positions of one example L, classes C, numbers per example K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.errors import TaskError

Array = NDArray[Any]
Floats = NDArray[np.float64]

IGNORE = -100
UNCOUNTED = -1
SMALLEST = -700.0  # log-probabilities below are taken for it: their exponentials are no numbers
_STEP = 1e-4  # of a total, for the slope of a score


def counted(labels: Array, ignore_index: int, first: int) -> tuple[NDArray[np.intp], Array]:
    """Which positions of a batch are kept, as places in the flattened (b, L), and their targets (P, 2).

    labels (b, L) integers; ``first``: the number of the first example.
    """
    counts = labels != ignore_index
    kept = counts.copy()
    kept[~counts.any(axis=1), 0] = True
    places = np.flatnonzero(kept)
    targets = np.empty((len(places), 2), np.int32)
    targets[:, 0] = np.where(counts, labels, UNCOUNTED).reshape(-1)[places]
    targets[:, 1] = places // labels.shape[1] + first
    return places, targets


def starts(targets: Array) -> NDArray[np.intp]:
    """Where each example's positions begin, (m,); targets (P, 2)."""
    return np.flatnonzero(np.diff(targets[:, 1], prepend=targets[:1, 1] - 1))


def rows_of(targets: Array, examples: Array) -> NDArray[np.intp]:
    """The rows of some examples, (Q,) ascending; targets (P, 2), examples (m,) ascending indices."""
    first = starts(targets)
    lengths = np.diff(first, append=len(targets))[examples]
    ends = np.cumsum(lengths)
    within = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
    return np.asarray(np.repeat(first[examples], lengths) + within, dtype=np.intp)


def summed(values: Array, targets: Array) -> Floats:
    """Sums over the positions of each example: values (P, ...) -> (m, ...)."""
    result: Floats = np.add.reduceat(np.asarray(values, dtype=np.float64), starts(targets), axis=0)
    return result


def mean_totals(values: Array, targets: Array) -> Floats:
    """Of one number per position, (P,), what its mean over all counted positions needs: sum and count, (m, 2)."""
    counts = targets[:, 0] != UNCOUNTED
    return summed(np.stack([np.where(counts, values, 0), counts], axis=1), targets)


def ratio(totals: Floats) -> float:
    """The mean over positions from totals (2,): the sum over the count; NaN where nothing counts."""
    return float(totals[0] / totals[1]) if totals[1] else float("nan")


def exponential(totals: Floats) -> float:
    """exp of the mean over positions; infinite where that is no number."""
    with np.errstate(over="ignore"):
        return float(np.exp(ratio(totals)))


def hits(outputs: Array, targets: Array) -> Floats:
    """Positions whose first largest output is the target, and positions: outputs (P, C), targets (P, 2) -> (m, 2)."""
    return mean_totals(outputs.argmax(axis=1) == targets[:, 0], targets)


def losses(outputs: Array, targets: Array) -> Floats:
    """Minus the targets' log-probabilities summed, and positions: outputs (P, 1), targets (P, 2) -> (m, 2)."""
    return mean_totals(-outputs[:, 0].astype(np.float64), targets)


def overlaps(outputs: Array, targets: Array) -> Floats:
    """For each class the positions predicted right, predicted, and there: (P, C), (P, 2) -> (m, 3 C)."""
    classes, examples = outputs.shape[1], len(starts(targets))
    counts = targets[:, 0] != UNCOUNTED
    labels = targets[counts, 0].astype(np.int64)
    example = (np.cumsum(np.diff(targets[:, 1], prepend=targets[:1, 1]) != 0))[counts]
    guesses = outputs.argmax(axis=1)[counts]
    right = guesses == labels

    def by_class(which: Array, of: Array) -> Array:
        return np.bincount(which * classes + of, minlength=examples * classes).reshape(examples, classes)

    parts = (by_class(example[right], labels[right]), by_class(example, guesses), by_class(example, labels))
    return np.concatenate(parts, axis=1).astype(np.float64)


def mean_iou(totals: Floats) -> float:
    """Mean over the classes that occur of intersection over union, from totals (3 C,) of ``overlaps``."""
    right, guessed, there = totals.reshape(3, -1)
    union = guessed + there - right
    present = union > 0
    return float((right[present] / union[present]).mean()) if present.any() else float("nan")


@dataclass(frozen=True)
class Tags:
    """A tagger's classes as B-, I- and O tags: ``begins``, ``inside``, and the type's number ``kind``, (C,) each."""

    begins: tuple[bool, ...]
    inside: tuple[bool, ...]
    kind: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Tags:
        """From the names of the classes in order: "O", "B-PER", "I-PER", ... Raises TaskError for any other."""
        wrong = [name for name in names if name != "O" and name[:2] not in ("B-", "I-")]
        if wrong:
            raise TaskError(f"span F1 needs tags named O, B-TYPE or I-TYPE; got {wrong[0]!r}")
        kinds = {name: k for k, name in enumerate(dict.fromkeys(name[2:] for name in names))}
        return cls(
            tuple(name.startswith("B-") for name in names),
            tuple(name != "O" for name in names),
            tuple(kinds[name[2:]] for name in names),
        )

    @classmethod
    def usual(cls, classes: int) -> Tags:
        """Class 0 is O, then come B- and I- of each type in turn, as in CoNLL-2003. Raises TaskError if C is even."""
        if classes % 2 == 0:
            raise TaskError(
                f"span_f1 takes class 0 for O, then B- and I- of each type, but there are {classes} classes: "
                "name them with metric = radin.metrics.span_f1(['O', 'B-PER', 'I-PER', ...])"
            )
        names = [f"{mark}-{kind}" for kind in range((classes - 1) // 2) for mark in "BI"]
        return cls.of(["O", *names])


def spans(tags: Tags | None, outputs: Array, targets: Array) -> Floats:
    """Spans found exactly, predicted, and there, over the counted positions: (P, C), (P, 2) -> (m, 3).

    A span begins at B, at I after O or after another type, and at the first position of an example; it ends before the
    next begins or where the tag is O (conlleval's reading of tags, and seqeval's by default).
    """
    classes = outputs.shape[1]
    known = Tags.usual(classes) if tags is None else tags
    if len(known.kind) != classes:
        raise TaskError(f"span F1 was given the names of {len(known.kind)} classes; the model returns {classes}")
    first = starts(targets)
    example = np.cumsum(np.diff(targets[:, 1], prepend=targets[:1, 1]) != 0)
    counts = targets[:, 0] != UNCOUNTED
    labels, place = targets[counts, 0], example[counts]
    guessed = _spans(known, outputs[counts].argmax(axis=1), place)
    there = _spans(known, labels, place)
    both = np.intersect1d(guessed, there, assume_unique=True)
    found = [np.bincount(place[each >> 40], minlength=len(first)) for each in (both, guessed, there)]
    return np.stack(found, axis=1).astype(np.float64)


def _spans(tags: Tags, classes: Array, example: Array) -> NDArray[np.int64]:
    """One number for each span: its first position, its last and its type; classes (P,), example (P,) of each."""
    if not len(classes):
        return np.empty(0, np.int64)
    begins, inside, kind = (np.asarray(part)[classes] for part in (tags.begins, tags.inside, tags.kind))
    new = np.diff(example, prepend=example[0] - 1) != 0
    before_inside, before_kind = np.roll(inside, 1), np.roll(kind, 1)
    start = inside & (begins | new | ~before_inside | (before_kind != kind))
    ends = np.flatnonzero(np.append(start | ~inside | new, True))
    at = np.flatnonzero(start)
    length = ends[np.searchsorted(ends, at, side="right")] - at
    numbers = (at.astype(np.int64) << 40) | (np.minimum(length, (1 << 24) - 1).astype(np.int64) << 16) | kind[at]
    return np.asarray(numbers, dtype=np.int64)


def span_f1(totals: Floats) -> float:
    """2 found / (predicted + there) from totals (3,) of ``spans``; 0 where there are none."""
    found, guessed, there = totals
    return float(2 * found / (guessed + there)) if guessed + there else 0.0


def values(totals: Floats, score: Callable[[Floats], float]) -> Floats:
    """One number per example, (M,), whose mean is the score of the sums of ``totals`` (M, K).

    Score + slope . (M totals_i - sum): the infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter 6). Their
    standard error is that of the score by the delta method, of a mean over positions the ratio estimator's; so is that
    of a difference between two models.
    """
    whole = totals.sum(axis=0)
    result = np.full(len(totals), score(whole))
    for column in np.flatnonzero(totals.any(axis=0)):
        up, down = whole.copy(), whole.copy()
        step = _STEP * max(abs(whole[column]), 1.0)
        up[column] += step
        down[column] -= step
        result += (score(up) - score(down)) / (2 * step) * (len(totals) * totals[:, column] - whole[column])
    return result
