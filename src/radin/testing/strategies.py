"""One suite that every strategy passes: whole soups, some of the examples, and several questions open at once.

Axis names: members N, examples M.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from radin import metrics
from radin.errors import RadinError
from radin.question import Floats, Question
from radin.recipe import Recipe
from radin.search import Search
from radin.search.strategies import get
from radin.testing.expecting import expect, expect_close, expect_equal
from radin.testing.made import SoupPool, make_pool

_METRICS = ("accuracy", "nll")
_MOST_QUESTIONS = 1000
_ROUNDING = 1e-9  # of passes

Score = Callable[[Recipe], float]


class Hidden(str):
    """The name of a strategy that is to search without outputs, from the members' scores and distances alone."""


def check_strategy(name: str, pool: SoupPool | None = None) -> None:
    """Run the whole suite on a registered strategy, without outputs too where it needs none.

    ``pool``: what to search in; default a small one that is made for it. Raises AssertionError at the first that fails.
    """
    searched: SoupPool = make_pool() if pool is None else pool
    for check, asked in checks_of(name):
        check(asked, searched)


def checks_of(name: str) -> Iterator[tuple[Callable[[str, SoupPool], None], str]]:
    """The checks that a strategy has to pass, each as (check, name to give it with a pool); to parametrise tests by."""
    yield from ((check, name) for check in (*WHOLE_SOUPS, *PARTS))
    if not get(name).outputs:
        yield from ((check, Hidden(name)) for check in WHOLE_SOUPS)


def start(pool: SoupPool, name: str, *, metric: str = "accuracy", budget: int = 5, **more: Any) -> Search:
    """A search in the pool by the strategy; without its outputs where the name is Hidden."""
    if isinstance(name, Hidden):
        more = {"singles": pool.singles(metric), "keys": pool.keys(), "gram": pool.gram(), **more}
        return Search(None, metric=metric, strategy=str(name), budget=budget, **more)
    return Search(pool.outputs, pool.targets, metric=metric, strategy=name, budget=budget, **more)


def ask(search: Search) -> Recipe | None:
    """The recipe of the next question; None when there is nothing to ask."""
    question = search.ask()
    return None if question is None else question.recipe


def play(search: Search, pool: SoupPool, score: Score | None = None) -> list[Recipe]:
    """Ask and tell whole soups to the end; the recipes asked, in order."""
    score = score or (lambda recipe: pool.score(recipe, search.metric.name))
    asked = []
    while (recipe := ask(search)) is not None:
        asked.append(recipe)
        expect(len(asked) <= _MOST_QUESTIONS, f"more than {_MOST_QUESTIONS} questions, and no end")
        search.tell(recipe, score(recipe))
    return asked


def check_at_most_the_budget_is_asked(name: str, pool: SoupPool) -> None:
    """The budget is never exceeded, and what spends nothing asks nothing."""
    for budget in (1, 3, 7):
        search = start(pool, name, budget=budget)
        asked = play(search, pool)
        expect(len(asked) <= budget, f"{len(asked)} soups asked about, with a budget of {budget}")
        expect_equal(search.spent, len(asked), "passes spent")
        expect_equal(bool(asked), get(str(name)).spends, "whether anything is asked (spends)")
        expect_equal(ask(search), None, "what is asked after the end")


def check_the_same_seed_gives_the_same_answers(name: str, pool: SoupPool) -> None:
    """Whatever is random comes from the seed."""
    for metric in _METRICS:
        first = play(start(pool, name, metric=metric, seed=3), pool)
        again = play(start(pool, name, metric=metric, seed=3), pool)
        expect_equal(again, first, f"the recipes asked about with the same seed, by {metric}")


def check_permuting_the_members_permutes_the_answers(name: str, pool: SoupPool) -> None:
    """No answer depends on the order in which the members are listed."""
    for shuffle, metric in enumerate(_METRICS):
        order = np.random.default_rng(shuffle).permutation(len(pool.outputs)).tolist()
        plain, moved = start(pool, name, metric=metric), start(pool.permuted(order), name, metric=metric)
        while (recipe := ask(plain)) is not None:
            answer = ask(moved)
            expect_equal(answer, recipe.permuted(order), f"the recipe asked about of members in order {order}")
            plain.tell(recipe, pool.score(recipe, metric))
            moved.tell(recipe.permuted(order), pool.score(recipe, metric))
        expect_equal(ask(moved), None, "what is asked after the end")
        expect_equal(moved.best, (plain.best[0].permuted(order), plain.best[1]), "the best")


def check_never_below_the_best_single_member(name: str, pool: SoupPool) -> None:
    """The best is the best of all that was evaluated, the members among it."""
    for metric in _METRICS:
        search = start(pool, name, metric=metric)
        sign = 1 if metrics.get(metric).higher_is_better else -1
        scores = [*pool.singles(metric), *(pool.score(recipe, metric) for recipe in play(search, pool))]
        recipe, score = search.best
        expect_close(score, sign * max(sign * s for s in scores), f"the best score by {metric}")
        expect_close(pool.score(recipe, metric), score, "the true score of the best recipe")


def check_soups_worse_than_every_member_leave_the_best_member(name: str, pool: SoupPool) -> None:
    """Where no soup is any good, the best member is what is left."""
    search = start(pool, name)
    play(search, pool, score=lambda recipe: 0.0)
    _expect_the_best_member(search, pool)


def check_resumes_after_any_tell(name: str, pool: SoupPool) -> None:
    """A new search that is told what was answered asks what would have been next."""
    for metric in _METRICS:
        whole = play(start(pool, name, metric=metric, budget=7), pool)
        # By one metric after each tell; by the other the same code goes on, so one place will do.
        for done in range(len(whole) + 1) if metric == _METRICS[0] else [len(whole) // 2]:
            again = start(pool, name, metric=metric, budget=7)
            for recipe in whole[:done]:
                again.tell(recipe, pool.score(recipe, metric))
            expect_equal(play(again, pool), whole[done:], f"the recipes asked about after {done} were told")


def check_never_asks_the_same_twice_nor_a_single_member(name: str, pool: SoupPool) -> None:
    """No pass is spent on what is known."""
    asked = play(start(pool, name, budget=60), pool)
    expect_equal(len(set(asked)), len(asked), "different recipes among those asked about")
    expect(not any(recipe.is_single for recipe in asked), "a single member, whose score is known, was asked about")


def check_scores_that_are_not_a_number_do_no_harm(name: str, pool: SoupPool) -> None:
    """NaN never wins, alone or among good scores."""
    for metric in _METRICS:
        search = start(pool, name, metric=metric)
        play(search, pool, score=lambda recipe: float("nan"))
        _expect_the_best_member(search, pool)
        search = start(pool, name, metric=metric)
        broken = ask(search)

        def score(recipe: Recipe, broken: Recipe | None = broken, metric: str = metric) -> float:
            return float("nan") if recipe == broken else pool.score(recipe, metric)

        if broken is not None:
            search.tell(broken, float("nan"))
            play(search, pool, score=score)
            expect(search.best[0] != broken, "a soup with the score NaN is the best")
        expect(bool(np.isfinite(search.best[1])), "the best score is not finite")


def check_each_soup_better_than_the_last_ends_with_the_last(name: str, pool: SoupPool) -> None:
    """What was told last, and is best, is the best."""
    search = start(pool, name)
    scores = iter(range(1, _MOST_QUESTIONS + 2))
    asked = play(search, pool, score=lambda recipe: float(next(scores)))
    if asked:
        expect_equal(search.best[0], asked[-1], "the best")
    else:
        _expect_the_best_member(search, pool)


def check_small_pools(name: str, pool: SoupPool) -> None:
    """One member, two, three: nothing fails, and there are only so many subsets."""
    for members in (1, 2, 3):
        few = pool.permuted(list(range(members)))
        asked = play(start(few, name), few)
        if all(recipe.is_uniform for recipe in asked):
            expect(len(asked) <= 2**members - members - 1, f"{len(asked)} uniform soups of {members} members")
        expect(all(len(recipe.weights) == members for recipe in asked), "a recipe of another number of members")


def check_an_unknown_option_is_refused_with_the_known_ones(name: str, pool: SoupPool) -> None:
    """Options are those that are declared."""
    expected = f"strategy '{name}' has no option 'colour'; its options: "
    try:
        start(pool, name, options={"colour": 1})
    except RadinError as error:
        expect(expected in str(error), f"expected an error with {expected!r}; got {str(error)!r}")
    else:
        raise AssertionError("an option that is not declared was accepted")


def check_every_option_and_the_strategy_explain_themselves(name: str, pool: SoupPool) -> None:
    """A summary and a help text for each option, and defaults that fit their own declaration."""
    strategy = get(str(name))
    expect(len(strategy.summary) > 20, f"the first line of the docstring says too little: {strategy.summary!r}")
    for option in strategy.options:
        expect(len(option.help) > 10, f"the help of option {option.name} says too little: {option.help!r}")
        expect_equal(option.read(option.default), option.default, f"the default of option {option.name}, read")


def check_some_examples_are_counted_one_by_one(name: str, pool: SoupPool) -> None:
    """Where some of the examples may be asked about: none twice, the budget kept, the best known on all of them."""
    for budget, calibration in ((1, 0), (3, 0), (3, 200)):
        search = start(pool, name, budget=budget, parts=True, calibration=calibration)
        asked = play_parts(search, pool)
        _expect_new_examples(asked, pool)
        examples = sum(len(_examples(question, pool)) for question in asked)
        started = {question.recipe for question in asked}
        passes = (examples + calibration * len(started)) / (calibration + len(pool.targets))
        expect_close(search.spent, passes, "passes spent", _ROUNDING)
        expect(search.spent <= budget + _ROUNDING, f"{search.spent} passes spent, with a budget of {budget}")
        expect_equal(bool(asked), get(name).spends, "whether anything is asked (spends)")
        _expect_a_true_best(search, pool)
        recipe, _ = search.best
        if not recipe.is_single:
            known = sum(len(_examples(question, pool)) for question in asked if question.recipe == recipe)
            expect_equal(known, len(pool.targets), "examples on which the best soup was evaluated")


def check_several_open_questions_keep_the_budget(name: str, pool: SoupPool) -> None:
    """Questions open at once, answered in any order: what is open counts, and the same order leads to the same end."""
    for parts in (True, False):
        for slots in (2, 3, 7):
            ends = []
            for _ in range(2):
                search = start(pool, name, budget=4, parts=parts, calibration=100)
                asked = play_parts(search, pool, slots, np.random.default_rng(slots))
                _expect_new_examples(asked, pool)
                expect_equal(search.account.reserved, 0, "passes set aside after the end")
                expect_equal(bool(asked), get(name).spends, "whether anything is asked (spends)")
                _expect_a_true_best(search, pool)
                ends.append((search.best, search.evaluations, search.spent))
            expect_equal(ends[1], ends[0], f"the end of the same search again, {slots} questions open")


def check_a_dropped_question_is_not_asked_again(name: str, pool: SoupPool) -> None:
    """A question that failed costs nothing, and the search goes on without it."""
    search = start(pool, name, budget=3, parts=True)
    first = search.ask()
    if first is None:
        return
    search.drop(first)
    expect_equal(search.account.reserved, 0, "passes set aside for a dropped question")
    rest = play_parts(search, pool, 2)
    expect(first.recipe not in [question.recipe for question in rest], "a dropped recipe was asked about again")
    expect(bool(np.isfinite(search.best[1])) and search.best[0] != first.recipe, "a dropped recipe is the best")


def check_examples_that_are_not_finite_do_no_harm(name: str, pool: SoupPool) -> None:
    """Soups of which every value is NaN leave the best member."""
    search = start(pool, name, budget=3, parts=True)
    while (question := search.ask()) is not None:
        search.tell(question, np.full(len(_examples(question, pool)), np.nan))
    _expect_the_best_member(search, pool)


WHOLE_SOUPS = (
    check_at_most_the_budget_is_asked,
    check_the_same_seed_gives_the_same_answers,
    check_permuting_the_members_permutes_the_answers,
    check_never_below_the_best_single_member,
    check_soups_worse_than_every_member_leave_the_best_member,
    check_resumes_after_any_tell,
    check_never_asks_the_same_twice_nor_a_single_member,
    check_scores_that_are_not_a_number_do_no_harm,
    check_each_soup_better_than_the_last_ends_with_the_last,
    check_small_pools,
    check_an_unknown_option_is_refused_with_the_known_ones,
    check_every_option_and_the_strategy_explain_themselves,
)
"""Checks of whole soups, one question at a time; with outputs or without."""

PARTS = (
    check_some_examples_are_counted_one_by_one,
    check_several_open_questions_keep_the_budget,
    check_a_dropped_question_is_not_asked_again,
    check_examples_that_are_not_finite_do_no_harm,
)
"""Checks of questions about some examples, and of several open at once."""


def play_parts(
    search: Search, pool: SoupPool, slots: int = 1, rng: np.random.Generator | None = None
) -> list[Question]:
    """Keep ``slots`` questions open and answer one of them, drawn by ``rng``, until there are none; all asked."""
    asked: list[Question] = []
    waiting: list[Question] = []
    while True:
        while len(waiting) < slots and (question := search.ask()) is not None:
            asked.append(question)
            waiting.append(question)
            expect(len(asked) <= _MOST_QUESTIONS, f"more than {_MOST_QUESTIONS} questions, and no end")
            taken = search.account.spent + search.account.reserved
            expect(taken <= search.budget + _ROUNDING, f"{taken} passes spent or open, of a budget of {search.budget}")
        if not waiting:
            return asked
        question = waiting.pop(0 if rng is None else int(rng.integers(len(waiting))))
        values = _values(pool, question.recipe)
        search.tell(question, values.mean() if question.examples is None else values[question.examples])


def _values(pool: SoupPool, recipe: Recipe) -> Floats:
    """1.0 for each example that the soup gets right, (M,)."""
    right: Floats = (pool.logits(recipe).argmax(1) == pool.targets).astype(np.float64)
    return right


def _examples(question: Question, pool: SoupPool) -> list[int]:
    return list(range(len(pool.targets))) if question.examples is None else question.examples.tolist()


def _expect_new_examples(asked: list[Question], pool: SoupPool) -> None:
    """No example of a soup asked about twice, each question's ascending, no single member."""
    seen: dict[Recipe, set[int]] = {}
    for question in asked:
        examples = _examples(question, pool)
        expect(not question.recipe.is_single, "a single member, whose score is known, was asked about")
        expect(bool(examples) and examples == sorted(set(examples)), "examples that do not ascend, or none")
        known = seen.setdefault(question.recipe, set())
        expect(not known & set(examples), "an example of a soup was asked about twice")
        known.update(examples)


def _expect_a_true_best(search: Search, pool: SoupPool) -> None:
    recipe, score = search.best
    expect_close(score, pool.score(recipe), "the best score, against the true one of its recipe")
    expect(score >= search.singles.max(), "the best is worse than the best member")


def _expect_the_best_member(search: Search, pool: SoupPool) -> None:
    singles = search.singles
    best = int(singles.argmax() if search.metric.higher_is_better else singles.argmin())
    expect_equal(search.best, (Recipe.single(best, len(pool.outputs)), singles[best]), "the best, no soup being better")
