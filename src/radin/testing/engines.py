"""One suite that every engine passes: what is asked is answered, once, and the same each time.

Axis names: members N, examples M.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from radin.engine.base import Engine
from radin.question import Answer, Failure, Question
from radin.recipe import Recipe
from radin.testing.expecting import expect, expect_close, expect_equal

_LONGEST = 600.0  # seconds that an answer may take


@dataclass(frozen=True)
class EngineCase:
    """An engine to check. ``make``: a new one each time, over the same pool and data. ``members``: N, at least 2.

    ``read``: a soup's file or folder as ``write`` left it -> the score that it truly has, by other means than the
    engine; None: only that something was written is checked. ``within``: how far scores of one soup may be apart.
    """

    make: Callable[[], Engine]
    members: int
    read: Callable[[Path], float] | None = None
    within: float = 1e-6


def check_engine(case: EngineCase) -> None:
    """Run the whole suite. Raises AssertionError at the first that fails."""
    for check in CHECKS:
        check(case)


def check_the_identity_is_json_and_stays(case: EngineCase) -> None:
    """What a run is known by can be stored, and is the same for an engine made again."""
    with case.make() as one, case.make() as other:
        stored = json.loads(json.dumps(dict(one.identity())))
        expect(bool(stored), "identity() is empty: all that could change an answer belongs in it")
        expect_equal(json.loads(json.dumps(dict(other.identity()))), stored, "the identity of an engine made again")


def check_each_question_is_answered_once(case: EngineCase) -> None:
    """As many open as there are slots, each answered by an Answer for that very question; then nothing is left."""
    with case.make() as engine:
        expect(engine.slots >= 1, f"slots must be at least 1; got {engine.slots}")
        expect_equal(engine.wait(0.0), [], "wait() with nothing open")
        recipes = _recipes(case.members)[: max(engine.slots, 1)]
        asked = [Question(recipe) for recipe in recipes]
        for question in asked:
            engine.submit(question)
        found = _all(engine, len(asked))
        expect({id(q) for q, _ in found} == {id(q) for q in asked}, "the questions answered are not those submitted")
        expect_equal(engine.wait(0.0), [], "wait() once all is answered")


def check_wait_returns_by_its_timeout(case: EngineCase) -> None:
    """With a timeout, wait() comes back, with what is there or with nothing, and nothing is lost."""
    with case.make() as engine:
        started = time.monotonic()
        answer = _ask(engine, Question(Recipe.uniform(range(case.members), case.members)))
        longest = max(5.0, 5 * (time.monotonic() - started))
        question = Question(Recipe.single(0, case.members))
        engine.submit(question)
        started = time.monotonic()
        found = engine.wait(0.0)
        took = time.monotonic() - started
        expect(took <= longest, f"wait(0.0) took {took:.1f} s")
        found = found or _all(engine, 1)
        expect(found[0][0] is question, "the answer is to another question")
        expect(isinstance(answer, Answer), "no answer")


def check_a_soup_scores_the_same_each_time(case: EngineCase) -> None:
    """Asked again, after others, and by an engine made again."""
    first, *others = _recipes(case.members)
    with case.make() as engine:
        before = _ask(engine, Question(first)).score
        for recipe in others[:2]:
            _ask(engine, Question(recipe))
        expect_close(_ask(engine, Question(first)).score, before, "the score of one soup, asked again", case.within)
    with case.make() as engine:
        expect_close(
            _ask(engine, Question(first)).score, before, "the score of one soup by an engine made again", case.within
        )


def check_the_score_is_that_of_the_values(case: EngineCase) -> None:
    """Where there are values, one for each of the examples, and the score is what the metric makes of them."""
    with case.make() as engine:
        answer = _ask(engine, Question(_recipes(case.members)[0]))
        numbers = answer.numbers
        if numbers is None:
            expect(not engine.parts, "an engine that answers on some examples gives values or totals")
            return
        expect_equal(len(numbers), answer.examples, "values")
        expect_close(engine.metric.score(numbers), answer.score, "the score that the values give", case.within)


def check_some_examples_are_answered_as_among_all(case: EngineCase) -> None:
    """An engine with ``parts``: the values on some examples are those that the whole has there."""
    with case.make() as engine:
        if not engine.parts:
            return
        recipe = _recipes(case.members)[0]
        whole = _ask(engine, Question(recipe)).numbers
        if whole is None:
            raise AssertionError("an engine that answers on some examples gives values or totals")
        chosen = np.unique(np.linspace(0, len(whole) - 1, max(2, len(whole) // 7)).astype(np.intp))
        part = _ask(engine, Question(recipe, chosen))
        expect_equal(part.examples, len(chosen), "examples answered")
        if whole.ndim > 1 and part.totals is None:
            raise AssertionError("totals of all examples, and none of some of them")
        found = part.numbers
        if found is None or found.shape != whole[chosen].shape:
            raise AssertionError(f"values of some examples: expected shape {whole[chosen].shape}")
        expect(
            bool(np.allclose(found, whole[chosen], rtol=0, atol=case.within)), "other values than among all examples"
        )


def check_a_gradient_has_a_row_for_each_group(case: EngineCase) -> None:
    """An engine with ``gradients``: derivatives by each member in the soup, NaN for those that are not."""
    from radin.objectives import objectives
    from radin.question import Gradient

    with case.make() as engine:
        if not engine.gradients:
            return
        recipe = Recipe.uniform(range(2), case.members)
        objective = objectives(engine.metric)[0]
        whole = _ask(engine, Question(recipe))
        examples = np.arange(min(whole.examples, 32), dtype=np.intp)
        gradient = _ask(engine, Question(recipe, examples, gradient=Gradient(objective))).gradient
        if gradient is None:
            raise AssertionError("an engine with gradients gave none")
        expect_equal(gradient.shape, (1, case.members), "the shape of a gradient without groups")
        expect(bool(np.isfinite(gradient[:, :2]).all()), "derivatives by members of the soup are not finite")
        expect(bool(np.isnan(gradient[:, 2:]).all()), "derivatives by members that are not in the soup are not NaN")


def check_the_soup_that_is_written_has_its_score(case: EngineCase) -> None:
    """``write`` leaves one file or folder under the name given, and it scores what was answered."""
    with case.make() as engine, tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.uniform(range(case.members), case.members)
        score = _ask(engine, Question(recipe)).score
        path = Path(folder) / engine.soup_name
        engine.write(recipe, path)
        expect_equal([found.name for found in Path(folder).iterdir()], [path.name], "what write() left")
        if case.read is not None:
            expect_close(case.read(path), score, "the score of the soup that was written", case.within)


def check_closing_gives_up_what_is_open(case: EngineCase) -> None:
    """``close`` may be called while questions are open, and once more."""
    engine = case.make()
    engine.submit(Question(_recipes(case.members)[0]))
    engine.close()
    engine.close()


CHECKS = (
    check_the_identity_is_json_and_stays,
    check_each_question_is_answered_once,
    check_wait_returns_by_its_timeout,
    check_a_soup_scores_the_same_each_time,
    check_the_score_is_that_of_the_values,
    check_some_examples_are_answered_as_among_all,
    check_a_gradient_has_a_row_for_each_group,
    check_the_soup_that_is_written_has_its_score,
    check_closing_gives_up_what_is_open,
)
"""Each is called with an EngineCase; to parametrise tests by."""


def _recipes(members: int) -> list[Recipe]:
    """Different recipes, soups first: even and uneven ones, then single members."""
    uneven = Recipe.normalized(np.arange(1, members + 1).tolist())
    pairs = [Recipe.uniform((k, (k + 1) % members), members) for k in range(members if members > 2 else 1)]
    soups = [uneven, *pairs, *([Recipe.uniform(range(members), members)] if members > 2 else [])]
    return [*soups, *(Recipe.single(k, members) for k in range(members))]


def _all(engine: Engine, count: int) -> list[tuple[Question, Answer | Failure]]:
    """What is answered until ``count`` answers are there."""
    found: list[tuple[Question, Answer | Failure]] = []
    started = time.monotonic()
    while len(found) < count:
        found += engine.wait(5.0)
        expect(time.monotonic() - started < _LONGEST, f"no answer in {_LONGEST:.0f} s")
    expect_equal(len(found), count, "answers")
    return found


def _ask(engine: Engine, question: Question) -> Answer:
    """The answer to one question. Raises AssertionError for a Failure."""
    engine.submit(question)
    ((answered, answer),) = _all(engine, 1)
    expect(answered is question, "the answer is to another question")
    if isinstance(answer, Failure):
        raise AssertionError(f"the engine failed: {answer.message}")
    return answer
