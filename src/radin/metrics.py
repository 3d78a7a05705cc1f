"""Metrics: how outputs and targets become a score, and which direction is better.

One declaration per metric feeds the true score of a soup, its standard error and the estimate from cached outputs.
Axis names: examples M, classes C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radin.errors import TaskError

Array = NDArray[Any]
Floats = NDArray[np.float64]
TargetKind = Literal["classes", "values", "any"]

BOOTSTRAP_SAMPLES = 100


@dataclass(frozen=True)
class Metric:
    """A score of outputs against targets.

    ``value(outputs (M, C), targets (M, ...)) -> float``.
    ``per_example(outputs, targets) -> (M,)`` when the metric is the mean of one number per example, else None.
    ``targets``: "classes" (integers in 0..C-1), "values" (numbers shaped like the outputs) or "any" (not checked).
    """

    name: str
    higher_is_better: bool
    targets: TargetKind
    value: Callable[[Array, Array], float]
    per_example: Callable[[Array, Array], Floats] | None = None

    def utility(self, score: float) -> float:
        """The score with its sign set so that higher is better; NaN, which no argmax may see, becomes -inf."""
        if np.isnan(score):
            return -np.inf
        return score if self.higher_is_better else -score

    def check(self, targets: Array, classes: int) -> None:
        """Raise TaskError when the targets do not fit this metric and ``classes`` output columns."""
        if len(targets) == 0:
            raise TaskError("there are no validation examples: the data gave no batches")
        if self.targets == "classes":
            _check_classes(self.name, targets, classes)
        elif self.targets == "values":
            _check_values(self.name, targets, classes)

    def standard_error(self, outputs: Array, targets: Array, seed: int = 0) -> float:
        """Standard error of the value over examples: exact for means, by bootstrap otherwise (100 resamples)."""
        examples = len(targets)
        if examples < 2:
            return float("nan")
        if self.per_example is not None:
            return float(np.std(self.per_example(outputs, targets), ddof=1) / np.sqrt(examples))
        rng = np.random.default_rng(seed)
        draws = (rng.integers(0, examples, examples) for _ in range(BOOTSTRAP_SAMPLES))
        return float(np.std([self.value(outputs[rows], targets[rows]) for rows in draws], ddof=1))


def _check_classes(name: str, targets: Array, classes: int) -> None:
    if targets.ndim != 1:
        raise TaskError(
            f"metric {name!r} needs one class index per example; the targets have shape {targets.shape}"
        )
    if not np.issubdtype(targets.dtype, np.integer):
        raise TaskError(
            f"metric {name!r} needs integer class indices; the targets are {targets.dtype}. "
            "For regression choose metric = 'mse'."
        )
    if classes < 2:
        raise TaskError(f"metric {name!r} needs outputs with one column per class; the model returns {classes}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise TaskError(
            f"labels out of range: the model returns {classes} classes (0..{classes - 1}), "
            f"the targets span {low}..{high}. Check the label mapping or the model's head."
        )


def _check_values(name: str, targets: Array, classes: int) -> None:
    if not np.issubdtype(targets.dtype, np.number):
        raise TaskError(f"metric {name!r} needs numbers as targets; they are {targets.dtype}")
    width = 1 if targets.ndim == 1 else int(np.prod(targets.shape[1:]))
    if width != classes:
        raise TaskError(f"metric {name!r}: the model returns {classes} values per example, the targets {width}")
    if not np.isfinite(targets).all():
        raise TaskError(f"metric {name!r}: the targets hold NaN or infinity")


def correct(outputs: Array, targets: Array) -> Floats:
    """1.0 where the first largest output is the target, else 0.0. outputs (M, C), targets (M,) -> (M,)."""
    return (outputs.argmax(axis=1) == targets).astype(np.float64)


def negative_log_likelihood(outputs: Array, targets: Array) -> Floats:
    """-log softmax(outputs)[target], natural log. outputs (M, C), targets (M,) -> (M,)."""
    logits = outputs.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(targets)), targets]
    result: Floats = np.log(np.exp(shifted).sum(axis=1)) - chosen
    return result


def squared_error(outputs: Array, targets: Array) -> Floats:
    """Mean over columns of (output - target)^2. outputs (M, C), targets (M,) or (M, C) -> (M,)."""
    difference = outputs.astype(np.float64) - targets.reshape(len(targets), -1)
    result: Floats = (difference**2).mean(axis=1)
    return result


def mean_metric(
    name: str, per_example: Callable[[Array, Array], Floats], *, higher_is_better: bool, targets: TargetKind
) -> Metric:
    """A metric that is the mean of one number per example."""

    def value(outputs: Array, labels: Array) -> float:
        return float(per_example(outputs, labels).mean())

    return Metric(name, higher_is_better, targets, value, per_example)


_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        mean_metric("accuracy", correct, higher_is_better=True, targets="classes"),
        mean_metric("nll", negative_log_likelihood, higher_is_better=False, targets="classes"),
        mean_metric("mse", squared_error, higher_is_better=False, targets="values"),
    )
}


def names() -> list[str]:
    """The metrics that are known by name."""
    return sorted(_METRICS)


def get(
    metric: str | Metric | Callable[[Any, Any], float], higher_is_better: bool | None = None
) -> Metric:
    """The metric for a name, a Metric, or a function (outputs, targets) -> float on torch tensors.

    A function must come with its direction. Raises TaskError for an unknown name or a missing direction.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in _METRICS:
            raise TaskError(f"unknown metric {metric!r}; known: {', '.join(names())}, or a function")
        return _METRICS[metric]
    if not callable(metric):
        raise TaskError(f"metric must be a name or a function (outputs, targets) -> float; got {metric!r}")
    if higher_is_better is None:
        raise TaskError(
            f"metric {_name_of(metric)!r} is a function: say its direction with higher_is_better = True or False"
        )
    return _from_function(metric, higher_is_better)


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _from_function(function: Callable[[Any, Any], float], higher_is_better: bool) -> Metric:
    def value(outputs: Array, targets: Array) -> float:
        import torch

        return float(function(torch.from_numpy(np.array(outputs)), torch.from_numpy(np.array(targets))))

    return Metric(_name_of(function), higher_is_better, "any", value)
