"""The strategy "paper" against Algorithm 2 of arXiv 2401.17790, written literally: loops and dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from asking import ask

from literal import candidates_of_the_paper
from radin.errors import RadinError
from radin.recipe import Recipe
from radin.search import Search

KEYS = list("abcdefghij")  # members that tie come in the order given, as in a stable sort


def score_of_averaged_outputs(zoo, subset):
    right = 0
    for example, target in enumerate(zoo.targets):
        total = sum(zoo.outputs[k][example] for k in sorted(subset))
        right += int(np.argmax(total / len(subset)) == target)
    return right / len(zoo.targets)


@pytest.fixture(scope="module")
def literal(zoo):
    """The paper's candidates for seed 7 over the pool sorted best first, and their estimates, as dictionaries."""
    members = len(zoo.outputs)
    singles = [(zoo.outputs[k].argmax(axis=1) == zoo.targets).mean() for k in range(members)]
    order = sorted(range(members), key=lambda k: -singles[k])
    drawn = [frozenset(range(members)), *candidates_of_the_paper(members, 200, seed=7)]
    candidates = [frozenset(order[k] for k in subset) for subset in drawn]
    return candidates, {subset: score_of_averaged_outputs(zoo, subset) for subset in candidates}


def asked_in_order(zoo, budget, **options):
    search = Search(
        zoo.outputs,
        zoo.targets,
        strategy="paper",
        budget=budget,
        seed=7,
        options=options,
        keys=KEYS[: len(zoo.outputs)],
    )
    asked = []
    while (recipe := ask(search)) is not None:
        assert recipe == Recipe.uniform(recipe.members, len(zoo.outputs))
        asked.append(frozenset(recipe.members))
        search.tell(recipe, zoo.score(recipe))
    return asked, search


@pytest.mark.parametrize("prior", [0, 1])
def test_same_candidates_same_order_same_evaluations_same_winner(zoo, literal, prior):
    candidates, estimates = literal
    expected = sorted(candidates, key=lambda subset: -(estimates[subset] + prior * len(subset)))
    asked, _ = asked_in_order(zoo, budget=1000, prior=prior)
    assert asked == expected
    assert len(asked) == 201

    for budget in (1, 5, 25):
        asked, search = asked_in_order(zoo, budget=budget, prior=prior)
        assert asked == expected[:budget]
        true_scores = {subset: zoo.score(Recipe.uniform(subset, len(zoo.outputs))) for subset in asked}
        winner = max(asked, key=lambda subset: true_scores[subset])
        if true_scores[winner] > search.singles.max():
            assert frozenset(search.best[0].members) == winner
            assert search.best[1] == true_scores[winner]
        else:
            assert search.best[1] == search.singles.max()


def test_prior_1_with_one_evaluation_is_the_uniform_soup(zoo):
    asked, _ = asked_in_order(zoo, budget=1, prior=1.0)
    assert asked == [frozenset(range(10))]


def test_without_uniform_only_the_200_drawn_are_asked(zoo, literal):
    candidates, _ = literal
    asked, _ = asked_in_order(zoo, budget=1000, uniform=False)
    assert set(asked) == set(candidates[1:])
    assert len(asked) == 200


def test_all_subsets_when_there_are_no_more_than_c(zoo):
    few = zoo.permuted([0, 2, 4, 6, 8])
    asked, _ = asked_in_order(few, budget=1000)
    assert len(asked) == len(set(asked)) == 2**5 - 5 - 1
    without, _ = asked_in_order(few, budget=1000, uniform=False)
    assert set(asked) - set(without) == {frozenset(range(5))}


def test_sizes_bound_the_candidates(zoo):
    asked, _ = asked_in_order(zoo, budget=1000, sizes=(3, 4), uniform=False)
    assert {len(subset) for subset in asked} == {3, 4}
    with pytest.raises(RadinError, match=r"2 <= smallest <= largest <= 10, the number of members; got 4 and 11"):
        asked_in_order(zoo, budget=1, sizes=(4, 11))
    with pytest.raises(RadinError, match="must be at least 1; got 0"):
        asked_in_order(zoo, budget=1, candidates=0)


def test_the_estimate_is_in_the_direction_of_the_metric(zoo):
    search = Search(zoo.outputs, zoo.targets, metric="nll", strategy="paper", budget=3)
    first = ask(search)
    everything = [Recipe.uniform([i, j], 10) for i in range(10) for j in range(i)]
    assert search.estimate([first])[0] < np.median(search.estimate(everything))
