"""Distributed checkpoints, as torch and DeepSpeed write them: read without a model; parts and damage refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from radin.errors import CheckpointError, NoWeightsError
from radin.recipe import Recipe
from radin.run.average import average_files
from radin.weights import Pool, average, open_checkpoint, read_recipe
from radin.weights.paths import look_for


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(3, 4, generator=generator),
        "layer.bias": torch.randn(4, generator=generator).bfloat16(),
        "steps": torch.tensor(seed),
    }


OPTIM = {"state": {"layer.weight": {"exp_avg": torch.zeros(3, 4)}}, "param_groups": [{"lr": 0.1}]}


def save(content: dict[str, Any], folder: Path) -> Path:
    dcp.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def read(path: Path, key: str | None = None) -> dict[str, Tensor]:
    with open_checkpoint(path, key=key).open() as reader:
        return {name: reader[name].clone() for name in reader}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return sorted(left) == sorted(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("around", ["model", "state_dict", "app", ""])
def test_weights_are_found_beside_an_optimizer(tmp_path: Path, around: str) -> None:
    content: dict[str, Any] = {"model": state(), "optim": OPTIM, "epoch": 3}
    if around == "app":
        content = {"app": content}
    elif around == "":
        content = state()
    else:
        content = {around: state(), "optim": OPTIM}
    folder = save(content, tmp_path / "step-1")
    assert same(read(folder), state())
    notes = open_checkpoint(folder).notes
    assert any("left out 1 other tensors" in note for note in notes) == (around != "")


@pytest.mark.filterwarnings("ignore")
def test_a_pool_of_them_is_averaged(tmp_path: Path) -> None:
    for k in range(2):
        save({"model": state(k), "optim": OPTIM}, tmp_path / f"run{k}/step-{k}")
    pool = Pool.open(tmp_path)
    assert len(pool) == 2
    soup = average(pool, Recipe.uniform(range(2), 2))
    want = (state(0)["layer.weight"].double() + state(1)["layer.weight"].double()) / 2
    assert torch.equal(soup["layer.weight"], want.float())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("around", ["model", "app", ""])
def test_a_soup_of_them_is_one_that_torch_loads_into_a_model(tmp_path: Path, around: str) -> None:
    def nested(weights: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"model": {"model": weights}, "app": {"app": {"model": weights, **more}}, "": weights}[around]

    models = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    for k, model in enumerate(models[:2]):
        save(nested(model.state_dict(), optim=OPTIM), tmp_path / f"run{k}")
    average_files([tmp_path / "run0", tmp_path / "run1"], None, ["3,1"], None, tmp_path / "soup", None)
    assert sorted(path.suffix for path in (tmp_path / "soup").iterdir() if path.name != "README.md") == [
        "", ".distcp", ".json",
    ]  # fmt: skip
    loaded = nested(models[2].state_dict())
    dcp.load(loaded, checkpoint_id=tmp_path / "soup", no_dist=True)
    states = [model.state_dict() for model in models[:2]]
    got = loaded if around == "" else (loaded["model"] if around == "model" else loaded["app"]["model"])
    for name in ("0.weight", "0.bias", "1.running_var"):
        want = states[0][name].double() * 0.75 + states[1][name].double() * 0.25
        assert torch.equal(got[name], want.float()), name
    assert same(read(tmp_path / "soup"), {name: got[name] for name in states[0]})
    pool = Pool.open([tmp_path / "run0", tmp_path / "run1"])
    assert Recipe.from_json(read_recipe(tmp_path / "soup"), pool.fingerprints).weights == (0.75, 0.25)


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_alone_holds_no_weights(tmp_path: Path) -> None:
    with pytest.raises(NoWeightsError, match="there are tensors under: optimizer"):
        open_checkpoint(save({"optimizer": OPTIM}, tmp_path / "optimizer_0"))


SHARDED = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}.meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = {"rows": torch.arange(15.0).reshape(5, 3), "columns": torch.arange(8.0).reshape(2, 4), "all": torch.ones(2)}
ways = {"rows": Shard(0), "columns": Shard(1), "all": Replicate()}
dcp.save({"model": {n: distribute_tensor(t, mesh, [ways[n]]) for n, t in whole.items()}}, checkpoint_id=folder)
dist.destroy_process_group()
"""


@pytest.mark.long
def test_tensors_that_are_spread_over_processes(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SHARDED]
    started = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in started:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
    assert sorted(path.name for path in folder.glob("*.distcp")) == ["__0_0.distcp", "__1_0.distcp"]
    assert same(
        read(folder),
        {"rows": torch.arange(15.0).reshape(5, 3), "columns": torch.arange(8.0).reshape(2, 4), "all": torch.ones(2)},
    )
    (folder / "__1_0.distcp").rename(folder / "gone")
    with pytest.raises(CheckpointError, match=r"its metadata name the file __1_0\.distcp, which is not in the folder"):
        open_checkpoint(folder)


class Ran:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.filterwarnings("ignore")
def test_damage_and_code_in_the_metadata(tmp_path: Path) -> None:
    folder = save({"model": state()}, tmp_path / "step-1")
    file = folder / ".metadata"
    whole = file.read_bytes()
    metadata = pickle.loads(whole)
    sentinel = tmp_path / "ran"
    file.write_bytes(pickle.dumps(Ran(sentinel)))
    with pytest.raises(CheckpointError, match="damaged, or not of torch"):
        open_checkpoint(folder)
    metadata.storage_meta = Ran(sentinel)
    file.write_bytes(pickle.dumps(metadata))
    assert same(read(folder), state())
    assert not sentinel.exists()
    for place in range(0, len(whole), 97):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with suppress(CheckpointError):  # read or refused: nothing else
            read(folder)
    file.write_bytes(whole.replace(b"__0_0.distcp", b"../../../etc"))
    with pytest.raises(CheckpointError, match="a chunk lies in no file of the folder"):
        open_checkpoint(folder)
    file.write_bytes(whole)
    data = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="truncated: it has"):
        open_checkpoint(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    folder = save({"model": state()}, tmp_path / "step-1")
    checkpoint = open_checkpoint(folder)
    assert [path.name for path in checkpoint.files] == [".metadata", "__0_0.distcp"]
    save({"model": state(1)}, folder)
    os.utime(folder / ".metadata", (1, 1))
    with checkpoint.open() as reader, pytest.raises(CheckpointError, match="changed since it was opened"):
        reader["steps"]


# DeepSpeed, whose files are torch's: as deepspeed/runtime/engine.py _save_checkpoint lays them out


def deepspeed(folder: Path, zero: int) -> None:
    place = folder / "global_step5"
    place.mkdir(parents=True)
    (folder / "latest").write_text("global_step5")
    model = nn.Linear(3, 2).bfloat16()
    about = {"ds_version": "0.15", "ds_config": {"zero_optimization": {"stage": zero}}, "optimizer": None}
    if zero < 3:
        torch.save({"module": model.state_dict(), **about}, place / "mp_rank_00_model_states.pt")
    else:
        empty = {name: torch.empty(0) for name in model.state_dict()}
        for rank in range(2):
            torch.save({"module": empty, **about}, place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, place / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")


def test_deepspeed_with_whole_weights(tmp_path: Path) -> None:
    deepspeed(tmp_path / "run", 2)
    pool = Pool.open(tmp_path / "run")
    assert pool.names == ("bias", "weight")
    assert any("zero_to_fp32.py gives those in float32" in note for note in pool.notes)
    assert any("optim_states.pt" in note for note in pool.notes)


def test_deepspeed_with_spread_weights_says_how_to_make_them_whole(tmp_path: Path) -> None:
    deepspeed(tmp_path / "run", 3)
    with pytest.raises(CheckpointError, match=r"ZeRO-3 checkpoint, .* python zero_to_fp32\.py"):
        Pool.open(tmp_path / "run")
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "pytorch_model.bin")  # what that script writes
    assert look_for(tmp_path).paths == [tmp_path]


def test_model_parallel_parts_are_refused(tmp_path: Path) -> None:
    for rank in range(2):
        torch.save({"module": state()}, tmp_path / f"mp_rank_0{rank}_model_states.pt")
    with pytest.raises(CheckpointError, match="model parallel"):
        open_checkpoint(tmp_path / "mp_rank_00_model_states.pt")
