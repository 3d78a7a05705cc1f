"""Search: what it takes, what it refuses, what it remembers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from asking import ask

from radin import metrics
from radin.errors import OutputsError, RadinError, TaskError
from radin.metrics import Metric
from radin.recipe import Recipe
from radin.search import Search


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_below_one_is_refused(zoo, budget):
    with pytest.raises(RadinError, match=f"budget must be at least 1; got {budget}"):
        Search(zoo.outputs, zoo.targets, budget=budget)


def test_a_strategy_that_spends_nothing_needs_no_budget(zoo):
    assert ask(Search(zoo.outputs, zoo.targets, strategy="best", budget=0)) is None


@pytest.mark.parametrize("budget", [2.5, True, "3"])
def test_a_budget_that_is_no_whole_number_is_refused(zoo, budget):
    with pytest.raises(RadinError, match="budget must be a whole number"):
        Search(zoo.outputs, zoo.targets, budget=budget)


def test_an_unknown_strategy_is_refused_with_the_known_ones(zoo):
    with pytest.raises(RadinError, match=r"unknown strategy 'magic'; known: adaptive, best, greedy, .*paper, .*"):
        Search(zoo.outputs, zoo.targets, strategy="magic", budget=1)


def test_outputs_that_do_not_fit_are_refused_by_member(zoo):
    short = [zoo.outputs[0], zoo.outputs[1][:-1]]
    with pytest.raises(OutputsError, match="member 1 has outputs for 799 examples, member 0 for 800"):
        Search(short, zoo.targets, budget=1)
    with pytest.raises(OutputsError, match=r"member 0: outputs must be \(examples, classes\); they have shape"):
        Search(zoo.outputs[None], zoo.targets, budget=1)
    broken = zoo.outputs.copy()
    broken[3, 17, 2] = np.inf
    with pytest.raises(OutputsError, match="member 3: its outputs hold NaN or infinity, first at example 17"):
        Search(broken, zoo.targets, strategy="greedy", budget=1)
    with pytest.raises(OutputsError, match="run-d: its outputs hold NaN or infinity"):
        Search(broken, zoo.targets, budget=1, names=[f"run-{letter}" for letter in "abcdefghij"])
    with pytest.raises(OutputsError, match="799 targets for 800 examples"):
        Search(zoo.outputs, zoo.targets[:-1], budget=1)
    with pytest.raises(OutputsError, match="there are no outputs"):
        Search([], zoo.targets, budget=1)
    with pytest.raises(TaskError, match="integer class indices"):
        Search(zoo.outputs, zoo.targets / 2, budget=1)
    with pytest.raises(RadinError, match="keys must be one per member; got 2 for 10 members"):
        Search(zoo.outputs, zoo.targets, budget=1, keys=["a", "b"])


def test_outputs_may_be_files_lists_or_columns(zoo, tmp_path):
    arrays = []
    for k, member in enumerate(zoo.outputs):
        np.save(tmp_path / f"{k}.npy", member)
        arrays.append(np.load(tmp_path / f"{k}.npy", mmap_mode="r"))
    inside = Search(zoo.outputs, zoo.targets, budget=1)
    expected = ask(inside)
    for outputs in (arrays, zoo.outputs.tolist()):
        search = Search(outputs, zoo.targets.tolist(), budget=1)
        assert (ask(search), search.singles.tolist()) == (expected, inside.singles.tolist())

    values = zoo.outputs[:, :, 0]
    flat = Search(values, zoo.targets, metric="mse", budget=1)
    column = Search(values[:, :, None], zoo.targets, metric="mse", budget=1)
    np.testing.assert_allclose(flat.singles, ((values - zoo.targets) ** 2).mean(axis=1), rtol=1e-12)
    assert ask(flat) == ask(column)


def test_singles_are_the_metric_of_each_member_in_the_order_given(zoo):
    search = Search(zoo.outputs, zoo.targets, metric="nll", budget=1)
    expected = [metrics.get("nll").value(outputs, zoo.targets) for outputs in zoo.outputs]
    np.testing.assert_allclose(search.singles, expected, rtol=1e-12)


def test_estimates_are_the_metric_of_the_averaged_outputs(zoo):
    search = Search(zoo.outputs, zoo.targets, budget=1)
    recipes = [Recipe.uniform([0, 3, 9], 10), Recipe.normalized(np.arange(10)), Recipe.single(4, 10)]
    expected = [
        metrics.get("accuracy").value(np.einsum("n,nmc->mc", recipe.weights, zoo.outputs), zoo.targets)
        for recipe in recipes
    ]
    np.testing.assert_allclose(search.estimate(recipes), expected, rtol=0, atol=1e-12)
    assert search.estimate([]).shape == (0,)


def test_a_given_estimator_sees_the_members_in_the_order_given(zoo):
    class Wish:
        """Rewards the weight on member 6, whatever its score."""

        def scores(self, weights):
            return weights[:, 6]

    search = Search(zoo.outputs, zoo.targets, strategy="paper", budget=1, estimator=Wish())
    first = ask(search)
    assert first.size == 2
    assert 6 in first.members
    assert search.estimate([Recipe.normalized(np.arange(1, 11))])[0] == pytest.approx(7 / 55)


def test_telling_what_was_not_asked_is_an_evaluation_spent(zoo):
    search = Search(zoo.outputs, zoo.targets, budget=2)
    own = Recipe.normalized([3, 1, *[0] * 8])
    search.tell(own, 0.99)
    assert (search.spent, search.best) == (1, (own, 0.99))
    search.tell(ask(search), 0.5)
    assert ask(search) is None
    assert [score for _, score in search.evaluations] == [0.99, 0.5]


def test_a_recipe_told_before_it_is_reached_is_not_asked_again(zoo):
    plan = Search(zoo.outputs, zoo.targets, budget=3)
    first = ask(plan)
    plan.tell(first, 0.1)
    second = ask(plan)
    search = Search(zoo.outputs, zoo.targets, budget=3)
    search.tell(second, 0.2)
    assert ask(search) == first
    search.tell(first, 0.1)
    assert ask(search) not in (None, first, second)


def test_telling_the_same_again_changes_nothing_and_another_score_is_refused(zoo):
    search = Search(zoo.outputs, zoo.targets, budget=3)
    recipe = ask(search)
    search.tell(recipe, 0.5)
    search.tell(recipe, 0.5)
    assert search.spent == 1
    with pytest.raises(RadinError, match=r"was told 0\.5 before, now 0\.6"):
        search.tell(recipe, 0.6)


def test_telling_nan_twice_is_no_conflict(zoo):
    search = Search(zoo.outputs, zoo.targets, budget=3)
    recipe = ask(search)
    search.tell(recipe, float("nan"))
    search.tell(recipe, float("nan"))
    assert search.spent == 1


def test_a_single_member_keeps_its_score_and_costs_nothing(zoo):
    search = Search(zoo.outputs, zoo.targets, budget=3)
    search.tell(Recipe.single(0, 10), 1.0)
    assert search.spent == 0
    assert search.best[1] == search.singles.max()


def test_a_recipe_of_another_pool_is_refused(zoo):
    search = Search(zoo.outputs, zoo.targets, budget=3)
    with pytest.raises(RadinError, match="3 mixing ratios, the pool 10 members"):
        search.tell(Recipe.uniform([0, 1], 3), 0.5)


def broken_for(indices, outputs):
    """Accuracy that is NaN for the members given."""
    bad = [outputs[k] for k in indices]

    def value(values, targets):
        if any(values.shape == b.shape and np.array_equal(values, b) for b in bad):
            return float("nan")
        return float((values.argmax(axis=1) == targets).mean())

    return Metric("fragile", True, "classes", value)


def test_members_without_a_score_come_last(zoo, dense):
    order = np.argsort(-(zoo.outputs.argmax(axis=2) == zoo.targets).mean(axis=1))
    metric = broken_for([order[0]], zoo.outputs)
    search = Search(
        zoo.outputs, zoo.targets, metric=metric, strategy="top-k", budget=1, estimator=dense(zoo.outputs, zoo.targets)
    )
    assert ask(search).members == tuple(sorted(order[1:3]))
    assert search.best[0] == Recipe.single(int(order[1]), 10)


def test_no_member_with_a_score_is_an_error(zoo):
    with pytest.raises(RadinError, match="no member has a usable fragile: all 10 scores are nan"):
        Search(zoo.outputs, zoo.targets, metric=broken_for(range(10), zoo.outputs), budget=1)


def test_importing_search_does_not_import_torch():
    code = "import radin.search, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
