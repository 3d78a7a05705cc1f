"""Pools at the edge of what there is: every strategy, numbers from 1e-38 to 1e38, and members that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radin import metrics
from radin.errors import RadinError
from radin.search import Search, rank
from radin.search.strategies import get, names
from radin.stats.optimism import optimism
from radin.stats.paired import paired_difference

KINDS = ("plain", "right", "wrong", "identical", "ties", "huge", "tiny", "duplicates", "one class seen", "far apart")
ONCE = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SMALL = {"count": 64, "keep": 12}


def pool(kind, members, examples, classes, seed):
    """Outputs (N, M, C) and targets (M,)."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, examples)
    if kind == "one class seen":
        targets[:] = classes - 1
    outputs = rng.normal(size=(members, examples, classes))
    outputs[:, np.arange(examples), targets] += 0.7
    if kind == "right":
        outputs[:, np.arange(examples), targets] = 9.0
    elif kind == "wrong":
        outputs[:, np.arange(examples), targets] = -9.0
    elif kind == "identical":
        outputs[:] = outputs[:1]
    elif kind == "ties":
        outputs = np.round(outputs)
    elif kind == "duplicates":
        outputs[:], targets[:] = outputs[:, :1], targets[0]
    elif kind == "far apart":
        outputs *= 10.0 ** np.linspace(-30, 30, members)[:, None, None]
    scale = {"huge": 1e38 / np.abs(outputs).max(), "tiny": 1e-38}.get(kind, 1.0)
    return (outputs * scale).astype(np.float32), targets


def truth(search, recipe, outputs, targets):
    """A soup that falls a little short of its averaged outputs, in a way that depends on nothing but the recipe."""
    p = np.array(recipe.weights)
    blurred = np.tensordot(p**1.1 / (p**1.1).sum(), outputs.astype(np.float64), 1)
    return search.metric.value(blurred, targets)


def play(outputs, targets, metric, name, budget=4, seed=0, **more):
    options = SMALL if name == "adaptive" else {}
    search = Search(
        outputs, targets, metric=metric, strategy=name, budget=budget, seed=seed, options=options,
        gram=np.diag(np.arange(1.0, len(outputs) + 1)), **more,
    )  # fmt: skip
    asked = []
    while (question := search.ask()) is not None:
        asked.append(question.recipe)
        search.tell(question, truth(search, question.recipe, outputs, targets))
    return search, asked


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", KINDS)
@given(
    members=st.integers(1, 5),
    examples=st.sampled_from([1, 2, 3, 40]),
    classes=st.sampled_from([2, 3, 7]),
    metric=st.sampled_from(["accuracy", "nll", "balanced_accuracy", "macro_f1", "brier", "ece"]),
    seed=st.integers(0, 3),
)
@ONCE
def test_never_below_the_best_single_and_never_without_a_number(name, kind, members, examples, classes, metric, seed):
    outputs, targets = pool(kind, members, examples, classes, seed)
    search, asked = play(outputs, targets, metric, name, seed=seed)
    recipe, score = search.best
    sign = 1 if search.metric.higher_is_better else -1
    assert np.isfinite(score)
    assert sign * score >= (sign * search.singles).max()
    assert search.spent <= 4
    assert len(asked) == len(set(asked))
    assert all(np.isfinite(search.estimate([r])[0]) and abs(sum(r.weights) - 1) < 1e-6 for r in [*asked, recipe])
    again, same = play(outputs, targets, metric, name, seed=seed)
    assert (same, again.best) == (asked, search.best)


@pytest.mark.parametrize("name", [name for name in names() if get(name).spends])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_members_does_not_matter(name, kind):
    outputs, targets = pool(kind, 5, 40, 3, 1)
    keys = [f"{k}" for k in range(5)]
    order = [3, 0, 4, 1, 2]
    _, asked = play(outputs, targets, "accuracy", name, keys=keys)
    search = Search(
        outputs[order], targets, strategy=name, budget=4, options=SMALL if name == "adaptive" else {},
        gram=np.diag(np.arange(1.0, 6))[np.ix_(order, order)], keys=[keys[k] for k in order],
    )  # fmt: skip
    moved = []
    while (question := search.ask()) is not None:
        moved.append(question.recipe)
        back = question.recipe.permuted([order.index(k) for k in range(5)])
        search.tell(question, truth(search, back, outputs, targets))
    assert moved == [recipe.permuted(order) for recipe in asked]


@pytest.mark.parametrize("metric", ["mse", "mae", "r2"])
@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e38, 1e100])
@pytest.mark.parametrize("name", ["adaptive", "paper", "greedy"])
def test_regression_at_any_scale_finds_more_than_the_best_single(metric, scale, name):
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(60, 2))
    outputs = (targets + rng.normal(size=(6, 60, 2))) * scale
    search, _ = play(outputs, targets * scale, metric, name, budget=6)
    sign = 1 if search.metric.higher_is_better else -1
    assert np.isfinite(search.best[1])
    assert sign * search.best[1] > (sign * search.singles).max()


def test_the_same_recipes_are_asked_whatever_the_unit_of_the_outputs():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(60, 2))
    outputs = targets + rng.normal(size=(6, 60, 2))
    keys = list("abcdef")
    _, asked = play(outputs, targets, "mse", "adaptive", keys=keys)
    _, large = play(outputs * 2.0**300, targets * 2.0**300, "mse", "adaptive", keys=keys)
    assert large == asked


def test_constant_targets_have_an_error_and_no_r2():
    outputs = np.random.default_rng(0).normal(size=(4, 30, 1))
    search, _ = play(outputs, np.ones((30, 1)), "mse", "adaptive")
    assert search.best[1] <= search.singles.min()
    with pytest.raises(RadinError, match="a column of the targets is constant"):
        play(outputs, np.ones((30, 1)), "r2", "adaptive")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("name", names())
def test_a_metric_that_is_no_number_for_some_soups_never_wins_by_it(bad, higher, name):
    def value(outputs, targets):
        found = float((outputs.argmax(dim=1) == targets).double().mean())
        return bad if found > 0.72 else found

    outputs, targets = pool("plain", 5, 50, 3, 2)
    search, _ = play(outputs, targets, metrics.get(value, higher), name)
    assert np.isfinite(search.best[1])
    sign = 1 if higher else -1
    usable = search.singles[np.isfinite(search.singles)]
    assert sign * search.best[1] >= (sign * usable).max()
    if name == "adaptive":
        assert all(np.isfinite(entry.estimate) for entry in rank(outputs, targets, metrics.get(value, higher), top=2))


@given(
    examples=st.integers(1, 40),
    scale=st.sampled_from([1e-300, 1e-38, 1.0, 1e38, 1e150]),
    kind=st.sampled_from(["normal", "one apart", "alike", "binary"]),
    seed=st.integers(0, 20),
)
@ONCE
def test_intervals_and_p_values_are_numbers_or_not_known(examples, scale, kind, seed):
    rng = np.random.default_rng(seed)
    single = rng.normal(size=examples)
    soup = {"alike": single + 1, "one apart": single + (np.arange(examples) == 0)}.get(kind, rng.normal(size=examples))
    if kind == "binary":
        single, soup, scale = (single > 0) * 1.0, (soup > 0) * 1.0, 1.0
    found = paired_difference(soup * scale, single * scale, True)
    assert np.isfinite(found.difference)
    unknown = [np.isnan(value) for value in (found.low, found.high, found.p_value)]
    assert all(unknown) if examples == 1 and found.method == "bootstrap" else not any(unknown)
    if not any(unknown):
        assert 0 <= found.p_value <= 1
        assert found.low <= found.high
        assert np.isfinite([found.low, found.high]).all()


def test_a_difference_that_is_rounding_needs_no_number_of_examples():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    assert paired_difference(values, values - np.where(np.arange(40) < 20, 1e-3, -1e-3) - 1e-14, True).needed is None


def test_a_million_examples_are_resampled_in_bounded_time_and_alike():
    rng = np.random.default_rng(0)
    many = (rng.random((3, 200_000)) < np.array([[0.9], [0.9], [0.901]])).astype(np.float32)
    found = optimism(many, True, incumbents=2)
    few = optimism(many[:, :65_536], True, incumbents=2)
    # The noise of a mean falls with the square root of the number of examples, grouped or not.
    assert found.optimism == pytest.approx(few.optimism * np.sqrt(65_536 / 200_000), rel=0.4)
    real = many + rng.normal(size=many.shape)
    difference = paired_difference(real[2], real[0], True)
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * difference.stderr, rel=0.1)
