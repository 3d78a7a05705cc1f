"""A budget that buys parts of passes: what is evaluated, counted, recorded and gone on with, on the toy pool."""

import json
import re
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from radin.run.soups import Soups
from safetensors.torch import load_file

import radin
import toy
from radin.engine import batchnorm
from radin.engine.evaluate import Evaluator
from radin.recipe import Recipe
from radin.run.ledger import Ledger
from radin.search import Search

VALIDATION, CALIBRATION, BUDGET = 600, 100, 3


def cook(pool, task, **how):
    """radin.cook; the default strategy with few candidates, since it is not what is tested here."""
    if how.get("strategy", "adaptive") == "adaptive":
        how["options"] = {"count": 256, "keep": 48}
    return radin.cook(pool, task, **how)


class Stopped(Exception):
    pass


class Watch:
    """Records every part that is evaluated; stops the run right after part number ``stop`` is in the ledger."""

    def __init__(self, monkeypatch, stop=None):
        self.parts, self.searches = [], []
        evaluate, ask = Soups.evaluate, Search.ask_part

        def watched(soups, recipe, examples):
            found = evaluate(soups, recipe, examples)
            self.parts.append((recipe.weights, tuple(examples)))
            if len(self.parts) == stop:
                raise Stopped
            return found

        def asked(search):
            self.searches.append(search)
            return ask(search)

        monkeypatch.setattr(Soups, "evaluate", watched)
        monkeypatch.setattr(Search, "ask_part", asked)


def essence(result):
    return (
        result.best.recipe,
        [(e.recipe, e.score, e.stderr) for e in result.evaluations],
        result.passes,
        result.gain,
        result.best.looks,
        result.confidence,
    )


def task_of_parts():
    """Few calibration examples, so that beginning a soup is cheap and many are begun."""
    return radin.Task(
        toy.model,
        lambda: toy.batches(toy.VALIDATION),
        test=lambda: toy.batches(toy.TEST),
        calibration=lambda: toy.batches(slice(0, CALIBRATION)),
    )


@pytest.fixture
def task():
    return task_of_parts()


@pytest.fixture(scope="module")
def straight(toy_pool, tmp_path_factory):
    """An uninterrupted run, and its parts."""
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        out = tmp_path_factory.mktemp("straight") / "run"
        return cook(toy_pool, task_of_parts(), budget=BUDGET, out=out), watch


def test_a_budget_buys_shares_of_passes(straight):
    result, watch = straight
    assert result.passes.started > len(result.evaluations) >= 1
    assert result.passes.started == len({weights for weights, _ in watch.parts})
    examples = sum(len(examples) for _, examples in watch.parts)
    spent = (examples + CALIBRATION * result.passes.started) / (VALIDATION + CALIBRATION)
    assert result.passes.soups == pytest.approx(spent, abs=1e-8)
    assert result.passes.soups == pytest.approx(watch.searches[-1].spent, abs=1e-8)
    assert BUDGET - 1 < result.passes.soups <= BUDGET
    assert result.best.recipe in [e.recipe for e in result.evaluations] or result.best.recipe.is_single


def test_no_example_is_evaluated_twice_and_complete_soups_have_all(straight):
    result, watch = straight
    seen = {}
    for weights, examples in watch.parts:
        assert list(examples) == sorted(set(examples))
        assert not seen.setdefault(weights, set()) & set(examples)
        seen[weights] |= set(examples)
    complete = {weights for weights, examples in seen.items() if len(examples) == VALIDATION}
    assert complete == {e.recipe.weights for e in result.evaluations}


def test_stopped_after_any_part_it_asks_the_same_and_ends_the_same(straight, toy_pool, task, tmp_path, monkeypatch):
    result, watch = straight
    out, parts = tmp_path / "run", []
    for _ in watch.parts:
        with monkeypatch.context() as patch:
            stopped = Watch(patch, stop=1)
            with pytest.raises(Stopped):
                cook(toy_pool, task, budget=BUDGET, out=out)
        parts += stopped.parts
    with monkeypatch.context() as patch:
        last = Watch(patch)
        resumed = cook(toy_pool, task, budget=BUDGET, out=out)
        assert last.searches[-1].spent == pytest.approx(watch.searches[-1].spent, abs=1e-12)
    assert last.parts == []
    assert parts == watch.parts
    assert essence(resumed) == essence(result)
    held, expected = (load_file(run / "soup.safetensors") for run in (out, result.out))
    assert all(torch.equal(held[name], expected[name]) for name in expected)


def test_the_ledger_keeps_parts_apart_from_soups(straight, toy_pool):
    result, watch = straight
    ledger = Ledger(result.out / "ledger.sqlite")
    parts, soups = ledger.parts("validation"), ledger.entries("soup", "validation")
    assert [
        (Recipe.from_json(p.recipe, toy_pool.fingerprints).weights, tuple(p.examples)) for p in parts
    ] == watch.parts
    assert len(soups) == len(result.evaluations)
    for soup in soups:
        mine = [p for p in parts if p.identity == soup.identity]
        values = np.empty(VALIDATION)
        for part in mine:
            values[part.examples] = part.values
        assert np.array_equal(soup.evaluation.values, values)
        assert soup.evaluation.score == values.mean()
        assert soup.evaluation.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(VALIDATION))
        assert soup.evaluation.seconds == pytest.approx(sum(p.seconds for p in mine))
    ledger.close()


def test_a_larger_budget_goes_on_from_complete_and_begun_soups(straight, toy_pool, task, tmp_path, monkeypatch):
    first = cook(toy_pool, task, budget=BUDGET, out=tmp_path / "run")
    watch = Watch(monkeypatch)
    more = cook(toy_pool, task, budget=BUDGET + 2, out=tmp_path / "run")
    assert watch.parts
    assert not {p[0] for p in watch.parts} & {e.recipe.weights for e in first.evaluations}
    assert [e.recipe for e in more.evaluations][: len(first.evaluations)] == [e.recipe for e in first.evaluations]
    assert BUDGET + 1 < more.passes.soups <= BUDGET + 2
    assert more.best.score >= first.best.score
    before = len(watch.parts)
    again = cook(toy_pool, task, budget=BUDGET + 1, out=tmp_path / "run")
    assert len(watch.parts) == before
    assert again.passes.soups == more.passes.soups


def test_a_run_of_before_parts_goes_on(toy_pool, task, tmp_path, monkeypatch):
    old = cook(toy_pool, task, budget=BUDGET, out=tmp_path / "run", strategy="paper")
    database = sqlite3.connect(tmp_path / "run" / "ledger.sqlite")
    database.execute("DROP TABLE parts")
    database.commit()
    database.close()
    watch = Watch(monkeypatch)
    new = cook(toy_pool, task, budget=BUDGET + 2, out=tmp_path / "run")
    assert [e.recipe for e in new.evaluations][:BUDGET] == [e.recipe for e in old.evaluations]
    assert [e.score for e in new.evaluations][:BUDGET] == [e.score for e in old.evaluations]
    assert not {p[0] for p in watch.parts} & {e.recipe.weights for e in old.evaluations}
    assert BUDGET + 1 < new.passes.soups <= BUDGET + 2


def test_soups_are_calibrated_once_and_run_on_what_was_asked_only(toy_pool, task, tmp_path, monkeypatch):
    seen = {"forwarded": 0, "calibrated": 0}
    run, again = Evaluator.values, batchnorm.reestimate

    def counted(self, model, split, examples, **more):
        def count(module, inputs):
            seen["forwarded"] += len(inputs[0])

        handle = model.register_forward_pre_hook(count)
        found = run(self, model, split, examples, **more)
        handle.remove()
        return found

    def calibrated(*arguments):
        seen["calibrated"] += 1
        return again(*arguments)

    monkeypatch.setattr(Evaluator, "values", counted)
    monkeypatch.setattr("radin.engine.evaluate.reestimate", calibrated)
    result = cook(toy_pool, replace(task, test=None), budget=BUDGET, out=tmp_path / "run")
    assert seen["calibrated"] == result.passes.started
    share = (seen["forwarded"] + CALIBRATION * seen["calibrated"]) / (VALIDATION + CALIBRATION)
    assert share == pytest.approx(result.passes.soups, abs=1e-8)


def test_calibration_is_counted_once_and_kept(toy_pool, toy_task, tmp_path):
    readings = []

    def calibration():
        readings.append(1)
        return toy.batches(slice(0, 300 if len(readings) == 1 else 500))

    task = replace(toy_task, calibration=calibration)
    cook(toy_pool, task, budget=1, out=tmp_path / "run")
    cook(toy_pool, task, budget=2, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["calibration_examples"] == 300
    without = cook(toy_pool, replace(task, calibration=None), budget=2, out=tmp_path / "without")
    assert json.loads((tmp_path / "without" / "run.json").read_text())["settings"]["calibration_examples"] == 0
    assert without.passes.soups <= 2


@pytest.mark.parametrize("metric", ["nll", "macro_f1", "top5"])
def test_other_metrics_take_whole_soups_by_the_same_way(toy_pool, toy_task, tmp_path, metric):
    task = replace(toy_task, metric=metric)
    result = cook(toy_pool, task, budget=3, out=tmp_path / "run")
    assert result.passes.soups == result.passes.started == len(result.evaluations) == 3
    more = cook(toy_pool, task, budget=4, out=tmp_path / "run")
    straight = cook(toy_pool, task, budget=4, out=tmp_path / "straight")
    assert [(e.recipe, e.score) for e in more.evaluations] == [(e.recipe, e.score) for e in straight.evaluations]
    assert [(e.recipe, e.score) for e in more.evaluations][:3] == [(e.recipe, e.score) for e in result.evaluations]
    assert (more.optimism is None) == (metric == "macro_f1")


def test_the_uniform_soup_is_worth_a_pass_where_the_budget_is_large(toy_pool, toy_task, tmp_path):
    task = replace(toy_task, test=None)
    for budget, uniform, evaluated in ((2, True, True), (7, None, False), (8, None, True), (8, False, False)):
        out = tmp_path / f"{budget}-{uniform}"
        result = cook(toy_pool, task, budget=budget, out=out, uniform=uniform, strategy="best")
        assert (result.uniform.score is not None) == evaluated, (budget, uniform)
        assert result.uniform.estimate is not None
        assert result.passes.soups == int(evaluated)


def test_soups_with_outputs_that_are_not_finite_never_win(toy_pool, toy_task, tmp_path):
    own = [toy_pool.tensors(k)["0.weight"] for k in range(6)]

    class Fragile(torch.nn.Sequential):
        """Diverges at any weights but the members' own."""

        def forward(self, x):
            whole = any(torch.equal(self[0].weight, weight) for weight in own)
            return super().forward(x) if whole else super().forward(x) * torch.nan

    task = replace(toy_task, model=lambda: Fragile(*toy.model()), calibration=None)
    result = cook(toy_pool, task, budget=2, out=tmp_path / "run")
    assert result.best.recipe.is_single
    assert result.passes.started > 1
    assert all(np.isnan(e.score) for e in result.evaluations)
    again = cook(toy_pool, task, budget=2, out=tmp_path / "run")
    assert again.passes == result.passes


def test_progress_says_how_far_the_budget_is_spent(toy_pool, task, tmp_path):
    said = []
    result = cook(
        toy_pool, task, budget=BUDGET, out=tmp_path / "run", progress=lambda what, done, total: said.append(what)
    )
    soups = list(dict.fromkeys(what for what in said if what.startswith("pass ")))
    first = re.fullmatch(r"pass 0\.0 of 3: soup of (\d) members, (\d+) examples", soups[0])
    assert first, soups[0]
    assert int(first[2]) < VALIDATION
    later = re.fullmatch(r"pass (\d\.\d) of 3: soup of \d members, \d+ examples, in all about \d+ s left", soups[-1])
    assert later, soups[-1]
    assert 1 < float(later[1]) < result.passes.soups
