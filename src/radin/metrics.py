"""Metrics: how outputs and targets become a score, and which direction is better.

One declaration per metric feeds the true score of a soup, its standard error and the estimate from cached
outputs. Axis names: examples M, classes C, columns of a summary K.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radin import positions
from radin.errors import TaskError
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
CALIBRATION_BINS = 15
_TOP_K = re.compile(r"top-?([1-9]\d{0,8})")


def _unset(outputs: Array, targets: Array) -> float:
    """Stands for a value that is derived from what else a metric was given."""
    raise TypeError("a metric needs value, per_example, per_position, summary or totals")


@dataclass(frozen=True)
class Metric:
    """A score of outputs against targets. One of the first three functions is enough, and the direction.

    ``per_example(outputs (M, C), targets (M, ...)) -> (M,)``: the score is the mean of one number per example.
    ``per_position(outputs (P, C), labels (P,)) -> (P,)``: where an example is a sequence or a picture, the mean of one
    number per counted position. ``value(outputs (M, C), targets (M, ...)) -> float``: anything else.

    ``name``: by default the function's. ``higher_is_better`` must be given.
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
            derive("name", _name_of(given))
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

    def utility(self, score: float) -> float:
        """The score with its sign set so that higher is better; what is not finite, and may not win, is -inf."""
        if not np.isfinite(score):
            return -np.inf
        return score if self.higher_is_better else -score

    def check(self, targets: Array, classes: int) -> None:
        """Raise TaskError when the targets, all of them, do not fit this metric and ``classes`` output columns."""
        self.check_batch(targets, classes)
        if self.family == "r2" and not (_variation(targets) > 0).all():
            raise TaskError(f"metric {self.name!r} is not defined: a column of the targets is constant")

    def check_batch(self, targets: Array, classes: int) -> None:
        """As ``check``, for what can be said of some of the examples alone."""
        if len(targets) == 0:
            raise TaskError("there are no validation examples: the data gave no batches")
        if self.targets == "classes":
            _check_classes(self.name, targets, classes)
        elif self.targets == "values":
            _check_values(self.name, targets, classes)
        elif self.targets == "multilabel":
            _check_multilabel(self.name, targets, classes)
        elif self.targets == "positions":
            _check_positions(self, targets, classes)
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


def _check_classes(name: str, targets: Array, classes: int) -> None:
    if targets.ndim != 1:
        raise TaskError(f"metric {name!r} needs one class index per example; the targets have shape {targets.shape}")
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
    if not np.issubdtype(targets.dtype, np.number) or np.issubdtype(targets.dtype, np.complexfloating):
        raise TaskError(f"metric {name!r} needs numbers as targets; they are {targets.dtype}")
    width = 1 if targets.ndim == 1 else int(np.prod(targets.shape[1:]))
    if width != classes:
        raise TaskError(f"metric {name!r}: the model returns {classes} values per example, the targets {width}")
    if not np.isfinite(targets).all():
        raise TaskError(f"metric {name!r}: the targets hold NaN or infinity")


def _check_positions(metric: Metric, targets: Array, classes: int) -> None:
    if targets.ndim != 2 or targets.shape[1] != 2:
        raise TaskError(
            f"metric {metric.name!r} needs targets by position, (positions, 2): a class and the number of the "
            f"example; they have shape {targets.shape}"
        )
    if not metric.target_only:
        check_labels(metric, targets[:, 0], classes)


def check_labels(metric: Metric, labels: Array, classes: int) -> None:
    """Raise TaskError when labels (P,) of positions are no classes; UNCOUNTED stands for one that does not count."""
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < positions.UNCOUNTED or high >= classes:
        odd = high if high >= classes else low
        raise TaskError(
            f"metric {metric.name!r}: labels out of range: the model returns {classes} classes (0..{classes - 1}) at "
            f"each position, the targets hold {odd}. Where that marks positions that do not count, say "
            f"ignore_index = {odd} in the task (now {metric.ignore_index})."
        )


def _check_multilabel(name: str, targets: Array, classes: int) -> None:
    if targets.ndim != 2 or targets.shape[1] != classes:
        raise TaskError(
            f"metric {name!r} needs one 0 or 1 per example and class, shape ({len(targets)}, {classes}); "
            f"the targets have shape {targets.shape}"
        )
    if not np.isin(targets, (0, 1)).all():
        raise TaskError(f"metric {name!r} needs targets of 0 and 1 only")


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


def _calibrated_nll(outputs: Array, targets: Array) -> float:
    return float(negative_log_likelihood(outputs / temperature(outputs, targets), targets).mean())


def _predicted(outputs: Array, targets: Array) -> Array:
    return np.asarray(outputs.argmax(axis=1)[:, None])


def _balanced_accuracy(predicted: Array, targets: Array) -> float:
    """Mean over the classes among the targets of the share predicted right."""
    support = np.bincount(targets)
    right = np.bincount(targets[predicted[:, 0] == targets], minlength=len(support))
    present = support > 0
    return float((right[present] / support[present]).mean())


def _macro_f1(predicted: Array, targets: Array) -> float:
    """Mean F1 over the classes that occur among targets or predictions."""
    classes = int(max(predicted.max(), targets.max())) + 1
    support = np.bincount(targets, minlength=classes)
    guesses = np.bincount(predicted[:, 0], minlength=classes)
    right = np.bincount(targets[predicted[:, 0] == targets], minlength=classes)
    present = support + guesses > 0
    return float((2 * right[present] / (support + guesses)[present]).mean())


def _confidence(outputs: Array, targets: Array) -> Array:
    return np.stack([np.exp(log_softmax(outputs).max(axis=1)), correct(outputs, targets)], axis=1)


def _calibration_error(summary: Array, targets: Array) -> float:
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


def _multilabel_map(outputs: Array, targets: Array) -> float:
    """Mean average precision over the classes that have a positive example."""
    labels = targets.astype(bool)
    present = np.flatnonzero(labels.any(axis=0))
    if len(present) == 0:
        return float("nan")
    return float(np.mean([_average_precision(outputs[:, c], labels[:, c]) for c in present]))


def _positive(outputs: Array, targets: Array) -> Array:
    return outputs > 0


def _multilabel_f1(positive: Array, targets: Array) -> float:
    """Mean over classes of F1 at logit > 0, probability > 0.5; 0 for a class with no positives nor guesses."""
    labels = targets.astype(bool)
    right = (positive & labels).sum(axis=0)
    total = positive.sum(axis=0) + labels.sum(axis=0)
    return float((2 * right / np.maximum(total, 1)).mean())


def _variation(targets: Array) -> Floats:
    """Sum over examples of (target - mean target)^2, by column. (M,) or (M, C) -> (C,)."""
    values = targets.reshape(len(targets), -1).astype(np.float64)
    result: Floats = ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    return result


def _squares(outputs: Array, targets: Array) -> Array:
    return np.asarray((outputs.astype(np.float64) - targets.reshape(len(targets), -1)) ** 2)


def _r2(squares: Array, targets: Array) -> float:
    """1 - residual / total sum of squares, mean over columns; NaN where a column of targets is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((1 - squares.sum(axis=0) / _variation(targets)).mean())


def mean_metric(
    name: str,
    per_example: Callable[[Array, Array], Floats],
    *,
    higher_is_better: bool,
    targets: TargetKind,
    family: Family = "other",
    top: int = 1,
    choices: bool = False,
    about: str = "",
) -> Metric:
    """A metric that is the mean of one number per example."""
    return Metric(
        name,
        higher_is_better,
        targets,
        per_example=per_example,
        family=family,
        top=top,
        choices=choices,
        about=about,
    )


def summary_metric(
    name: str,
    summary: Callable[[Array, Array], Array],
    from_summary: Callable[[Array, Array], float],
    *,
    higher_is_better: bool,
    targets: TargetKind,
    family: Family = "other",
    about: str = "",
) -> Metric:
    """A metric of a few numbers per example that do not simply average."""
    return Metric(
        name,
        higher_is_better,
        targets,
        summary=summary,
        from_summary=from_summary,
        family=family,
        about=about,
    )


def _position_metric(
    name: str,
    totals: Callable[[Array, Array], Floats],
    from_totals: Callable[[Floats], float],
    *,
    higher_is_better: bool = True,
    family: Family = "other",
    target_only: bool = False,
    about: str = "",
) -> Metric:
    return Metric(
        name,
        higher_is_better,
        "positions",
        totals=totals,
        from_totals=from_totals,
        family=family,
        target_only=target_only,
        about=about,
    )


def span_f1(tags: Sequence[str] | None = None) -> Metric:
    """F1 of whole spans, micro-averaged, as seqeval gives it by default.

    tags: the names of the classes in order, "O", "B-PER", "I-PER", ...; None: class 0 is O, then B- and I- of each.
    """
    known = None if tags is None else positions.Tags.of(tags)
    about = "F1 of whole spans of B- and I- tags, as seqeval counts them"
    return _position_metric("span_f1", partial(positions.spans, known), positions.span_f1, about=about)


def _top_metric(top: int) -> Metric:
    return mean_metric(
        f"top{top}",
        partial(top_correct, top=top),
        higher_is_better=True,
        targets="classes",
        family="accuracy",
        top=top,
        about=f"share of examples whose target is among the {top} largest outputs",
    )


_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        mean_metric(
            "accuracy",
            correct,
            higher_is_better=True,
            targets="classes",
            family="accuracy",
            about="share of examples whose largest output is the target",
        ),
        _top_metric(5),
        summary_metric(
            "balanced_accuracy",
            _predicted,
            _balanced_accuracy,
            higher_is_better=True,
            targets="classes",
            family="balanced_accuracy",
            about="mean over classes of the share of their examples that is right",
        ),
        summary_metric(
            "macro_f1",
            _predicted,
            _macro_f1,
            higher_is_better=True,
            targets="classes",
            family="macro_f1",
            about="mean over classes of F1",
        ),
        mean_metric(
            "nll",
            negative_log_likelihood,
            higher_is_better=False,
            targets="classes",
            family="nll",
            about="cross-entropy, natural logarithm",
        ),
        Metric(
            "nll_calibrated",
            False,
            "classes",
            _calibrated_nll,
            about="cross-entropy at the temperature that makes it least",
        ),
        mean_metric(
            "brier",
            brier,
            higher_is_better=False,
            targets="classes",
            about="squared error of the probabilities, summed over classes",
        ),
        summary_metric(
            "ece",
            _confidence,
            _calibration_error,
            higher_is_better=False,
            targets="classes",
            about="expected calibration error of the largest probability, 15 bins",
        ),
        Metric(
            "multilabel_map",
            True,
            "multilabel",
            _multilabel_map,
            about="mean over classes of average precision",
        ),
        summary_metric(
            "multilabel_f1",
            _positive,
            _multilabel_f1,
            higher_is_better=True,
            targets="multilabel",
            about="mean over classes of F1 at a probability of one half",
        ),
        mean_metric(
            "mse", squared_error, higher_is_better=False, targets="values", family="mse", about="mean squared error"
        ),
        mean_metric("mae", absolute_error, higher_is_better=False, targets="values", about="mean absolute error"),
        summary_metric(
            "r2",
            _squares,
            _r2,
            higher_is_better=True,
            targets="values",
            family="r2",
            about="explained share of the variance, mean over columns",
        ),
        mean_metric(
            "multiple_choice",
            correct,
            higher_is_better=True,
            targets="classes",
            family="accuracy",
            choices=True,
            about="accuracy where examples differ in how many choices they have: -inf or NaN marks those not there",
        ),
        _position_metric(
            "token_accuracy",
            positions.hits,
            positions.ratio,
            family="position_accuracy",
            about="share of tokens that are right, over all sequences together",
        ),
        _position_metric(
            "pixel_accuracy",
            positions.hits,
            positions.ratio,
            family="position_accuracy",
            about="share of pixels that are right, over all pictures together",
        ),
        _position_metric(
            "token_nll",
            positions.losses,
            positions.ratio,
            higher_is_better=False,
            family="mixture",
            target_only=True,
            about="cross-entropy per token, natural logarithm",
        ),
        _position_metric(
            "perplexity",
            positions.losses,
            positions.exponential,
            higher_is_better=False,
            family="mixture",
            target_only=True,
            about="exp of the cross-entropy per token",
        ),
        _position_metric(
            "mean_iou",
            positions.overlaps,
            positions.mean_iou,
            family="mean_iou",
            about="mean over classes of intersection over union, over all pictures together",
        ),
        span_f1(),
    )
}


def names() -> list[str]:
    """The metrics that are known by name; top-k accuracy is known for every k: "top3", "top-10"."""
    return sorted(_METRICS)


def get(metric: str | Metric | Callable[[Any, Any], float], higher_is_better: bool | None = None) -> Metric:
    """The metric for a name, a Metric, or a function (outputs, targets) -> float on torch tensors.

    A function must come with its direction. Raises TaskError for an unknown name or a missing direction.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if match := _TOP_K.fullmatch(metric):
            return _METRICS["accuracy"] if match[1] == "1" else _top_metric(int(match[1]))
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

        with user_code(f"the metric {_name_of(function)!r}"):
            found = function(torch.from_numpy(np.array(outputs)), torch.from_numpy(np.array(targets)))
        return number_of(_name_of(function), found)

    return Metric(_name_of(function), higher_is_better, "any", value)


def number_of(name: str, found: Any) -> float:
    """What a metric returned, as a float: any real number, or a tensor or array of a single one. Raises TaskError."""
    single = found.item() if getattr(found, "shape", None) is not None and math.prod(found.shape) == 1 else found
    if isinstance(single, numbers.Real):
        return float(single)
    shape = getattr(found, "shape", None)
    got = type(found).__name__ + (f" of shape {tuple(shape)}" if shape is not None else f" {found!r}"[:60])
    raise TaskError(f"the metric {name!r} must return one number; got {got}")
