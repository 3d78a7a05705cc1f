"""The one boundary: a search asks questions, an engine gives answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.metrics import Metric
from radin.recipe import Recipe

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

VALIDATION = "validation"


GRADIENT_PASSES = 3
"""What a gradient costs on the examples it is over, in evaluations of these: forward one, backward two."""


@dataclass(frozen=True)
class Gradient:
    """How does an objective change with the ratios of a soup?

    objective: one of those in ``radin.objectives``; higher is better. groups: groups of tensors by name, as those of
    ``Recipe``; the gradient has a row for all other tensors, and then one for each of these, in this order.
    """

    objective: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """What does the soup of ``recipe`` score on these examples? Or, with ``gradient``: in which direction is better?

    examples: (m,) ascending indices into the split; None: all of them. split: "validation", by which recipes are
    chosen, or "test" or "shifts/NAME", which are only reported. gradient: that is what is asked, on validation only.
    Two questions are equal only when they are the same object, so an answer always finds the question that it belongs
    to.
    """

    recipe: Recipe
    examples: Indices | None = None
    split: str = VALIDATION
    gradient: Gradient | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """The score of a soup, or of a single member, on the examples asked.

    score: in the metric's units; NaN when the outputs are not finite, which never wins. stderr: over examples; NaN
    where it is not known. examples: how many; 0 where only the program that evaluates knows. values: (examples,), one
    number for each, of which the score is the mean; None where the metric is no such mean, or the outputs are not
    finite. data: fingerprint of the split's data; empty where the engine cannot tell. further: score and standard error
    on other sets that came along, by name; reported, never used to choose. totals: (examples, K), of a metric by
    position what it sums over examples; ``values`` then hold for these examples together only. gradient: (1 + groups,
    N), where that was asked, and ``score`` is then the objective's value: its derivatives by the ratio that each member
    has in the tensors of each group, as if ratios need not sum to 1; NaN for members that are not in the soup. seconds:
    that the answer took.
    """

    score: float
    stderr: float
    examples: int
    seconds: float
    data: str = ""
    values: Floats | None = None
    further: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    totals: Floats | None = None
    gradient: Floats | None = None

    @property
    def numbers(self) -> Floats | None:
        """What tells the score of any of the examples (``Metric.score``): totals where there are such, else values."""
        return self.values if self.totals is None else self.totals


@dataclass(frozen=True)
class Rates:
    """What questions cost, in examples as far as work goes. A pass is the validation and the calibration examples.

    examples: M, of validation; 0 where nobody can tell, and every question is then a whole pass. calibration: K, those
    over which BatchNorm statistics are estimated again when a soup is started. reading: the share of the work of
    evaluating all M examples that any question costs, however few it asks about, because all of the data must be read;
    0 where examples are held in memory or read by index.
    """

    examples: int = 0
    calibration: int = 0
    reading: float = 0.0

    @property
    def overhead(self) -> float:
        """The share of a pass that starting a soup costs."""
        return self.calibration / (self.examples + self.calibration) if self.calibration else 0.0


@dataclass(frozen=True)
class Failure:
    """Why a question was given no answer, in a message for the user."""

    message: str


def answer_from_values(values: Floats, seconds: float, data: str = "") -> Answer:
    """The Answer of a metric that is the mean of one number per example, (m,); NaN among them makes the score NaN."""
    if not np.isfinite(values).all():
        return Answer(float("nan"), float("nan"), len(values), seconds, data)
    stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Answer(float(values.mean()), stderr, len(values), seconds, data, values)


def answer_from_outputs(
    metric: Metric, outputs: NDArray[Any], targets: NDArray[Any], seconds: float, data: str
) -> Answer:
    """The Answer of outputs (m, classes) that are already there; targets (m, ...)."""
    if metric.totals is not None:
        return answer_from_totals(metric, metric.totals(outputs, targets), seconds, data)
    if metric.per_example is not None:
        return answer_from_values(metric.per_example(outputs, targets), seconds, data)
    stderr = metric.standard_error(outputs, targets)
    return Answer(metric.value(outputs, targets), stderr, len(targets), seconds, data)


def answer_from_totals(metric: Metric, totals: Floats, seconds: float, data: str) -> Answer:
    """The Answer of a metric by position, from its numbers per example (m, K); NaN among them makes the score NaN."""
    if not np.isfinite(totals).all():
        return Answer(float("nan"), float("nan"), len(totals), seconds, data)
    return replace(answer_from_values(metric.values(totals), seconds, data), totals=totals)


def answer_from_numbers(metric: Metric, numbers: Floats, seconds: float, data: str = "") -> Answer:
    """The Answer of some examples from their values (m,) or totals (m, K)."""
    if numbers.ndim == 1:
        return answer_from_values(numbers, seconds, data)
    return answer_from_totals(metric, numbers, seconds, data)
