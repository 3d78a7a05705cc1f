"""Averages with ratios by group of tensors, against a plain loop in float64, from every kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from radin import CheckpointError, Pool, PoolError, Recipe, average
from radin.cli.group import cli
from radin.recipe import Group
from radin.run.average import average_pool
from radin.weights import read_recipe
from radin.weights.pool import Opened
from radin.weights.unread import Unread

REST, FIRST, SECOND = (0.5, 0.3, 0.2), (0.0, 0.9, 0.1), (0.0, 0.0, 1.0)


def states(dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (5, 4), "layer.1.weight": (4, 4), "layer.1.bias": (4,), "layer.10.weight": (4, 4)}
    made = [{name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()} for _ in REST]
    return [state | {"steps": torch.tensor(k)} for k, state in enumerate(made)]


def recipe(**groups: tuple[float, ...]) -> Recipe:
    return Recipe(REST, groups=tuple(Group(name.replace("__", "."), row) for name, row in groups.items()))


def loop(members: list[dict[str, Tensor]], ratios: dict[str, tuple[float, ...]], rest: tuple[float, ...] = REST):
    """By the five lines one would write: ratios of each tensor written out."""
    found = {}
    for name, first in members[0].items():
        if first.is_floating_point():
            row = ratios.get(name, rest)
            total = sum(p * state[name].double() for p, state in zip(row, members, strict=True))
            found[name] = total.to(first.dtype)
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def pool_of(folder: Path, members: list[dict[str, Tensor]], suffix: str) -> Pool:
    for k, state in enumerate(members):
        path = folder / f"m{k}{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return Pool.open(folder)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_tensor_has_its_groups_ratios(tmp_path, suffix, dtype):
    members = states(dtype)
    pool = pool_of(tmp_path, members, suffix)
    found = average(pool, recipe(layer__1=FIRST, layer__1__bias=SECOND))
    same(found, loop(members, {"layer.1.weight": FIRST, "layer.1.bias": SECOND}))
    assert torch.equal(found["layer.1.bias"], members[2]["layer.1.bias"]), "one member's tensor is as it is"
    assert found["steps"] == 0, "integers: of the largest ratio outside of groups"


def test_of_each_tensor_only_the_members_it_is_mixed_from_are_read(tmp_path):
    members = states()
    pool = pool_of(tmp_path, members, ".safetensors")
    seen = []
    made = Recipe((0.0, 0.0, 1.0), groups=(Group("layer", (0.5, 0.5, 0.0)),))
    found = average(pool, made, progress=lambda done, total: seen.append((done, total)))
    layers = {name: (0.5, 0.5, 0.0) for name in members[0] if name.startswith("layer")}
    same(found, loop(members, layers, (0.0, 0.0, 1.0)))
    expected = 4 * (5 * 4 + 2 * (4 * 4 + 4 + 4 * 4))
    assert seen[-1] == (expected, expected)


def test_order_of_members_changes_at_most_the_last_bit(tmp_path):
    members = states()
    pool = pool_of(tmp_path, members, ".safetensors")
    order = [2, 0, 1]
    other = Pool.open([pool[k].path for k in order])
    made = recipe(layer=FIRST)
    ours, theirs = average(pool, made), average(other, made.permuted(order), integers_from=pool[0].name)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-7) for name in ours)
    assert made.identity(pool.fingerprints) == made.permuted(order).identity(other.fingerprints)


def test_sharded_folders_with_a_tied_pair(tmp_path):
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8)
    models = []
    for k in range(3):
        torch.manual_seed(k)
        models.append(GPT2LMHeadModel(config))
        models[k].save_pretrained(tmp_path / f"run{k}", max_shard_size="8KB")
    assert len(list((tmp_path / "run0").glob("*.safetensors"))) > 1
    pool = Pool.open([tmp_path / f"run{k}" for k in range(3)])
    value = Recipe(REST, groups=(Group("transformer.h.1", FIRST), Group("transformer.wte", SECOND)))
    (tmp_path / "recipe.json").write_text(json.dumps(value.to_json(pool.member_names, pool.fingerprints)))
    words = ["average", *(str(tmp_path / f"run{k}") for k in range(3)), "--recipe", str(tmp_path / "recipe.json")]
    run = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "soup")], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert f"0.5 (0 to 0.5) of {tmp_path / 'run0'}" in run.output.replace("\n", "")
    soup = GPT2LMHeadModel.from_pretrained(tmp_path / "soup").state_dict()
    members = [model.state_dict() for model in models]
    ratios = {name: FIRST for name in members[0] if name.startswith("transformer.h.1.")}
    ratios |= dict.fromkeys(("transformer.wte.weight", "lm_head.weight"), SECOND)
    same(soup, loop(members, ratios))
    card = (tmp_path / "soup/README.md").read_text()
    assert "with ratios of their own in 2 groups of tensors" in card
    assert "| tensors | run2 | run1 | run0 |" in card, "by mean ratio"
    assert "| transformer.h.1 | 0.100 | 0.900 | 0.000 |" in card
    assert Recipe.from_json(read_recipe(tmp_path / "soup"), pool.fingerprints) == value


def test_of_tied_tensors_the_first_name_counts(tmp_path):
    members = []
    for k in range(3):
        table = torch.randn(3, 2, generator=torch.Generator().manual_seed(k))
        members.append({"embed.weight": table, "head.weight": table, "head.bias": table[0].clone()})
    pool = pool_of(tmp_path, members, ".pt")
    found = average(pool, Recipe(REST, groups=(Group("embed", FIRST), Group("head", SECOND))))
    same(found, loop(members, {"embed.weight": FIRST, "head.weight": FIRST, "head.bias": SECOND}))
    with pytest.raises(PoolError, match=r"head\.weight is tied to embed\.weight, which counts"):
        average(pool, Recipe(REST, groups=(Group("head.weight", FIRST),)))


def test_a_group_that_names_nothing_is_refused(tmp_path):
    pool = pool_of(tmp_path, states(), ".safetensors")
    with pytest.raises(PoolError, match=r"group layers\.1 names no tensor of the pool; close to it: layer\.1"):
        average(pool, recipe(layers__1=FIRST))


def test_content_is_found_out_in_the_same_reading(tmp_path):
    members = states()
    for k, state in enumerate(members):
        save_file(state, tmp_path / f"m{k}.safetensors")
    paths = [tmp_path / f"m{k}.safetensors" for k in range(3)]
    unread = Unread(Opened.of(paths))
    made = recipe(layer__1=SECOND)
    average_pool(unread.pool, (), made, tmp_path / "out.safetensors", None, unread=unread)
    same(
        load_file(tmp_path / "out.safetensors"),
        loop(members, dict.fromkeys(("layer.1.weight", "layer.1.bias"), SECOND)),
    )
    pool = Pool.open(paths)
    assert Recipe.from_json(read_recipe(tmp_path / "out.safetensors"), pool.fingerprints) == made


def test_what_is_not_finite_is_found_where_it_has_no_ratio(tmp_path):
    members = states()
    members[0]["layer.1.bias"][2] = float("nan")
    for k, state in enumerate(members):
        save_file(state, tmp_path / f"m{k}.safetensors")
    unread = Unread(Opened.of([tmp_path / f"m{k}.safetensors" for k in range(3)]))
    with pytest.raises(CheckpointError, match=r"m0\.safetensors: tensor 'layer\.1\.bias' has 1 of 4 values NaN"):
        average_pool(unread.pool, (), recipe(layer__1__bias=SECOND), tmp_path / "out.pt", None, unread=unread)
    assert not (tmp_path / "out.pt").exists()
