"""Recipes with groups through a whole run: every engine's score is that of a state dict mixed by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import radin
import toy
from radin.cli.group import cli
from radin.diagnose.examine import examine_run
from radin.recipe import Group, Recipe
from radin.run.result import Result
from radin.search.strategies import base
from radin.search.strategies.base import Slice

# No torch and no radin in it: a network by hand, over a file of images.
SCORE = """
import sys
import numpy as np
from safetensors.numpy import load_file
w, data = load_file(sys.argv[1]), np.load(sys.argv[2])
x = data["images"] @ w["0.weight"].T + w["0.bias"]
x = (x - w["1.running_mean"]) / np.sqrt(w["1.running_var"] + 1e-5) * w["1.weight"] + w["1.bias"]
x = np.maximum(x, 0) @ w["4.weight"].T + w["4.bias"]
print((x.argmax(1) == data["labels"]).mean())
"""


def row(*members: int) -> tuple[float, ...]:
    return Recipe.uniform(members, 6).weights


# Over the canonical order: the best member is 0. The last says the same as the one before and costs nothing.
RECIPES = (
    Recipe(row(*range(6)), groups=(Group("4", row(0, 1, 2)),)),
    Recipe(row(0, 1, 2), groups=(Group("0", row(3, 4, 5)), Group("4.bias", row(5)))),
    Recipe(row(0, 3), groups=(Group("4", row(1, 2)), Group("1", row(0, 1, 2, 3)))),
    Recipe(row(0, 3), groups=(Group("1", row(0, 1, 2, 3)), Group("4.bias", row(1, 2)), Group("4", row(1, 2)))),
)


@pytest.fixture
def layered(monkeypatch):
    """A strategy that asks about these, the second on some examples first."""
    monkeypatch.setattr(base, "_STRATEGIES", dict(base._STRATEGIES))

    @base.strategy("layered")
    def layered(problem):
        """Ask about recipes with groups."""
        for number, recipe in enumerate(RECIPES):
            if number == 1 and problem.examples is not None:
                found = yield Slice(recipe, np.arange(200))
                assert found is None or len(found) == 200
            yield recipe

    return "layered"


def by_hand(pool, recipe, *, calibrate):
    """Accuracy on validation of the state dict that a loop over tensors gives."""
    members = [pool.tensors(k) for k in range(len(pool))]
    soup = {}
    for name, first in members[0].items():
        total = sum(p * member[name].double() for p, member in zip(recipe.of(name), members, strict=True))
        soup[name] = total.to(first.dtype) if first.is_floating_point() else first
    model = toy.model()
    model.load_state_dict(soup)
    if calibrate:
        model[3].p = 0.0
        torch.optim.swa_utils.update_bn([x for x, _ in toy.batches(toy.TRAINING)], model)
    model.eval()
    with torch.no_grad():
        hits = torch.cat([model(x).argmax(1) == y for x, y in toy.batches(toy.VALIDATION)])
    return float(hits.double().mean()), soup


def told(result):
    return [(evaluation.recipe, evaluation.score) for evaluation in result.evaluations]


def test_in_this_process_with_resuming_and_reports(toy_folder, toy_pool, layered, tmp_path):
    def cook(budget, out):
        return radin.cook(
            toy_pool, str(toy_folder / "task.py"), budget=budget, out=tmp_path / out, strategy=layered, uniform=False
        )

    first, result = cook(2, "run"), cook(3, "run")
    assert len(first.evaluations) == 2
    assert len(result.evaluations) == 3, "the fourth recipe is the third"
    assert told(result) == told(cook(3, "straight"))
    assert len({evaluation.recipe for evaluation in result.evaluations}) == 3
    for evaluation in result.evaluations:
        assert evaluation.recipe.groups
        score, soup = by_hand(toy_pool, evaluation.recipe, calibrate=True)
        assert evaluation.score == pytest.approx(score, abs=1e-12)
        assert evaluation.estimate is None
        if evaluation.recipe == result.best.recipe:
            held = load_file(result.soup)
            assert all(torch.equal(held[name], soup[name]) for name in ("0.weight", "1.weight", "4.weight", "4.bias"))
    best = result.best.recipe
    assert best.groups
    assert result.ensemble.recipe == Recipe(best.weights)
    again = Result.load(tmp_path / "run")
    assert again.best == result.best
    assert told(again) == told(result)
    assert "mixing ratios by group of tensors" in str(result)
    assert f"ratios of their own in {len(best.groups)} group" in str(result)
    assert "all other tensors" in again._repr_html_()
    assert "all other tensors" in best._repr_html_()
    found = examine_run(tmp_path / "run", toy_pool)
    assert (found.soups, found.compared) == (3, 0)
    words = ["average", str(toy_folder), "--recipe", str(tmp_path / "run/recipe.json"), "-o", str(tmp_path / "s.pt")]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    averaged = torch.load(tmp_path / "s.pt", weights_only=True)
    assert all(torch.equal(averaged[name], load_file(result.soup)[name]) for name in ("0.weight", "4.weight"))


def test_by_worker_processes(toy_folder, toy_pool, layered, tmp_path):
    result = radin.cook(
        toy_pool,
        str(toy_folder / "task.py"),
        budget=3,
        out=tmp_path / "run",
        strategy=layered,
        uniform=False,
        workers=2,
    )
    assert len(result.evaluations) == 3
    for recipe, score in told(result):
        assert score == pytest.approx(by_hand(toy_pool, recipe, calibrate=True)[0], abs=1e-12)


def test_by_a_program(toy_pool, layered, tmp_path):
    (tmp_path / "score.py").write_text(SCORE)
    images, labels = zip(*toy.batches(toy.VALIDATION), strict=True)
    np.savez(tmp_path / "digits.npz", images=torch.cat(images).numpy(), labels=torch.cat(labels).numpy())
    command = radin.Command(f"'{sys.executable}' '{tmp_path / 'score.py'}' {{soup}} '{tmp_path / 'digits.npz'}'")
    single = [by_hand(toy_pool, Recipe.single(k, 6), calibrate=False)[0] for k in range(6)]
    result = radin.cook(
        toy_pool, command, budget=2, out=tmp_path / "run", strategy=layered, uniform=False, scores=single
    )
    assert len(result.evaluations) == 2
    for recipe, score in told(result):
        assert recipe.groups
        assert score == pytest.approx(by_hand(toy_pool, recipe, calibrate=False)[0], abs=1e-12)


def test_a_group_that_names_no_layer_stops_before_it_is_evaluated(toy_folder, toy_pool, monkeypatch, tmp_path):
    monkeypatch.setattr(base, "_STRATEGIES", dict(base._STRATEGIES))

    @base.strategy("misnamed")
    def misnamed(problem):
        """Ask about a layer that is not there."""
        yield Recipe(row(0, 1), groups=(Group("head", row(0)),))

    with pytest.raises(radin.PoolError, match="group head names no tensor of the pool"):
        radin.cook(
            toy_pool,
            str(toy_folder / "task.py"),
            budget=1,
            out=tmp_path / "run",
            strategy="misnamed",
            uniform=False,
        )


def test_estimates_are_of_plain_recipes_alone():
    outputs = np.random.default_rng(0).normal(size=(6, 50, 3))
    targets = np.arange(50) % 3
    search = radin.Search(list(outputs), targets, metric="accuracy", budget=1)
    plain = Recipe(row(0, 1))
    found = search.estimate([Recipe(plain.weights, groups=(Group("4", row(2)),)), plain])
    assert np.isnan(found[0])
    assert found[1] == (outputs[:2].mean(0).argmax(1) == targets).mean()
