"""Figure 2, estimate against truth, and Figure 3, candidates by rank with those evaluated marked.

Axis names: soups S, candidates K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from radin.report.figures.values import About, Unavailable
from radin.run.record import NO_OUTPUTS, RunRecord
from radin.stats.ranks import spearman

FEWEST = 3  # soups of which a rank correlation says anything

Origin = Literal["the run", "since", "not evaluated"]
"""Who evaluated a soup: the run itself, or somebody since, beside it."""


@dataclass(frozen=True)
class EstimatedSoup:
    """A soup: how many members, the score of their averaged outputs, and its true score with its standard error.

    truth, stderr: None where it was not evaluated. rank: its place by estimate, best first, from 1.
    """

    size: int
    estimate: float
    truth: float | None
    stderr: float | None
    origin: Origin
    rank: int


@dataclass(frozen=True)
class Estimates:
    """Figure 2. ``soups`` (S,), best estimate first; ``correlation``: Spearman's, of estimate and truth; None where
    either is constant. bias: mean of truth minus estimate. single: the score of the best single member.
    """

    about: About
    soups: tuple[EstimatedSoup, ...]
    correlation: float | None
    bias: float
    single: float


@dataclass(frozen=True)
class Ranked:
    """Figure 3. ``candidates`` (K,), best estimate first: those that the run's seed draws, and all soups evaluated.

    drawn: how many of them the seed draws; evaluated: how many have a true score. single: the best single member's.
    """

    about: About
    candidates: tuple[EstimatedSoup, ...]
    drawn: int
    evaluated: int
    single: float


def estimates(record: RunRecord) -> Estimates | Unavailable:
    """Estimate and truth of all soups that are fully evaluated (Figure 2)."""
    found = [soup for soup in _soups(record, with_candidates=False) if soup.truth is not None]
    if not found:
        why = NO_OUTPUTS if record.estimator is None and record.soups else "no soup has been fully evaluated yet"
        return Unavailable("2", why)
    if len(found) < FEWEST:
        counted = "soup has" if len(found) == 1 else "soups have"
        return Unavailable(
            "2",
            f"only {len(found)} {counted} an estimate and a true score; 'radin figures RUN --evaluate N' adds more",
        )
    truth = np.array([soup.truth for soup in found])
    guess = np.array([soup.estimate for soup in found])
    bias = float((truth - guess).mean())
    return Estimates(About.of(record), tuple(found), spearman(guess, truth), bias, record.reference[1].score)


def ranked(record: RunRecord) -> Ranked | Unavailable:
    """Candidates by their estimate, those with a true score marked (Figure 3)."""
    if record.estimator is None:
        return Unavailable("3", NO_OUTPUTS)
    found = _soups(record, with_candidates=True)
    evaluated = sum(soup.truth is not None for soup in found)
    single = record.reference[1].score
    return Ranked(About.of(record), tuple(found), len(record.candidates), evaluated, single)


def _soups(record: RunRecord, *, with_candidates: bool) -> list[EstimatedSoup]:
    """The soups evaluated, and the candidates where these are wanted, best estimate first, equal ones by ratios."""
    origins: dict[object, Origin] = {s.recipe: "since" if s.further else "the run" for s in record.soups}
    # Those that only measure the line and the simplex of Figure 1 are nobody's candidates.
    measured = {s.recipe for s in record.soups if s.further and s.recipe in record.mixed and not s.recipe.is_uniform}
    recipes = [soup.recipe for soup in record.soups if soup.recipe.size > 1 and soup.recipe not in measured]
    if with_candidates:
        recipes = list(dict.fromkeys((*recipes, *record.candidates)))
    guesses = record.estimates(recipes)
    utility = record.metric.utility
    usable = [(r, float(g)) for r, g in zip(recipes, guesses, strict=True) if np.isfinite(g)]
    usable.sort(key=lambda pair: (-utility(pair[1]), pair[0].weights))
    found = []
    for place, (recipe, guess) in enumerate(usable, start=1):
        answer = record.scores.get(recipe)
        known = answer is not None and np.isfinite(answer.score)
        found.append(
            EstimatedSoup(
                recipe.size,
                guess,
                answer.score if answer is not None and known else None,
                answer.stderr if answer is not None and known else None,
                origins.get(recipe, "not evaluated"),
                place,
            )
        )
    return found
