"""How sure the numbers of a run are: the gain with its interval, and how much choosing by a score flatters it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radin.errors import TaskError

Method = Literal["mcnemar", "bootstrap", "normal"]

_POWER = 0.8  # of the number of examples that would tell
_RESAMPLES = 2000
_CELLS = 2_000_000  # resampled numbers held at once
_NORMAL = NormalDist()
_HOW = {"mcnemar": "McNemar, mid-p", "bootstrap": "paired bootstrap", "normal": "two standard errors, unpaired"}


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


@dataclass(frozen=True)
class Optimism:
    """How much the score of the best of ``candidates`` flatters it: how much better it looks than it is.

    optimism, stderr: in the metric's units, positive when the score is too good; stderr is that of the resampling.
    corrected: the score without it. gain_optimism, corrected_gain: the same for the best candidate minus the best
    incumbent, both chosen; None without incumbents.
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
    mean = float(differences.mean())
    stderr = float(differences.std(ddof=1) / math.sqrt(examples)) if examples > 1 else math.nan
    up, down = int((differences > 0).sum()), int((differences < 0).sum())
    method: Method
    if _binary(soup) and _binary(single):
        method = "mcnemar"
        low, high = tango_interval(up, down, examples, confidence)
        p_value = mcnemar_mid_p(up, down)
    else:
        method = "bootstrap"
        low, high, p_value = _bca(differences, confidence)
    needed = _needed(mean, float((differences**2).mean()), float(differences.var()), confidence)
    counts = (up, down) if higher_is_better else (down, up)
    about = (confidence, higher_is_better, examples)
    return PairedDifference(mean, stderr, low, high, p_value, method, *about, *counts, needed)


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


def optimism(
    values: NDArray[Any], higher_is_better: bool, *, incumbents: int = 0, seed: int = 0, resamples: int = _RESAMPLES
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
    if not np.isfinite(rows).all():
        raise ValueError("the numbers per example hold NaN or infinity")
    examples = rows.shape[1]
    sign = 1.0 if higher_is_better else -1.0
    # Examples on which all candidates do the same decide nothing, and what candidates share has mean zero.
    telling = (rows != rows[0]).any(axis=0)
    telling[0] = True  # never none at all
    # Sums of zeros and ones are exact in float32, and its products take half the time.
    columns = np.ascontiguousarray(rows[:, telling].T, dtype=np.float32 if _binary(rows) else np.float64)
    base = sign * columns.sum(axis=0, dtype=np.float64) / examples
    chosen, gains = [], []
    for counts in _counts(len(columns), examples, resamples, seed):
        again = sign * np.matmul(counts.astype(columns.dtype), columns).astype(np.float64) / examples
        excess = again - base
        excess -= excess.mean(axis=1, keepdims=True)
        each = np.arange(len(again))
        best = excess[each, again.argmax(axis=1)]
        chosen.append(best)
        if incumbents:
            gains.append(best - excess[each, again[:, :incumbents].argmax(axis=1)])
    excesses = math.sqrt(2) * np.concatenate(chosen)
    flattery = float(excesses.mean())
    gain = math.sqrt(2) * float(np.concatenate(gains).mean()) if incumbents else None
    scores = sign * rows.mean(axis=1, dtype=np.float64)
    top = float(scores.max())
    left = None if gain is None else sign * (top - float(scores[:incumbents].max()) - gain)
    stderr = float(excesses.std(ddof=1) / math.sqrt(resamples)) if resamples > 1 else math.nan
    corrected = sign * (top - flattery)
    return Optimism(sign * top, flattery, stderr, corrected, gain, left, len(rows), higher_is_better, resamples)


def split_halves(targets: NDArray[Any] | int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the examples to search on and to choose on, both sorted; a function of targets and seed alone.

    targets: (M,) classes, each then split evenly to within one example; or other targets, or M, split at random. The
    halves differ by at most one example. Raises TaskError for fewer than two examples.
    """
    labels = np.zeros(targets) if isinstance(targets, int) else np.asarray(targets)
    if len(labels) < 2:
        raise TaskError(f"validation holds {len(labels)} examples; to search on half and choose on half takes two")
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        labels = np.zeros(len(labels))
    # In turns along the examples sorted by class, in random order within each: even by class and in total.
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    return np.sort(order[0::2]), np.sort(order[1::2])


def sentences(difference: PairedDifference, chosen: Optimism | None = None) -> tuple[str, ...]:
    """What to tell the user at the end of a run, in plain words: the gain, whether it is noise, the optimism."""
    found = difference
    gain = f"gain over the best single on validation: {found.difference:+.4f}"
    gain += "" if found.higher_is_better else " (lower is better)"
    gain += f", {found.confidence:.0%} interval {found.low:+.4f} to {found.high:+.4f}"
    gain += f" ({_HOW[found.method]}, p = {found.p_value:.2g})"
    if found.better is not None:
        gain += f"; better on {found.better:,} and worse on {found.worse:,} of {found.examples:,} examples"
    lines = [gain]
    if found.inside_noise:
        text = "inside the noise: the interval contains zero, so the soup may be no better than the best single member"
        more = (found.needed or 0) - found.examples
        if more > 0:
            about = round(more, 2 - len(str(more)))
            text += f". If the difference is truly this large, about {about:,} more examples would show it 4 times in 5"
        lines.append(text)
    if chosen is not None and chosen.candidates > 1:
        text = (
            f"chosen as the best of {chosen.candidates} on these same examples, which flatters its score by about "
            f"{max(chosen.optimism, 0):.4f}, not counting what the search learned from them: corrected "
            f"{chosen.corrected:.4f}"
        )
        if chosen.corrected_gain is not None:
            text += f", and the gain {chosen.corrected_gain:+.4f}"
            if chosen.corrected_gain == 0 or (chosen.corrected_gain > 0) != chosen.higher_is_better:
                text += ": nothing of it is left"
        lines.append(text)
    return tuple(lines)


def _binary(values: NDArray[Any]) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _needed(mean: float, square: float, variance: float, confidence: float) -> int | None:
    """Examples for this power (Connor, Biometrics 43, 1987); for 0 and 1, ``square`` is the discordant share."""
    if mean == 0 or math.isnan(mean) or math.isnan(variance):
        return None
    reach = _NORMAL.inv_cdf((1 + confidence) / 2) * math.sqrt(square) + _NORMAL.inv_cdf(_POWER) * math.sqrt(variance)
    return math.ceil((reach / mean) ** 2)


def _counts(columns: int, examples: int, resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Blocks (rows, columns): how often each of the first ``columns`` of ``examples`` is drawn with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // columns)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = rng.binomial(examples, columns / examples, rows)
        flat = rng.integers(0, columns, draws.sum(), dtype=np.int32) + np.repeat(np.arange(rows) * columns, draws)
        yield np.bincount(flat, minlength=rows * columns).reshape(rows, columns)


def _bca(differences: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Low, high, p-value; NaN for one example. Acceleration by jackknife (Efron and Tibshirani 1993, eq. 14.15)."""
    examples = len(differences)
    if examples < 2:
        return math.nan, math.nan, math.nan
    mean = differences.mean()
    means = np.concatenate([c @ differences for c in _counts(examples, examples, _RESAMPLES, seed=0)]) / examples
    centred = differences - mean
    spread = float((centred**2).sum())
    acceleration = float((centred**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def score_of(value: float) -> float:
        share = float((means < value).mean() + (means == value).mean() / 2)
        return _NORMAL.inv_cdf(min(max(share, 1 / (_RESAMPLES + 1)), _RESAMPLES / (_RESAMPLES + 1)))

    bias = score_of(float(mean))
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    levels = [_NORMAL.cdf(bias + (bias + s) / (1 - acceleration * (bias + s))) for s in (-z, z)]
    low, high = (float(value) for value in np.quantile(means, levels))
    shift = score_of(0.0) - bias
    p_value = 2 * _NORMAL.cdf(-abs(shift / (1 + acceleration * shift) - bias))
    return low, high, p_value
