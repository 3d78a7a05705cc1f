"""A budget that buys parts of passes: what is evaluated, counted, recorded and continued, on the toy pool."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import radin
import toy
from radin.checksums import opened, sealed
from radin.engine import batchnorm
from radin.engine.evaluate import Evaluator
from radin.engine.local import LocalEngine
from radin.errors import RunError
from radin.recipe import Recipe
from radin.run.ledger import Ledger

VALIDATION, CALIBRATION, BUDGET = 600, 100, 3


def cook(pool, task, **how):
    """radin.cook; the default strategy with few candidates, since it is not what is tested here."""
    if how.get("strategy", "adaptive") == "adaptive":
        how["options"] = {"count": 256, "keep": 48}
    return radin.cook(pool, task, **how)


class Stopped(Exception):
    pass


class Watch:
    """Records every question about soups; stops the run right after answer number ``stop`` is in the ledger."""

    def __init__(self, monkeypatch, stop=None):
        self.parts = []
        submit, tell = LocalEngine.submit, Ledger.tell

        def watched(engine, question):
            if question.split == "validation" and question.recipe.size > 1:
                self.parts.append((question.recipe.weights, tuple(question.examples)))
            submit(engine, question)

        def told(ledger, number, answer):
            tell(ledger, number, answer)
            if len(self.parts) == stop:
                raise Stopped

        monkeypatch.setattr(LocalEngine, "submit", watched)
        monkeypatch.setattr(Ledger, "tell", told)


def essence(result):
    return (
        result.best.recipe,
        [(e.recipe, e.score, e.stderr) for e in result.evaluations],
        result.passes,
        result.gain,
        result.best.splits,
        result.confidence,
    )


def task_of_parts():
    """Few calibration examples, so that starting a soup is cheap and many are started."""
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
    assert last.parts == []
    assert parts == watch.parts
    assert essence(resumed) == essence(result)
    held, expected = (load_file(run / "soup.safetensors") for run in (out, result.out))
    assert all(torch.equal(held[name], expected[name]) for name in expected)


def test_soups_in_the_ledger_are_the_sum_of_their_parts(straight, toy_pool):
    result, watch = straight
    ledger = Ledger(result.out / "ledger.sqlite")
    asked, soups = ledger.questions(), ledger.soups()
    ledger.close()
    assert [
        (Recipe.from_json(q.recipe, toy_pool.fingerprints).weights, tuple(q.examples)) for q in asked
    ] == watch.parts
    assert len(soups) == len(result.evaluations)
    for soup in soups:
        mine = [q for q in asked if q.identity == soup.identity]
        values = np.empty(VALIDATION)
        for part in mine:
            values[part.examples] = part.answer.values
        assert np.array_equal(soup.evaluation.values, values)
        assert soup.evaluation.score == values.mean()
        assert soup.evaluation.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(VALIDATION))
        assert soup.evaluation.seconds == pytest.approx(sum(q.answer.seconds for q in mine))


def test_a_larger_budget_goes_on_from_complete_and_started_soups(straight, toy_pool, task, tmp_path, monkeypatch):
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


@pytest.mark.parametrize(
    ("older", "said"), [(2, "\\(format 2\\)"), (3, "\\(format 3\\), which knew checkpoints by another hash.*--out")]
)
def test_a_run_of_an_older_version_is_refused_and_left_as_it_is(toy_pool, task, tmp_path, older, said):
    cook(toy_pool, task, budget=1, out=tmp_path / "run", strategy="paper")
    path = tmp_path / "run" / "run.json"
    value = {**opened(json.loads(path.read_text())), "format": older}
    path.write_text(json.dumps(sealed(value)))
    before = path.read_bytes()
    with pytest.raises(RunError, match=f"written by an older version of radin {said}"):
        cook(toy_pool, task, budget=2, out=tmp_path / "run")
    assert path.read_bytes() == before


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
    assert seen["calibrated"] == result.passes.started + result.passes.reestimated
    share = (seen["forwarded"] + CALIBRATION * result.passes.started) / (VALIDATION + CALIBRATION)
    assert share == pytest.approx(result.passes.soups, abs=1e-8)


def test_other_calibration_data_are_refused(toy_pool, toy_task, tmp_path):
    cook(toy_pool, toy_task, budget=1, out=tmp_path / "run")
    rates = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["rates"]
    assert rates == {"examples": 600, "calibration": 700, "reading": 0.0}
    other = replace(toy_task, calibration=lambda: [(x + 0.1, y) for x, y in toy.batches(toy.TRAINING)])
    with pytest.raises(RunError, match=r"calibration data \(was [0-9a-f]{12}, now [0-9a-f]{12}\)"):
        cook(toy_pool, other, budget=2, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"calibration data \(was [0-9a-f]{12}, now 'none'\)"):
        cook(toy_pool, replace(toy_task, calibration=None), budget=2, out=tmp_path / "run")
    without = cook(toy_pool, replace(toy_task, calibration=None), budget=2, out=tmp_path / "without")
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
