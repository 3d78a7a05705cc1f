"""Opening checkpoints of every format, unwrapping them, and refusing the bad ones."""

from __future__ import annotations

import argparse
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import _SIZE as WRITTEN
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from radin.errors import CheckpointError
from radin.weights import open_checkpoint
from radin.weights.layout import DTYPES


def state() -> dict[str, Tensor]:
    return {
        "layer.weight": torch.arange(6.0).reshape(2, 3),
        "layer.bias": torch.tensor([1.0, -1.0]),
        "step": torch.tensor(7),
    }


def read(path: Path, key: str | None = None) -> dict[str, Tensor]:
    with open_checkpoint(path, key=key).open() as reader:
        return {name: tensor.clone() for name, tensor in reader.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt", ".bin"])
def test_reads_every_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    save_file(state(), path) if suffix == ".safetensors" else torch.save(state(), path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.names == ("layer.bias", "layer.weight", "step")
    assert checkpoint.shapes == {"layer.bias": (2,), "layer.weight": (2, 3), "step": ()}
    assert checkpoint.dtypes == {"layer.bias": torch.float32, "layer.weight": torch.float32, "step": torch.int64}
    assert checkpoint.bytes == 4 * 8 + 8
    assert checkpoint.notes == ()
    assert same(read(path), state())


def test_reads_the_legacy_torch_format_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    checkpoint = open_checkpoint(path)
    assert not checkpoint.mapped
    assert checkpoint.notes[0].startswith("legacy torch format")
    assert same(read(path), state())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_reads_every_dtype(tmp_path: Path, suffix: str) -> None:
    expected = {
        name: dtype
        for name, dtype in DTYPES.items()
        if suffix == ".pt" or dtype in WRITTEN  # what the library can write
    }
    tensors = {name: torch.tensor([0.0, 1.0, 1.0]).to(dtype) for name, dtype in expected.items()}
    path = tmp_path / f"model{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.dtypes == expected
    assert {name: tensor.dtype for name, tensor in read(path).items()} == expected


def test_reader_is_closed_after_its_context(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt").open() as reader:
        assert len(reader) == 3
    with pytest.raises(ValueError, match="closed"):
        reader["step"]


# Unwrapping


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "state_dict", "model", "module"])
def test_takes_a_nested_state_dict(tmp_path: Path, key: str) -> None:
    outer = {
        "epoch": 3,
        "optimizer": {"state": {0: {"m": torch.zeros(2)}}},
        key: state(),
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(outer, tmp_path / "model.pt")
    assert same(read(tmp_path / "model.pt"), state())
    assert open_checkpoint(tmp_path / "model.pt").notes[0].startswith(f"took {key}")


def test_prefers_the_moving_average_and_can_be_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": {"w": torch.ones(1)}}, path)
    assert read(path)["w"].item() == 1.0
    assert open_checkpoint(path).notes == ("took state_dict_ema (the moving average, preferred where there is one)",)
    assert read(path, key="state_dict")["w"].item() == 0.0
    with pytest.raises(
        CheckpointError, match=r"under the key 'net'; keys that hold tensors: state_dict, state_dict_ema"
    ):
        open_checkpoint(path, key="net")


def test_a_key_for_safetensors_is_refused(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no nested key 'ema'"):
        open_checkpoint(tmp_path / "model.safetensors", key="ema")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_strips_wrappers_from_all_keys(tmp_path: Path, prefix: str, suffix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state().items()}
    path = tmp_path / f"model{suffix}"
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
    assert same(read(path), state())
    first = prefix.split(".")[0]
    assert open_checkpoint(path).notes[0] == f"stripped prefix {first}. from all 3 keys"


def test_keeps_a_prefix_that_not_every_key_has(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"module.w": torch.ones(1), "head": torch.ones(1)}, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.names == ("head", "module.w")
    assert checkpoint.notes == ()


def test_strips_model_from_lightning_checkpoints_only(tmp_path: Path) -> None:
    inner = {f"model.{name}": tensor for name, tensor in state().items()}
    torch.save({"state_dict": inner}, tmp_path / "plain.ckpt")
    torch.save({"state_dict": inner, "pytorch-lightning_version": "2.4.0"}, tmp_path / "lightning.ckpt")
    assert open_checkpoint(tmp_path / "plain.ckpt").names == ("model.layer.bias", "model.layer.weight", "model.step")
    assert same(read(tmp_path / "lightning.ckpt"), state())


def test_says_what_it_left_out(tmp_path: Path) -> None:
    torch.save({**state(), "layer._extra_state": {"scale": 1.0}}, tmp_path / "model.pt")
    assert open_checkpoint(tmp_path / "model.pt").notes == (
        "left out 1 entries that are not tensors: layer._extra_state",
    )


# Tied tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embed.weight


def test_finds_tied_tensors_in_both_formats(tmp_path: Path) -> None:
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_model(model, str(tmp_path / "model.safetensors"))
    for name in ("model.pt", "model.safetensors"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.aliases == {"output.weight": "embed.weight"}
        assert checkpoint.names == ("embed.weight", "output.weight")
        assert checkpoint.bytes == 5 * 3 * 4
        assert torch.equal(read(tmp_path / name)["output.weight"], model.embed.weight)


def test_equal_values_and_empty_tensors_are_not_tied(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.empty(0), "d": torch.empty(0)}
    torch.save(tensors, tmp_path / "model.pt")
    assert open_checkpoint(tmp_path / "model.pt").aliases == {}


def test_metadata_that_is_not_an_alias_is_not_taken_for_one(tmp_path: Path) -> None:
    metadata = {"format": "pt", "tied": "a", "gone": "missing", "b": "a"}
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "model.safetensors", metadata=metadata)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.aliases == {"tied": "a"}
    assert read(tmp_path / "model.safetensors")["b"].sum().item() == 0.0


# Folders


def sharded(folder: Path, suffix: str = ".safetensors", weight_map: dict[str, str] | None = None) -> None:
    folder.mkdir()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    first, second = f"{stem}-00001-of-00002{suffix}", f"{stem}-00002-of-00002{suffix}"
    whole = state()
    parts = {first: {"layer.weight": whole["layer.weight"]}, second: {n: whole[n] for n in ("layer.bias", "step")}}
    for name, part in parts.items():
        save_file(part, folder / name) if suffix == ".safetensors" else torch.save(part, folder / name)
    default = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map or default}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_reads_a_sharded_folder(tmp_path: Path, suffix: str) -> None:
    sharded(tmp_path / "run", suffix)
    assert same(read(tmp_path / "run"), state())
    assert same(read(next((tmp_path / "run").glob("*.index.json"))), state())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_reads_a_folder_with_one_file(tmp_path: Path, name: str) -> None:
    save_file(state(), tmp_path / name) if name.endswith("safetensors") else torch.save(state(), tmp_path / name)
    assert same(read(tmp_path), state())


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/outside.safetensors", "sub/x.safetensors", "..", "a\\b.pt"]
)
def test_refuses_an_index_that_leads_out_of_its_folder(tmp_path: Path, shard: str) -> None:
    save_file(state(), tmp_path / "outside.safetensors")
    sharded(tmp_path / "run", weight_map={"layer.weight": shard})
    with pytest.raises(CheckpointError, match="is not a plain file name"):
        open_checkpoint(tmp_path / "run")


def test_refuses_an_index_that_does_not_match_its_shards(tmp_path: Path) -> None:
    sharded(tmp_path / "wrong", weight_map={"head": "model-00001-of-00002.safetensors"})
    with pytest.raises(
        CheckpointError, match=r"places tensor 'head' in model-00001-of-00002.safetensors, which does not"
    ):
        open_checkpoint(tmp_path / "wrong")
    sharded(tmp_path / "gone", weight_map={"head": "model-00003-of-00003.safetensors"})
    with pytest.raises(CheckpointError, match="which is not in its folder"):
        open_checkpoint(tmp_path / "gone")
    (tmp_path / "text.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not an index of shards"):
        open_checkpoint(tmp_path / "text.index.json")


def test_refuses_one_shard_alone_and_says_what_to_give(tmp_path: Path) -> None:
    sharded(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"one shard of a checkpoint\. Give its folder"):
        open_checkpoint(tmp_path / "run" / "model-00001-of-00002.safetensors")


# Bad files


class RunsCode:
    """Unpickling this creates a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.parametrize("legacy", [False, True])
def test_never_runs_code_from_a_pickle(tmp_path: Path, legacy: bool) -> None:
    sentinel, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({**state(), "x": RunsCode(sentinel)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"it holds posix\.mkdir, .*would run code.*safetensors") as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not sentinel.exists()
    torch.load(path, weights_only=False)
    assert sentinel.exists(), "the file would not have run code; this test proved nothing"


def test_refuses_a_pickled_module_by_the_names_of_its_classes(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "module.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refuses_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "script.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_checkpoint(tmp_path / "script.pt")


@pytest.mark.parametrize("keep", [4, 60, 200, -1])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=r"truncated|damaged") as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    if keep == -1:
        assert f"it has {len(whole) - 1:,} bytes, its header expects {len(whole):,}" in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_truncated_torch_file(tmp_path: Path, share: float, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(OrderedDict(w=torch.randn(1000)), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"truncated|damaged") as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.pt", b"hello, this is text", "damaged or not saved by torch.save"),
        ("empty.pt", b"", "the file is empty"),
        ("empty.safetensors", b"", "the file is empty"),
        ("text.safetensors", b"hello, this is text", "not a safetensors file"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("notes.txt", b"x", "unknown kind of file"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


def test_missing_file_and_plain_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match=r"expected one of model\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], {"net": {"w": torch.ones(1)}}, {}])
def test_a_file_without_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds no tensors|expected a dict of tensors") as caught:
        open_checkpoint(tmp_path / "model.pt")
    if isinstance(content, dict) and "net" in content:
        assert "choose one with key: net" in str(caught.value)


def test_empty_safetensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_sparse_tensors_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"tensor 'w' is torch.sparse_coo"):
        open_checkpoint(tmp_path / "model.pt")


def test_a_file_that_changes_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state(), path)
    checkpoint = open_checkpoint(path)
    save_file({**state(), "more": torch.ones(3)}, path)
    with checkpoint.open() as reader, pytest.raises(CheckpointError, match="changed since it was opened"):
        reader["step"]
