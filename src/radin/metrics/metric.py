"""What a metric is: how outputs and targets become a score, with which standard error, and which is better.

Axis names: examples M, classes C, columns of a summary K.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radin import positions
from radin.errors import TaskError
from radin.metrics.targets import check_classes, check_multilabel, check_positions, check_values, variation
from radin.usercode import user_code

Array = NDArray[Any]
Floats = NDArray[np.float64]
TargetKind = Literal["classes", "values", "multilabel", "positions", "any"]
Family = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "nll",
    "mse",
    "r2",
    "position_accuracy",
    "mean_iou",
    "mixture",
    "other",
]

# What the targets of each kind look like, in words.
TARGET_KINDS: dict[TargetKind, str] = {
    "classes": "one class index per example",
    "values": "numbers shaped like the outputs",
    "multilabel": "a 0 or 1 per example and class",
    "positions": "a class index per token or pixel",
    "any": "not checked",
}

BOOTSTRAP_SAMPLES = 100
BOOTSTRAP_CALLS = 20  # resamples where each is a call of the metric itself, which may take long


def _unset(outputs: Array, targets: Array) -> float:
    """Stands for a value that is derived from what else a metric was given."""
    raise TypeError("a metric needs value, per_example, per_position, summary or totals")


@dataclass(frozen=True)
class Metric:
    """A score of outputs against targets. One of the first three functions is enough, and the direction.

    ``per_example(outputs (M, C), targets (M, ...)) -> (M,)``: the score is the mean of one number per example.
    ``per_position(outputs (P, C), labels (P,)) -> (P,)``: where an example is a sequence or a picture, the mean of one
    number per counted position. ``value(outputs (M, C), targets (M, ...)) -> float``: anything else.

    ``name``: by default the function's. ``higher_is_better`` must be given. ``about``: what it is, in a few words.
    ``targets``: "classes" (integers in 0..C-1), "values" (numbers shaped like the outputs), "multilabel" (zeros
    and ones shaped like the outputs), "positions" (integers (M, L) or (M, H, W)) or "any" (not checked).
    ``summary(outputs, targets) -> (M, K)`` and ``from_summary(summary, targets) -> float``: for metrics that are
    no mean of one number per example but need only a few; ``value`` is then one after the other.
    ``totals(outputs (P, C), targets (P, 2)) -> (M, K)`` and ``from_totals((K,)) -> float``: for targets by position,
    laid out as ``radin.positions`` says: numbers per example that are summed before they become a score.
    ``target_only``: of the outputs at a position only the target's log-probability is kept, (P, 1).
    ``ignore_index``: the label of positions that do not count. ``choices``: outputs may have another number of
    columns in each batch, or -inf or NaN where an example has fewer.
    ``family`` says which exact estimate from cached outputs fits; ``top`` is k of top-k accuracy.
    ``loss(outputs (b, C), targets (b, ...)) -> number``, all torch tensors, lower is better, differentiable: what
    ratios are learned by (``radin.objectives``), where the metric is the user's own.
    """

    name: str = ""
    higher_is_better: bool = None  # type: ignore[assignment]
    targets: TargetKind = "any"
    value: Callable[[Array, Array], float] = _unset
    per_example: Callable[[Array, Array], Floats] | None = None
    summary: Callable[[Array, Array], Array] | None = None
    from_summary: Callable[[Array, Array], float] | None = None
    family: Family = "other"
    top: int = 1
    per_position: Callable[[Array, Array], Floats] | None = None
    totals: Callable[[Array, Array], Floats] | None = None
    from_totals: Callable[[Floats], float] | None = None
    target_only: bool = False
    ignore_index: int = positions.IGNORE
    choices: bool = False
    about: str = ""
    loss: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        """Derive what was not given. Raises TaskError when that cannot be done."""
        derive = partial(object.__setattr__, self)
        given = next((f for f in (self.per_example, self.per_position, self.totals, self.summary) if f), self.value)
        if not self.name:
            derive("name", name_of(given))
        if not isinstance(self.higher_is_better, bool):
            raise TaskError(f"metric {self.name!r}: say its direction with higher_is_better=True or False")
        if self.per_position is not None:
            derive("totals", partial(_totals_of, self.per_position))
            derive("from_totals", positions.ratio)
        if self.totals is not None:
            derive("targets", "positions")
        if self.value is not _unset and getattr(self.value, "func", None) not in _DERIVED:
            return
        if self.totals is not None and self.from_totals is not None:
            derive("value", partial(_value_of_totals, self.totals, self.from_totals))
        elif self.per_example is not None:
            derive("value", partial(_mean_of, self.per_example))
        elif self.summary is not None and self.from_summary is not None:
            derive("value", partial(_value_of_summary, self.summary, self.from_summary))
        elif self.value is _unset:
            raise TaskError(f"metric {self.name!r} needs a function: value, per_example or per_position")

    @property
    def by_position(self) -> bool:
        """Whether an example has outputs and a target at each of many positions."""
        return self.totals is not None

    def examples(self, targets: Array) -> int:
        """How many examples targets belong to: (M, ...), or (P, 2) of positions."""
        return len(positions.starts(targets)) if self.by_position else len(targets)

    def values(self, totals: Floats) -> Floats:
        """One number per example, (M,), whose mean is the score of ``totals`` (M, K)."""
        assert self.from_totals is not None
        return positions.values(totals, self.from_totals)

    def numbers(self, outputs: Array, targets: Array) -> Floats:
        """What is known of each example: (M,), of which the score is the mean, or by position its totals (M, K)."""
        if self.totals is not None:
            return self.totals(outputs, targets)
        assert self.per_example is not None
        return self.per_example(outputs, targets)

    def score(self, numbers: Floats) -> float:
        """The score of some examples from their numbers: the mean of (m,), or what the sums of totals (m, K) make."""
        if numbers.ndim == 1:
            return float(numbers.mean())
        assert self.from_totals is not None
        return self.from_totals(numbers.sum(axis=0))

    def utility(self, score: float) -> float:
        """The score with its sign set so that higher is better; what is not finite, and may not win, is -inf."""
        if not np.isfinite(score):
            return -np.inf
        return score if self.higher_is_better else -score

    def check(self, targets: Array, classes: int) -> None:
        """Raise TaskError when the targets, all of them, do not fit this metric and ``classes`` output columns."""
        self.check_batch(targets, classes)
        if self.family == "r2" and not (variation(targets) > 0).all():
            raise TaskError(f"metric {self.name!r} is not defined: a column of the targets is constant")

    def check_batch(self, targets: Array, classes: int) -> None:
        """As ``check``, for what can be said of some of the examples alone."""
        if len(targets) == 0:
            raise TaskError("there are no validation examples: the data gave no batches")
        if self.targets == "classes":
            check_classes(self.name, targets, classes)
        elif self.targets == "values":
            check_values(self.name, targets, classes)
        elif self.targets == "multilabel":
            check_multilabel(self.name, targets, classes)
        elif self.targets == "positions":
            check_positions(self, targets, classes)
        if self.family == "accuracy" and self.top > 1 and classes <= self.top:
            raise TaskError(f"metric {self.name!r} needs more than {self.top} classes; the model returns {classes}")

    def probe(self, outputs: Array, targets: Array) -> None:
        """Call the metric once, on a few examples: outputs (m, C), targets (m, ...).

        Raises TaskError when it fails, or gives something else than it must. NaN is none of that: on a part of the
        examples it may not be defined.
        """
        what = f"the metric {self.name!r}"
        with user_code(f"{what}, called on {len(targets)} examples,"):
            number = self.value(outputs, targets)
            values = None if self.per_example is None else self.per_example(outputs, targets)
            if self.per_position is not None:
                values, targets = self.per_position(outputs, np.maximum(targets[:, 0], 0)), targets[:, 0]
        number_of(self.name, number)
        if values is None:
            return
        found = values if isinstance(values, np.ndarray) else np.empty(0, dtype=object)
        real = np.issubdtype(found.dtype, np.floating) or np.issubdtype(found.dtype, np.integer) or found.dtype == bool
        if found.shape != (len(targets),) or not real:
            got = f"{found.dtype} {found.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise TaskError(
                f"{what}: per_example must return an array of {len(targets)} numbers, one per example; got {got}"
            )

    def standard_error(self, outputs: Array, targets: Array, seed: int = 0) -> float:
        """Standard error of the value over examples; NaN where it is not known.

        Exact for means, else by bootstrap: 100 resamples, or 20 where each is a call of the metric itself.
        """
        examples = len(targets)
        if examples < 2:
            return float("nan")
        if self.totals is not None:
            values = self.values(self.totals(outputs, targets))
            return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        if self.per_example is not None:
            return float(np.std(self.per_example(outputs, targets), ddof=1) / np.sqrt(examples))
        rng = np.random.default_rng(seed)
        draws = (
            rng.integers(0, examples, examples) for _ in range(BOOTSTRAP_CALLS if self.opaque else BOOTSTRAP_SAMPLES)
        )
        if self.summary is None or self.from_summary is None:
            found = [self.value(outputs[rows], targets[rows]) for rows in draws]
        else:
            summary, score = self.summary(outputs, targets), self.from_summary
            found = [score(summary[rows], targets[rows]) for rows in draws]
        return float(np.std(found, ddof=1)) if np.isfinite(found).all() else float("nan")

    @property
    def opaque(self) -> bool:
        """Whether it says nothing of single examples: each score is then a call of ``value`` on all of them."""
        return self.per_example is None and self.summary is None and self.totals is None


def _mean_of(per_example: Callable[[Array, Array], Floats], outputs: Array, targets: Array) -> float:
    return float(per_example(outputs, targets).mean())


def _value_of_summary(
    summary: Callable[[Array, Array], Array],
    from_summary: Callable[[Array, Array], float],
    outputs: Array,
    targets: Array,
) -> float:
    return from_summary(summary(outputs, targets), targets)


def _value_of_totals(
    totals: Callable[[Array, Array], Floats], score: Callable[[Floats], float], outputs: Array, targets: Array
) -> float:
    return score(totals(outputs, targets).sum(axis=0))


_DERIVED = (_mean_of, _value_of_summary, _value_of_totals)


def _totals_of(per_position: Callable[[Array, Array], Floats], outputs: Array, targets: Array) -> Floats:
    """Sum and count of one number per position; a position that does not count is shown with class 0."""
    return positions.mean_totals(per_position(outputs, np.maximum(targets[:, 0], 0)), targets)


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called where its user named it nothing else."""
    return getattr(function, "__name__", type(function).__name__)


def number_of(name: str, found: Any) -> float:
    """What a metric returned, as a float: any real number, or a tensor or array of a single one. Raises TaskError."""
    single = found.item() if getattr(found, "shape", None) is not None and math.prod(found.shape) == 1 else found
    if isinstance(single, numbers.Real):
        return float(single)
    shape = getattr(found, "shape", None)
    got = type(found).__name__ + (f" of shape {tuple(shape)}" if shape is not None else f" {found!r}"[:60])
    raise TaskError(f"the metric {name!r} must return one number; got {got}")
