"""The dense reference against a plain loop, and its checks."""

from __future__ import annotations

import numpy as np
import pytest

from radin import metrics
from radin.errors import OutputsError, RadinError, TaskError
from radin.estimate import dense
from radin.estimate.dense import DenseEstimator

MEMBERS, EXAMPLES, CLASSES = 5, 60, 7


@pytest.fixture
def outputs():
    return np.random.default_rng(0).normal(size=(MEMBERS, EXAMPLES, CLASSES)).astype(np.float32)


@pytest.fixture
def recipes():
    return np.random.default_rng(1).dirichlet(np.ones(MEMBERS), size=11)


def targets_for(metric, rng):
    if metric.targets == "classes":
        return rng.integers(0, CLASSES, EXAMPLES)
    if metric.targets == "multilabel":
        return rng.integers(0, 2, (EXAMPLES, CLASSES))
    return rng.normal(size=(EXAMPLES, CLASSES))


@pytest.mark.parametrize("name", [n for n in metrics.names() if not metrics.get(n).by_position])
def test_scores_are_the_metric_of_the_averaged_outputs(name, outputs, recipes, monkeypatch):
    monkeypatch.setattr(dense, "BLOCK_BYTES", 8 * MEMBERS * CLASSES * 13)
    monkeypatch.setattr(dense, "RECIPE_BYTES", 8 * EXAMPLES * CLASSES * 4)
    metric = metrics.get(name)
    targets = targets_for(metric, np.random.default_rng(2))
    expected = [metric.value(np.tensordot(row, outputs.astype(float), 1), targets) for row in recipes]
    np.testing.assert_allclose(DenseEstimator(outputs, targets, metric).scores(recipes), expected, rtol=1e-12)


def test_any_function_of_torch_tensors(outputs, recipes):
    def spread(averaged, targets):
        return (averaged.max() - averaged.min()) * len(targets)

    metric = metrics.get(spread, higher_is_better=False)
    got = DenseEstimator(outputs, np.zeros(EXAMPLES), metric).scores(recipes)
    averaged = np.einsum("sn,nmc->smc", recipes, outputs.astype(float))
    np.testing.assert_allclose(got, (averaged.max((1, 2)) - averaged.min((1, 2))) * EXAMPLES, rtol=1e-12)


def test_outputs_may_be_files_or_a_list(outputs, recipes, tmp_path):
    targets = np.random.default_rng(2).integers(0, CLASSES, EXAMPLES)
    metric = metrics.get("nll")
    path = tmp_path / "outputs.npy"
    np.save(path, outputs.astype(np.float16))
    mapped = np.load(path, mmap_mode="r")
    expected = DenseEstimator(outputs.astype(np.float16), targets, metric).scores(recipes)
    assert (DenseEstimator(mapped, targets, metric).scores(recipes) == expected).all()
    assert (DenseEstimator(list(mapped), targets, metric).scores(recipes) == expected).all()
    assert (DenseEstimator(mapped[:, 10:], targets[10:], metric).scores(recipes) != expected).all()


def test_no_recipes_no_scores(outputs):
    estimator = DenseEstimator(outputs, np.zeros(EXAMPLES, int), metrics.get("accuracy"))
    assert estimator.scores(np.empty((0, MEMBERS))).shape == (0,)


@pytest.mark.parametrize("row", [[0.5, 0.5, 0.1, 0, 0], [1.5, -0.5, 0, 0, 0], [np.nan, 1, 0, 0, 0], [0.5, 0.5]])
def test_weights_off_the_simplex_are_refused(outputs, row):
    estimator = DenseEstimator(outputs, np.zeros(EXAMPLES, int), metrics.get("accuracy"))
    with pytest.raises(RadinError, match="mixing weights must"):
        estimator.scores(np.array([row]))


def test_the_member_with_nan_or_infinity_is_named(outputs, recipes):
    outputs[3, 41, 2] = np.inf
    names = list("abcde")
    with pytest.raises(OutputsError, match="d: its outputs hold NaN or infinity, first at example 41"):
        DenseEstimator(outputs, np.zeros(EXAMPLES, int), metrics.get("nll"), names=names).scores(recipes)


def test_the_member_of_another_shape_is_named(outputs):
    zeros, metric = np.zeros(EXAMPLES, int), metrics.get("accuracy")
    short = [*outputs[:4], outputs[4, :50]]
    with pytest.raises(OutputsError, match="e has outputs for 50 examples, a for 60"):
        DenseEstimator(short, zeros, metric, names=list("abcde"))
    narrow = [outputs[0], outputs[1, :, :6]]
    with pytest.raises(OutputsError, match="member 1 has"):
        DenseEstimator(narrow, zeros, metric)
    with pytest.raises(OutputsError, match="floating point"):
        DenseEstimator(outputs.astype(int), zeros, metric)
    with pytest.raises(TaskError, match="50 targets but outputs for 60"):
        DenseEstimator(outputs, zeros[:50], metric)


def test_a_file_cut_short_is_refused(outputs, tmp_path):
    from radin.estimate import FileArray

    path = tmp_path / "member.bin"
    path.write_bytes(outputs[0].tobytes()[:-4])
    with pytest.raises(OutputsError, match=r"member.bin is cut short: 1680 bytes expected, 1676 there"):
        FileArray(path, 0, (EXAMPLES, CLASSES), np.float32)
