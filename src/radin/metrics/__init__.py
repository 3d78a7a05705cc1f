"""Metrics: how outputs and targets become a score, and which direction is better.

One declaration per metric feeds the true score of a soup, its standard error and the estimate from cached outputs.
"""

from radin.metrics.functions import (
    CALIBRATION_BINS,
    absolute_error,
    brier,
    correct,
    log_softmax,
    negative_log_likelihood,
    squared_error,
    temperature,
    top_correct,
)
from radin.metrics.metric import (
    BOOTSTRAP_CALLS,
    BOOTSTRAP_SAMPLES,
    TARGET_KINDS,
    Array,
    Family,
    Floats,
    Metric,
    TargetKind,
    number_of,
)
from radin.metrics.named import get, mean_metric, names, span_f1, summary_metric
from radin.metrics.targets import check_labels

__all__ = [
    "BOOTSTRAP_CALLS",
    "BOOTSTRAP_SAMPLES",
    "CALIBRATION_BINS",
    "TARGET_KINDS",
    "Array",
    "Family",
    "Floats",
    "Metric",
    "TargetKind",
    "absolute_error",
    "brier",
    "check_labels",
    "correct",
    "get",
    "log_softmax",
    "mean_metric",
    "names",
    "negative_log_likelihood",
    "number_of",
    "span_f1",
    "squared_error",
    "summary_metric",
    "temperature",
    "top_correct",
]
