"""Spend each evaluation where it promises most, by a model of truth minus estimate that learns as truth arrives.

The estimate of a recipe p (the score of its averaged outputs) is a good guess of its soup's score and a biased one:
the more the members are spread, the more averaging weights loses against averaging outputs. Truth minus estimate is
modelled as a Gaussian process over recipes: two linear trends that vanish for single members, where the estimate is
the truth, and a smooth remainder that is alike for soups that lie close together in weight space. Before anything is
evaluated a soup is expected to keep four fifths of what averaging outputs gains over its members; each evaluation then
corrects the ranking of what is near.

Axis names: members N, candidates K, evaluations n.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, pi, sqrt
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from radin.search.candidates import Floats, equal_weights, monte_carlo, prefixes
from radin.search.sources import best_recipes, default_sources
from radin.search.strategies.base import Asks, Problem, strategy

Indices = NDArray[np.intp]

# What a soup loses of the gain of averaged outputs over its members, before anything is known: a fifth.
_LOSS = 0.2
# Prior standard deviations, in units of the gain that the best estimate promises over the best single member.
_TRENDS = (0.25, 1.0)
_REMAINDERS = (0.1, 0.2, 0.4)
_LENGTHS = (0.5, 1.0, 2.0)
_JITTER = 0.02
_ANCHORS = 8


@strategy("adaptive", geometry=True)
def adaptive(
    problem: Problem,
    *,
    count: Annotated[int, "recipes that each random source of candidates draws"] = 4096,
    keep: Annotated[int, "candidates kept, best estimates first, beside the anchors of every size"] = 384,
) -> Asks:
    """Rank recipes of every source, unequal ratios too, and correct the ranking by each soup evaluated."""
    weights = candidates(problem, count, keep)
    estimates = problem.estimate(weights)
    known = np.flatnonzero((weights > 0).sum(axis=1) == 1)
    process = Process.of(problem, weights, estimates, known)
    open_ = np.ones(len(weights), dtype=bool)
    open_[known] = False
    seen: list[int] = []
    truth: list[float] = []
    for turn in range(problem.budget):
        if not open_.any():
            return
        mean, deviation = process.posterior(seen, np.array(truth))
        best = max([problem.singles.max(), *truth])
        certain = turn in (0, problem.budget - 1)
        worth = mean if certain else expected_improvement(mean, deviation, best)
        chosen = int(np.flatnonzero(open_)[np.argmax(worth[open_])])
        utility = yield weights[chosen]
        open_[chosen] = False
        if np.isfinite(utility):
            seen.append(chosen)
            truth.append(utility)


def candidates(problem: Problem, count: int, keep: int) -> Floats:
    """Distinct recipes (K, N): the members alone, the best by estimate of every source, and anchors of every size.

    The anchors keep the set diverse: all prefixes of the members sorted best first, and the best few random subsets of
    each size. Where the estimate is wrong for whole regions, some candidate lies outside them.
    """
    members = problem.members
    found = best_recipes(problem, default_sources(members, count), count=count, keep=keep).weights
    rows = [np.eye(members), found, equal_weights(prefixes(members)[1:])]
    if members > 2:
        subsets = monte_carlo(members, count, (2, members - 1), np.random.default_rng(problem.seed), False)
        drawn = equal_weights(subsets)
        worth, sizes = problem.estimate(drawn), subsets.sum(axis=1)
        for size in np.unique(sizes):
            of_size = np.flatnonzero(sizes == size)
            rows.append(drawn[of_size[np.argsort(-worth[of_size], kind="stable")[:_ANCHORS]]])
    everything = np.concatenate(rows)
    _, first = np.unique(np.round(everything, 12), axis=0, return_index=True)
    return everything[np.sort(first)]


def expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """E[max(u - best, 0)] for u normal with this mean and standard deviation, (K,)."""
    spread = np.maximum(deviation, 1e-12)
    z = (mean - best) / spread
    density = np.exp(-0.5 * z**2) / sqrt(2 * pi)
    below = 0.5 * (1 + np.vectorize(erf)(z / sqrt(2)))
    improvement: Floats = (mean - best) * below + spread * density
    return improvement


@dataclass(frozen=True)
class Process:
    """A Gaussian process for truth minus estimate over K candidates.

    ``expected`` (K,): the estimates, less the loss expected beforehand. ``trends`` (K, 2): features that are zero for
    single members and about 1 for the typical candidate: the dispersion of the members' weights, and the gain of the
    averaged outputs over the members. ``distances`` (K, K): squared distances between soups in weight space, 1 for the
    typical pair. ``scale``: the gain that the best estimate promises, the unit of all prior deviations. ``known``: the
    candidates that are single members, whose truth is their estimate.
    """

    expected: Floats
    trends: Floats
    distances: Floats
    scale: float
    known: Indices

    @classmethod
    def of(cls, problem: Problem, weights: Floats, estimates: Floats, known: Indices) -> Process:
        gram = problem.gram if problem.gram is not None else np.eye(problem.members)
        spread = weights @ np.diag(gram) - ((weights @ gram) * weights).sum(axis=1)
        gain = estimates - weights @ np.where(np.isfinite(problem.singles), problem.singles, problem.singles.min())
        mixed = (weights > 0).sum(axis=1) > 1
        features = np.stack([np.maximum(spread, 0.0), gain], axis=1)
        typical = np.abs(features[mixed]).mean(axis=0) if mixed.any() else np.ones(2)
        features = features / np.where(typical > 0, typical, 1.0)
        features[~mixed] = 0.0
        products = weights @ gram @ weights.T
        squares = np.diag(products)
        squared = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
        typical_pair = np.median(squared[np.ix_(mixed, mixed)]) if mixed.any() else 1.0
        squared = squared / (typical_pair if typical_pair > 0 else 1.0)
        expected = estimates - _LOSS * gain
        finite = estimates[np.isfinite(estimates)]
        promise = float(finite.max() - problem.singles.max())
        scale = max(promise, 0.25 * float(finite.std()), 1e-9)
        return cls(expected, features, squared, scale, known)

    def posterior(self, seen: list[int], truth: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of every candidate's utility, (K,) each, given those evaluated."""
        at = np.concatenate([self.known, seen]).astype(int)
        residual = np.concatenate([np.zeros(len(self.known)), truth - self.expected[seen]])
        choices = [(0.25, 0.2, 1.0)] if len(seen) < 2 else [
            (t, r, length) for t in _TRENDS for r in _REMAINDERS for length in _LENGTHS
        ]  # fmt: skip
        best: tuple[float, Floats, Floats] | None = None
        for trend, remainder, length in choices:
            likelihood, mean, variance = self._fit(at, residual, trend, remainder, length)
            if best is None or likelihood > best[0]:
                best = (likelihood, mean, variance)
        assert best is not None
        return self.expected + best[1], np.sqrt(np.maximum(best[2], 0.0))

    def _fit(
        self, at: Indices, residual: Floats, trend: float, remainder: float, length: float
    ) -> tuple[float, Floats, Floats]:
        """Log marginal likelihood, and mean and variance of the residual at every candidate."""
        unit = self.scale**2

        def covariance(rows: Indices, columns: Indices) -> Floats:
            linear = trend**2 * (self.trends[rows] @ self.trends[columns].T)
            smooth = remainder**2 * np.exp(-0.5 * self.distances[np.ix_(rows, columns)] / length**2)
            result: Floats = unit * (linear + smooth)
            return result

        everything = np.arange(len(self.expected))
        inside = covariance(at, at) + unit * _JITTER**2 * np.eye(len(at))
        lower = np.linalg.cholesky(inside)
        whitened = np.linalg.solve(lower, residual)
        cross = np.linalg.solve(lower, covariance(at, everything))
        prior = unit * (trend**2 * (self.trends**2).sum(axis=1) + remainder**2)
        likelihood = -0.5 * float(whitened @ whitened) - float(np.log(np.diag(lower)).sum())
        mean: Floats = cross.T @ whitened
        variance: Floats = prior - (cross**2).sum(axis=0)
        return likelihood, mean, variance
