"""Accuracy by margins: counts equal to the dense float64 product, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_outputs import counts, make, right_counts, subsets, uniform

from radin import metrics
from radin.estimate import accuracy as module
from radin.estimate.accuracy import AccuracyEstimator, balanced_weights, rounding_bound
from radin.estimate.dense import DenseEstimator
from radin.estimate.margins import MarginCompiler, compile_margins
from radin.estimate.reading import Reader


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_counts_of_subsets_equal_dense_float64(dtype):
    outputs, targets = make(dtype=dtype)
    masks = subsets(9, 600)
    estimator = AccuracyEstimator(compile_margins(Reader(outputs), targets))
    expected = right_counts(outputs, targets, masks)
    assert len(set(expected)) > 20
    assert (counts(estimator, uniform(masks)) == expected).all()


def test_counts_of_unequal_ratios_equal_dense_float64():
    outputs, targets = make(noise=1.5)
    weights = np.random.default_rng(1).dirichlet(np.full(9, 0.5), 400)
    estimator = AccuracyEstimator(compile_margins(Reader(outputs), targets))
    dense = DenseEstimator(outputs, targets, metrics.get("accuracy"))
    assert (counts(estimator, weights) == counts(dense, weights)).all()


small_logits = arrays(np.float32, (4, 12, 4), elements=st.integers(-2, 2).map(float))
small_targets = arrays(np.int64, 12, elements=st.integers(0, 3))


@settings(deadline=None, max_examples=60)
@given(small_logits, small_targets, st.sampled_from([1, 2, 3]))
def test_ties_are_decided_as_argmax_decides_them(outputs, targets, top):
    """Small integers tie all the time, and their sums and sixteenths are exact."""
    masks = np.array([[k >> n & 1 for n in range(4)] for k in range(1, 16)], bool)
    sixteenths = np.array([[16, 0, 0, 0], [1, 15, 0, 0], [8, 4, 4, 0], [4, 4, 4, 4], [3, 5, 7, 1], [0, 0, 9, 7]]) / 16
    estimator = AccuracyEstimator(compile_margins(Reader(outputs), targets, top=top))
    metric = metrics.get(f"top{top}")
    for weights, sums in ((uniform(masks), masks), (sixteenths, sixteenths)):
        averaged = np.tensordot(sums.astype(np.float64), outputs.astype(np.float64), 1)
        expected = [round(metric.value(a, targets) * 12) for a in averaged]
        assert counts(estimator, weights).tolist() == expected
    if top == 1:
        averaged = np.tensordot(masks.astype(np.float64), outputs.astype(np.float64), 1)
        assert (torch.from_numpy(averaged).argmax(dim=2).numpy() == averaged.argmax(axis=2)).all()


@settings(deadline=None, max_examples=40)
@given(small_logits, small_targets)
def test_near_ties_go_to_float64(outputs, targets):
    """Differences of 2^-20 between averages of logits near 1000 are far below float32's rounding."""
    close = (1000 + outputs.astype(np.float64) * 2.0**-20).astype(np.float64)
    masks = np.array([[k >> n & 1 for n in range(4)] for k in range(1, 16)], bool)
    far = close.copy()
    far[:, :, 0] -= 900
    for case in (close, far):
        estimator = AccuracyEstimator(compile_margins(Reader(case), targets))
        assert (counts(estimator, uniform(masks)) == right_counts(case, targets, masks)).all()


@pytest.mark.parametrize("top", [2, 5])
def test_top_k_counts_equal_dense(top):
    outputs, targets = make(noise=1.5)
    weights = np.vstack([uniform(subsets(9, 60)), np.random.default_rng(1).dirichlet(np.ones(9), 60)])
    estimator = AccuracyEstimator(compile_margins(Reader(outputs), targets, top=top))
    dense = DenseEstimator(outputs, targets, metrics.get(f"top{top}"))
    assert (counts(estimator, weights) == counts(dense, weights)).all()


def test_balanced_accuracy_equals_dense():
    outputs, targets = make(classes=12)
    targets = np.where(targets < 4, 4, targets)
    weights = np.random.default_rng(1).dirichlet(np.ones(9), 60)
    margins = compile_margins(Reader(outputs), targets)
    estimator = AccuracyEstimator(margins, example_weights=balanced_weights(targets))
    dense = DenseEstimator(outputs, targets, metrics.get("balanced_accuracy"))
    np.testing.assert_allclose(estimator.scores(weights), dense.scores(weights), atol=1e-13)


def test_pruning_leaves_few_rows_and_only_ones_that_bind():
    outputs, targets = make(noise=0.3)
    margins = compile_margins(Reader(outputs), targets)
    places = margins.places()
    values = margins.at(places)
    # No row always holds, none never does, and none of an example lies above another everywhere.
    assert 0 < len(places) < outputs[0].size / 20
    assert (values.min(axis=1) <= 0).all()
    assert (values.max(axis=1) >= 0).all()
    example = margins.example[places]
    below = (values[:, None] < values[None]).all(axis=2) & (example[:, None] == example[None])
    assert not below.any()


def test_an_estimator_with_nothing_contested():
    outputs = np.zeros((3, 4, 2), np.float32)
    outputs[:, :, 1] = 1
    estimator = AccuracyEstimator(compile_margins(Reader(outputs), np.array([1, 1, 1, 0])))
    assert estimator.scores(np.array([[0.25, 0.25, 0.5]])) == 0.75
    assert estimator.scores(np.empty((0, 3))).shape == (0,)


def test_the_rounding_bound_holds_with_room():
    rng = np.random.default_rng(0)
    for members in (2, 72, 1000):
        rows = rng.uniform(-1, 1, (400, members)).astype(np.float32)
        weights = rng.dirichlet(np.ones(members), 50)
        got = (torch.from_numpy(rows) @ torch.from_numpy(weights.T.astype(np.float32))).double().numpy()
        error = np.abs(got - rows.astype(np.float64) @ weights.T).max()
        assert 0 < error < rounding_bound(members) < 1e-3


def test_reduced_precision_products_do_not_change_counts():
    outputs, targets = make()
    weights = uniform(subsets(9, 100))
    estimator = AccuracyEstimator(compile_margins(Reader(outputs), targets))
    expected = counts(estimator, weights)
    torch.set_float32_matmul_precision("medium")
    try:
        assert (counts(estimator, weights) == expected).all()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_order_of_blocks_and_threads_does_not_matter(monkeypatch):
    outputs, targets = make()
    margins = compile_margins(Reader(outputs), targets)
    weights = uniform(subsets(9, 300))
    expected = AccuracyEstimator(margins).scores(weights)
    threads = torch.get_num_threads()
    monkeypatch.setitem(module.BLOCK_ROWS, "cpu", 7)
    monkeypatch.setitem(module.BLOCK_RECIPES, "cpu", 11)
    assert (AccuracyEstimator(margins).scores(weights) == expected).all()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_compiling_block_by_block_is_compiling_at_once(dtype):
    outputs, targets = make(dtype=dtype)
    compiler = MarginCompiler(9, 30)
    for lo, hi in ((0, 100), (100, 100), (100, 101), (101, 700)):
        compiler.add(outputs[:, lo:hi], targets[lo:hi])
    streamed, whole = compiler.finish(), compile_margins(Reader(outputs), targets)
    for name in ("example", "rival", "logits", "truth", "targets", "allowed"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(whole, name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_counts_on_cuda_equal_those_on_cpu():
    outputs, targets = make()
    margins = compile_margins(Reader(outputs), targets)
    weights = uniform(subsets(9, 5000))
    assert (
        AccuracyEstimator(margins, device="cuda").scores(weights) == AccuracyEstimator(margins).scores(weights)
    ).all()
