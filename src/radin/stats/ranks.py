"""Ranks: their correlation, and whether one group's numbers are larger than another's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_EXACT = 8  # numbers in the smaller group up to which all orders are counted, if none tie


@dataclass(frozen=True)
class RankTest:
    """Mann and Whitney's test of two groups. ``larger``: the chance that one of the first exceeds one of the second.

    ``statistic``: U, pairs in which the first is larger, ties counting half. ``p_value``: two-sided.
    """

    statistic: float
    larger: float
    p_value: float


def ranks(values: NDArray[Any]) -> Floats:
    """The ranks of numbers (S,), from 1; equal ones share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    result: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return result


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None when either is constant. (S,), (S,)."""
    both = [ranks(np.asarray(values)) for values in (first, second)]
    if any(rank.std() == 0 for rank in both):
        return None
    return float(np.asarray(np.corrcoef(both))[0, 1])


def mann_whitney(first: NDArray[Any], second: NDArray[Any]) -> RankTest | None:
    """Whether the numbers of one group (S,) tend to exceed those of another (T,); None where either is empty.

    Two-sided (Mann and Whitney, Annals of Mathematical Statistics 18, 1947): exact where the smaller group has at most
    8 and no two numbers are equal, else by the normal distribution, corrected for ties and continuity.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not len(one) or not len(other):
        return None
    together = np.concatenate([one, other])
    statistic = float(ranks(together)[: len(one)].sum()) - len(one) * (len(one) + 1) / 2
    pairs = len(one) * len(other)
    counts = np.unique(together, return_counts=True)[1]
    if min(len(one), len(other)) <= _EXACT and counts.max() == 1:
        p_value = _exact(statistic, len(one), len(other))
    else:
        total = len(together)
        ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (total * (total - 1))
        deviation = math.sqrt(pairs / 12 * max(total + 1 - ties, 0.0))
        away = max(abs(statistic - pairs / 2) - 0.5, 0.0)
        p_value = 1.0 if deviation == 0 else 2 * (1 - NormalDist().cdf(away / deviation))
    return RankTest(statistic, statistic / pairs, min(p_value, 1.0))


def _exact(statistic: float, first: int, second: int) -> float:
    """The two-sided p-value of U, from how many of all orders give each value of it."""
    # ways[k][u]: subsets of k of the places seen so far whose U is u
    pairs = first * second
    ways = np.zeros((first + 1, pairs + 1))
    ways[0, 0] = 1.0
    for place in range(1, first + second + 1):
        for k in range(min(first, place), 0, -1):
            shift = place - k  # numbers of the other group below the k-th of this one
            if shift <= second:
                ways[k, shift:] += ways[k - 1, : pairs + 1 - shift]
    share = ways[first] / ways[first].sum()
    u = round(max(statistic, pairs - statistic))
    return min(1.0, 2 * float(share[u:].sum()))
