"""Learned ratios that may be negative: they leave the hull where that is uphill, and lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
from test_learned import learning, play, start

from radin.search.strategies import learned
from radin.search.strategies.learned import _Adam, _Affine, _Softmax

AFFINE = {"affine": True}


@pytest.mark.parametrize("strategy", ["learned", "learned-by-layer"])
def test_ratios_go_below_zero_and_the_result_is_never_below_its_start(zoo, strategy):
    for sign in (1.0, -1.0):
        search = start(zoo, strategy, budget=10, options={**AFFINE, "rate": 3.0})
        asked = play(search, zoo, sign)
        slopes = learning(asked)
        assert any(question.recipe.affine for question in slopes)
        rows = [row for q in slopes for row in (q.recipe.weights, *(group.weights for group in q.recipe.groups))]
        assert min(map(min, rows)) < 0
        assert np.allclose(np.sum(rows, axis=1), 1, rtol=0, atol=1e-9)
        done = {q.recipe for q in asked[: asked.index(slopes[0])]}
        begun = max(score for recipe, score in search.account.scores.items() if recipe in done)
        assert search.best[1] >= max(begun, search.singles.max())
        assert search.spent <= 10 + 1e-9


def test_without_the_option_no_ratio_is_negative_and_text_sets_it(zoo):
    plain = play(start(zoo, "learned-by-layer"), zoo)
    assert not any(question.recipe.affine for question in plain)
    assert start(zoo, "learned", options={"affine": "true"}).settings["affine"] is True
    free = learning(play(start(zoo, "learned-by-layer", options=AFFINE), zoo))
    same = pytest.approx(learning(plain)[0].recipe.weights, abs=1e-12)
    assert free[0].recipe.weights == same, "both begin at the best soup found"
    assert free[-1].recipe != learning(plain)[-1].recipe


def test_the_order_of_members_changes_nothing(zoo):
    order = np.random.default_rng(1).permutation(len(zoo.layers)).tolist()
    first = play(start(zoo, options=AFFINE), zoo)
    second = play(start(zoo.permuted(order), options=AFFINE), zoo.permuted(order))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert other.recipe.weights == pytest.approx(one.recipe.permuted(order).weights, abs=1e-9)


def test_a_step_keeps_the_sum_goes_uphill_and_stops_at_the_trust_region():
    rng = np.random.default_rng(0)
    ways = _Affine(np.array([0, 2, 3, 5]), 6, ("a", "b"))
    point = ways.at(np.array([0.4, 0.0, 0.3, 0.2, 0.0, 0.1]))
    gradient = np.full((3, 6), np.nan)
    gradient[:, [0, 2, 3, 5]] = rng.normal(size=(3, 4))
    moved = ways.moved(point, gradient, _Adam(point.shape), 0.2)
    assert np.allclose(moved.sum(axis=1), 1)
    assert np.abs(moved - point).max() <= 2 * 0.2 / 4
    assert ((moved - point) * gradient[:, [0, 2, 3, 5]]).sum(axis=1).min() > 0
    far, step = point, _Adam(point.shape)
    for _ in range(100):
        far = ways.moved(far, gradient, step, 1.0)
    assert np.allclose(far.sum(axis=1), 1)
    assert far.min() >= learned._LEAST_RATIO - 1e-9
    assert far.max() <= learned._MOST_RATIO + 1e-9
    assert np.isclose(far.min(), -1) or np.isclose(far.max(), 2), "it has come to the edge"
    recipe = ways.soup(far)
    assert recipe.affine
    assert recipe.of("b.weight")[2] == pytest.approx(far[2][1])
    assert recipe.weights[1] == 0


def test_on_the_simplex_the_gradient_by_logarithms_is_that_of_the_softmax():
    rng = np.random.default_rng(1)
    ways = _Softmax(np.arange(4), 4, ())
    point, slope = ways.at(rng.dirichlet(np.ones(4))), rng.normal(size=(1, 4))
    seen = []
    ways.moved(point, slope, lambda by_logarithm: seen.append(by_logarithm) or by_logarithm, 0.0)
    for k in range(4):
        nudge = 1e-6 * np.eye(4)[k]
        change = (ways.ratios(point + nudge) - ways.ratios(point - nudge)) @ slope[0] / 2e-6
        assert seen[0][0, k] == pytest.approx(change[0], abs=1e-7)
