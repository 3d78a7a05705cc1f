"""Averages against five lines of torch, and the files they are written to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from radin.errors import CheckpointError, PoolError, StorageError
from radin.recipe import Recipe
from radin.weights import (
    Pool,
    average,
    check_output,
    layout,
    open_checkpoint,
    read_metadata,
    read_recipe,
    recipe_metadata,
    save,
)

States = list[dict[str, Tensor]]


def states(members: int, dtype: torch.dtype = torch.float32) -> States:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return [
        {
            "conv.weight": random(4, 3, 3),
            "embed": random(60, 7),
            "scale": random(1)[0],
            "none": random(0, 2),
            "steps": torch.tensor(10 * k),
            "mask": torch.tensor([False, True]),
        }
        for k in range(members)
    ]


def pool_of(folder: Path, all_states: States, suffix: str = ".safetensors") -> Pool:
    for k, state in enumerate(all_states):
        path = folder / f"m{k}{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return Pool.open(folder)


def reference(all_states: States, weights: tuple[float, ...], name: str) -> Tensor:
    """The five lines a careful user would write."""
    total = torch.zeros(all_states[0][name].shape, dtype=torch.float64)
    for state, weight in zip(all_states, weights, strict=True):
        if weight > 0:
            total += weight * state[name].to(torch.float64)
    return total.to(all_states[0][name].dtype)


FLOATS = ("conv.weight", "embed", "scale", "none")


@pytest.mark.parametrize("leaf", [7, 100, 1 << 19])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_equals_a_float64_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, suffix: str, leaf: int
) -> None:
    monkeypatch.setattr(layout, "LEAF", leaf)
    all_states = states(5, dtype)
    recipe = Recipe.normalized([0.3, 0.0, 1.1, 0.7, 0.2])
    soup = average(pool_of(tmp_path, all_states, suffix), recipe)
    for name in FLOATS:
        expected = reference(all_states, recipe.weights, name)
        assert soup[name].dtype == dtype
        assert torch.equal(soup[name].double(), expected.double()), name


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda weights: sum(weights) > 1e-3))
@settings(deadline=None, max_examples=25)
def test_any_weights_equal_the_reference(tmp_path_factory: pytest.TempPathFactory, weights: list[float]) -> None:
    all_states = states(3)
    recipe = Recipe.normalized(weights)
    soup = average(pool_of(tmp_path_factory.mktemp("pool"), all_states), recipe)
    assert all(torch.equal(soup[name], reference(all_states, recipe.weights, name)) for name in FLOATS)


def test_complex_tensors(tmp_path: Path) -> None:
    all_states = [{"c": torch.randn(50, dtype=torch.complex64)} for _ in range(3)]
    recipe = Recipe.normalized([1, 2, 3])
    expected = sum(w * s["c"].to(torch.complex128) for w, s in zip(recipe.weights, all_states, strict=True))
    soup = average(pool_of(tmp_path, all_states, ".pt"), recipe)
    assert isinstance(expected, Tensor)
    assert torch.equal(soup["c"], expected.to(torch.complex64))


def test_single_member_comes_back_bit_for_bit(tmp_path: Path) -> None:
    all_states = [{**state, "zero": torch.tensor([-0.0, 0.0])} for state in states(3)]
    soup = average(pool_of(tmp_path, all_states), Recipe.single(1, 3))
    for name, tensor in all_states[1].items():
        assert tensor.numpy().tobytes() == soup[name].numpy().tobytes(), name


def net(seed: int) -> nn.Sequential:
    """A small network whose BatchNorm has seen one batch."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    layers(torch.randn(4, 3, 8, 8))
    return layers


def test_uniform_soup_equals_swa_utils(tmp_path: Path) -> None:
    models = [net(seed) for seed in range(4)]
    averaged = AveragedModel(models[0], use_buffers=True)
    for model in models:
        averaged.update_parameters(model)
    pool = pool_of(tmp_path, [dict(model.state_dict()) for model in models], ".pt")
    soup = average(pool, Recipe.uniform(range(4), 4))
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(soup[name], tensor, rtol=1e-5, atol=1e-7)
    fresh = net(9)
    fresh.load_state_dict(soup)
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fresh.eval()(image), averaged.eval()(image), rtol=1e-4, atol=1e-6)


# Integers, ties, dtypes


def test_integers_are_copied_from_the_largest_weight_or_the_named_member(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, states(3))
    assert average(pool, Recipe.normalized([1, 2, 2]))["steps"].item() == 10
    assert average(pool, Recipe.normalized([1, 2, 3]))["steps"].item() == 20
    soup = average(pool, Recipe.normalized([1, 2, 3]), integers_from="m0")
    assert soup["steps"].item() == 0
    assert soup["mask"].tolist() == [False, True]
    assert soup["steps"].dtype == torch.int64
    assert soup["mask"].dtype == torch.bool
    with pytest.raises(PoolError, match="no member is named 'm7'; members: m0, m1, m2"):
        average(pool, Recipe.uniform([0], 3), integers_from="m7")


def test_recipe_of_another_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="the recipe has 4 ratios; this pool has 3 members"):
        average(pool_of(tmp_path, states(3)), Recipe.uniform([0], 4))


def tied(seed: int) -> dict[str, Tensor]:
    shared = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    return {"embed": shared, "output": shared, "bias": torch.ones(4) * seed}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tied_tensors_stay_tied_through_average_and_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "pool").mkdir()
    pool = pool_of(tmp_path / "pool", [tied(0), tied(1)], ".pt")
    soup = average(pool, Recipe.uniform([0, 1], 2))
    assert soup["embed"] is soup["output"]
    assert torch.equal(soup["embed"], reference([tied(0), tied(1)], (0.5, 0.5), "embed"))
    out = tmp_path / f"soup{suffix}"
    save(soup, out, metadata={"note": "x"})
    checkpoint = open_checkpoint(out)
    assert checkpoint.aliases == {"output": "embed"}
    with checkpoint.open() as reader:
        assert all(torch.equal(reader[name], soup[name]) for name in soup)


def test_a_tie_in_only_some_members_is_not_kept(tmp_path: Path) -> None:
    untied = {name: tensor.clone() for name, tensor in tied(1).items()}
    untied["output"] += 1
    pool = pool_of(tmp_path, [tied(0), untied, tied(2)], ".pt")
    soup = average(pool, Recipe.uniform([0, 1], 3))
    assert soup["embed"] is not soup["output"]
    assert torch.equal(soup["output"], reference([tied(0), untied], (0.5, 0.5), "output"))
    both_tied = average(pool, Recipe.uniform([0, 2], 3))
    assert both_tied["embed"] is both_tied["output"]


def test_ties_recorded_under_other_names_still_meet(tmp_path: Path) -> None:
    first, second = tied(0), tied(1)
    save_file({"embed": first["embed"], "bias": first["bias"]}, tmp_path / "a.safetensors", {"output": "embed"})
    save_file({"output": second["embed"], "bias": second["bias"]}, tmp_path / "b.safetensors", {"embed": "output"})
    soup = average(Pool.open(tmp_path), Recipe.uniform([0, 1], 2))
    assert soup["embed"] is soup["output"]
    assert torch.equal(soup["embed"], reference([first, second], (0.5, 0.5), "embed"))


def test_mixed_precision_is_promoted_among_the_members_used(tmp_path: Path) -> None:
    half, full = states(2, torch.bfloat16)[0], states(2)[1]
    pool = pool_of(tmp_path, [half, full])
    soup = average(pool, Recipe.uniform([0, 1], 2))
    assert soup["embed"].dtype == torch.float32
    expected = 0.5 * half["embed"].double() + 0.5 * full["embed"].double()
    assert torch.equal(soup["embed"], expected.float())
    assert average(pool, Recipe.single(0, 2))["embed"].dtype == torch.bfloat16


def test_progress_counts_what_is_read(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, states(3))
    seen: list[tuple[int, int]] = []
    average(pool, Recipe.uniform([0, 2], 3), progress=lambda done, total: seen.append((done, total)))
    total = 2 * pool.parameters * 4
    assert seen[-1] == (total, total)


# Files


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_soup_and_recipe_round_trip(tmp_path: Path, suffix: str) -> None:
    pool = pool_of(tmp_path, states(3))
    recipe = Recipe.normalized([1, 0, 3])
    soup = average(pool, recipe, integers_from="m1")
    path = tmp_path / f"soup{suffix}"
    save(soup, path, metadata=recipe_metadata(pool, recipe, {"score": "0.9"}, integers_from="m1"))
    loaded = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True, mmap=True)
    assert type(loaded) is dict
    assert loaded.keys() == soup.keys()
    assert all(torch.equal(loaded[name], soup[name]) for name in soup)
    assert Recipe.from_json(read_recipe(path), pool.fingerprints) == recipe
    assert read_metadata(path)["radin.integers_from"] == "m1"
    assert read_metadata(path)["score"] == "0.9"
    assert [entry["name"] for entry in read_recipe(path)["members"]] == ["m0", "m2"]


def test_a_saved_torch_file_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(states(1)[0], tmp_path / f"{name}.pt", metadata={"a": "b", "c": "d"})
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_a_file_without_a_recipe(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        save(states(1)[0], tmp_path / name)
        with pytest.raises(CheckpointError, match="carries no recipe"):
            read_recipe(tmp_path / name)
    (tmp_path / "text.pt").write_text("x")
    with pytest.raises(CheckpointError, match="carries no recipe"):
        read_recipe(tmp_path / "text.pt")


def test_safetensors_load_with_load_model(tmp_path: Path) -> None:
    model = net(0)
    save(dict(model.state_dict()), tmp_path / "soup.safetensors")
    fresh = net(1)
    load_model(fresh, tmp_path / "soup.safetensors")
    assert torch.equal(fresh[0].weight, model[0].weight)
    assert read_metadata(tmp_path / "soup.safetensors") == {"format": "pt"}


def test_views_of_one_storage_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"rows": whole[:2], "last": whole[2], "turned": whole.T, "empty": torch.empty(0)}
    save(tensors, tmp_path / "soup.safetensors")
    loaded = load_file(tmp_path / "soup.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"soup{suffix}"
    save({"a": torch.ones(2)}, path)
    before = path.read_bytes()

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(
        StorageError, match=rf"soup{suffix} cannot be written: no space is left .*, 800 needed.*Make room"
    ):
        save({"a": torch.zeros(200)}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    save({"a": torch.ones(2)}, tmp_path / "soup.safetensors")
    assert (tmp_path / "soup.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_outputs_that_cannot_be_written_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected \.safetensors, \.pt, \.pth"):
        check_output(tmp_path / "soup.onnx")
    with pytest.raises(CheckpointError, match="its folder does not exist"):
        save({"a": torch.ones(1)}, tmp_path / "gone" / "soup.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        check_output(tmp_path / "folder.pt")
    with pytest.raises(CheckpointError, match=r"safetensors cannot store torch\.complex128"):
        save({"a": torch.ones(1, dtype=torch.complex128)}, tmp_path / "soup.safetensors")
    assert not (tmp_path / "soup.safetensors").exists()


def test_the_same_soup_has_the_same_bytes_in_every_process(tmp_path):
    code = """
import sys, torch
from radin.weights import save
metadata = {f"radin.{k}": "é \\x01 \\\\" * k for k in range(9)}
save({"b": torch.arange(5.0), "a": torch.ones(3, dtype=torch.bfloat16)}, sys.argv[1], metadata=metadata)
"""
    written = []
    for k in range(3):
        path = tmp_path / f"{k}.safetensors"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        written.append(path.read_bytes())
        with safe_open(path, "pt") as file:
            assert file.metadata()["radin.3"] == "é \x01 \\" * 3
            assert file.get_tensor("b").tolist() == [0, 1, 2, 3, 4]
    assert len(set(written)) == 1
