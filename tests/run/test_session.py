"""A run over an engine that answers from a table: out of order, with failures, stopped at any event."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

import radin
import toy
from radin import Engine, Failure, metrics
from radin.errors import RunError
from radin.question import answer_from_values
from radin.recipe import Recipe
from radin.run.ledger import Ledger
from radin.weights import average, save

BUDGET = 5


class Table(Engine):
    """Scores looked up, the answer to any open question at random. The whole of a second engine.

    fails: questions, by number, that are given no answer; stop: raise Stopped after that many answers.
    """

    def __init__(self, pool, truth, slots=1, seed=0, fails=(), stop=None, parts=True):
        self.metric = radin.Metric("accuracy", True, "any", lambda outputs, targets: float("nan"))
        self.slots, self.parts = slots, parts
        self._pool, self._truth = pool, truth
        self._rng = np.random.default_rng(seed)
        self._open = []
        self._fails, self._stop = fails, stop
        self.submitted, self.answered = [], []

    def identity(self):
        return {"the table": "toy"}

    def submit(self, question):
        assert len(self._open) < self.slots
        self._open.append(question)
        self.submitted.append(question)

    def wait(self, timeout=None):
        if not self._open:
            return []
        question = self._open.pop(int(self._rng.integers(len(self._open))))
        if self._stop is not None and len(self.answered) == self._stop:
            raise Stopped
        self.answered.append(question)
        if len(self.answered) in self._fails:
            return [(question, Failure("the table has a hole"))]
        values = self._truth(question.recipe)
        values = values if question.examples is None else values[question.examples]
        return [(question, answer_from_values(values, len(values) / 600))]

    def write(self, recipe, path: Path):
        save(average(self._pool, recipe), path, metadata={"radin.recipe": "{}"})

    def close(self):
        pass


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def truth(toy_pool):
    known: dict[Recipe, np.ndarray] = {}
    inputs, targets = (torch.cat(parts) for parts in zip(*toy.batches(toy.VALIDATION), strict=True))

    def values(recipe):
        if recipe not in known:
            model = toy.model().eval()
            model.load_state_dict(average(toy_pool, recipe))
            with torch.no_grad():
                known[recipe] = metrics.get("accuracy").per_example(model(inputs).numpy(), targets.numpy())
        return known[recipe]

    return values


class Soup(Table):
    """A table that writes soups with their recipes."""

    def write(self, recipe, path):
        from radin.weights import recipe_metadata

        save(average(self._pool, recipe), path, metadata=recipe_metadata(self._pool, recipe))


@pytest.fixture(scope="module")
def saved(toy_pool, tmp_path_factory):
    """The members' outputs in a folder: what a search by slices goes by."""
    folder = tmp_path_factory.mktemp("saved")
    for k, member in enumerate(toy_pool):
        model = toy.model().eval()
        model.load_state_dict(toy_pool.tensors(k))
        with torch.no_grad():
            np.save(
                folder / f"{member.name}.npy", torch.cat([model(x) for x, _ in toy.batches(toy.VALIDATION)]).numpy()
            )
    np.save(folder / "targets.npy", torch.cat([y for _, y in toy.batches(toy.VALIDATION)]).numpy())
    return folder


def cook(pool, engine, out, **more):
    options = {"count": 256, "keep": 48} if more.get("strategy", "adaptive") == "adaptive" else {}
    return radin.cook(pool, engine, budget=BUDGET, out=out, options=options, **more)


def essence(result):
    return (
        result.best.recipe,
        result.best.score,
        [(e.recipe, e.score) for e in result.evaluations],
        result.passes,
        result.paired,
    )


def rows(out):
    ledger = Ledger(out / "ledger.sqlite", read_only=True)
    found = ledger.questions()
    ledger.close()
    return found


def check_ledger(out):
    """Nothing was asked twice, and no example of a soup answered twice."""
    seen: dict[str, set[int]] = {}
    for asked in rows(out):
        examples = set(range(600)) if asked.examples is None else set(asked.examples.tolist())
        assert not seen.setdefault(asked.identity, set()) & examples
        seen[asked.identity] |= examples


def test_one_slot_and_the_tasks_own_engine_choose_alike(toy_pool, toy_task, truth, tmp_path):
    """Both know the members' scores only: greedy needs no more."""
    from dataclasses import replace

    task = replace(toy_task, calibration=None, test=None)
    ours = radin.cook(toy_pool, task, budget=BUDGET, out=tmp_path / "task", strategy="greedy")
    table = cook(toy_pool, Soup(toy_pool, truth), tmp_path / "table", strategy="greedy")
    assert [(e.recipe, e.score) for e in table.evaluations] == [(e.recipe, e.score) for e in ours.evaluations]
    assert table.best_single.score == ours.best_single.score
    assert table.passes.members == ours.passes.members == 6
    assert table.paired == ours.paired


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("strategy", ["adaptive", "greedy", "top-k", "random"])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_stopped_after_any_answer_it_ends_as_if_it_had_not_been(
    toy_pool, truth, saved, tmp_path, strategy, slots, hidden
):
    if hidden and strategy != "adaptive":
        pytest.skip("these go by the members' scores anyway")
    how = {"strategy": strategy, "outputs": None if hidden or strategy != "adaptive" else saved}
    straight = Soup(toy_pool, truth, slots, parts=strategy == "adaptive")
    result = cook(toy_pool, straight, tmp_path / "straight", **how)
    assert result.passes.soups <= BUDGET + 1e-9
    assert result.best.score >= result.best_single.score
    check_ledger(tmp_path / "straight")
    out, rng, sessions = tmp_path / "run", np.random.default_rng(slots), 0
    while True:
        engine = Soup(toy_pool, truth, slots, seed=sessions, stop=int(rng.integers(1, 8)), parts=straight.parts)
        sessions += 1
        before = [asked.number for asked in rows(out) if asked.told is not None] if sessions > 1 else []
        try:
            resumed = cook(toy_pool, engine, out, **how)
            break
        except Stopped:
            check_ledger(out)
            told = (
                [asked.number for asked in rows(out) if asked.told is not None] if (out / "run.json").exists() else []
            )
            assert set(before) <= set(told)
            open_ = [asked for asked in rows(out) if asked.told is None]
            assert len(open_) <= slots
    assert sessions > 1
    check_ledger(out)
    assert resumed.passes.soups <= BUDGET + 1e-9
    assert resumed.best.score >= resumed.best_single.score
    assert not [asked for asked in rows(out) if asked.told is None]
    if slots == 1 or strategy in ("greedy", "top-k", "random"):  # what these ask does not depend on the order
        assert sorted(map(repr, essence(resumed)[2])) == sorted(map(repr, essence(result)[2]))
        assert resumed.best.score == result.best.score
    again = cook(toy_pool, Soup(toy_pool, truth, slots, stop=0), out, **how)
    assert essence(again) == essence(resumed)


def test_a_session_with_an_option_of_several_numbers_is_replayed_too(toy_pool, truth, tmp_path):
    how = {"budget": 5, "out": tmp_path / "run", "strategy": "random", "options": {"sizes": [2, 3]}}
    with pytest.raises(Stopped):
        radin.cook(toy_pool, Soup(toy_pool, truth, 2, stop=8, parts=False), **how)
    assert [asked for asked in rows(tmp_path / "run") if asked.told is None]
    radin.cook(toy_pool, Soup(toy_pool, truth, 2, parts=False), **how)
    assert not [asked for asked in rows(tmp_path / "run") if asked.told is None]
    check_ledger(tmp_path / "run")


def test_a_question_without_an_answer_is_left_out_and_costs_nothing(toy_pool, truth, saved, tmp_path):
    # members are answers 1 to 6, and one more on a slice of the examples
    engine = Soup(toy_pool, truth, fails=(9, 11))
    result = cook(toy_pool, engine, tmp_path / "run", outputs=saved)
    failed = [engine.answered[k - 1].recipe for k in (9, 11)]
    assert result.passes.failed == 2
    assert not {e.recipe for e in result.evaluations} & set(failed)
    answered = [q for q in rows(tmp_path / "run") if q.answer is not None]
    assert result.passes.soups == pytest.approx(sum(len(q.examples) for q in answered) / 600)
    assert sum("could not be evaluated and was left out: the table has a hole" in note for note in result.notes) == 2
    again = cook(toy_pool, Soup(toy_pool, truth, stop=0), tmp_path / "run", outputs=saved)
    assert essence(again) == essence(result)


def test_three_failures_in_a_row_end_the_run_and_are_tried_again(toy_pool, truth, saved, tmp_path):
    with pytest.raises(RunError, match="3 evaluations in a row gave no answer"):
        cook(toy_pool, Soup(toy_pool, truth, fails=range(9, 99)), tmp_path / "run", outputs=saved)
    asked = rows(tmp_path / "run")
    assert [q.error is not None for q in asked] == [False] + [True] * 3
    mended = Soup(toy_pool, truth)
    result = cook(toy_pool, mended, tmp_path / "run", outputs=saved)
    assert mended.submitted[0].recipe == Recipe.from_json(asked[1].recipe, toy_pool.fingerprints)
    straight = cook(toy_pool, Soup(toy_pool, truth), tmp_path / "straight", outputs=saved)
    assert essence(result)[:2] == essence(straight)[:2]
    assert result.passes.failed == 0


class Batch(Soup):
    """All open questions are answered at once, in the order in which they were asked."""

    def wait(self, timeout=None):
        self._rng = First()
        return [pair for _ in range(len(self._open)) for pair in super(Batch, self).wait(timeout)]


class First:
    def integers(self, count):
        return 0


def test_answers_that_come_with_a_failure_are_kept(toy_pool, truth, tmp_path):
    how = {"budget": 8, "strategy": "top-k", "uniform": False}
    with pytest.raises(RunError, match="3 evaluations in a row gave no answer"):
        radin.cook(toy_pool, Batch(toy_pool, truth, 4, fails=(8, 9, 10), parts=False), out=tmp_path / "run", **how)
    asked = rows(tmp_path / "run")
    assert [q.answer is not None for q in asked] == [True, False, False, False]
    with pytest.raises(RunError, match="run-2 could not be evaluated"):
        radin.cook(toy_pool, Batch(toy_pool, truth, 6, fails=(3,), parts=False), out=tmp_path / "members", **how)
    engine = Batch(toy_pool, truth, 6, parts=False)
    radin.cook(toy_pool, engine, out=tmp_path / "members", **how)
    assert [q.recipe for q in engine.submitted if q.recipe.is_single] == [Recipe.single(2, 6)]


def test_a_member_without_an_answer_ends_the_run_before_anything_is_spent(toy_pool, truth, saved, tmp_path):
    with pytest.raises(RunError, match="run-2 could not be evaluated"):
        cook(toy_pool, Soup(toy_pool, truth, fails=(3,)), tmp_path / "run", outputs=saved)
    assert rows(tmp_path / "run") == []
    engine = Soup(toy_pool, truth)
    cook(toy_pool, engine, tmp_path / "run", outputs=saved)
    assert [q.recipe for q in engine.submitted[:4]] == [Recipe.single(k, 6) for k in range(2, 6)]


def test_another_budget_tells_what_is_known_and_asks_on(toy_pool, truth, tmp_path):
    small = radin.cook(toy_pool, Soup(toy_pool, truth, 2), budget=2, out=tmp_path / "run", strategy="top-k")
    large = radin.cook(toy_pool, Soup(toy_pool, truth, 2), budget=4, out=tmp_path / "run", strategy="top-k")
    assert [e.recipe for e in large.evaluations][:2] == [e.recipe for e in small.evaluations]
    assert large.passes.soups == 4
    other = radin.cook(toy_pool, Soup(toy_pool, truth, 2), budget=5, out=tmp_path / "run", strategy="random")
    assert {e.recipe for e in other.evaluations} > {e.recipe for e in large.evaluations}
    assert other.passes.soups == 5
    check_ledger(tmp_path / "run")


def test_scores_that_are_given_need_no_passes_and_may_not_change(toy_pool, truth, tmp_path):
    scores = [float(truth(Recipe.single(k, 6)).mean()) for k in range(6)]
    engine = Soup(toy_pool, truth, parts=False)
    result = cook(toy_pool, engine, tmp_path / "run", scores=scores, strategy="greedy")
    assert all(not q.recipe.is_single for q in engine.submitted)
    assert result.passes.members == 0
    assert result.best_single.score == max(scores)
    with pytest.raises(RunError, match=r"the score of run-0 was 0\.\d+ when this run began, now 0\.5 is given"):
        cook(toy_pool, Soup(toy_pool, truth), tmp_path / "run", scores=[0.5, *scores[1:]], strategy="greedy")


def test_an_engine_that_answers_about_other_examples_is_found_out(toy_pool, truth, saved, tmp_path):
    class Shifted(Soup):
        def wait(self, timeout=None):
            return [
                (q, a if q.examples is None else answer_from_values(np.roll(a.values, 3), 1.0))
                for q, a in super().wait(timeout)
            ]

    with pytest.raises(RunError, match="run-0 was given other values on 60 of the examples than on all of them"):
        cook(toy_pool, Shifted(toy_pool, truth), tmp_path / "run", outputs=saved)


def test_a_locked_ledger_is_in_use_and_not_damaged(toy_pool, truth, tmp_path):
    cook(toy_pool, Soup(toy_pool, truth), tmp_path / "run", strategy="greedy")
    other = sqlite3.connect(tmp_path / "run" / "ledger.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match=r"ledger\.sqlite is in use by another process\. Wait for it"):
        cook(toy_pool, Soup(toy_pool, truth), tmp_path / "run", strategy="greedy")
    other.rollback()
    other.close()
