"""The one entry: every metric equals the dense reference, and what does not fit is refused in one message."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_outputs import make, subsets, uniform
from scipy.optimize import check_grad
from test_accuracy import small_logits, small_targets

from radin import metrics
from radin.errors import OutputsError, RadinError, TaskError
from radin.estimate import (
    AccuracyEstimator,
    DenseEstimator,
    Keys,
    LossEstimator,
    MacroF1Estimator,
    MarginCompiler,
    QuadraticEstimator,
    compile_margins,
    estimator,
    estimator_of,
    loss,
)
from radin.estimate.reading import Reader


def recipes(members, count=50):
    dirichlet = np.random.default_rng(5).dirichlet(np.full(members, 0.5), count)
    return np.vstack([dirichlet, uniform(subsets(members, count)), np.eye(members)])


def targets_for(metric, outputs, labels):
    rng = np.random.default_rng(3)
    if metric.targets == "classes":
        return labels
    if metric.targets == "multilabel":
        return (outputs[0] + rng.normal(size=outputs[0].shape) > 1).astype(int)
    return outputs.mean(axis=0) * 2 + rng.normal(size=outputs[0].shape) + 100


@pytest.mark.parametrize("name", [*(n for n in metrics.names() if not metrics.get(n).by_position), "top3"])
def test_every_metric_equals_the_dense_reference(name):
    outputs, labels = make(members=7, examples=150, classes=12, noise=1.0)
    metric = metrics.get(name)
    targets = targets_for(metric, outputs, labels)
    weights = recipes(7)
    got = estimator(outputs, targets, metric).scores(weights)
    expected = DenseEstimator(outputs, targets, metric).scores(weights)
    assert len(set(expected)) > 5
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("accuracy", AccuracyEstimator),
        ("top5", AccuracyEstimator),
        ("balanced_accuracy", AccuracyEstimator),
        ("macro_f1", MacroF1Estimator),
        ("nll", LossEstimator),
        ("mse", QuadraticEstimator),
        ("r2", QuadraticEstimator),
        ("ece", DenseEstimator),
    ],
)
def test_the_fast_way_is_taken(name, kind):
    outputs, labels = make(members=3, examples=40, classes=9)
    metric = metrics.get(name)
    assert type(estimator(outputs, targets_for(metric, outputs, labels), metric)) is kind


def test_a_function_named_like_a_metric_is_still_the_function():
    def accuracy(outputs, targets):
        return 0.25

    outputs, labels = make(members=3, examples=40, classes=9)
    got = estimator(outputs, labels, metrics.get(accuracy, higher_is_better=True)).scores(np.eye(3))
    assert got.tolist() == [0.25] * 3


@settings(deadline=None, max_examples=50)
@given(small_logits, small_targets)
def test_macro_f1_decides_ties_as_argmax_does(outputs, targets):
    masks = np.array([[k >> n & 1 for n in range(4)] for k in range(1, 16)], bool)
    sums = np.tensordot(masks.astype(np.float64), outputs.astype(np.float64), 1)
    expected = [metrics.get("macro_f1").value(s, targets) for s in sums]
    got = estimator(outputs, targets, metrics.get("macro_f1")).scores(uniform(masks))
    np.testing.assert_allclose(got, expected, atol=1e-14)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(["mse", "r2"]))
def test_squares_in_closed_form_equal_dense(seed, columns, name):
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(50, columns)) * 10.0 ** rng.integers(-2, 3, columns) + rng.normal() * 100
    outputs = (targets + rng.normal(size=(6, 50, columns))).astype(np.float64)
    weights = rng.dirichlet(np.ones(6), 20) * (1 + rng.uniform(-9e-7, 9e-7, (20, 1)))
    metric = metrics.get(name)
    got = QuadraticEstimator(outputs, targets, metric).scores(weights)
    expected = DenseEstimator(outputs, targets, metric).scores(weights)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_the_gram_matrix_is_the_score_on_the_simplex():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(4, 30)), rng.normal(size=30)
    mse = estimator(outputs, targets, metrics.get("mse"))
    weights = rng.dirichlet(np.ones(4), 5)
    assert isinstance(mse, QuadraticEstimator)
    direct = ((weights @ outputs - targets) ** 2).mean(axis=1)
    np.testing.assert_allclose(np.einsum("sn,nk,sk->s", weights, mse.gram, weights), direct, rtol=1e-12)


@pytest.mark.parametrize("resident", [True, False])
def test_the_gradient_of_the_loss(resident, monkeypatch):
    if not resident:
        monkeypatch.setattr(loss, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(loss, "BLOCK_BYTES", 8 * 5 * 8 * 37)
    outputs, targets = make(members=5, examples=120, classes=8)
    nll = LossEstimator(outputs, targets, metrics.get("nll"))
    point = np.random.default_rng(0).dirichlet(np.ones(5))
    value, gradient = nll.value_and_gradient(point)
    assert value == pytest.approx(nll.scores(point[None])[0], abs=1e-12)
    assert np.abs(gradient).max() > 1e-3
    error = check_grad(lambda p: nll.value_and_gradient(p)[0], lambda p: nll.value_and_gradient(p)[1], point)
    assert error < 1e-6
    with pytest.raises(RadinError, match="must be 5 finite numbers"):
        nll.value_and_gradient(np.full(5, np.nan))


def test_the_compiled_form_is_kept_extended_and_refused(tmp_path):
    outputs, labels = make(members=8, examples=200, classes=10, noise=1.0)
    metric, path = metrics.get("accuracy"), tmp_path / "margins.safetensors"
    names = [f"sha{k}" for k in range(8)]

    def scores(members, data="data", targets=labels):
        keys = Keys.of([names[k] for k in members], data)
        return estimator(outputs[members], targets, metric, cache=path, keys=keys).scores(np.eye(len(members)))

    alone = DenseEstimator(outputs, labels, metric).scores(np.eye(8))
    for members in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 1], [0, 1, 2, 5, 7, 6, 3], list(range(8)), [3]):
        assert scores(members).tolist() == alone[members].tolist()
    written = path.stat().st_mtime_ns
    assert scores([3]).tolist() == alone[[3]].tolist()
    assert path.stat().st_mtime_ns == written
    with pytest.raises(OutputsError, match=r"margins.safetensors was compiled from other data .*Delete it"):
        scores([3], data="other")
    with pytest.raises(OutputsError, match="compiled from other data"):
        scores([3], targets=labels[::-1].copy())
    with pytest.raises(OutputsError, match="with keys"):
        estimator(outputs, labels, metric, cache=path)
    with pytest.raises(OutputsError, match="8 members have outputs but 1 have keys"):
        estimator(outputs, labels, metric, cache=path, keys=Keys.of(["a"], "data"))


def test_balanced_accuracy_shares_what_accuracy_compiled(tmp_path):
    outputs, labels = make(members=5, examples=200, classes=10)
    keys, path = Keys.of(list("abcde"), "data"), tmp_path / "margins.safetensors"
    for name in ("accuracy", "balanced_accuracy"):
        metric = metrics.get(name)
        got = estimator(outputs, labels, metric, cache=path, keys=keys).scores(np.eye(5))
        np.testing.assert_allclose(got, DenseEstimator(outputs, labels, metric).scores(np.eye(5)), atol=1e-13)


def test_margins_compiled_elsewhere_are_scored():
    outputs, labels = make(members=5, examples=200, classes=10)
    compiler = MarginCompiler(5, 10, top=2)
    compiler.add(outputs, labels)
    metric = metrics.get("top2")
    got = estimator_of(compiler.finish(), metric).scores(np.eye(5))
    assert got.tolist() == DenseEstimator(outputs, labels, metric).scores(np.eye(5)).tolist()
    with pytest.raises(OutputsError, match="not compiled for metric 'accuracy'"):
        estimator_of(compiler.finish(), metrics.get("accuracy"))
    with pytest.raises(OutputsError, match="not compiled for metric 'macro_f1'"):
        estimator_of(compile_margins(Reader(outputs), labels), metrics.get("macro_f1"))


def test_files_give_what_arrays_give(tmp_path):
    outputs, labels = make(members=5, examples=200, classes=10, dtype=np.float16)
    paths = []
    for k, member in enumerate(outputs):
        paths.append(tmp_path / f"{k}.npy")
        np.save(paths[-1], member)
    mapped = [np.load(path, mmap_mode="r") for path in paths]
    weights = recipes(5)
    metric = metrics.get("accuracy")
    assert (
        estimator(mapped, labels, metric).scores(weights) == estimator(outputs, labels, metric).scores(weights)
    ).all()


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "nll", "mse", "r2", "mae"])
def test_a_member_with_nan_is_named(name):
    outputs, labels = make(members=3, examples=40, classes=9)
    metric = metrics.get(name)
    targets = targets_for(metric, outputs, labels)
    outputs[1, 17, 3] = np.nan
    with pytest.raises(OutputsError, match="member 1: its outputs hold NaN or infinity, first at example 17"):
        estimator(outputs, targets, metric).scores(np.eye(3))


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "nll", "mse", "mae"])
def test_a_member_with_fewer_examples_is_named(name):
    outputs, labels = make(members=3, examples=40, classes=9)
    metric = metrics.get(name)
    with pytest.raises(OutputsError, match="b has outputs for 39 examples, a for 40"):
        estimator(
            [outputs[0], outputs[1, :39], outputs[2]],
            targets_for(metric, outputs, labels),
            metric,
            names=list("abc"),
        )


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("accuracy", np.linspace(0, 1, 40), "integer class indices"),
        ("accuracy", np.full(40, 9), "labels out of range"),
        ("accuracy", np.zeros(39, int), "39 targets but outputs for 40 examples"),
        ("mse", np.zeros((40, 3)), "9 values per example, the targets 3"),
    ],
)
def test_targets_that_do_not_fit_are_refused(name, targets, message):
    outputs, _ = make(members=3, examples=40, classes=9)
    with pytest.raises(TaskError, match=message):
        estimator(outputs, targets, metrics.get(name))


def test_importing_estimates_does_not_import_torch():
    there = "print('torch' in sys.modules)"
    code = f"import radin.estimate as e, sys; {there}; e.Margins; {there}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
