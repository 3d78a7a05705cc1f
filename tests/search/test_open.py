"""Several questions open at once, answered in any order: the rules of one at a time hold."""

from __future__ import annotations

import asking
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radin import metrics
from radin.question import Answer
from radin.recipe import Recipe
from radin.search import Search

every_strategy = pytest.mark.parametrize("name", asking.every_strategy())
ACCURACY = metrics.get("accuracy")


def start(zoo, name, *, budget=4, parts=True, **more):
    options = {"count": 256, "keep": 48} if name == "adaptive" else None
    return Search(
        zoo.outputs, zoo.targets, strategy=name, budget=budget, parts=parts, options=options, calibration=100, **more
    )


def answer(zoo, question):
    values = ACCURACY.per_example(zoo.logits(question.recipe), zoo.targets)
    return values.mean() if question.examples is None else values[question.examples]


def play(search, zoo, slots, rng, events=None):
    """Keep ``slots`` questions open; tell them in random order. Every step is recorded in ``events``."""
    events = events if events is not None else []
    asked, open_ = [], []
    while True:
        while len(open_) < slots:
            question = search.ask()
            events.append(("ask", question))
            if question is None:
                break
            asked.append(question)
            open_.append(question)
            assert search.account.spent + search.account.reserved <= search.budget + 1e-9
            assert set(search.open) == set(open_)
        if not open_:
            return asked
        question = open_.pop(int(rng.integers(len(open_))))
        events.append(("tell", question))
        search.tell(question, answer(zoo, question))


@every_strategy
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(2, 4), share=st.floats(0, 1))
def test_what_was_asked_and_told_leads_to_the_same_state(zoo, name, seed, slots, share):
    events: list = []
    search = start(zoo, name)
    play(search, zoo, slots, np.random.default_rng(seed), events)
    again, matching = start(zoo, name), {}
    for kind, question in events[: int(share * len(events))]:
        if kind == "ask":
            mine = again.ask()
            assert (mine is None) == (question is None)
            if mine is not None:
                assert mine.recipe == question.recipe
                assert np.array_equal(mine.examples, question.examples)
                matching[question] = mine
        else:
            again.tell(matching[question], answer(zoo, question))
    for kind, question in events[int(share * len(events)) :]:
        if kind == "ask":
            mine = again.ask()
            assert (mine is None) == (question is None)
            if mine is not None:
                matching[question] = mine
        else:
            again.tell(matching[question], answer(zoo, question))
    assert again.evaluations == search.evaluations
    assert again.spent == search.spent
    assert again.best == search.best


@pytest.mark.parametrize("name", ["greedy", "pruned"])
def test_a_sequential_strategy_waits_for_its_answer(zoo, name):
    search = start(zoo, name, parts=False)
    first = search.ask()
    assert search.ask() is None
    search.tell(first, 0.5)
    second = search.ask()
    assert second is not None
    assert second.recipe != first.recipe


@pytest.mark.parametrize("name", ["paper", "top-k", "random"])
def test_independent_questions_are_all_asked_at_once(zoo, name):
    alone = start(zoo, name, parts=False)
    one_by_one = play(alone, zoo, 1, np.random.default_rng(0))
    together = start(zoo, name, parts=False)
    asked = [together.ask() for _ in range(5)]
    assert asked.pop() is None
    assert [question.recipe for question in asked] == [question.recipe for question in one_by_one]


def test_adaptive_does_not_ask_what_an_open_question_would_tell(zoo):
    """While one soup is open its prediction stands in for it, so the next one is another, and not its nearest."""
    search = start(zoo, "adaptive", parts=False, budget=6)
    asked = [search.ask() for _ in range(6)]
    recipes = [question.recipe for question in asked]
    assert len(set(recipes)) == 6
    assert search.ask() is None
    apart = [
        np.abs(np.array(a.weights) - np.array(b.weights)).sum() for i, a in enumerate(recipes) for b in recipes[:i]
    ]
    assert min(apart) > 0.05
    for question in reversed(asked):
        search.tell(question, answer(zoo, question))
    assert search.ask() is None
    assert search.spent == 6


def test_what_is_enqueued_is_asked_first_and_once(zoo):
    search = start(zoo, "top-k", parts=False)
    own = Recipe.uniform(range(2), 10)
    search.enqueue(own)
    first = search.ask()
    assert first.recipe == own
    search.enqueue(own)
    assert search.ask().recipe != own
    search.tell(first, Answer(0.5, 0.01, 800, 1.0))
    assert search.evaluations == [(own, 0.5)]
