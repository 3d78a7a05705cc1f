"""Ranking very many recipes where each estimate takes long: by something cheap that is close to it.

Accuracy of a large pool is ranked by the margin rows that can decide recipes like those ranked. Any other metric, in a
large pool or where it is a function of the user's, by the members' scores and a gain in proportion to how far their
outputs lie apart and, for classes, to what averaging gains in accuracy. Those two proportions are fitted to the metric
itself on ``FITTED`` recipes. Only the best are then estimated by the metric.

Axis names: members N, recipes S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from radin.search.candidates import Floats, equal_weights, prefixes

if TYPE_CHECKING:
    from radin.search.strategies.base import Problem

# Multiplications of one estimate from which very many of them take long: 24 members, 4,000 examples, 10 classes.
WORK = 1 << 20
# Estimates by the metric, where it takes long: fitted to, and ranked by (a function of the user's; others some more).
FITTED, RANKED = 64, 256
_PROBES = 256
_AT_ONCE = 32  # estimates between two signs of life
_RIDGE = 1e-3


def probes(members: int, seed: int, count: int = _PROBES) -> Floats:
    """Recipes of every kind that searches rank, (S, N): averages of the k best, of random subsets, unequal ratios."""
    rng = np.random.default_rng(seed)
    third = count // 3
    best = prefixes(members)[np.unique(np.geomspace(2, members, third).astype(int)) - 1]
    sizes = np.exp(rng.uniform(np.log(2), np.log(members + 1), third)).astype(int)
    # The best members are drawn more often: that is where what is searched for lies.
    order = np.argsort(rng.random((third, members)) * (1 + np.arange(members)), axis=1)
    drawn = np.zeros((third, members), dtype=np.bool_)
    np.put_along_axis(drawn, order, np.arange(members) < sizes[:, None], axis=1)
    ratios = drawn * rng.standard_exponential(drawn.shape)
    return np.concatenate([equal_weights(np.concatenate([best, drawn])), ratios / ratios.sum(axis=1, keepdims=True)])


def estimated(problem: Problem, ratios: Floats) -> Floats:
    """``problem.estimate`` of ratios (S, N), with progress where it takes long; single members are known already."""
    if not problem.affords:
        return problem.estimate(ratios)
    single = (ratios > 0).sum(axis=1) == 1
    result = np.where(single, problem.singles[ratios.argmax(axis=1)], 0.0)
    left = np.flatnonzero(~single)
    what = f"estimating {len(left)} recipes with {problem.metric}"
    for start in range(0, len(left), _AT_ONCE):
        problem.progress(what, start, len(left))
        part = left[start : start + _AT_ONCE]
        result[part] = problem.estimate(ratios[part])
    problem.progress(what, len(left), len(left))
    return result


def by_gains(problem: Problem, accuracy: Callable[[Floats], Floats] | None) -> Callable[[Floats], Floats]:
    """A cheap estimate of utilities, (S, N) -> (S,), fitted to ``problem.estimate``.

    ``accuracy``: of averaged outputs; None where the targets are no classes.
    """
    usable = np.isfinite(problem.singles)
    singles = np.where(usable, problem.singles, problem.singles[usable].min())
    assert problem.output_distances is not None
    distances = problem.output_distances()
    squares = (distances / (distances.max() or 1.0)) ** 2
    alone = np.zeros(problem.members) if accuracy is None else accuracy(np.eye(problem.members))

    def gains(ratios: Floats) -> Floats:
        spread: Floats = ((ratios @ squares) * ratios).sum(axis=1, keepdims=True) / 2
        return spread if accuracy is None else np.column_stack([spread, accuracy(ratios) - ratios @ alone])

    rows = probes(problem.members, problem.seed, FITTED)
    rows = rows[(rows[:, ~usable] == 0).all(axis=1)]
    found = estimated(problem, rows)
    finite = np.isfinite(found)
    features = gains(rows[finite])
    size = np.sqrt((features**2).mean(axis=0)) if len(features) else np.ones(features.shape[1])
    size = np.where(size > 0, size, 1.0)
    scaled, gained = features / size, found[finite] - rows[finite] @ singles
    ridge = _RIDGE * max(len(scaled), 1) * np.eye(len(size))
    shares = np.linalg.solve(scaled.T @ scaled + ridge, scaled.T @ gained) / size

    def estimate(ratios: Floats) -> Floats:
        broken = (ratios[:, ~usable] > 0).any(axis=1)
        result: Floats = np.where(broken, -np.inf, ratios @ singles + gains(ratios) @ shares)
        return result

    return estimate


def reranked(problem: Problem, ratios: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Of recipes (S, N), best first by a cheap estimate, as many as can be afforded by ``problem.estimate``.

    Returns their places, best first, and their utilities.
    """
    utilities = estimated(problem, ratios[: problem.affords])
    order = np.argsort(-utilities, kind="stable")
    return order, utilities[order]


def screened(problem: Problem) -> Problem:
    """The problem with something cheap in the place of an estimate that takes long; else the problem itself."""
    cheap = None if problem.screen is None else problem.screen(problem)
    return problem if cheap is None else replace(problem, estimate=cheap, affords=0)
