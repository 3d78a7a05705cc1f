"""Estimates: the score of a recipe from the members' cached outputs, with no model and no pass over data.

The estimate of a recipe is the metric of the members' averaged outputs (RADIN, section 3). ``estimator`` picks the
fastest exact way for a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from radin.errors import OutputsError
from radin.estimate.dense import DenseEstimator, check_targets
from radin.estimate.reading import Array, ArrayLike2D, FileArray, Floats, Outputs, Reader
from radin.metrics import Metric

if TYPE_CHECKING:
    from radin.estimate.accuracy import AccuracyEstimator
    from radin.estimate.by_position import (
        PositionAccuracy,
        PositionCompiler,
        PositionMargins,
        load_positions,
        position_estimator,
        purpose_of,
        save_positions,
    )
    from radin.estimate.classes import MacroF1Estimator
    from radin.estimate.loss import LossEstimator
    from radin.estimate.margins import MarginCompiler, Margins, compile_margins
    from radin.estimate.mixture import MixtureEstimator
    from radin.estimate.quadratic import QuadraticEstimator
    from radin.estimate.store import Keys, load_margins, save_margins

__all__ = [
    "AccuracyEstimator",
    "ArrayLike2D",
    "DenseEstimator",
    "Estimator",
    "FileArray",
    "Keys",
    "LossEstimator",
    "MacroF1Estimator",
    "MarginCompiler",
    "Margins",
    "MixtureEstimator",
    "Outputs",
    "PositionAccuracy",
    "PositionCompiler",
    "PositionMargins",
    "QuadraticEstimator",
    "compile_margins",
    "estimator",
    "estimator_of",
    "load_margins",
    "load_positions",
    "position_estimator",
    "purpose_of",
    "save_margins",
    "save_positions",
]

# What needs torch is loaded when first used, so that importing search stays quick.
_LAZY = {
    "AccuracyEstimator": "accuracy",
    "MacroF1Estimator": "classes",
    "LossEstimator": "loss",
    "MixtureEstimator": "mixture",
    "PositionAccuracy": "by_position",
    "PositionCompiler": "by_position",
    "PositionMargins": "by_position",
    "load_positions": "by_position",
    "position_estimator": "by_position",
    "purpose_of": "by_position",
    "save_positions": "by_position",
    "MarginCompiler": "margins",
    "Margins": "margins",
    "compile_margins": "margins",
    "QuadraticEstimator": "quadratic",
    "Keys": "store",
    "load_margins": "store",
    "save_margins": "store",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Estimator(Protocol):
    """Scores recipes of a pool of ``members`` on ``examples``."""

    members: int
    examples: int

    def scores(self, weights: Array) -> Floats:
        """The metric of each recipe's averaged outputs: weights (S, N), rows p >= 0 with sum 1, -> (S,)."""
        ...


def estimator(
    outputs: Outputs,
    targets: Array,
    metric: Metric,
    *,
    device: str = "cpu",
    cache: Path | None = None,
    keys: Keys | None = None,
    names: Sequence[str] | None = None,
    told: Callable[[str], None] | None = None,
) -> Estimator:
    """The fastest exact estimator for a metric.

    Accuracy, top-k and balanced accuracy and macro-F1 are compiled to margins, in one reading of the outputs; mean
    squared error and R^2 to one N x N matrix; everything else takes the dense path. By position, token and pixel
    accuracy and mean IoU are compiled too, and likelihoods are those of averaged probabilities.

    outputs: (M, C) for each of N members, in memory or on disk; targets (M, ...). ``cache``, with ``keys``: a file
    to keep compiled accuracy in; where it holds some of the members, only the others are read (by position all are).
    ``names``: of the
    members, for messages. ``told``: is given a sentence when ``cache`` was damaged and is made again. Raises
    OutputsError, naming the member, or TaskError when outputs and targets do not fit,
    and OutputsError when ``cache`` belongs to other data.
    """
    from radin.estimate.loss import LossEstimator
    from radin.estimate.margins import compile_margins
    from radin.estimate.quadratic import QuadraticEstimator

    if metric.family in ("mse", "r2"):
        return QuadraticEstimator(outputs, targets, metric, names=names)
    if metric.family == "nll":
        return LossEstimator(outputs, targets, metric, names=names)
    if metric.family == "mixture":
        from radin.estimate.mixture import MixtureEstimator

        return MixtureEstimator(outputs, targets, metric, names=names)
    if metric.family == "other":
        return DenseEstimator(outputs, targets, metric, names=names)
    reader = Reader(outputs, names)
    labels = check_targets(targets, reader, metric)
    if metric.by_position:
        return _by_position(reader, labels, metric, device, cache, keys, told)
    if metric.family == "macro_f1":
        margins = compile_margins(reader, labels, purpose="class")
    elif cache is None or metric.top > 1:
        margins = compile_margins(reader, labels, top=metric.top)
    elif keys is None:
        raise OutputsError("compiled outputs can only be kept with keys that say what they belong to")
    else:
        margins = _cached(reader, labels, cache, keys, told)
    return estimator_of(margins, metric, device=device)


def _by_position(
    reader: Reader,
    targets: Array,
    metric: Metric,
    device: str,
    cache: Path | None,
    keys: Keys | None,
    told: Callable[[str], None] | None,
) -> Estimator:
    """Estimators of accuracy and mean IoU over the positions that count; targets (P, 2)."""
    from radin.estimate.by_position import cached_positions, compile_positions, position_estimator, purpose_of

    purpose = purpose_of(metric)
    if cache is None:
        return position_estimator(compile_positions(reader, targets, purpose), metric, device)
    if keys is None:
        raise OutputsError("compiled outputs can only be kept with keys that say what they belong to")
    return position_estimator(cached_positions(reader, targets, purpose, cache, keys, told), metric, device)


def estimator_of(margins: Margins, metric: Metric, *, device: str = "cpu") -> Estimator:
    """The estimator over margins compiled for this metric, such as those of MarginCompiler.

    ``device``: where recipes are scored; the CPU where that device does not compute in float64.
    """
    from radin.estimate.accuracy import AccuracyEstimator, balanced_weights, has_float64
    from radin.estimate.classes import MacroF1Estimator

    device = device if has_float64(device) else "cpu"

    if metric.family == "macro_f1" and margins.purpose == "class":
        return MacroF1Estimator(margins, device=device)
    if metric.family == "accuracy" and (margins.purpose, margins.top) == ("right", metric.top):
        return AccuracyEstimator(margins, device=device)
    if metric.family == "balanced_accuracy" and (margins.purpose, margins.top) == ("right", 1):
        example_weights = balanced_weights(margins.targets)
        return AccuracyEstimator(margins, device=device, example_weights=example_weights)
    raise OutputsError(f"these margins were not compiled for metric {metric.name!r}: compile the outputs for it")


def _cached(reader: Reader, targets: Array, path: Path, keys: Keys, told: Callable[[str], None] | None) -> Margins:
    """Compiled accuracy from the file, brought up to date with the pool, or made and kept there."""
    from radin.estimate.extend import update_margins
    from radin.estimate.margins import compile_margins
    from radin.estimate.store import load_margins, save_margins

    if len(keys.members) != reader.members:
        raise OutputsError(f"{reader.members} members have outputs but {len(keys.members)} have keys")
    try:
        old, old_keys = load_margins(path)
    except OutputsError as error:  # not there, or damaged: it is made again from the outputs
        if told is not None and path.exists():
            told(f"made again: {error}")
        margins = compile_margins(reader, targets, extendable=True)
        save_margins(margins, path, keys)
        return margins
    if old_keys.data != keys.data or old.classes != reader.classes or not np.array_equal(old.targets, targets):
        raise OutputsError(
            f"{path} was compiled from other data (data {old_keys.data[:12]}, {old.examples} examples, "
            f"{old.classes} classes; now {keys.data[:12]}, {reader.examples} and {reader.classes}). "
            "Delete it to compile these outputs."
        )
    if old_keys.members == keys.members:
        return old
    place = {key: k for k, key in enumerate(old_keys.members)}
    known = [place.get(key) for key in keys.members]
    if old.dropped is None or sum(k is not None for k in known) * 2 < reader.members:
        margins = compile_margins(reader, targets, extendable=True)
    else:
        margins = update_margins(old, reader, known)
    save_margins(margins, path, keys)
    return margins
