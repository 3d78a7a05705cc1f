"""A Gaussian process for truth minus estimate over a set of recipes.

Axis names: members N, candidates K, evaluations n.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

import numpy as np

from radin.search.strategies.base import Floats, Indices, Problem

# Prior standard deviations, in units of the gain that the best estimate promises over the best single member.
_TRENDS = (0.25, 1.0)
_REMAINDERS = (0.1, 0.2, 0.4)
_LENGTHS = (0.5, 1.0, 2.0)
_JITTER = 0.02
# The share of the gain of averaged outputs over its members that a soup is expected to lose before anything is known:
# anywhere, and for each unit of nonlinearity. Set by what soups of the benchmark's pools lose on validation.
_USUAL_LOSS = 0.1
_NONLINEAR_LOSS = 0.05


@dataclass(frozen=True)
class Prior:
    """Prior deviations of the trends and of the remainder, and the distance over which the remainder changes."""

    trend: float = 0.25
    remainder: float = 0.2
    length: float = 1.0


_PRIORS = tuple(Prior(t, r, length) for t in _TRENDS for r in _REMAINDERS for length in _LENGTHS)


@dataclass(frozen=True)
class Process:
    """Truth minus what is expected of K candidates, as trends and a remainder that changes slowly with the weights.

    ``expected`` (K,): the estimates, less the loss expected beforehand. ``trends`` (K, 3): features that are zero for
    single members and of the order of 1 for the typical candidate: the dispersion of the members' weights, the gain of
    the averaged outputs over the members, and the estimate itself, for the selection bias of the highest estimates.
    ``distances`` (K, K): between soups in weight space, 1 for the typical pair. ``scale``: the gain that the best
    estimate promises, the unit of all prior deviations. ``known``: the candidates that are single members, whose truth
    is their estimate. ``_factors``, ``_explained``: see ``_factor`` and ``_singles``, by prior.
    """

    expected: Floats
    trends: Floats
    distances: Floats
    scale: float
    known: Indices
    _factors: dict[Prior, Floats] = field(default_factory=dict, repr=False)
    _explained: dict[Prior, Floats] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, problem: Problem, ratios: Floats, estimates: Floats) -> Process:
        """``ratios`` (K, N) mixing ratios, ``estimates`` (K,)."""
        gram = problem.gram if problem.gram is not None else np.eye(problem.members)
        known = np.flatnonzero((ratios > 0).sum(axis=1) == 1)
        spread = ratios @ np.diag(gram) - ((ratios @ gram) * ratios).sum(axis=1)
        gain = gained(problem, ratios, estimates)
        mixed = (ratios > 0).sum(axis=1) > 1
        features = np.stack([np.maximum(spread, 0.0), gain], axis=1)
        typical = np.abs(features[mixed]).mean(axis=0) if mixed.any() else np.ones(2)
        features = features / np.where(typical > 0, typical, 1.0)
        features[~mixed] = 0.0
        middle, width = (np.median(estimates[mixed]), estimates[mixed].std()) if mixed.any() else (0.0, 1.0)
        slope = np.where(mixed, (estimates - middle) / max(float(width), 1e-12), 0.0)
        features = np.column_stack([features, slope])
        products = ratios @ gram @ ratios.T
        squares = np.diag(products)
        squared = squares[:, None] + squares[None, :]
        products *= 2
        squared -= products
        np.maximum(squared, 0.0, out=squared)
        typical_pair = np.median(squared[np.ix_(mixed, mixed)]) if mixed.any() else 1.0
        squared /= typical_pair if typical_pair > 0 else 1.0
        finite = estimates[np.isfinite(estimates)]
        promise = float(finite.max() - problem.singles.max())
        process = cls(
            expected(problem, ratios, estimates),
            features,
            np.sqrt(squared, out=squared),
            max(promise, 0.25 * float(finite.std()), 1e-9),
            known,
        )
        for prior in _PRIORS:  # now, so that nothing waits for it between two evaluations
            process._factor(prior)
        return process

    def posterior(self, seen: list[int], truth: Floats, noise: Floats, prior: Prior) -> tuple[Floats, Floats]:
        """Mean and variance of every candidate's utility, (K,) each.

        ``seen``: candidates evaluated, with utilities ``truth`` (n,) known up to the variance ``noise`` (n,).
        """
        found = Posterior(self, seen, truth, noise, prior)
        return found.mean, found.variance

    def likeliest(self, seen: list[int], truth: Floats, noise: Floats) -> Prior:
        """The prior under which what was seen, given the single members, is likeliest."""

        def likelihood(prior: Prior) -> float:
            lower, whitened = self._whitened(seen, truth, noise, prior)
            return -0.5 * float(whitened @ whitened) - float(np.log(np.diag(lower)).sum())

        return max(_PRIORS, key=likelihood)

    def _whitened(self, seen: list[int], truth: Floats, noise: Floats, prior: Prior) -> tuple[Floats, Floats]:
        """The Cholesky factor (n, n) of what was seen, given the single members; truth minus expected, by it, (n,)."""
        own = noise + (self.scale * _JITTER) ** 2
        lower = np.linalg.cholesky(self._covariance(seen, seen, prior) + np.diag(own)).astype(np.float64, copy=False)
        whitened = np.linalg.solve(lower, truth - self.expected[seen]).astype(np.float64, copy=False)
        return lower, whitened

    def _covariance(self, rows: list[int], columns: list[int] | slice, prior: Prior) -> Floats:
        """Between candidates (rows, columns), given that single members score what their outputs do."""
        left = self._singles(prior, rows)
        result: Floats = self._before(rows, columns, prior) - left.T @ (
            left if columns is rows else self._singles(prior, columns)
        )
        return result

    def _singles(self, prior: Prior, columns: list[int] | slice) -> Floats:
        """(members, columns): what the single members explain of candidates' deviations, whitened."""
        if columns == slice(None):
            if prior not in self._explained:
                self._explained.clear()  # of one prior at a time: of all, it would be the largest thing there is
                self._explained[prior] = self._whiten(prior, columns)
            return self._explained[prior]
        if prior in self._explained:
            return self._explained[prior][:, columns]
        return self._whiten(prior, columns)

    def _whiten(self, prior: Prior, columns: list[int] | slice) -> Floats:
        found = np.linalg.solve(self._factor(prior), self._before(self.known, columns, prior))
        return found.astype(np.float64, copy=False)

    def _factor(self, prior: Prior) -> Floats:
        """The Cholesky factor (members, members) of the single members' deviations. Computed once."""
        if prior not in self._factors:
            own = np.eye(len(self.known)) * (self.scale * _JITTER) ** 2
            factor = np.linalg.cholesky(self._before(self.known, self.known, prior) + own)
            self._factors[prior] = factor.astype(np.float64, copy=False)
        return self._factors[prior]

    def _before(self, rows: list[int] | Indices, columns: list[int] | Indices | slice, prior: Prior) -> Floats:
        """Between candidates (rows, columns), before anything is known."""
        linear = prior.trend**2 * (self.trends[rows] @ self.trends[columns].T)
        remainder = prior.remainder**2 * np.exp(-self.distances[rows][:, columns] / prior.length)
        result: Floats = self.scale**2 * (linear + remainder)
        return result


class Posterior:
    """Every candidate's mean and variance given what was seen, (K,) each; more can be added, one by one.

    Adding one takes the evaluations times K, to begin anew that times the evaluations once more.
    """

    def __init__(self, process: Process, seen: list[int], truth: Floats, noise: Floats, prior: Prior) -> None:
        """See ``Process.posterior``."""
        self._process, self._prior = process, prior
        lower, whitened = process._whitened(seen, truth, noise, prior)
        cross = np.linalg.solve(lower, process._covariance(seen, slice(None), prior)).astype(np.float64, copy=False)
        self.mean: Floats = process.expected + cross.T @ whitened
        explained = (process._singles(prior, slice(None)) ** 2).sum(axis=0) + (cross**2).sum(axis=0)
        alone = process.scale**2 * (prior.trend**2 * (process.trends**2).sum(axis=1) + prior.remainder**2)
        self._variance: Floats = alone - explained
        self._cross: Floats = cross
        self.rows = len(seen)
        """How many evaluations there are."""

    @property
    def variance(self) -> Floats:
        """(K,), not below zero."""
        return np.maximum(self._variance, 0.0)

    def copy(self) -> Posterior:
        """The same, to be added to apart."""
        other = copy(self)
        other.mean, other._variance = self.mean.copy(), self._variance.copy()
        other._cross = self._cross[: self.rows].copy()
        return other

    def add(self, candidate: int, noise: float, truth: float | None = None) -> None:
        """An evaluation of a candidate, known up to the variance ``noise``; None: open.

        What an open one will say is taken to be what is expected, so that no mean moves, but the variances fall.
        """
        process, n = self._process, self.rows
        if n == len(self._cross):
            self._cross = np.concatenate([self._cross, np.empty((max(64, n // 2), self._cross.shape[1]))])
        known = self._cross[:n]
        between = process._covariance([candidate], slice(None), self._prior)[0] - known[:, candidate] @ known
        own = noise + (process.scale * _JITTER) ** 2
        row = between / np.sqrt(max(float(between[candidate]), 0.0) + own)
        self._cross[n] = row
        self._variance -= row**2
        self.rows += 1
        if truth is not None:
            off = truth - float(self.mean[candidate])
            self.mean += row * (off / np.sqrt(max(float(between[candidate]), 0.0) + own))


def gained(problem: Problem, ratios: Floats, estimates: Floats) -> Floats:
    """By how much averaged outputs are better than their members are on average, (K,)."""
    usable = np.isfinite(problem.singles)
    result: Floats = estimates - ratios @ np.where(usable, problem.singles, problem.singles[usable].min())
    return result


def expected(problem: Problem, ratios: Floats, estimates: Floats, nonlinear: Nonlinear | None = None) -> Floats:
    """The estimates, less the share of the gain that a soup is expected to lose; more with nonlinearity; (K,).

    ``nonlinear``: what ``Nonlinear.of`` gives for the problem, where it is at hand.
    """
    found = Nonlinear.of(problem) if nonlinear is None else nonlinear
    loss = _USUAL_LOSS + _NONLINEAR_LOSS * found.along(ratios)
    result: Floats = estimates - loss * np.maximum(gained(problem, ratios, estimates), 0.0)
    return result


def nonlinearity(problem: Problem, ratios: Floats) -> Floats:
    """See ``Nonlinear``; ``ratios`` (K, N) -> (K,)."""
    return Nonlinear.of(problem).along(ratios)


@dataclass(frozen=True)
class Nonlinear:
    """Nonlinearity of outputs along the lines between the members that a recipe mixes; 0 with no sign of it.

    Near a common start outputs move in proportion to the weights. Where two members' outputs lie closer together than
    their weights lead one to expect from the pool's closest pairs, outputs are nonlinear between them, and averages of
    their weights are no averages of their outputs. That is the mean, over the pairs mixed, of the squared ratio of
    expected to actual, ``pairs`` (N, N), less 1; it counts to the degree ``stopped`` that outputs have stopped to
    follow weights in the pool as a whole (the slope of one against the other, both as logarithms, below 1/2).
    """

    stopped: float
    pairs: Floats

    @classmethod
    def of(cls, problem: Problem) -> Nonlinear:
        """Of a pool; none where its weights or outputs are not at hand, or too few of its members differ."""
        none = cls(0.0, np.zeros((problem.members, problem.members)))
        if problem.gram is None or problem.output_distances is None or problem.members < 4:
            return none
        squares = np.diag(problem.gram)
        apart = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * problem.gram, 0.0))
        moved = problem.output_distances()
        pairs = np.triu((moved > 1e-6 * moved.max()) & (apart > 1e-6 * apart.max()), 1)
        if pairs.sum() < 3:
            return none
        logs = np.log(apart[pairs]), np.log(moved[pairs])
        slope = np.cov(*logs)[0, 1] / max(float(logs[0].var(ddof=1)), 1e-12)
        stopped = float(np.clip(1 - 2 * slope, 0.0, 1.0))
        ratio = np.divide(apart, moved, out=np.zeros_like(apart), where=moved > 1e-6 * moved.max())
        ratio = np.maximum(ratio / np.quantile(ratio[pairs], 0.1), 1.0) ** 2
        np.fill_diagonal(ratio, 0.0)
        return cls(stopped, ratio)

    def along(self, ratios: Floats) -> Floats:
        """For each recipe, (K, N) -> (K,)."""
        if not self.stopped:
            return np.zeros(len(ratios))
        mixed = ((ratios @ self.pairs) * ratios).sum(axis=1)
        share = 1 - (ratios**2).sum(axis=1)
        several = share > 1e-12
        result: Floats = self.stopped * np.where(several, mixed / np.where(several, share, 1.0) - 1, 0.0)
        return result
