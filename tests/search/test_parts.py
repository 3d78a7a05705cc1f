"""Searching by parts of the examples: the rules of whole soups hold, and the budget is passes."""

from __future__ import annotations

import asking
import numpy as np
import pytest

from radin import metrics
from radin.errors import RadinError
from radin.question import Question
from radin.recipe import Recipe
from radin.search import Search

every_strategy = pytest.mark.parametrize("name", asking.every_strategy())
CALIBRATIONS = [0, 200]


def values_of(zoo, recipe, metric="accuracy"):
    return metrics.get(metric).per_example(zoo.logits(recipe), zoo.targets)


def start(zoo, name, *, budget=3, calibration=0, **more):
    return Search(
        zoo.outputs, zoo.targets, strategy=name, budget=budget, parts=True, calibration=calibration, **more
    )  # fmt: skip


def play(search, zoo):
    """Ask and tell to the end; the parts asked."""
    parts = []
    while (part := search.ask()) is not None:
        parts.append(part)
        search.tell(part, values_of(zoo, part.recipe)[part.examples])
        assert len(parts) < 500
    return parts


def same(first, second):
    return first.recipe == second.recipe and np.array_equal(first.examples, second.examples)


@every_strategy
def test_a_search_told_what_is_known_goes_on_where_it_stopped(zoo, name):
    whole = play(start(zoo, name, calibration=80), zoo)
    for done in range(0, len(whole) + 1, 3):
        again = start(zoo, name, calibration=80)
        for part in whole[:done]:
            again.tell(part, values_of(zoo, part.recipe)[part.examples])
        rest = play(again, zoo)
        assert len(rest) == len(whole) - done
        assert all(same(a, b) for a, b in zip(rest, whole[done:], strict=True))


@every_strategy
def test_a_larger_budget_goes_on_and_is_never_worse(zoo, name):
    small = start(zoo, name, budget=2)
    parts = play(small, zoo)
    large = start(zoo, name, budget=5)
    for part in parts:
        large.tell(part, values_of(zoo, part.recipe)[part.examples])
    assert large.spent == pytest.approx(small.spent)
    more = play(large, zoo)
    assert large.spent <= 5 + 1e-9
    assert large.best[1] >= small.best[1]
    assert not any(same(a, b) for a in parts for b in more)


@every_strategy
def test_permuting_the_members_permutes_the_parts(zoo, name):
    order = np.random.default_rng(1).permutation(len(zoo.outputs)).tolist()
    moved_zoo = zoo.permuted(order)
    plain, moved = start(zoo, name), start(moved_zoo, name)
    while (part := plain.ask()) is not None:
        answer = moved.ask()
        assert answer.recipe == part.recipe.permuted(order)
        np.testing.assert_array_equal(answer.examples, part.examples)
        plain.tell(part, values_of(zoo, part.recipe)[part.examples])
        moved.tell(answer, values_of(moved_zoo, answer.recipe)[answer.examples])
    assert moved.ask() is None


def test_metrics_other_than_accuracy_are_asked_whole(zoo):
    search = Search(zoo.outputs, zoo.targets, metric="nll", strategy="adaptive", budget=3, parts=True)
    parts = []
    while (part := search.ask()) is not None:
        parts.append(part)
        search.tell(part, values_of(zoo, part.recipe, "nll")[part.examples])
    assert [len(part.examples) for part in parts] == [len(zoo.targets)] * 3
    recipe, score = search.best
    assert score == pytest.approx(zoo.score(recipe, "nll"))
    assert score <= search.singles.min()


def test_slices_start_several_times_as_many_soups_as_the_budget_has_passes(zoo):
    parts = play(start(zoo, "adaptive", budget=4), zoo)
    assert len({part.recipe for part in parts}) >= 10


def test_a_part_with_another_number_of_values_is_refused(zoo):
    search = start(zoo, "paper")
    part = search.ask()
    with pytest.raises(RadinError, match=f"each of {len(part.examples)} examples; got shape \\(3,\\)"):
        search.tell(part, [1.0, 0.0, 1.0])
    with pytest.raises(RadinError, match="2 mixing ratios, the pool 10 members"):
        search.tell(Question(Recipe((0.5, 0.5)), part.examples), np.zeros(len(part.examples)))


def test_a_part_told_twice_counts_once(zoo):
    search = start(zoo, "paper")
    part = search.ask()
    for _ in range(2):
        search.tell(part, values_of(zoo, part.recipe)[part.examples])
    assert search.spent == 1


@pytest.mark.parametrize("finish", [1, 3])
def test_as_many_soups_are_finished_as_asked(zoo, finish):
    search = start(zoo, "adaptive", budget=5, options={"finish": finish})
    play(search, zoo)
    assert len(search.evaluations) >= finish
    assert search.spent <= 5 + 1e-9
