"""The functions behind the metrics that have a name: numbers of single examples, and what becomes of a summary.

Axis names: examples M, classes C, columns of a summary K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.metrics.targets import variation

Array = NDArray[Any]
Floats = NDArray[np.float64]

CALIBRATION_BINS = 15


def correct(outputs: Array, targets: Array) -> Floats:
    """1.0 where the first largest output is the target, else 0.0. outputs (M, C), targets (M,) -> (M,)."""
    result: Floats = (outputs.argmax(axis=1) == targets).astype(np.float64)
    return result


def top_correct(outputs: Array, targets: Array, top: int) -> Floats:
    """1.0 where fewer than ``top`` classes beat the target, else 0.0; of equal outputs the first class wins.

    outputs (M, C), targets (M,) -> (M,).
    """
    truth = outputs[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(outputs.shape[1]) < targets[:, None]
    beaten_by = ((outputs > truth) | ((outputs == truth) & earlier)).sum(axis=1)
    result: Floats = (beaten_by < top).astype(np.float64)
    return result


def log_softmax(outputs: Array) -> Floats:
    """Natural log of the softmax over classes, in float64. outputs (M, C) -> (M, C)."""
    logits = outputs.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    result: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return result


def negative_log_likelihood(outputs: Array, targets: Array) -> Floats:
    """-log softmax(outputs)[target], natural log. outputs (M, C), targets (M,) -> (M,)."""
    result: Floats = -log_softmax(outputs)[np.arange(len(targets)), targets]
    return result


def brier(outputs: Array, targets: Array) -> Floats:
    """Sum over classes of (softmax - one-hot target)^2, 0 to 2 (Brier 1950).

    outputs (M, C), targets (M,) -> (M,).
    """
    probabilities = np.exp(log_softmax(outputs))
    probabilities[np.arange(len(targets)), targets] -= 1
    result: Floats = (probabilities**2).sum(axis=1)
    return result


def squared_error(outputs: Array, targets: Array) -> Floats:
    """Mean over columns of (output - target)^2. outputs (M, C), targets (M,) or (M, C) -> (M,)."""
    difference = outputs.astype(np.float64) - targets.reshape(len(targets), -1)
    result: Floats = (difference**2).mean(axis=1)
    return result


def absolute_error(outputs: Array, targets: Array) -> Floats:
    """Mean over columns of |output - target|. outputs (M, C), targets (M,) or (M, C) -> (M,)."""
    difference = outputs.astype(np.float64) - targets.reshape(len(targets), -1)
    result: Floats = np.abs(difference).mean(axis=1)
    return result


def temperature(outputs: Array, targets: Array) -> float:
    """The T > 0 that minimises the negative log-likelihood of outputs / T (Guo et al. 2017, section 4.2).

    outputs (M, C), targets (M,). The loss is convex in 1/T, so bisection on its slope finds it; T is held
    within 1e-3 .. 1e3, where it ends up when all examples are right or outputs say nothing.
    """
    logits = outputs.astype(np.float64)
    truth = logits[np.arange(len(targets)), targets].mean()

    def slope(inverse: float) -> float:
        probabilities = np.exp(log_softmax(logits * inverse))
        return float(np.einsum("mc,mc->m", probabilities, logits).mean() - truth)

    low, high = -np.log(1e3), np.log(1e3)
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (low, middle) if slope(float(np.exp(middle))) > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def calibrated_nll(outputs: Array, targets: Array) -> float:
    """Mean negative log-likelihood at the temperature that makes it least."""
    return float(negative_log_likelihood(outputs / temperature(outputs, targets), targets).mean())


def predicted(outputs: Array, targets: Array) -> Array:
    """The first class of the largest output, (M, 1)."""
    return np.asarray(outputs.argmax(axis=1)[:, None])


def balanced_accuracy(predicted: Array, targets: Array) -> float:
    """Mean over the classes among the targets of the share predicted right."""
    support = np.bincount(targets)
    right = np.bincount(targets[predicted[:, 0] == targets], minlength=len(support))
    present = support > 0
    return float((right[present] / support[present]).mean())


def macro_f1(predicted: Array, targets: Array) -> float:
    """Mean F1 over the classes that occur among targets or predictions."""
    classes = int(max(predicted.max(), targets.max())) + 1
    support = np.bincount(targets, minlength=classes)
    guesses = np.bincount(predicted[:, 0], minlength=classes)
    right = np.bincount(targets[predicted[:, 0] == targets], minlength=classes)
    present = support + guesses > 0
    return float((2 * right[present] / (support + guesses)[present]).mean())


def confidence(outputs: Array, targets: Array) -> Array:
    """The largest probability, and 1 where its class is the target, (M, 2)."""
    return np.stack([np.exp(log_softmax(outputs).max(axis=1)), correct(outputs, targets)], axis=1)


def calibration_error(summary: Array, targets: Array) -> float:
    """Expected calibration error of the top class: 15 equal bins [a, b), L1 (Guo et al. 2017, eq. 3)."""
    confidence, right = summary.T
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(targets))


def _average_precision(scores: Array, positive: Array) -> float:
    """Area under the precision-recall steps, equal scores taken together (as scikit-learn does)."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    precision = hits[ends] / (ends + 1)
    return float((np.diff(hits[ends], prepend=0) * precision).sum() / hits[-1])


def multilabel_map(outputs: Array, targets: Array) -> float:
    """Mean average precision over the classes that have a positive example."""
    labels = targets.astype(bool)
    present = np.flatnonzero(labels.any(axis=0))
    if len(present) == 0:
        return float("nan")
    return float(np.mean([_average_precision(outputs[:, c], labels[:, c]) for c in present]))


def positive(outputs: Array, targets: Array) -> Array:
    """Which logits say yes, (M, C)."""
    return outputs > 0


def multilabel_f1(positive: Array, targets: Array) -> float:
    """Mean over classes of F1 at logit > 0, probability > 0.5; 0 for a class with no positives nor guesses."""
    labels = targets.astype(bool)
    right = (positive & labels).sum(axis=0)
    total = positive.sum(axis=0) + labels.sum(axis=0)
    return float((2 * right / np.maximum(total, 1)).mean())


def squares(outputs: Array, targets: Array) -> Array:
    """Squared errors, (M, C)."""
    return np.asarray((outputs.astype(np.float64) - targets.reshape(len(targets), -1)) ** 2)


def r2(squares: Array, targets: Array) -> float:
    """1 - residual / total sum of squares, mean over columns; NaN where a column of targets is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((1 - squares.sum(axis=0) / variation(targets)).mean())
