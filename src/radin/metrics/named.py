"""The metrics that have a name. A new one is one declaration here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from radin import positions
from radin.errors import TaskError
from radin.metrics import functions
from radin.metrics.metric import Array, Family, Floats, Metric, TargetKind, name_of, number_of
from radin.usercode import user_code

_TOP_K = re.compile(r"top-?([1-9]\d{0,8})")


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
        partial(functions.top_correct, top=top),
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
            functions.correct,
            higher_is_better=True,
            targets="classes",
            family="accuracy",
            about="share of examples whose largest output is the target",
        ),
        _top_metric(5),
        summary_metric(
            "balanced_accuracy",
            functions.predicted,
            functions.balanced_accuracy,
            higher_is_better=True,
            targets="classes",
            family="balanced_accuracy",
            about="mean over classes of the share of their examples that is right",
        ),
        summary_metric(
            "macro_f1",
            functions.predicted,
            functions.macro_f1,
            higher_is_better=True,
            targets="classes",
            family="macro_f1",
            about="mean over classes of F1",
        ),
        mean_metric(
            "nll",
            functions.negative_log_likelihood,
            higher_is_better=False,
            targets="classes",
            family="nll",
            about="cross-entropy, natural logarithm",
        ),
        Metric(
            "nll_calibrated",
            False,
            "classes",
            functions.calibrated_nll,
            about="cross-entropy at the temperature that makes it least",
        ),
        mean_metric(
            "brier",
            functions.brier,
            higher_is_better=False,
            targets="classes",
            about="squared error of the probabilities, summed over classes",
        ),
        summary_metric(
            "ece",
            functions.confidence,
            functions.calibration_error,
            higher_is_better=False,
            targets="classes",
            about="expected calibration error of the largest probability, 15 bins",
        ),
        Metric(
            "multilabel_map",
            True,
            "multilabel",
            functions.multilabel_map,
            about="mean over classes of average precision",
        ),
        summary_metric(
            "multilabel_f1",
            functions.positive,
            functions.multilabel_f1,
            higher_is_better=True,
            targets="multilabel",
            about="mean over classes of F1 at a probability of one half",
        ),
        mean_metric(
            "mse",
            functions.squared_error,
            higher_is_better=False,
            targets="values",
            family="mse",
            about="mean squared error",
        ),
        mean_metric(
            "mae", functions.absolute_error, higher_is_better=False, targets="values", about="mean absolute error"
        ),
        summary_metric(
            "r2",
            functions.squares,
            functions.r2,
            higher_is_better=True,
            targets="values",
            family="r2",
            about="explained share of the variance, mean over columns",
        ),
        mean_metric(
            "multiple_choice",
            functions.correct,
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
            f"metric {name_of(metric)!r} is a function: say its direction with higher_is_better = True or False"
        )
    return _from_function(metric, higher_is_better)


def _from_function(function: Callable[[Any, Any], float], higher_is_better: bool) -> Metric:
    def value(outputs: Array, targets: Array) -> float:
        import torch

        with user_code(f"the metric {name_of(function)!r}"):
            found = function(torch.from_numpy(np.array(outputs)), torch.from_numpy(np.array(targets)))
        return number_of(name_of(function), found)

    return Metric(name_of(function), higher_is_better, "any", value)
