"""Many questions open at once: what adaptive asks about is worth the time that it takes to ask."""

from __future__ import annotations

import pytest

from radin import metrics
from radin.errors import RadinError
from radin.question import Rates
from radin.search import Search
from radin.search.account import Account
from radin.search.strategies.slices import Slices

ACCURACY = metrics.get("accuracy")


def sizes_asked(zoo, slots: int, budget: int) -> list[int]:
    """Examples of each question while so many are open, answered in the order of asking, until all is spent."""
    options = {"count": 256, "keep": 48}
    search = Search(zoo.outputs, zoo.targets, budget=budget, parts=True, options=options, slots=slots)
    asked, open_ = [], []
    while True:
        while len(open_) < slots and (question := search.ask()) is not None:
            open_.append(question)
            asked.append(len(question.examples))
        if not open_:
            assert search.account.spent <= budget + 1e-9
            return asked
        question = open_.pop(0)
        values = ACCURACY.per_example(zoo.logits(question.recipe), zoo.targets)
        search.tell(question, values[question.examples])


@pytest.mark.parametrize(("slots", "budget"), [(1, 3), (20, 3)])
def test_few_slots_ask_about_every_slice(zoo, slots, budget):
    asked = sizes_asked(zoo, slots, budget)
    assert asked[0] == 80  # a tenth of 800
    assert max(asked) < 800
    if slots == 1:
        assert max(asked) > 80
    else:
        assert asked[-20:] == [36] * 20  # the rest of the best soup, by all


def test_with_more_slots_small_slices_are_left_out(zoo):
    """With 40 each is to be worth a fifth of a pass; all are but the last, by which all 40 finish a soup."""
    asked = sizes_asked(zoo, 40, 160)
    assert set(asked) == {160, 16}
    assert asked[-40:] == [16] * 40


def finished(zoo, slots: int, reading: float = 0.0):
    """How the best soup of three passes is finished: the search, and the examples of each question about it."""
    options = {"count": 64, "keep": 16}
    account = Account(3, Rates(len(zoo.targets), reading=reading), ACCURACY.score)
    search = Search(
        zoo.outputs, zoo.targets, budget=3, parts=True, options=options, slots=slots, gram=zoo.gram, account=account
    )
    open_, asked = [], {}
    while True:
        while len(open_) < slots and (question := search.ask()) is not None:
            open_.append(question)
            asked.setdefault(question.recipe, []).append(question.examples.tolist())
        if not open_:
            break
        question = open_.pop(0)
        values = ACCURACY.per_example(zoo.logits(question.recipe), zoo.targets)
        search.tell(question, values[question.examples])
    ((recipe, score),) = search.evaluations
    assert score == ACCURACY.score(ACCURACY.per_example(zoo.logits(recipe), zoo.targets))
    assert account.spent <= 3 + 1e-9
    return asked[recipe]


def test_the_last_soup_is_finished_by_all_workers_each_example_once(zoo):
    questions = finished(zoo, 4)
    assert sorted(example for part in questions for example in part) == list(range(800))
    ends = [len(part) for part in questions[-4:]]
    assert max(ends) - min(ends) <= 1
    assert sum(ends) > 400


@pytest.mark.parametrize(("slots", "reading"), [(1, 0.0), (4, 0.05)])
def test_one_worker_finishes_it_alone_and_so_does_one_of_several_where_all_data_must_be_read(zoo, slots, reading):
    questions = finished(zoo, slots, reading)
    assert sorted(example for part in questions for example in part) == list(range(800))
    assert len(questions[-1]) > 400


@pytest.mark.parametrize(("slots", "budget"), [(40, 159), (71, 300)])
def test_with_many_slots_for_its_budget_it_asks_about_whole_soups(zoo, slots, budget):
    asked = sizes_asked(zoo, slots, budget)
    assert set(asked) == {800}
    assert len(asked) > slots


@pytest.mark.parametrize(
    ("contested", "least", "sizes"),
    [
        (1000, 0.0, (100, 200, 350)),
        (205, 0.0, (100, 200, 205)),
        (1000, 0.12, (200, 350)),
        (205, 0.12, (200,)),
        (1000, 0.32, (350,)),
        (60, 0.32, (60,)),  # all that may change at all
        (0, 0.0, (1,)),
    ],
)
def test_slices_add_their_least_share(contested, least, sizes):
    assert Slices(1000, contested, least).sizes == sizes


def test_slots_must_be_a_whole_number(zoo):
    with pytest.raises(RadinError, match="slots must be at least 1; got 0"):
        Search(zoo.outputs, zoo.targets, budget=1, slots=0)
