"""Soups written in the members' own form: nesting, prefixes, shards, ties and companions."""

import json
import os
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from radin import Pool, Recipe, average
from radin.errors import StorageError
from radin.weights import read_metadata
from radin.weights.alike import save_alike, suffix_of, write_alike

METADATA = {"radin.recipe": '{"members": []}'}


def state(k: int) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((2, 3), float(k)), "a.bias": torch.arange(3.0) * k, "steps": torch.tensor(k)}


def soup(pool: Pool) -> dict[str, torch.Tensor]:
    return average(pool, Recipe.uniform(range(len(pool)), len(pool)))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_a_file_has_the_suffix_and_the_names_of_the_members(tmp_path, suffix):
    for k in (1, 3):
        wrapped = {f"module.{name}": tensor for name, tensor in state(k).items()}
        path = tmp_path / f"run-{k}{suffix}"
        save_file(wrapped, path, metadata={"of": "the run"}) if suffix == ".safetensors" else torch.save(wrapped, path)
    pool = Pool.open(tmp_path)
    like = pool[0].checkpoint
    assert suffix_of(like) == suffix
    path = write_alike(soup(pool), like, tmp_path / f"soup{suffix}", METADATA)
    found = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert sorted(found) == [f"module.{name}" for name in sorted(state(1))]
    assert torch.equal(found["module.a.weight"], torch.full((2, 3), 2.0))
    assert found["module.steps"] == 1
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "of": "the run", **METADATA}
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_torch_file_keeps_what_is_beside_the_weights_but_no_other_tensors(tmp_path):
    for k in (1, 3):
        weights = OrderedDict(state(k))
        weights._metadata = OrderedDict({"": {"version": 1}})
        torch.save(
            {
                "epoch": k,
                "hyper_parameters": {"width": 3},
                "state_dict": weights,
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
                "best": torch.tensor(0.5),
                "pytorch-lightning_version": "2.0.0",
            },
            tmp_path / f"run-{k}.ckpt",
        )
    pool = Pool.open(tmp_path)
    write_alike(soup(pool), pool[1].checkpoint, tmp_path / "soup.ckpt", METADATA)
    found = torch.load(tmp_path / "soup.ckpt", weights_only=True)
    assert list(found) == ["epoch", "hyper_parameters", "state_dict", "pytorch-lightning_version"]
    assert found["epoch"] == 3
    assert found["state_dict"]._metadata == {"": {"version": 1}}
    assert torch.equal(found["state_dict"]["a.bias"], 2 * torch.arange(3.0))
    assert read_metadata(tmp_path / "soup.ckpt") == METADATA
    assert Pool.open(tmp_path).names == pool.names


def test_the_moving_average_that_was_averaged_does_not_pass_for_the_weights(tmp_path):
    for k in (1, 3):
        torch.save({"model": state(9), "model_ema": state(k)}, tmp_path / f"run-{k}.pt")
    pool = Pool.open(tmp_path)
    write_alike(soup(pool), pool[0].checkpoint, tmp_path / "soup.pt", METADATA)
    assert list(torch.load(tmp_path / "soup.pt", weights_only=True)) == ["model_ema"]


class Tied(nn.Module):
    """Kept under the later of two names, as language models do."""

    def __init__(self, k: int, tie: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
        if tie:
            self.embed.weight = self.head.weight
        with torch.no_grad():
            self.embed.weight.fill_(k)
            self.head.weight.fill_(k)


@pytest.mark.parametrize("all_tied", [True, False])
def test_tied_tensors_stay_under_the_name_that_the_members_keep(tmp_path, all_tied):
    save_model(Tied(1), tmp_path / "run-1.safetensors")
    save_model(Tied(3, all_tied), tmp_path / "run-3.safetensors")
    pool = Pool.open(tmp_path)
    path = write_alike(soup(pool), pool[0].checkpoint, tmp_path / "soup.safetensors", METADATA)
    with safe_open(tmp_path / "run-1.safetensors", "pt") as member, safe_open(path, "pt") as file:
        names = set(member.keys()) if all_tied else {"embed.weight", "head.weight"}
        assert set(file.keys()) == names
        ties = {k: v for k, v in file.metadata().items() if "." in k and not k.startswith("radin.")}
        assert ties == ({k: v for k, v in member.metadata().items() if k != "format"} if all_tied else {})
    again = Pool.open([tmp_path / "run-3.safetensors", path])
    assert again.member_names == ("run-3", "soup")
    assert torch.equal(again.tensors(1)["head.weight"], torch.full((5, 2), 2.0))


@pytest.fixture
def shards(tmp_path):
    """Two folders of two shards each, with what a trainer leaves beside them."""
    for k in (1, 3):
        folder = tmp_path / f"checkpoint-{k}"
        for name in ("1_Pooling", "global_step3", "checkpoint-9", ".cache"):
            (folder / name).mkdir(parents=True)
        first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
        save_file({"a.weight": state(k)["a.weight"]}, folder / first)
        save_file({"a.bias": state(k)["a.bias"], "steps": state(k)["steps"]}, folder / second)
        weight_map = {"a.weight": first, "a.bias": second, "steps": second}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (folder / "config.json").write_text(str(k))
        (folder / "1_Pooling/config.json").write_text("{}")
        (folder / ".cache/junk").write_text("")
        for name in (
            "optimizer.pt",
            "training_args.bin",
            "global_step3/states.pt",
            "checkpoint-9/model.safetensors",
            "x.onnx",
        ):
            (folder / name).write_bytes(b"large")
    return tmp_path


def test_a_folder_of_shards_becomes_one(shards):
    pool = Pool.open([shards / "checkpoint-1", shards / "checkpoint-3"])
    assert suffix_of(pool[0].checkpoint) == ""
    path = write_alike(soup(pool), pool[1].checkpoint, shards / "soup", METADATA)
    assert path == shards / "soup"
    assert sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()) == [
        "1_Pooling/config.json",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "radin.json",
    ]
    assert (path / "config.json").read_text() == "3"
    again = Pool.open([shards / "checkpoint-1", path])
    assert torch.equal(again.tensors(1)["a.weight"], torch.full((2, 3), 2.0))
    assert read_metadata(path) == METADATA


def test_an_index_stands_for_its_folder(shards):
    pool = Pool.open([shards / f"checkpoint-{k}/model.safetensors.index.json" for k in (1, 3)])
    assert suffix_of(pool[0].checkpoint) == ""
    path = write_alike(soup(pool), pool[0].checkpoint, shards / "soup", METADATA)
    assert path == shards / "soup/model.safetensors.index.json"
    assert torch.equal(Pool.open([path]).tensors(0)["a.bias"], 2 * torch.arange(3.0))


def test_a_folder_is_replaced_whole_or_not_at_all(shards, monkeypatch):
    pool = Pool.open([shards / "checkpoint-1", shards / "checkpoint-3"])
    target = shards / "soup"
    save_alike(soup(pool), pool[0].checkpoint, target, METADATA)
    before = {p: p.read_bytes() for p in target.rglob("*") if p.is_file()}

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("radin.weights.alike.write_stored", fail)
        with pytest.raises(StorageError, match=r"soup cannot be written: no space is left on the disk .*, 44 needed"):
            save_alike(soup(pool), pool[1].checkpoint, target, METADATA)
    assert {p: p.read_bytes() for p in target.rglob("*") if p.is_file()} == before
    save_alike(soup(pool), pool[1].checkpoint, target, METADATA)
    assert (target / "config.json").read_text() == "3"
    assert sorted(p.name for p in shards.iterdir()) == ["checkpoint-1", "checkpoint-3", "soup"]
