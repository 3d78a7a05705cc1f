"""Estimates: the score of a recipe from the members' cached outputs, with no model and no pass over data.

The estimate of a recipe is the metric of the members' averaged outputs (RADIN, section 3). ``estimator`` picks the
fastest exact way for a metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from radin.metrics import Metric
from radin.search.estimate.dense import DenseEstimator
from radin.search.estimate.reading import Array, ArrayLike2D, FileArray, Floats, Outputs

__all__ = ["ArrayLike2D", "DenseEstimator", "Estimator", "FileArray", "Outputs", "estimator"]


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
    names: Sequence[str] | None = None,
) -> Estimator:
    """The fastest exact estimator for a metric.

    outputs: (M, C) for each of N members, in memory or on disk; targets (M, ...). Raises OutputsError, naming the
    member, or TaskError when they do not fit.
    """
    return DenseEstimator(outputs, targets, metric, names=names)
