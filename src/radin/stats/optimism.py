"""Selection bias: how much the best of several scores owes to having been chosen by it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.stats.paired import PairedDifference
from radin.stats.resampling import RESAMPLES, is_binary, resample_counts, units


@dataclass(frozen=True)
class Optimism:
    """Selection bias of the best of ``candidates``: how much better its score looks than it is.

    optimism, stderr: in the metric's units, positive when the score is too good; stderr is that of the resampling.
    corrected: the score without it. gain_optimism, corrected_gain: the same for the best candidate minus the best
    incumbent, both chosen; None without incumbents. Where choosing the incumbent owes more to luck, gain_optimism is
    negative; a correction never makes a score or a gain look better than it was measured.
    """

    score: float
    optimism: float
    stderr: float
    corrected: float
    gain_optimism: float | None
    corrected_gain: float | None
    candidates: int
    higher_is_better: bool
    resamples: int


def optimism(
    values: NDArray[Any], higher_is_better: bool, *, incumbents: int = 0, seed: int = 0, resamples: int = RESAMPLES
) -> Optimism:
    """How much the best of S candidates by mean over M examples owes to having been chosen on them.

    values (S, M): one complete row per candidate; the first of equals wins. incumbents: how many of the first rows are
    what the others are compared with, the single members. Efron's bootstrap of the choice (JASA 78, 1983):
    resample the examples, choose again, take what the choice scores on the resample over what it scores on all; then
    times sqrt(2): a choice on a resample is one under twice the variance of noise, of which the resample shows half, so
    that among near equals the mean comes out short by that factor (docs/numbers.md). Errs upward for a clear winner.
    Raises ValueError for a bad shape, no rows or NaN.
    """
    rows = np.asarray(values)
    if rows.ndim != 2 or not rows.size or not 0 <= incumbents <= len(rows):
        raise ValueError(f"values must be (candidates, examples), incumbents among them: {rows.shape}, {incumbents}")
    if not all(np.isfinite(row).all() for row in rows):
        raise ValueError("the numbers per example hold NaN or infinity")
    sign = 1.0 if higher_is_better else -1.0
    summed, size = units(rows)
    drawn = summed.shape[1]
    used = drawn * size
    # Examples on which all candidates do the same decide nothing, and what candidates share has mean zero.
    telling = (summed != summed[0]).any(axis=0)
    telling[0] = True  # never none at all
    # Sums of zeros and ones are exact in float32, and its products take half the time.
    columns = np.ascontiguousarray(summed[:, telling].T, dtype=np.float32 if all(map(is_binary, rows)) else np.float64)
    base = sign * columns.sum(axis=0, dtype=np.float64) / used
    chosen, gains = [], []
    for counts in resample_counts(len(columns), drawn, resamples, seed):
        again = sign * np.matmul(counts.astype(columns.dtype), columns).astype(np.float64) / used
        excess = again - base
        excess -= excess.mean(axis=1, keepdims=True)
        each = np.arange(len(again))
        best = excess[each, again.argmax(axis=1)]
        chosen.append(best)
        if incumbents:
            gains.append(best - excess[each, again[:, :incumbents].argmax(axis=1)])
    excesses = math.sqrt(2) * np.concatenate(chosen)
    bias = float(excesses.mean())
    gain = math.sqrt(2) * float(np.concatenate(gains).mean()) if incumbents else None
    scores = sign * rows.mean(axis=1, dtype=np.float64)
    top = float(scores.max())
    stderr = float(excesses.std(ddof=1) / math.sqrt(resamples)) if resamples > 1 else math.nan
    found = Optimism(sign * top, bias, stderr, sign * top, gain, None, len(rows), higher_is_better, resamples)
    return corrected(found, sign * top, sign * (top - float(scores[:incumbents].max())) if incumbents else None)


def corrected(found: Optimism, score: float, gain: float | None) -> Optimism:
    """The selection bias taken off a score and a gain, in the metric's units; a negative one is left where it is."""
    sign = 1.0 if found.higher_is_better else -1.0
    left = None
    if gain is not None and found.gain_optimism is not None:
        left = gain - sign * max(found.gain_optimism, 0.0)
    return replace(found, score=score, corrected=score - sign * max(found.optimism, 0.0), corrected_gain=left)


@dataclass(frozen=True)
class ExpectedGain:
    """The gain to expect on new data, with its interval: that measured, the selection bias of the gain taken off."""

    difference: float
    low: float
    high: float

    @property
    def inside_noise(self) -> bool:
        """Whether the interval contains zero, or is not known."""
        return not (self.low > 0 or self.high < 0)


def expected_gain(measured: PairedDifference, bias: Optimism) -> ExpectedGain:
    """``measured`` and its interval, both moved by the selection bias of the gain (a soup minus a single member)."""
    sign = 1.0 if bias.higher_is_better else -1.0
    shift = sign * max(bias.gain_optimism or 0.0, 0.0)
    return ExpectedGain(measured.difference - shift, measured.low - shift, measured.high - shift)
