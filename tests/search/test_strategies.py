"""One suite that every strategy passes. A new strategy joins it by being registered."""

from __future__ import annotations

import numpy as np
import pytest
from asking import ask

from radin.errors import RadinError
from radin.recipe import Recipe
from radin.search import Search
from radin.search.strategies import get, names


class Hidden(str):
    """The name of a strategy that is to search without outputs, from the members' scores and distances alone."""


WITHOUT_OUTPUTS = [pytest.param(Hidden(name), id=f"{name}, outputs hidden") for name in names(without_outputs=True)]
BUDGETS = [1, 3, 7]
METRICS = ["accuracy", "nll"]

every_strategy = pytest.mark.parametrize("name", [*names(), *WITHOUT_OUTPUTS])
every_metric = pytest.mark.parametrize("metric", METRICS)


def start(zoo, name, *, metric="accuracy", budget=5, seed=0, **more):
    if isinstance(name, Hidden):
        more = {"singles": zoo.singles(metric), "keys": zoo.keys(), "gram": zoo.gram(), **more}
        return Search(None, metric=metric, strategy=name, budget=budget, seed=seed, **more)
    return Search(zoo.outputs, zoo.targets, metric=metric, strategy=name, budget=budget, seed=seed, **more)


def play(search, zoo, score=None, limit=1000):
    """Ask and tell to the end; the recipes asked, in order."""
    score = score or (lambda recipe: zoo.score(recipe, search.metric.name))
    asked = []
    while len(asked) < limit and (recipe := ask(search)) is not None:
        asked.append(recipe)
        search.tell(recipe, score(recipe))
    return asked


def test_the_strategies_are_those_of_the_documentation():
    assert {"paper", "greedy", "uniform", "top-k", "best", "pruned", "random"} <= set(names())


@every_strategy
@pytest.mark.parametrize("budget", BUDGETS)
def test_at_most_the_budget_is_asked(zoo, name, budget):
    search = start(zoo, name, budget=budget)
    asked = play(search, zoo)
    assert len(asked) <= budget
    assert search.spent == len(asked)
    assert (len(asked) == 0) == (not get(name).spends)
    assert ask(search) is None


@every_strategy
@every_metric
def test_the_same_seed_gives_the_same_answers(zoo, name, metric):
    first = play(start(zoo, name, metric=metric, seed=3), zoo)
    assert play(start(zoo, name, metric=metric, seed=3), zoo) == first


@every_strategy
@every_metric
@pytest.mark.parametrize("shuffle", [0, 1])
def test_permuting_the_members_permutes_the_answers(zoo, name, metric, shuffle):
    order = np.random.default_rng(shuffle).permutation(len(zoo.outputs)).tolist()
    plain, moved = start(zoo, name, metric=metric), start(zoo.permuted(order), name, metric=metric)
    while (recipe := ask(plain)) is not None:
        answer = ask(moved)
        assert answer == recipe.permuted(order)
        plain.tell(recipe, zoo.score(recipe, metric))
        moved.tell(answer, zoo.score(recipe, metric))
    assert ask(moved) is None
    assert moved.best == (plain.best[0].permuted(order), plain.best[1])


@every_strategy
@every_metric
def test_never_below_the_best_single_member(zoo, name, metric):
    search = start(zoo, name, metric=metric)
    sign = 1 if metric == "accuracy" else -1
    singles = [zoo.score(Recipe.single(k, len(zoo.outputs)), metric) for k in range(len(zoo.outputs))]
    scores = [zoo.score(recipe, metric) for recipe in play(search, zoo)]
    recipe, score = search.best
    assert score == pytest.approx(sign * max(sign * s for s in singles + scores), abs=1e-12)
    assert zoo.score(recipe, metric) == pytest.approx(score, abs=1e-12)


@every_strategy
def test_soups_worse_than_every_member_leave_the_best_member(zoo, name):
    search = start(zoo, name)
    play(search, zoo, score=lambda recipe: 0.0)
    assert search.best == (Recipe.single(int(np.argmax(search.singles)), len(zoo.outputs)), search.singles.max())


@every_strategy
@every_metric
def test_resumes_after_any_tell(zoo, name, metric):
    whole = play(start(zoo, name, metric=metric, budget=7), zoo)
    for done in range(len(whole) + 1):
        again = start(zoo, name, metric=metric, budget=7)
        for recipe in whole[:done]:
            again.tell(recipe, zoo.score(recipe, metric))
        assert play(again, zoo) == whole[done:]


@every_strategy
def test_never_asks_the_same_twice_nor_a_single_member(zoo, name):
    asked = play(start(zoo, name, budget=60), zoo)
    assert len(set(asked)) == len(asked)
    assert not any(recipe.is_single for recipe in asked)


@every_strategy
@every_metric
def test_scores_that_are_not_a_number_do_no_harm(zoo, name, metric):
    search = start(zoo, name, metric=metric)
    play(search, zoo, score=lambda recipe: float("nan"))
    best = int(np.argmax(search.singles) if metric == "accuracy" else np.argmin(search.singles))
    assert search.best == (Recipe.single(best, len(zoo.outputs)), search.singles[best])

    # One NaN among good scores is passed over: the best of the others is found.
    search = start(zoo, name, metric=metric)
    broken = ask(search)
    asked = play(search, zoo, score=lambda r: float("nan") if r == broken else zoo.score(r, metric))
    assert asked == [] or search.best[0] != broken
    assert np.isfinite(search.best[1])


@every_strategy
def test_each_soup_better_than_the_last_ends_with_the_last(zoo, name):
    search = start(zoo, name)
    scores = iter(range(1, 100))
    asked = play(search, zoo, score=lambda recipe: float(next(scores)))
    assert search.best[0] == (asked[-1] if asked else Recipe.single(int(search.singles.argmax()), len(zoo.outputs)))


@every_strategy
@pytest.mark.parametrize("members", [1, 2, 3])
def test_small_pools(zoo, name, members):
    few = zoo.permuted(list(range(members)))
    asked = play(start(few, name), few)
    if all(recipe.is_uniform for recipe in asked):
        assert len(asked) <= 2**members - members - 1
    assert all(len(recipe.weights) == members for recipe in asked)


@every_strategy
def test_an_unknown_option_is_refused_with_the_known_ones(zoo, name):
    with pytest.raises(RadinError, match=f"strategy '{name}' has no option 'colour'; its options: "):
        start(zoo, name, options={"colour": 1})


@every_strategy
def test_every_option_and_strategy_explains_itself(name):
    assert len(get(name).summary) > 20
    for option in get(name).options:
        assert len(option.help) > 10
        assert option.read(option.default) == option.default
