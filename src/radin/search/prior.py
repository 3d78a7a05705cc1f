"""What is expected of soups before any is evaluated, from the members' scores and the distances of their weights alone.

For users who have no cached outputs. Near a minimum a soup is better than its members are on average, the more so the
further apart they lie: for a quadratic loss by exactly the dispersion of their weights. Far away that ends, and a pool
says itself whether its far members are outliers: there they are the bad ones. So a recipe p promises

    sum_i p_i s_i + sum_ij p_i p_j G_ij,     G = (best - median score) (2 (1 - t) near + t (1.25 - 4 far)),

where near_ij grows with the distance between two members up to three times the pool's typical one, far_ij says how far
they lie beyond one and a half of it, and t in [0, 1] is how strongly scores fall with distance. Both terms say less of
a soup than of its members, whose scores hold the luck of the validation set and of training, which averaging takes
away: of the promise's difference from the members' median 0.4 is expected to remain. Axis names: members N, recipes S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Set on validation scores of six sub-pools of each of four benchmark pools; see benchmarks/spending/hidden.py.
_GAIN = 2.0
_CLOSE_GAIN = 1.25
_FAR_LOSS = 4.0
_REACH = 3.0
_FAR = 1.5
_FARTHEST = 2.0
_CAUTION = 1.5
_SAME = 0.1
_TYPICAL = 0.25
_REMAINS = 0.4
_MIXED = 0.3


@dataclass(frozen=True, eq=False)
class ScorePrior:
    """Expected utilities of soups of members whose own utilities are known.

    ``singles`` (N,) utilities, -inf for a member that must not be mixed. ``scale``: the unit of gains, by which the
    best member is better than the median one. ``pairs`` (N, N): what each pair of members adds, times both ratios.
    ``near``, ``far``, ``apart`` (N, N): the terms of ``pairs``, and 1 for members that are not the same.
    """

    singles: Floats
    distances: Floats
    scale: float
    near: Floats
    far: Floats
    apart: Floats
    pairs: Floats

    @classmethod
    def of(cls, singles: Floats, gram: Floats | None) -> ScorePrior:
        """``singles`` (N,), best first; ``gram`` (N, N) inner products of the members' weights, None if not known."""
        distances = relative_distances(gram, len(singles))
        near = np.minimum(distances, _REACH)
        far = np.clip((distances - _FAR) / _FAR, 0.0, _FARTHEST)
        apart = np.minimum(distances / _SAME, 1.0)
        scale = gain_scale(singles)
        lost = far_is_bad(singles, distances)
        pairs = scale * ((1 - lost) * _GAIN * near + lost * (_CLOSE_GAIN * apart - _FAR_LOSS * far))
        return cls(np.asarray(singles, dtype=np.float64), distances, scale, near, far, apart, pairs)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Members with a score, (N,)."""
        return np.isfinite(self.singles)

    def mixed(self, ratios: Floats) -> Floats:
        """How far ratios (S, N) are from single members, 0 to 1, (S,): 1 from an average of two in 4 to 1 on."""
        result: Floats = np.minimum(((ratios @ self.apart) * ratios).sum(axis=1) / _MIXED, 1.0)
        return result

    def estimate(self, ratios: Floats) -> Floats:
        """Expected utilities (S,) of ratios (S, N): the singles' own; of soups, what remains of their promise."""
        promise = self.promise(ratios)
        lost = (1 - _REMAINS) * self.mixed(ratios)
        result: Floats = (1 - lost) * promise + lost * (np.median(self.singles[self.usable]) if lost.any() else 0.0)
        return result

    def promise(self, ratios: Floats) -> Floats:
        """What ranks soups before any is evaluated, (S,); -inf for a recipe with a member that has no usable score."""
        own = np.where(self.usable, self.singles, 0.0)
        result: Floats = ratios @ own + ((ratios @ self.pairs) * ratios).sum(axis=1)
        broken = (ratios[:, ~self.usable] > 0).any(axis=1)
        return np.where(broken, -np.inf, result)


def relative_distances(gram: Floats | None, members: int) -> Floats:
    """(N, N) distances of the members' weights, over the lower quartile of those between distinct members.

    Without ``gram`` all members are taken to lie equally far apart. Members at no distance are the same.
    """
    if gram is None:
        return 1.0 - np.eye(members)
    squares = np.diag(gram)
    squared = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    squared[squared <= 1e-12 * squared.max(initial=0.0)] = 0.0
    np.fill_diagonal(squared, 0.0)
    distances: Floats = np.sqrt(squared)
    pairs = distances[np.triu_indices(members, 1)]
    pairs = pairs[pairs > 0]
    # Rounded, so that the order in which the products were summed decides nothing.
    return np.round(distances / np.quantile(pairs, _TYPICAL), 9) if len(pairs) else distances


def gain_scale(singles: Floats) -> float:
    """By how much the best member is better than the median one; where that is next to nothing, from their spread.

    Equal members leave only their size: a hundredth of the utility, or of 1.
    """
    finite = singles[np.isfinite(singles)]
    if not len(finite):
        return 0.01
    scale = max(float(finite.max() - np.median(finite)), 0.25 * float(finite.std()))
    size = float(np.abs(finite).max())
    return scale if scale > 1e-9 * size else 0.01 * (size or 1.0)


def far_is_bad(singles: Floats, distances: Floats) -> float:
    """How strongly scores fall with a member's median distance to the others: 0 not at all, 1 where nearly all does.

    Their correlation, of scores and logarithms of distances, times -1.5.
    """
    finite = np.isfinite(singles)
    others = distances[np.ix_(finite, finite)]
    if len(others) < 4:
        return 0.0
    alone = np.eye(len(others), dtype=np.bool_)
    typical = np.median(others[~alone].reshape(len(others), -1), axis=1)
    if (typical <= 0).any():
        return 0.0
    logs, scores = np.log(typical), singles[finite]
    if logs.std() < 1e-9 or scores.std() < 1e-12:
        return 0.0
    return float(np.clip(-_CAUTION * np.corrcoef(scores, logs)[0, 1], 0.0, 1.0))
