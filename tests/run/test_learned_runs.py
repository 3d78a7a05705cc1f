"""Runs that learn ratios: stopped after any answer, continued, with more budget, in worker processes, on halves."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest
import torch

import radin
import toy
from radin.engine.local import LocalEngine
from radin.question import Answer
from radin.recipe import group_of
from radin.report.page import write_page
from radin.run.ledger import Ledger
from radin.weights import average
from radin.weights.grouping import groupings

BUDGET = 6


class Stopped(Exception):
    pass


def cook(folder, out, strategy="learned-by-layer", budget=BUDGET, **more):
    members = sorted(folder.glob("*.safetensors"))
    return radin.cook(members, folder / "task.py", budget=budget, out=out, strategy=strategy, uniform=False, **more)


def essence(result):
    found = [(e.recipe, e.score) for e in result.evaluations]
    return result.best.recipe, result.best.score, found, result.passes.soups, dict(result.best.splits)


@pytest.fixture(scope="module")
def straight(toy_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "run"
    return cook(toy_folder, out), out


def questions(out):
    ledger = Ledger(out / "ledger.sqlite", read_only=True)
    try:
        return ledger.questions()
    finally:
        ledger.close()


def test_a_run_learns_by_layer_within_its_budget(straight, toy_folder):
    result, out = straight
    asked = questions(out)
    slopes = [question for question in asked if question.gradient is not None]
    assert len(slopes) == 14  # of 64 examples or more: there are 600
    assert all(question.gradient.groups == ("1", "4") for question in slopes)
    assert all(question.answer.gradient.shape == (3, len(question.recipe["members"])) for question in slopes)
    passes = sum(3 * len(question.examples) / 1300 for question in slopes)
    assert f"{passes:.1f} of the passes went into 14 gradients by the ratios" in " ".join(result.notes)
    assert result.passes.soups <= BUDGET
    assert result.passes.soups > BUDGET - 1.1
    learned = [found.recipe for found in result.evaluations if found.recipe.groups]
    assert len(learned) >= 1
    assert result.best.score >= max(found.score for found in result.evaluations) - 1e-12
    assert len(list(Ledger(out / "ledger.sqlite", read_only=True).soups())) == len(result.evaluations)


@pytest.mark.parametrize("after", [1, 6, 9, 15])
def test_stopped_after_any_answer_it_goes_on_as_if_nothing_had_been(straight, toy_folder, tmp_path, monkeypatch, after):
    real, answers = LocalEngine.wait, [0]

    def wait(self, timeout=None):
        if answers[0] == after:
            raise Stopped
        answers[0] += 1
        return real(self, timeout)

    monkeypatch.setattr(LocalEngine, "wait", wait)
    with pytest.raises(Stopped):
        cook(toy_folder, tmp_path / "run")
    monkeypatch.undo()
    result = cook(toy_folder, tmp_path / "run")
    assert essence(result) == essence(straight[0])
    mine, whole = questions(tmp_path / "run"), questions(straight[1])
    assert [(q.recipe, q.gradient, q.told) for q in mine] == [(q.recipe, q.gradient, q.told) for q in whole]


def test_more_budget_keeps_what_was_learned_and_counts_it(straight, toy_folder, tmp_path):
    cook(toy_folder, tmp_path / "run")
    before = sum(question.gradient is not None for question in questions(tmp_path / "run"))
    more = cook(toy_folder, tmp_path / "run", budget=12)
    assert more.best.score >= straight[0].best.score
    assert straight[0].passes.soups < more.passes.soups <= 12
    assert sum(question.gradient is not None for question in questions(tmp_path / "run")) > before


def test_a_ledger_from_before_gradients_is_read(toy_folder, tmp_path):
    first = cook(toy_folder, tmp_path / "run", "adaptive", budget=2)
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.execute("DROP TABLE gradients")
    assert len(questions(tmp_path / "run")) > 0
    assert essence(cook(toy_folder, tmp_path / "run", "adaptive", budget=2)) == essence(first)


def test_a_damaged_gradient_is_noticed(straight, toy_folder, tmp_path):
    cook(toy_folder, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.execute("UPDATE gradients SET objective = 'accuracy' WHERE id = (SELECT max(id) FROM gradients)")
    with pytest.raises(radin.errors.RunError, match="of its gradients does not match its checksum"):
        cook(toy_folder, tmp_path / "run")


def test_the_soup_on_disk_is_the_learned_one(straight, toy_pool):
    result, out = straight
    recipe = next(e.recipe for e in result.evaluations if e.recipe.groups)
    tensors = average(toy_pool, recipe)
    for name in ("0.weight", "4.bias"):
        ratios = recipe.of(name)
        expected = sum(p * toy_pool.tensors(k)[name].double() for k, p in enumerate(ratios))
        assert np.allclose(tensors[name].double(), expected, rtol=1e-6)
    assert recipe.of("0.weight") != recipe.of("4.bias")
    saved = json.loads((out / "recipe.json").read_text())
    assert ("groups" in json.dumps(saved)) == bool(result.best.recipe.groups)


def test_an_engine_without_gradients_is_said_to_have_none(toy_folder, tmp_path):
    class Blind(LocalEngine):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.gradients = False

    import radin.run.evaluators as evaluators

    patch = pytest.MonkeyPatch()
    patch.setattr(evaluators, "LocalEngine", Blind)
    try:
        result = cook(toy_folder, tmp_path / "run", "learned", budget=3)
    finally:
        patch.undo()
    assert any("no ratios were learned: what evaluates the soups gives no gradients" in note for note in result.notes)


def test_groups_of_tensors_by_their_names():
    names = [f"vision.blocks.{k}.{part}.weight" for k in range(3) for part in ("attention", "mlp.0", "mlp.2")]
    found = groupings({**dict.fromkeys(names, 10), "vision.patch.weight": 5, "head.weight": 100, "scale": 1})
    assert found["one"] == ()
    assert found["blocks"] == ("scale", "vision", "vision.blocks.0", "vision.blocks.1", "vision.blocks.2")
    assert "vision.blocks.1.mlp.2" in found["modules"]
    assert "head" not in found["modules"]
    assert group_of(found["blocks"], "vision.blocks.1.mlp.0.weight") == "vision.blocks.1"
    assert group_of(found["blocks"], "vision.patch.weight") == "vision"
    assert group_of(found["blocks"], "head.weight") is None
    many = groupings({f"layer.{k}.{part}.weight": 1 for k in range(200) for part in ("a", "b")})
    assert many["modules"] == many["blocks"]
    assert len(many["blocks"]) == 199
    assert groupings({f"a{k}.weight": 1 for k in range(300)}) == {"one": (), "blocks": (), "modules": ()}
    assert groupings(dict.fromkeys(toy.model().state_dict(), 1))["modules"] == ("0", "4")
    assert Answer(0.0, 0.0, 1, 0.0).gradient is None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_gives_no_gradient_is_searched_as_ever_and_said(toy_folder, tmp_path, workers):
    text = toy.TASK + "\n\ndef outputs(model, inputs):\n    return model(inputs).detach()\n"
    (tmp_path / "task.py").write_text(text)
    files = sorted(toy_folder.glob("*.safetensors"))
    plain = radin.cook(files, tmp_path / "task.py", budget=8, out=tmp_path / "plain", strategy="adaptive")
    found = radin.cook(files, tmp_path / "task.py", budget=8, out=tmp_path / "run", workers=workers)
    notes = [note for note in found.notes if note.startswith("no ratios were learned: no gradient can be had")]
    assert len(notes) == 1
    assert not any(question.gradient for question in questions(tmp_path / "run"))
    if workers == 1:
        assert (found.best.recipe, found.best.score) == (plain.best.recipe, plain.best.score)
        assert [e.recipe for e in found.evaluations] == [e.recipe for e in plain.evaluations]


def test_ratios_are_learned_by_default_where_the_budget_is_worth_it(toy_folder, tmp_path):
    (tmp_path / "task.py").write_text(toy.TASK)
    files = sorted(toy_folder.glob("*.safetensors"))
    for budget, options, choose, learns in (
        (8, None, False, True),
        (7, None, False, False),
        (8, {"count": 64}, False, False),
        (8, None, True, False),
    ):
        out = tmp_path / f"run-{budget}-{bool(options)}-{choose}"
        radin.cook(files, tmp_path / "task.py", budget=budget, out=out, options=options, choose_on_half=choose)
        assert any(question.gradient for question in questions(out)) == learns


def test_ratios_below_zero_are_kept_resumed_and_shown(toy_folder, toy_pool, tmp_path):
    options = {"affine": True, "rate": 2.0, "search": 0.6}
    result = cook(toy_folder, tmp_path / "run", "learned", 8, options=options)
    beyond = [found for found in result.evaluations if found.recipe.affine]
    assert beyond, "a rate this large leaves the hull"
    assert result.best.score >= max(found.score for found in result.evaluations) - 1e-12
    # as the metric of the outputs averaged by these very ratios, which compiled margins could not give
    outputs = np.stack([rows_of(toy_folder, toy_pool, k) for k in range(len(toy_pool))])
    targets = np.concatenate([np.asarray(t) for _, t in radin.Task.load(toy_folder / "task.py").batches("validation")])
    for found in beyond:
        averaged = np.tensordot(found.recipe.weights, outputs, 1)
        assert found.estimate == pytest.approx(float((averaged.argmax(axis=1) == targets).mean()))
    again = cook(toy_folder, tmp_path / "run", "learned", 8, options=options)
    assert essence(again) == essence(result)
    loaded = radin.Result.load(tmp_path / "run").evaluations
    assert [(e.recipe, e.estimate) for e in loaded] == [(e.recipe, e.estimate) for e in result.evaluations]
    page = write_page(tmp_path / "run")
    assert page.stat().st_size > 10_000


def rows_of(folder, pool, k):
    model = toy.model()
    model.load_state_dict(pool.tensors(k))
    model.eval()
    with torch.no_grad():
        batches = radin.Task.load(folder / "task.py").batches("validation")
        return np.concatenate([model(inputs).numpy() for inputs, _ in batches])
