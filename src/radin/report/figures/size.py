"""Figure 5, large against small soups with the rank test, and Figure 6, score by size. Axis names: soups S."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from radin.report.figures.values import About, Unavailable
from radin.run.record import RunRecord
from radin.stats.ranks import RankTest, mann_whitney

ENOUGH = 8  # random soups of either kind, from which on only these are compared
_MORE = "; 'radin figures RUN --evaluate N' evaluates random candidates too"


@dataclass(frozen=True)
class SizedSoup:
    """A soup of ``size`` members in equal parts, its true score and its standard error."""

    size: int
    score: float
    stderr: float


@dataclass(frozen=True)
class Halves:
    """Figure 5: soups of at least half of the members against smaller ones, all in equal parts.

    split: the fewest members of a large one. random: whether all are random candidates; else they are what the search
    and other methods chose to evaluate, and no fair sample. test: of large against small.
    """

    about: About
    large: tuple[SizedSoup, ...]
    small: tuple[SizedSoup, ...]
    split: int
    random: bool
    test: RankTest
    single: float


@dataclass(frozen=True)
class AtSize:
    """All soups of one size: how many, their mean score, and its standard error; NaN of a single one."""

    size: int
    count: int
    mean: float
    stderr: float


@dataclass(frozen=True)
class Sizes:
    """Figure 6: ``soups`` (S,) in equal parts, and their mean by size. random: as in Halves."""

    about: About
    soups: tuple[SizedSoup, ...]
    means: tuple[AtSize, ...]
    random: bool
    single: float


def halves(record: RunRecord) -> Halves | Unavailable:
    """Whether large soups are better than small ones (Figure 5)."""
    split = max(2, math.ceil(record.members / 2))
    for random in (True, False):
        large, small = _split(_equal(record, random), split)
        if random and min(len(large), len(small)) >= ENOUGH:
            break
    test = mann_whitney([s.score for s in large], [s.score for s in small])  # type: ignore[arg-type]
    if test is None:
        return Unavailable(
            "5",
            f"it takes evaluated soups in equal parts of fewer than {split} members, and of more; there are "
            f"{len(small)} and {len(large)}{_MORE}",
        )
    return Halves(About.of(record), tuple(large), tuple(small), split, random, test, record.reference[1].score)


def sizes(record: RunRecord) -> Sizes | Unavailable:
    """True scores by the number of members (Figure 6)."""
    random = True
    found = _equal(record, random)
    if len(found) < 2 * ENOUGH:
        random = False
        found = _equal(record, random)
    by_size: dict[int, list[float]] = {}
    for soup in found:
        by_size.setdefault(soup.size, []).append(soup.score)
    if len(by_size) < 2:
        return Unavailable(
            "6", f"it takes evaluated soups in equal parts of several sizes; there are {len(found)}{_MORE}"
        )
    means = [AtSize(size, len(scores), fmean(scores), _stderr(scores)) for size, scores in sorted(by_size.items())]
    return Sizes(About.of(record), tuple(found), tuple(means), random, record.reference[1].score)


def _equal(record: RunRecord, random: bool) -> list[SizedSoup]:
    """Soups in equal parts with a true score; ``random``: only those drawn at random, as far as all are known.

    Methods evaluate candidates too, but those that promise most: a sample is fair up to the first that is not known.
    """
    if random:
        recipes = []
        for recipe in record.candidates:
            if recipe not in record.scores:
                break
            recipes.append(recipe)
        recipes = [recipe for recipe in recipes if recipe.size < record.members]  # not drawn, but put first
    else:
        recipes = [recipe for recipe in record.scores if recipe.is_uniform and recipe.size > 1]
    found = [SizedSoup(r.size, record.scores[r].score, record.scores[r].stderr) for r in recipes]
    return sorted((s for s in found if math.isfinite(s.score)), key=lambda s: (s.size, s.score))


def _split(soups: list[SizedSoup], split: int) -> tuple[list[SizedSoup], list[SizedSoup]]:
    return [s for s in soups if s.size >= split], [s for s in soups if s.size < split]


def _stderr(scores: list[float]) -> float:
    return stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
