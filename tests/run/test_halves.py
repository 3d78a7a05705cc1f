"""Search on half of validation, choose on the other: what the search sees, what is spent, what is reported."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import radin
import toy
from radin.errors import RadinError, RunError
from radin.recipe import Recipe
from radin.run.ledger import Ledger
from radin.run.rows import REESTIMATED
from radin.search import Search
from radin.stats.optimism import optimism
from radin.stats.paired import paired_difference
from radin.stats.split import split_halves

LABELS = torch.cat([y for _, y in toy.batches(toy.VALIDATION)]).numpy()
SEARCHED, CHOOSING = split_halves(LABELS, 0)


def cook(pool, task, **how):
    """radin.cook; the default strategy with few candidates, since it is not what is tested here."""
    if how.get("strategy", "adaptive") == "adaptive":
        how["options"] = {"count": 256, "keep": 48}
    return radin.cook(pool, task, **how)


@pytest.fixture
def task(toy_task):
    return replace(toy_task, calibration=lambda: toy.batches(slice(0, 100)))


def values_of(result, recipe):
    identity = recipe.identity(result.fingerprints)
    ledger = Ledger(result.out / "ledger.sqlite", read_only=True)
    kind = REESTIMATED if recipe.reestimated else "member"
    entries = ledger.entries(kind, "validation") if recipe.size == 1 else ledger.soups()
    ledger.close()
    return next((entry.evaluation.values for entry in entries if entry.identity == identity), None)


def reestimated(result):
    ledger = Ledger(result.out / "ledger.sqlite", read_only=True)
    entries = ledger.entries(REESTIMATED, "validation")
    ledger.close()
    return {Recipe.from_json(entry.recipe, result.fingerprints): entry.evaluation.values for entry in entries}


@pytest.mark.parametrize("strategy", ["adaptive", "paper", "greedy"])
def test_the_choice_and_its_score_are_those_of_the_other_half(toy_pool, task, tmp_path, strategy):
    result = cook(toy_pool, task, budget=5, out=tmp_path / "run", strategy=strategy, choose_on_half=True)
    assert result.examples == len(CHOOSING) == 300
    singles = [values_of(result, Recipe.single(k, 6))[CHOOSING].mean() for k in range(6)]
    assert result.best_single.score == max(singles)
    complete = {e.recipe: values_of(result, e.recipe) for e in result.evaluations}
    assert complete
    for evaluation in result.evaluations:
        assert evaluation.score == complete[evaluation.recipe][CHOOSING].mean()
    again = reestimated(result)
    assert result.reestimated.score == max(row[CHOOSING].mean() for row in again.values())
    soups = [values[CHOOSING].mean() for values in complete.values()]
    assert result.best.score == max([*singles, result.reestimated.score, *soups])

    def identity(recipe):
        return recipe.identity(result.fingerprints)

    if result.best.recipe.size > 1:
        single = values_of(result, result.reference.recipe)[CHOOSING]
        by_hand = paired_difference(complete[result.best.recipe][CHOOSING], single, True)
        assert result.paired == by_hand
        # members, re-estimated or not, then soups, each in the order of their content
        members = [Recipe.single(k, 6) for k in range(6)]
        pairs = {recipe: values_of(result, recipe) for recipe in members} | again
        rows = [group[recipe][CHOOSING] for group in (pairs, complete) for recipe in sorted(group, key=identity)]
        by_hand = optimism(np.array(rows), True, incumbents=len(pairs))
        assert result.optimism.optimism == pytest.approx(by_hand.optimism)
    model = toy.model().eval()
    model.load_state_dict(load_file(tmp_path / "run" / "soup.safetensors"))
    with torch.no_grad():
        hits = torch.cat([model(x).argmax(1) == y for x, y in toy.batches(toy.VALIDATION)]).numpy()
    assert hits[CHOOSING].mean() == result.best.score


@pytest.mark.parametrize("budget", [1, 2, 3, 7])
@pytest.mark.parametrize("uniform", [None, True])
def test_the_budget_holds_and_the_search_never_sees_the_other_half(
    toy_pool, task, tmp_path, monkeypatch, budget, uniform
):
    seen = []
    build = Search.__init__

    def watched(self, outputs, targets, **more):
        seen.append((outputs, targets))
        build(self, outputs, targets, **more)

    monkeypatch.setattr(Search, "__init__", watched)
    task = replace(task, test=None)
    result = cook(toy_pool, task, budget=budget, out=tmp_path / "run", choose_on_half=True, uniform=uniform)
    (outputs, targets), *_ = seen
    assert np.array_equal(targets, LABELS[SEARCHED])
    with torch.no_grad():
        model = toy.model().eval()
        model.load_state_dict(toy_pool.tensors(0))
        logits = torch.cat([model(x) for x, _ in toy.batches(toy.VALIDATION)]).numpy()
    assert np.allclose(outputs[0], logits[SEARCHED], atol=1e-5)
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    parts = ledger.questions()
    ledger.close()
    soups = {part.identity for part in parts}
    spent = (sum(len(part.examples) for part in parts) + 100 * len(soups)) / 700
    assert result.passes.soups == pytest.approx(spent, abs=1e-8)
    assert result.passes.soups <= budget + 1e-9
    finished = [p.identity for p in parts if np.array_equal(p.examples, CHOOSING)]
    assert len(finished) == len(set(finished)) == len(result.evaluations) >= 1
    in_search = [p for p in parts if p.identity not in finished or not np.array_equal(p.examples, CHOOSING)]
    assert all(np.isin(p.examples, SEARCHED).all() for p in in_search)


def test_it_goes_on_where_it_stopped_and_is_refused_without_the_halves(toy_pool, task, tmp_path):
    first = cook(toy_pool, task, budget=3, out=tmp_path / "run", choose_on_half=True)
    again = cook(toy_pool, task, budget=3, out=tmp_path / "run", choose_on_half=True)
    assert again.passes == first.passes
    assert [(e.recipe, e.score) for e in again.evaluations] == [(e.recipe, e.score) for e in first.evaluations]
    assert again.best.recipe == first.best.recipe
    more = cook(toy_pool, task, budget=6, out=tmp_path / "run", choose_on_half=True)
    assert {e.recipe for e in more.evaluations} >= {e.recipe for e in first.evaluations}
    assert more.passes.soups > 4
    candidates = 6 + more.passes.reestimated + len(more.evaluations)
    assert f"scored on the other 300; the choice among {candidates} there" in " ".join(more.notes)
    assert not any("what the search learned" in sentence for sentence in more.confidence)
    with pytest.raises(RunError, match="halves"):
        cook(toy_pool, task, budget=6, out=tmp_path / "run")
    with pytest.raises(RunError, match="halves"):
        cook(toy_pool, task, budget=6, out=tmp_path / "run", choose_on_half=True, seed=1)


def test_what_it_cannot_be_had_for(toy_pool, task, tmp_path):
    with pytest.raises(RadinError, match="takes a metric that is a mean; 'macro_f1' is none"):
        cook(toy_pool, replace(task, metric="macro_f1"), budget=3, out=tmp_path / "run", choose_on_half=True)
    with pytest.raises(RadinError, match="needs the outputs kept"):
        cook(toy_pool, task, budget=3, out=tmp_path / "run", choose_on_half=True, keep_outputs=False)
    result = cook(toy_pool, replace(task, metric="nll"), budget=3, out=tmp_path / "nll", choose_on_half=True)
    assert result.best.score <= result.best_single.score


def test_the_result_says_how_sure_it_is(toy_pool, task, tmp_path):
    result = cook(toy_pool, task, budget=5, out=tmp_path / "run")
    assert not result.best.recipe.is_single
    by_hand = paired_difference(values_of(result, result.best.recipe), values_of(result, result.reference.recipe), True)
    assert result.paired == by_hand
    gain = json.loads((tmp_path / "run" / "result.json").read_text())["gain"]
    for name in ("difference", "stderr", "low", "high", "p_value", "method", "inside_noise"):
        assert gain[name] == getattr(by_hand, name)
    assert result.confidence[0].startswith("gain over ")
    assert result.optimism.candidates == 6 + result.passes.reestimated + result.passes.started
    assert result.optimism.score == result.best.score
    assert result.optimism.corrected == pytest.approx(result.best.score - result.optimism.optimism)
    assert result.optimism.optimism > 0
