"""Pools of hundreds of members: how many estimates a search asks for, and that shortcuts lead to the same places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from losses import cross_entropy

from radin import metrics
from radin.estimate import AccuracyEstimator, estimator
from radin.search import Search
from radin.search.screening import probes
from radin.search.simplex import minimise, quadratic_minimum
from radin.search.strategies import adaptive


def made(members, examples=300, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, examples)
    start = rng.normal(size=(examples, classes))
    start[np.arange(examples), targets] += 1.5
    noise = rng.uniform(0.3, 1.5, members)[:, None, None]
    return (start + noise * rng.normal(size=(members, examples, classes))).astype(np.float32), targets


@pytest.fixture(scope="module")
def large():
    outputs, targets = made(300)
    return outputs, targets, Search(outputs, targets, strategy="best", budget=0).problem


def asked_by_candidates(problem):
    """How many recipes the sources of adaptive's candidates have estimated, and the candidates."""
    count = 0

    def counted(ratios):
        nonlocal count
        count += len(ratios)
        return problem.estimate(ratios)

    return adaptive.candidates(replace(problem, estimate=adaptive.SubsetMemory(counted)), 4096, 384), lambda: count


def test_the_estimates_asked_for_are_bounded_however_many_members_there_are(large):
    weights, count = asked_by_candidates(large[2])
    assert count() < 90_000  # with every neighbour of every subset: millions
    assert len(weights) < 384 + 2 * 300 + 8 * 32 + 1
    # The best found are better than those of 4,096 random subsets, by far.
    rng = np.random.default_rng(0)
    masks = rng.random((4096, 300)) < rng.random((4096, 1))
    masks[:, 0] |= ~masks.any(axis=1)
    random = large[2].estimate(masks / masks.sum(axis=1, keepdims=True))
    assert large[2].estimate(weights).max() > random.max()


def test_fewer_rows_give_nearly_the_same_scores_and_whole_ones_for_recipes_like_the_probes(large):
    outputs, targets, problem = large
    whole = estimator(outputs, targets, metrics.get("accuracy"))
    assert isinstance(whole, AccuracyEstimator)
    order = np.random.default_rng(1).permutation(300)
    few = whole.screened(probes(300, 0), order.tolist())
    assert few.work < 0.8 * whole.work
    mixed = np.random.default_rng(2).dirichlet(np.ones(300), 200)
    difference = few.scores(mixed) - whole.scores(mixed[:, np.argsort(order)])
    assert np.abs(difference).max() <= 1 / 300 + 1e-12
    assert problem.members == 300


def test_no_member_s_answer_depends_on_how_many_ties_are_decided_together(monkeypatch):
    outputs, targets = np.round(made(7)[0]), made(7)[1]
    outputs[1:4] = outputs[0]
    recipes = np.random.default_rng(0).dirichlet(np.ones(7), 50)
    recipes[:20] = np.eye(7)[np.arange(20) % 7]
    for name in ("accuracy", "macro_f1", "top2"):
        expected = estimator(outputs, targets, metrics.get(name)).scores(recipes)
        monkeypatch.setattr("radin.estimate.accuracy._EXACT_NUMBERS", 40)
        np.testing.assert_array_equal(estimator(outputs, targets, metrics.get(name)).scores(recipes), expected)
        monkeypatch.undo()


def test_a_convex_fit_over_many_members_reaches_its_minimum():
    outputs, targets = made(130, examples=400)
    loss = cross_entropy(outputs.astype(np.float64), targets)
    fit = minimise(loss, 130, tolerance=1e-6)
    assert fit.gap <= 1e-6
    assert fit.value <= min(loss(np.eye(130)[k])[0] for k in range(130))


def test_a_quadratic_over_many_members_ends_at_its_minimum():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(160, 160))
    matrix, linear = factor @ factor.T / 160, rng.normal(size=160) * 0.01
    p = quadratic_minimum(matrix, linear)
    gradient = matrix @ p + linear
    assert p.min() >= 0
    assert p.sum() == pytest.approx(1)
    np.testing.assert_allclose(gradient[p > 1e-9], gradient @ p, atol=1e-9)
    assert gradient.min() >= gradient @ p - 1e-9


def test_without_outputs_a_question_among_300_members_is_about_a_better_soup():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 60))
    singles = 0.8 + 0.1 * rng.random(300)
    more = {"singles": singles, "keys": [f"{k:03}" for k in range(300)], "gram": points @ points.T}
    search = Search(None, strategy="adaptive", budget=3, **more)
    while (question := search.ask()) is not None:
        assert 1 < question.recipe.size <= 300
        search.tell(question, float(np.array(question.recipe.weights) @ singles) + 0.01 * question.recipe.size**0.5)
    assert search.best[1] > singles.max()
