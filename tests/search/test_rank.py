"""Sources and rank, against definitions written as loops over the dense estimate."""

from __future__ import annotations

import numpy as np
import pytest
from losses import cross_entropy, scipy_fit, squared_error

from radin import metrics
from radin.errors import RadinError
from radin.recipe import Recipe
from radin.search import Search
from radin.search.ranking import rank
from radin.search.sources import SOURCES, Hints, best_recipes, default_sources

KEYS = list("abcdefghij")


@pytest.fixture(scope="module")
def problem(zoo):
    return Search(zoo.outputs, zoo.targets, strategy="best", budget=0, keys=KEYS).problem


@pytest.fixture(scope="module")
def ordered(zoo):
    """The outputs sorted best first, ties in the order given."""
    accuracy = (zoo.outputs.argmax(axis=2) == zoo.targets).mean(axis=1)
    return zoo.outputs[np.argsort(-accuracy, kind="stable")]


def accuracy_of(outputs, targets, weights):
    return float((np.tensordot(np.asarray(weights), outputs, 1).argmax(axis=1) == targets).mean())


def run(name, problem, best=None, count=200, seed=0):
    best = np.empty((0, problem.members)) if best is None else best
    blocks = list(SOURCES[name](problem, Hints(count, best), np.random.default_rng(seed)))
    return np.concatenate(blocks) if blocks else np.empty((0, problem.members))


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_recipes_and_the_same_for_the_same_seed(problem, name):
    best = np.stack([np.full(10, 0.1), np.eye(10)[0], np.array([0.5, 0.5, *[0.0] * 8])])
    weights = run(name, problem, best)
    assert len(weights) > 0
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(run(name, problem, best), weights)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_can_take_a_pool_of_one_member(zoo, name):
    one = Search(zoo.outputs[:1], zoo.targets, strategy="best", budget=0).problem
    assert all(row.tolist() == [1.0] for row in run(name, one, np.ones((1, 1))))


def test_selection_adds_what_helps_most_with_replacement(problem, zoo, ordered):
    found = {tuple(np.round(row, 12)) for row in run("selection", problem)}
    counts = [1] + [0] * 9
    for _ in range(20):
        scores = []
        for k in range(10):
            tried = counts.copy()
            tried[k] += 1
            scores.append(accuracy_of(ordered, zoo.targets, np.array(tried) / sum(tried)))
        counts[scores.index(max(scores))] += 1
        assert tuple(np.round(np.array(counts) / sum(counts), 12)) in found
    assert max(counts) > 1


def test_bagging_stays_in_its_bag_and_ends_with_the_average(problem):
    weights = run("bagging", problem)
    bags = np.random.default_rng(0).random((20, 10)) < 0.5
    assert len(weights) == 21
    assert not (weights[:20] > 0)[~bags].any()
    np.testing.assert_allclose(weights[20], weights[:20].mean(axis=0), atol=1e-15)
    # Nothing in a bag beats what its selection found among its own members alone.
    for bag, chosen in zip(bags, weights[:20], strict=True):
        assert problem.estimate(chosen[None])[0] >= problem.singles[bag].max() - 1e-12


def neighbours(mask):
    """The subsets that differ from ``mask`` by one member added, dropped, or swapped for another."""
    flips = [mask ^ (np.arange(len(mask)) == k) for k in range(len(mask))]
    swaps = [flips[i] ^ (np.arange(len(mask)) == k) for i in np.flatnonzero(mask) for k in np.flatnonzero(~mask)]
    return [row for row in (*flips, *swaps) if row.any()]


def test_local_search_climbs_to_where_no_neighbour_is_better(problem, zoo, ordered):
    start = np.full(10, 0.1)
    best = run("local", problem, start[None])
    uphill = start
    while True:
        near = [row / row.sum() for row in neighbours(uphill > 0)]
        scores = [accuracy_of(ordered, zoo.targets, row) for row in near]
        if max(scores) <= accuracy_of(ordered, zoo.targets, uphill):
            break
        uphill = near[scores.index(max(scores))]
        assert (best == uphill).all(axis=1).any()
    assert problem.estimate(best).max() >= accuracy_of(ordered, zoo.targets, uphill)


def test_ratios_stay_among_the_members_of_the_best_and_centre_on_them(problem):
    best = np.array([[0.5, 0.25, 0.25, *[0.0] * 7], [0.0, 0.0, 1 / 2, 1 / 2, *[0.0] * 6]])
    weights = run("ratios", problem, best, count=8000)
    assert len(weights) == 8000
    assert not weights[:, 4:].any()
    np.testing.assert_allclose(weights.mean(axis=0), best.mean(axis=0), atol=0.02)
    assert len(np.unique(weights, axis=0)) == 8000


def test_the_fit_is_the_least_cross_entropy(problem, zoo, ordered):
    (p,) = run("fit", problem)
    np.testing.assert_allclose(p, scipy_fit(cross_entropy(ordered, zoo.targets), 10), rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["mse", "r2", "mae"])
def test_the_fit_to_numbers_is_the_least_squared_error(zoo, metric):
    # Each network's logits as predictions of a smoothed one-hot target: many members get some weight.
    targets = np.eye(10)[zoo.targets] * 6
    columns = slice(0, 1) if metric == "r2" else slice(0, 10)
    outputs, values = zoo.outputs[:, :, columns], targets[:, columns]
    search = Search(outputs, values, metric=metric, strategy="best", budget=0)
    (listed,) = rank(outputs, values, metric, sources=["fit"])
    expected = scipy_fit(squared_error(outputs, values), 10)
    np.testing.assert_allclose(listed.recipe.weights, expected, rtol=0, atol=1e-6)
    assert search.estimate([listed.recipe])[0] == pytest.approx(listed.estimate, abs=1e-12)


def test_targets_that_have_no_convex_loss_have_no_fit(zoo):
    many = (np.eye(10)[zoo.targets] > 0).astype(np.int64)
    assert rank(zoo.outputs, many, "multilabel_f1", sources=["fit"]) == []
    assert rank(zoo.outputs, many, "multilabel_f1", sources=["single"], top=3)[0].source == "single"


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("nll", -1)])
def test_rank_lists_distinct_recipes_best_first_with_true_estimates(zoo, metric, sign):
    listed = rank(zoo.outputs, zoo.targets, metric, top=30, count=500)
    assert len(listed) == len({entry.recipe for entry in listed}) == 30
    values = [sign * entry.estimate for entry in listed]
    assert values == sorted(values, reverse=True)
    for entry in listed:
        averaged = np.einsum("n,nmc->mc", entry.recipe.weights, zoo.outputs)
        assert entry.estimate == pytest.approx(metrics.get(metric).value(averaged, zoo.targets), abs=1e-9)
        assert entry.size == entry.recipe.size
        assert entry.source in SOURCES


def test_rank_of_all_subsets_finds_the_best_of_them(zoo):
    masks = [[k for k in range(10) if number >> k & 1] for number in range(1, 2**10)]
    estimates = {
        Recipe.uniform(mask, 10): accuracy_of(zoo.outputs, zoo.targets, Recipe.uniform(mask, 10).weights)
        for mask in masks
    }
    listed = rank(zoo.outputs, zoo.targets, sources=["single", "all"], top=1023)
    assert len(listed) == 1023
    assert {entry.recipe: round(entry.estimate * 800) for entry in listed} == {
        recipe: round(value * 800) for recipe, value in estimates.items()
    }


def test_more_sources_never_rank_worse_and_unequal_ratios_help(zoo):
    best = {}
    for sources in (["random"], ["random", "local"], ["random", "local", "ratios"]):
        best[len(sources)] = rank(zoo.outputs, zoo.targets, "nll", sources=sources, count=100)[0].estimate
    assert best[1] >= best[2] > best[3]


def test_the_first_source_to_find_a_recipe_is_named(problem):
    ranking = best_recipes(problem, ["top-k", "all"], count=10, keep=2000)
    for weights, source in zip(ranking.weights, ranking.sources, strict=True):
        members = np.flatnonzero(weights)
        assert source == ("top-k" if len(members) == members[-1] + 1 else "all")


def test_a_short_list_is_the_start_of_a_long_one(problem):
    short = best_recipes(problem, ["top-k", "all", "single"], count=10, keep=40)
    whole = best_recipes(problem, ["top-k", "all", "single"], count=10, keep=2000)
    np.testing.assert_array_equal(short.weights, whole.weights[:40])
    assert short.sources == whole.sources[:40]


def test_rank_does_not_depend_on_the_order_of_the_members(zoo):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    plain = rank(zoo.outputs, zoo.targets, top=12, count=300)
    moved = rank(zoo.outputs[order], zoo.targets, top=12, count=300)
    assert [(e.recipe.permuted(order), e.estimate, e.source) for e in plain] == [
        (e.recipe, e.estimate, e.source) for e in moved
    ]


def test_all_subsets_replace_random_ones_where_they_are_few():
    assert "all" in default_sources(10, 2000)
    assert "random" not in default_sources(10, 2000)
    assert "random" in default_sources(10, 1000)
    assert "all" not in default_sources(24, 10**9)


def test_what_does_not_fit_is_refused(zoo):
    with pytest.raises(RadinError, match=r"unknown source 'wish'; known: single, top-k, random"):
        rank(zoo.outputs, zoo.targets, sources=["wish"])
    with pytest.raises(RadinError, match="top must be at least 1; got 0"):
        rank(zoo.outputs, zoo.targets, top=0)
    with pytest.raises(RadinError, match="count must be at least 1; got -1"):
        rank(zoo.outputs, zoo.targets, count=-1)
