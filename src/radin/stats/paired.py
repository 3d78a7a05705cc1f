"""The difference of two models on the same examples, with its interval and p-value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radin.stats.resampling import RESAMPLES, is_binary, resample_counts, units

Method = Literal["mcnemar", "bootstrap", "normal"]

_POWER = 0.8  # of the number of examples that would tell
_NORMAL = NormalDist()
_SMALLEST, _LARGEST = 1e-100, 1e100  # numbers whose squares and cubes are numbers
_UNTOLD = 1e9  # a difference so many times smaller than its spread is rounding


@dataclass(frozen=True)
class PairedDifference:
    """Soup minus single member over the same examples, in the metric's units, whichever direction is better.

    better, worse: examples on which the soup does better, worse; None where the metric is no mean over examples.
    needed: examples that would show a difference of this size four times in five; None when there is no difference.
    """

    difference: float
    stderr: float
    low: float
    high: float
    p_value: float
    method: Method
    confidence: float
    higher_is_better: bool
    examples: int
    better: int | None
    worse: int | None
    needed: int | None

    @property
    def inside_noise(self) -> bool:
        """Whether the interval contains zero, or is not known."""
        return not (self.low > 0 or self.high < 0)


def paired_difference(
    soup_values: NDArray[Any], single_values: NDArray[Any], higher_is_better: bool, confidence: float = 0.95
) -> PairedDifference:
    """The mean difference of two models' numbers per example, (M,) each, with an interval and a two-sided p-value.

    All 0 or 1: Tango's score interval (Statistics in Medicine 17, 1998) and the mid-p McNemar test (Fagerland,
    Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013), the exact binomial tail of the discordant pairs
    with half the weight on what was seen. Else: the BCa bootstrap of the mean (Efron, JASA 82, 1987) and the p-value
    at which its interval would touch zero. Raises ValueError for unlike shapes, no examples, or NaN.
    """
    soup, single = np.asarray(soup_values, np.float64), np.asarray(single_values, np.float64)
    if soup.ndim != 1 or soup.shape != single.shape or not len(soup):
        raise ValueError(f"one number per example of each model: got shapes {soup.shape} and {single.shape}")
    differences = soup - single
    if not np.isfinite(differences).all():
        raise ValueError("the numbers per example hold NaN or infinity")
    examples = len(differences)
    # In units of a power of two where their squares would be no numbers: that changes no digit.
    largest = float(np.abs(differences).max())
    unit = 1.0 if largest == 0 or _SMALLEST < largest < _LARGEST else math.ldexp(1.0, min(math.frexp(largest)[1], 1023))
    differences = differences / unit
    mean = float(differences.mean())
    stderr = float(differences.std(ddof=1) / math.sqrt(examples)) if examples > 1 else math.nan
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    method: Method
    if is_binary(soup) and is_binary(single):
        method = "mcnemar"
        low, high = tango_interval(up, down, examples, confidence)
        p_value = mcnemar_mid_p(up, down)
    else:
        method = "bootstrap"
        low, high, p_value = _bca(differences, confidence)
    needed = _needed(mean, float((differences**2).mean()), float(differences.var()), confidence)
    counts = (up, down) if higher_is_better else (down, up)
    about = (confidence, higher_is_better, examples)
    sizes = mean * unit, stderr * unit, low * unit, high * unit
    return PairedDifference(*sizes, p_value, method, *about, *counts, needed)


def unpaired_difference(
    soup: tuple[float, float],
    single: tuple[float, float],
    examples: int,
    higher_is_better: bool,
    confidence: float = 0.95,
) -> PairedDifference:
    """The difference of two (score, standard error), normal: for metrics that are no mean over examples.

    Two models on the same examples mostly err together, so this interval is rather too wide.
    """
    difference, stderr = soup[0] - single[0], math.hypot(soup[1], single[1])
    reach = _NORMAL.inv_cdf((1 + confidence) / 2) * stderr
    p_value = 2 * _NORMAL.cdf(-abs(difference) / stderr) if stderr > 0 else math.nan
    variance = examples * stderr**2
    needed = _needed(difference, variance, variance, confidence)
    low, high = difference - reach, difference + reach
    about = (confidence, higher_is_better, examples)
    return PairedDifference(difference, stderr, low, high, p_value, "normal", *about, None, None, needed)


def tango_interval(up: int, down: int, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for (up - down) / examples, up and down the discordant pairs (Tango 1998).

    The differences that the score test does not reject; it holds zero exactly when McNemar's test does not reject.
    """
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    estimate = (up - down) / examples

    def too_far(delta: float) -> bool:
        a, b = 2 * examples, (2 * examples - up + down) * delta - up - down
        c = -down * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # of pairs for the single, given delta
        variance = examples * (2 * share + delta * (1 - delta))
        return abs(up - down - examples * delta) > z * math.sqrt(max(variance, 0.0))

    def edge(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if too_far(middle) else (middle, outside)
        return inside

    return edge(estimate, -1.0), edge(estimate, 1.0)


def mcnemar_mid_p(up: int, down: int) -> float:
    """2 P(X < k) + P(X = k) for X binomial(up + down, 1/2), k the smaller count; 1 when the two are equal."""
    pairs, fewer = up + down, min(up, down)
    if up == down:
        return 1.0
    steps = np.arange(fewer)
    logs = np.concatenate([[0.0], np.cumsum(np.log((pairs - steps) / (steps + 1)))]) - pairs * math.log(2)
    chances = np.exp(logs)
    return float(2 * chances[:-1].sum() + chances[-1])


def _needed(mean: float, square: float, variance: float, confidence: float) -> int | None:
    """Examples for this power (Connor, Biometrics 43, 1987); for 0 and 1, ``square`` is the discordant share."""
    if mean == 0 or math.isnan(mean) or math.isnan(variance):
        return None
    reach = _NORMAL.inv_cdf((1 + confidence) / 2) * math.sqrt(square) + _NORMAL.inv_cdf(_POWER) * math.sqrt(variance)
    times = abs(reach / mean)
    return math.ceil(times**2) if times < _UNTOLD else None


def _bca(differences: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Low, high, p-value; NaN for one example. Acceleration by jackknife (Efron and Tibshirani 1993, eq. 14.15)."""
    examples = len(differences)
    if examples < 2:
        return math.nan, math.nan, math.nan
    summed, size = units(differences[None])
    drawn = summed.shape[1]
    mean = summed.sum() / (drawn * size)
    means = np.concatenate([c @ summed[0] for c in resample_counts(drawn, drawn, RESAMPLES, seed=0)]) / (drawn * size)
    centred = differences - mean
    spread = float((centred**2).sum())
    acceleration = float((centred**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def score_of(value: float) -> float:
        share = float((means < value).mean() + (means == value).mean() / 2)
        return _NORMAL.inv_cdf(min(max(share, 1 / (RESAMPLES + 1)), RESAMPLES / (RESAMPLES + 1)))

    bias = score_of(float(mean))
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    levels = [_NORMAL.cdf(bias + (bias + s) / (1 - acceleration * (bias + s))) for s in (-z, z)]
    low, high = (float(value) for value in np.quantile(means, levels))
    shift = score_of(0.0) - bias
    p_value = 2 * _NORMAL.cdf(-abs(shift / (1 + acceleration * shift) - bias))
    return low, high, p_value
