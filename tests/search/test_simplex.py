"""Fits on the simplex against scipy's solver, on real outputs and on pools made hard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import cross_entropy, scipy_fit, squared_error

from radin import metrics
from radin.search.simplex import duality_gap, minimise, quadratic_minimum, tidy


def noisy_pool(members=40, examples=400, classes=5):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, examples)
    signal = rng.normal(size=(examples, classes))
    signal[np.arange(examples), targets] += 1
    noise = rng.normal(size=(members, examples, classes)) * np.linspace(0.2, 3, members)[:, None, None]
    return signal + noise, targets


def hard_pools(zoo):
    wide, labels = noisy_pool()
    return {
        "real": (zoo.outputs, zoo.targets),
        "confident": (10 * zoo.outputs, zoo.targets),
        "members repeated": (np.concatenate([zoo.outputs, zoo.outputs[:3]]), zoo.targets),
        "many members": (wide, labels),
        "hardly trained": (0.05 * wide, labels),
    }


POOLS = ["real", "confident", "members repeated", "many members", "hardly trained"]


@pytest.mark.parametrize("name", POOLS)
def test_cross_entropy_agrees_with_an_independent_solver(zoo, name):
    outputs, targets = hard_pools(zoo)[name]
    loss = cross_entropy(outputs, targets)
    fit = minimise(loss, len(outputs), tolerance=1e-10)
    other = scipy_fit(loss, len(outputs))
    assert fit.gap <= 1e-10
    assert fit.value <= loss(other)[0] + 1e-9
    assert fit.evaluations <= 80
    if name == "members repeated":  # only the sum of a member's and its repeat's weight is determined
        ours, theirs = fit.weights[:10].copy(), other[:10].copy()
        ours[:3] += fit.weights[10:]
        theirs[:3] += other[10:]
    else:
        ours, theirs = fit.weights, other
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_the_fit_is_on_the_simplex_and_its_value_is_the_metrics(zoo):
    fit = minimise(cross_entropy(zoo.outputs, zoo.targets), 10)
    assert fit.weights.min() >= 0
    assert fit.weights.sum() == pytest.approx(1, abs=1e-12)
    averaged = np.einsum("n,nmc->mc", fit.weights, zoo.outputs)
    assert fit.value == pytest.approx(metrics.get("nll").value(averaged, zoo.targets), abs=1e-12)


def test_the_gap_bounds_the_distance_to_the_minimum(zoo):
    loss = cross_entropy(zoo.outputs, zoo.targets)
    least = minimise(loss, 10).value
    rng = np.random.default_rng(0)
    for p in rng.dirichlet(np.ones(10), 50):
        value, gradient = loss(p)
        assert 0 <= value - least <= duality_gap(p, gradient) + 1e-12


def test_stopping_early_reports_the_gap_it_has(zoo):
    loss = cross_entropy(10 * zoo.outputs, zoo.targets)
    fit = minimise(loss, 10, evaluations=4)
    assert fit.evaluations == 4
    assert fit.gap == pytest.approx(duality_gap(fit.weights, loss(fit.weights)[1]), rel=1e-9)
    assert fit.gap > 1e-10


@pytest.mark.parametrize("name", POOLS)
def test_squared_error_in_closed_form_agrees_with_an_independent_solver(zoo, name):
    outputs, targets = hard_pools(zoo)[name]
    values = np.eye(outputs.shape[2])[targets] * (2.0 if name == "many members" else 8.0)
    loss = squared_error(outputs, values)
    errors = (outputs - values).reshape(len(outputs), -1)
    matrix = errors @ errors.T / errors.shape[1]
    p = quadratic_minimum(2 * matrix, np.zeros(len(outputs)))
    value, gradient = loss(p)
    assert duality_gap(p, gradient) <= 1e-9 * max(value, 1)
    assert value <= loss(scipy_fit(loss, len(outputs)))[0] + 1e-9
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert p.min() >= 0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**32 - 1))
def test_a_quadratic_minimum_meets_its_optimality_conditions(members, rank, seed):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(members, rank))
    linear = rng.normal(size=members)
    matrix = factor @ factor.T

    p = quadratic_minimum(matrix, linear)
    assert p.min() >= 0
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert duality_gap(p, matrix @ p + linear) <= 1e-8 * (1 + np.abs(matrix).max())


def test_tidy_drops_what_is_negligible():
    np.testing.assert_allclose(tidy(np.array([0.75, 1e-9, 0.25])), [0.75, 0, 0.25], atol=1e-8)
