"""A Gaussian process over all recipes for searches from scores alone: what soups score, given members and soups told.

The deviation of a soup's utility from what ``ScorePrior`` expects is modelled, in units of its ``scale``, as amounts by
which the terms of the prior are off for the whole pool, one by which all soups are better or worse than their members'
scores say, one for each member (it may help a soup more or less than its own score says), and a remainder that is alike
for soups close together in weight space. All but the remainder vanish for single members, whose deviation is known to
be zero. Axis names: members N, recipes S, evaluations n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radin.search.prior import ScorePrior

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Deviations:
    """Prior standard deviations, in units of the prior's scale, and the remainder's length in typical distances.

    By marginal likelihood over 38 soups of each of six sub-pools of each of four benchmark pools, rounded.
    """

    near: float = 0.3
    apart: float = 0.4
    far: float = 0.9
    mixed: float = 0.6
    member: float = 0.3
    remainder: float = 0.4
    length: float = 1.5
    noise: float = 0.03


@dataclass(frozen=True, eq=False)
class Surrogate:
    """What is believed of soups after mixing ``ratios`` (n, N) were told to have ``utilities`` (n,)."""

    prior: ScorePrior
    ratios: Floats
    utilities: Floats
    deviations: Deviations = Deviations()

    def posterior(self, ratios: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the utilities of mixing ratios (S, N), (S,) each."""
        scale = self.prior.scale
        members = np.eye(self.prior.singles.size)[self.prior.usable]
        known = np.concatenate([members, self.ratios])
        off = np.concatenate([np.zeros(len(members)), (self.utilities - self.prior.estimate(self.ratios)) / scale])
        own = np.concatenate([np.full(len(members), 1e-4), np.full(len(self.ratios), self.deviations.noise**2)])
        lower = np.linalg.cholesky(self._covariance(known, known) + np.diag(own))
        cross = np.linalg.solve(lower, self._covariance(known, ratios))
        mean = self.prior.estimate(ratios) + scale * (cross.T @ np.linalg.solve(lower, off))
        variance = self._alone(ratios) - (cross**2).sum(axis=0)
        return mean, scale * np.sqrt(np.maximum(variance, 0.0))

    def _trends(self, ratios: Floats) -> Floats:
        """Features (S, 4 + N) with prior deviation 1 each."""
        size, prior = self.deviations, self.prior
        near, apart, far = (((ratios @ term) * ratios).sum(axis=1) for term in (prior.near, prior.apart, prior.far))
        each = ratios * apart[:, None]
        mixed = size.mixed * prior.mixed(ratios)
        return np.column_stack([size.near * near, size.apart * apart, size.far * far, mixed, size.member * each])

    def _covariance(self, rows: Floats, columns: Floats) -> Floats:
        remainder = np.exp(-self._between(rows, columns) / self.deviations.length)
        result: Floats = self._trends(rows) @ self._trends(columns).T + self.deviations.remainder**2 * remainder
        return result

    def _alone(self, ratios: Floats) -> Floats:
        result: Floats = (self._trends(ratios) ** 2).sum(axis=1) + self.deviations.remainder**2
        return result

    def _between(self, rows: Floats, columns: Floats) -> Floats:
        """Distances of soups from their members' distances: |a - b|^2 = a'Db - a'Da/2 - b'Db/2, D squared ones."""
        squares = self.prior.distances**2
        own = [((w @ squares) * w).sum(axis=1) / 2 for w in (rows, columns)]
        result: Floats = np.sqrt(np.maximum(rows @ squares @ columns.T - own[0][:, None] - own[1][None, :], 0.0))
        return result
