"""Many questions open at once: what adaptive asks about is worth the time that it takes to ask."""

from __future__ import annotations

import pytest

from radin import metrics
from radin.errors import RadinError
from radin.search import Search
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
    assert 80 < max(asked) < 800


def test_with_more_slots_small_slices_are_left_out(zoo):
    """With 40 each is to be worth a fifth of a pass; all but the last question are, and that finishes a soup."""
    asked = sizes_asked(zoo, 40, 160)
    assert set(asked) == {160, 640}
    assert asked[-1] == 640


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
