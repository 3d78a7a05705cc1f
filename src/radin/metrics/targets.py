"""Whether targets are what a metric needs; the messages where they are not.

Axis names: examples M, positions P, classes C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from radin import positions
from radin.errors import TaskError

if TYPE_CHECKING:
    from radin.metrics.metric import Metric

Array = NDArray[Any]
Floats = NDArray[np.float64]


def variation(targets: Array) -> Floats:
    """Sum over examples of (target - mean target)^2, by column. (M,) or (M, C) -> (C,)."""
    values = targets.reshape(len(targets), -1).astype(np.float64)
    result: Floats = ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    return result


def check_classes(name: str, targets: Array, classes: int) -> None:
    """Raise TaskError when targets are not one class index (M,) per example, of ``classes`` columns."""
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


def check_values(name: str, targets: Array, classes: int) -> None:
    """Raise TaskError when targets are not finite numbers, ``classes`` of them per example."""
    if not np.issubdtype(targets.dtype, np.number) or np.issubdtype(targets.dtype, np.complexfloating):
        raise TaskError(f"metric {name!r} needs numbers as targets; they are {targets.dtype}")
    width = 1 if targets.ndim == 1 else int(np.prod(targets.shape[1:]))
    if width != classes:
        raise TaskError(f"metric {name!r}: the model returns {classes} values per example, the targets {width}")
    if not np.isfinite(targets).all():
        raise TaskError(f"metric {name!r}: the targets hold NaN or infinity")


def check_positions(metric: Metric, targets: Array, classes: int) -> None:
    """Raise TaskError when targets are not laid out by position, (P, 2), or hold other classes."""
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


def check_multilabel(name: str, targets: Array, classes: int) -> None:
    """Raise TaskError when targets are not zeros and ones (M, C)."""
    if targets.ndim != 2 or targets.shape[1] != classes:
        raise TaskError(
            f"metric {name!r} needs one 0 or 1 per example and class, shape ({len(targets)}, {classes}); "
            f"the targets have shape {targets.shape}"
        )
    if not np.isin(targets, (0, 1)).all():
        raise TaskError(f"metric {name!r} needs targets of 0 and 1 only")
