"""Every metric against scikit-learn, torchmetrics or a general optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn import metrics as reference
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multilabel_average_precision,
    multilabel_f1_score,
)

from radin import metrics
from radin.errors import TaskError

EXAMPLES, CLASSES = 400, 9


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(EXAMPLES, CLASSES)) * 2


@pytest.fixture(scope="module")
def labels(logits):
    rng = np.random.default_rng(1)
    noisy = logits + rng.normal(size=logits.shape) * 2
    return noisy.argmax(axis=1)


@pytest.fixture(scope="module")
def multilabels(logits):
    return (logits + np.random.default_rng(2).normal(size=logits.shape) * 2 > 1).astype(np.int64)


def softmax(logits):
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy()


def value(name, outputs, targets):
    return metrics.get(name).value(outputs, targets)


def test_accuracy(logits, labels):
    assert value("accuracy", logits, labels) == reference.accuracy_score(labels, logits.argmax(axis=1))


@pytest.mark.parametrize("top", [1, 2, 5])
def test_top_k_accuracy(logits, labels, top):
    expected = reference.top_k_accuracy_score(labels, logits, k=top, labels=np.arange(CLASSES))
    assert value(f"top{top}", logits, labels) == value(f"top-{top}", logits, labels) == expected


def test_top_k_gives_ties_to_the_first_class():
    outputs = np.array([[1.0, 2.0, 2.0, 0.0]])
    assert value("top2", outputs, np.array([2])) == 1
    assert value("accuracy", outputs, np.array([2])) == 0
    assert value("top2", np.zeros((1, 4)), np.array([2])) == 0


def test_balanced_accuracy(logits, labels):
    some = np.where(labels == 3, 4, labels)
    expected = reference.balanced_accuracy_score(some[some != 3], logits.argmax(axis=1)[some != 3])
    assert value("balanced_accuracy", logits, some) == pytest.approx(expected, abs=1e-12)


def test_macro_f1(logits, labels):
    expected = reference.f1_score(labels, logits.argmax(axis=1), average="macro")
    assert value("macro_f1", logits, labels) == pytest.approx(expected, abs=1e-12)
    few = labels % 3
    expected = reference.f1_score(few, logits.argmax(axis=1) % 4, average="macro")
    assert value("macro_f1", np.eye(CLASSES)[logits.argmax(axis=1) % 4], few) == pytest.approx(expected, abs=1e-12)


def test_nll(logits, labels):
    expected = reference.log_loss(labels, softmax(logits), labels=np.arange(CLASSES))
    assert value("nll", logits, labels) == pytest.approx(expected, abs=1e-12)


def test_nll_of_huge_logits_is_finite():
    assert value("nll", np.array([[0.0, 2000.0]], np.float32), np.array([0])) == 2000


def test_calibrated_nll_finds_the_best_temperature(logits, labels):
    best = minimize_scalar(
        lambda log_t: value("nll", logits / np.exp(log_t), labels), bounds=(-3, 3), options={"xatol": 1e-10}
    )
    assert value("nll_calibrated", logits, labels) == pytest.approx(best.fun, abs=1e-10)
    assert metrics.temperature(logits, labels) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_brier(logits, labels):
    expected = ((softmax(logits) - np.eye(CLASSES)[labels]) ** 2).sum(axis=1).mean()
    assert value("brier", logits, labels) == pytest.approx(expected, abs=1e-12)
    two = logits[:, :2]
    binary = (labels % 2).astype(int)
    expected = 2 * reference.brier_score_loss(binary, softmax(two)[:, 1])
    assert value("brier", two, binary) == pytest.approx(expected, abs=1e-12)


def test_ece(logits, labels):
    expected = multiclass_calibration_error(
        torch.from_numpy(softmax(logits)), torch.from_numpy(labels), CLASSES, n_bins=15, norm="l1"
    )
    assert value("ece", logits, labels) == pytest.approx(float(expected), abs=1e-6)


def test_multilabel_map(logits, multilabels):
    rounded = np.round(logits, 1)
    expected = reference.average_precision_score(multilabels, rounded, average="macro")
    assert value("multilabel_map", rounded, multilabels) == pytest.approx(expected, abs=1e-12)
    without = multilabels.copy()
    without[:, 2] = 0
    expected = multilabel_average_precision(
        torch.from_numpy(np.delete(rounded, 2, axis=1)), torch.from_numpy(np.delete(without, 2, axis=1)), CLASSES - 1
    )
    assert value("multilabel_map", rounded, without) == pytest.approx(float(expected), abs=1e-6)


def test_multilabel_f1(logits, multilabels):
    expected = multilabel_f1_score(
        torch.from_numpy(logits).sigmoid(), torch.from_numpy(multilabels), CLASSES, average="macro"
    )
    assert value("multilabel_f1", logits, multilabels) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mse", reference.mean_squared_error),
        ("mae", reference.mean_absolute_error),
        ("r2", reference.r2_score),
    ],
)
@pytest.mark.parametrize("columns", [1, 3])
def test_regression(name, function, columns):
    rng = np.random.default_rng(3)
    targets = rng.normal(size=(EXAMPLES, columns)) * [1, 5, 0.1][:columns] + 100
    outputs = targets + rng.normal(size=targets.shape) * 0.3
    assert value(name, outputs, targets) == pytest.approx(function(targets, outputs), rel=1e-12)
    assert metrics.get(name).higher_is_better == (name == "r2")


def test_every_summary_metric_is_its_two_steps(logits, labels, multilabels):
    summary = [metrics.get(n) for n in metrics.names() if metrics.get(n).summary]
    assert {m.name for m in summary} >= {"balanced_accuracy", "macro_f1", "ece", "multilabel_f1", "r2"}
    for metric in summary:
        targets = {"classes": labels, "multilabel": multilabels, "values": logits[:, ::-1]}[metric.targets]
        parts = [metric.summary(logits[rows], targets[rows]) for rows in (slice(0, 150), slice(150, None))]
        assert metric.from_summary(np.concatenate(parts), targets) == metric.value(logits, targets)


def test_bootstrap_of_a_summary_is_that_of_the_outputs(logits, labels, monkeypatch):
    monkeypatch.setattr("radin.metrics.metric.BOOTSTRAP_CALLS", metrics.BOOTSTRAP_SAMPLES)
    metric = metrics.get("balanced_accuracy")
    plain = metrics.Metric("balanced", True, "classes", metric.value)
    assert metric.standard_error(logits, labels) == pytest.approx(plain.standard_error(logits, labels), abs=1e-15)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("multilabel_map", np.zeros(4, int), "one 0 or 1 per example and class"),
        ("multilabel_f1", np.full((4, CLASSES), 2), "0 and 1 only"),
        ("top9", np.arange(4), "more than 9 classes"),
        ("r2", np.ones((4, CLASSES)), "a column of the targets is constant"),
        ("accuracy", np.array([0.5, 1.0]), "integer class indices"),
        ("mse", np.array([np.nan] * 9).reshape(1, 9), "NaN or infinity"),
        ("nll", np.array([0, CLASSES]), "labels out of range"),
    ],
)
def test_targets_that_do_not_fit(name, targets, message):
    with pytest.raises(TaskError, match=message):
        metrics.get(name).check(targets, CLASSES)


def test_unknown_names_and_functions_without_direction():
    with pytest.raises(TaskError, match="unknown metric 'top0'"):
        metrics.get("top0")
    with pytest.raises(TaskError, match="say its direction"):
        metrics.get(lambda outputs, targets: 0.0)
