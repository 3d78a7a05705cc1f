"""Affine recipes: negative ratios only where a recipe says so, through every place that a recipe goes through."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import radin
from radin import Pool, PoolError, RadinError, Recipe, average
from radin.cli.group import cli
from radin.engine.crew import Work
from radin.engine.packed import work_of, work_parts
from radin.metrics import get
from radin.question import Question
from radin.recipe import Group
from radin.report.groups import group_rows
from radin.search import Search
from radin.weights import dispersion, save

PRINTS = ["a" * 64, "b" * 64, "c" * 64]
NAMES = ["one", "two", "three"]
BEYOND = (1.5, -0.75, 0.25)
INSIDE = (0.5, 0.25, 0.25)


def affine(weights=BEYOND, **groups):
    rows = tuple(Group(name, row, affine=True) for name, row in groups.items())
    return Recipe(weights, groups=rows, affine=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(BEYOND),
        lambda: Group("head", BEYOND),
        lambda: Recipe(INSIDE, groups=(Group("head", BEYOND, affine=True),)),
        lambda: Recipe.normalized(BEYOND),
        lambda: Recipe.from_json({k: v for k, v in affine().to_json(NAMES, PRINTS).items() if k != "affine"}, PRINTS),
    ],
)
def test_a_negative_ratio_is_an_error_that_names_the_way(make):
    with pytest.raises(RadinError, match=r'not negative; ratio 1.* is -0\.75.*affine=True, or "affine": true'):
        make()


@pytest.mark.parametrize(("far", "words"), [(1e90, "within 100 of 0"), (101.0, "within 100 of 0"), (1.5, "sum to 1")])
def test_a_file_may_not_say_just_anything(far, words):
    value = affine().to_json(NAMES, PRINTS)
    value["members"][0]["weight"], value["members"][1]["weight"] = far, 0.75 - far - 0.5 * (far == 1.5)
    with pytest.raises(RadinError, match=words):
        Recipe.from_json(json.loads(json.dumps(value)), PRINTS)
    with pytest.raises(RadinError, match="positive sum"):
        Recipe.normalized([1.0, -1.0, 1e-9], affine=True)
    assert Recipe((3.0, -2.0), affine=True).weights == (3.0, -2.0)


def test_where_no_ratio_is_negative_the_mark_changes_nothing():
    marked = Recipe(INSIDE, groups=(Group("head", (0.0, 0.0, 1.0), affine=True),), affine=True)
    plain = Recipe(INSIDE, groups=(Group("head", (0.0, 0.0, 1.0)),))
    assert marked == plain
    assert hash(marked) == hash(plain)
    assert repr(marked) == repr(plain)
    assert not marked.affine
    assert marked.to_json(NAMES, PRINTS) == plain.to_json(NAMES, PRINTS)
    assert marked.identity(PRINTS) == plain.identity(PRINTS)
    # as it was before there were affine recipes
    assert Recipe(INSIDE).identity(PRINTS)[:16] == "2c347387429531df"
    assert affine(INSIDE, head=BEYOND).affine, "a group alone makes it so"


ROWS = st.lists(st.integers(-8, 8), min_size=3, max_size=3).filter(lambda row: sum(row) > 0)


@given(ROWS, ROWS)
@settings(deadline=None)
def test_json_and_work_come_back_and_all_but_zero_are_members(first, second):
    recipe = Recipe.normalized(first, {"head": second}, affine=True)
    assert recipe.members == tuple(k for k in range(3) if first[k] or second[k])
    assert recipe.affine == (min(*first, *second) < 0)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json(NAMES, PRINTS))), PRINTS) == recipe
    value, tensors = work_parts(Work(Question(recipe), None, None, {}))
    assert work_of(json.loads(json.dumps(value)), tensors).question.recipe == recipe
    order = [2, 0, 1]
    assert recipe.permuted(order).identity([PRINTS[k] for k in order]) == recipe.identity(PRINTS)
    if recipe.affine:
        turned = Recipe.normalized([abs(v) for v in first], {"head": [abs(v) for v in second]})
        assert turned.identity(PRINTS) != recipe.identity(PRINTS)


def states(dtype=torch.float32, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "body.weight": (scale * torch.randn(6, 5, generator=draw)).to(dtype),
            "head.weight": (scale * torch.randn(5, generator=draw)).to(dtype),
            "norm.running_mean": torch.randn(5, generator=draw),
            "norm.running_var": torch.rand(5, generator=draw) + 0.01,
            "norm.num_batches_tracked": torch.tensor(k),
        }
        for k in range(3)
    ]


def pool_of(folder, members):
    folder.mkdir(exist_ok=True)
    for k, state in enumerate(members):
        save(state, folder / f"m{k}.safetensors")
    return Pool.open(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_beyond_is_the_plain_loop_and_statistics_stay_inside(tmp_path, dtype):
    members = states(dtype)
    head = (-0.5, 0.0, 1.5)
    found = average(pool_of(tmp_path / "pool", members), affine(head=head))
    for name, row in (("body.weight", BEYOND), ("head.weight", head)):
        expected = sum(p * state[name].double() for p, state in zip(row, members, strict=True)).to(dtype)
        assert torch.equal(found[name], expected)
    for name in ("norm.running_mean", "norm.running_var"):  # by 1.5 and .25, scaled to sum 1
        expected = (6 * members[0][name].double() + members[2][name].double()) / 7
        assert torch.allclose(found[name].double(), expected, rtol=1e-6)
    assert (found["norm.running_var"] > 0).all()
    beyond = sum(p * state["norm.running_var"] for p, state in zip(BEYOND, members, strict=True))
    assert (beyond < 0).any(), "or this test says nothing"


def test_the_command_averages_a_recipes_file_and_says_what_became_of_statistics(tmp_path):
    members = states()
    pool = pool_of(tmp_path / "pool", members)
    (tmp_path / "r.json").write_text(json.dumps(affine().to_json(pool.member_names, pool.fingerprints)))
    words = [
        "average",
        str(tmp_path / "pool"),
        "--recipe",
        str(tmp_path / "r.json"),
        "-o",
        str(tmp_path / "s.safetensors"),
    ]
    run = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    said = " ".join(run.output.split())
    assert "-0.75 of" in said
    assert "were averaged by the positive ratios alone" in said
    expected = sum(p * state["body.weight"].double() for p, state in zip(BEYOND, members, strict=True)).float()
    assert torch.equal(load_file(tmp_path / "s.safetensors")["body.weight"], expected)
    assert Recipe.from_json(radin.weights.read_recipe(tmp_path / "s.safetensors"), pool.fingerprints) == affine()


def test_what_is_too_large_for_its_dtype_is_not_written(tmp_path):
    pool = pool_of(
        tmp_path / "pool", [state | {"norm.running_var": torch.ones(5)} for state in states(torch.float16, 1e4)]
    )
    far = Recipe((50.0, -49.0, 0.0), affine=True)
    with pytest.raises(PoolError, match=r"body\.weight of this affine recipe is too large for torch\.float16"):
        radin.run.average.average_pool(pool, (), far, tmp_path / "s.safetensors", None)
    assert not (tmp_path / "s.safetensors").exists()


def test_dispersion_beyond_the_members_may_be_negative():
    theta = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(BEYOND[i] * BEYOND[j] * ((theta[i] - theta[j]) ** 2).sum() for i, j in pairs)
    assert expected < 0
    found = dispersion(theta @ theta.T, np.array([BEYOND, INSIDE]))
    assert found[0] == pytest.approx(expected)
    assert found[1] > 0


def test_estimates_are_of_averaged_logits_never_of_probabilities():
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 4, 300)
    logits = draw.normal(size=(3, 300, 4)) + 2 * np.eye(4)[targets]
    for name in ("accuracy", "nll", "macro_f1"):
        search = Search(logits, targets, metric=name, budget=1)
        found = search.estimate([Recipe(INSIDE), affine(), affine(head=INSIDE)])
        together = [np.tensordot(row, logits, 1) for row in (INSIDE, BEYOND)]
        assert found[:2] == pytest.approx([get(name).value(rows, targets) for rows in together])
        assert np.isnan(found[2])
    chosen = np.log(np.abs(draw.normal(size=(3, 300, 1))) / 9 + 1e-3)
    positions = np.column_stack([np.zeros(300, int), np.arange(300) // 3])
    search = Search(chosen, positions, metric="token_nll", budget=1)
    assert np.isnan(search.estimate([affine()])).all()
    # outputs that are not what gave the scores say nothing of other recipes either
    search = Search(logits, targets, budget=1, singles=np.array([0.1, 0.2, 0.3]), keys=PRINTS)
    assert np.isnan(search.estimate([affine()])).all()


def test_tables_order_columns_by_size_whatever_the_sign():
    names = [f"m{k}" for k in range(10)]
    ratios = [0.2] * 5 + [0.1] * 4 + [-0.4]
    columns, rows, _ = group_rows(names, ratios, [])
    assert columns[1] == "m9"
    assert rows[0][1] == "-0.400"


def test_replacing_a_field_keeps_the_mark():
    assert replace(affine(), reestimated=False) == affine()
    assert "affine=True" in repr(affine())
    assert affine().describe(NAMES) == "one 1.5, two -0.75, three 0.25"
