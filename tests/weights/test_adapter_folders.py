"""Adapters where training leaves them, and adapters of convolutions, against PEFT's own reading of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from radin import CheckpointError, Pool, Recipe
from radin.cli.group import cli
from radin.weights.adapter_pool import Adapters, average_adapters, save_adapter
from radin.weights.paths import find_checkpoints, look_for


def average(*words: object) -> dict[str, Any]:
    run = CliRunner().invoke(cli, ["average", *map(str, words), "--json"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return dict(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.filterwarnings("ignore")
def test_what_a_trainer_with_peft_leaves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **size)).save_pretrained(tmp_path / "b")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "b")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    data = [{"input_ids": [k, 3, 5], "labels": [k, 3, 5]} for k in range(8)]
    arguments = TrainingArguments(
        str(tmp_path / "study/out"), max_steps=4, save_steps=2, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    trainer = Trainer(wrapped, arguments, train_dataset=data)
    trainer.train()
    assert (tmp_path / "study/out/checkpoint-2/optimizer.pt").exists()
    names = ["checkpoint-2", "checkpoint-4"]
    assert [path.name for path in find_checkpoints(tmp_path / "study/out")] == names
    # The folder above, the folder itself and a pattern are the same two members, and what was left out is said.
    places = [tmp_path / "study", tmp_path / "study/out", tmp_path / "study/out/checkpoint-*"]
    made = [average(place, "-o", tmp_path / f"soup{k}") for k, place in enumerate(places)]
    assert made[0]["ratios"] == made[1]["ratios"] == made[2]["ratios"]
    assert [member["name"] for member in made[0]["ratios"]] == names
    assert any("took 2 checkpoints from 1 folder below" in note for note in made[0]["notes"])
    soup = load_file(tmp_path / "soup0/adapter_model.safetensors")
    first, last = (load_file(tmp_path / f"study/out/{name}/adapter_model.safetensors") for name in names)
    place = next(name for name in soup if "lora_A" in name)
    other = place.replace("lora_A", "lora_B")
    assert not torch.equal(first[other], last[other])
    scale = 8 / 2
    want = (first[other] @ first[place] + last[other] @ last[place]) * scale / 2
    assert torch.allclose(soup[other] @ soup[place], want, atol=1e-6)
    # Merged into the base, by the command's own search.
    whole = Pool.open(tmp_path / "study", base=tmp_path / "b")
    assert whole.member_names == ("checkpoint-2", "checkpoint-4")
    assert any("took 2 checkpoints" in note for note in whole.notes)
    # The final model stands for the run where it is there.
    trainer.save_model(str(tmp_path / "study/out"))
    found = look_for(tmp_path / "study")
    assert [path.name for path in found.paths] == ["out"]
    assert find_checkpoints(tmp_path / "study/out") == [tmp_path / "study/out"]
    assert any("earlier states of a run" in note for note in look_for(tmp_path / "study/out").notes)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.grouped(self.narrow(self.wide(x)).relu()).mean((2, 3)))
        return found


def convolutions() -> Convolutions:
    torch.manual_seed(0)
    return Convolutions().eval()


def write(folder: Path, count: int = 2, **settings: Any) -> None:
    """A base's folder, and adapters beside each other below another."""
    (folder / "base").mkdir(parents=True)
    save_file(convolutions().state_dict(), folder / "base/model.safetensors")
    for k in range(count):
        wrapped = peft.get_peft_model(convolutions(), peft.LoraConfig(r=2, lora_alpha=3 + k, **settings))
        torch.manual_seed(k)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
        wrapped.save_pretrained(folder / f"runs/run{k}")


def merged(adapter: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = (
        peft.PeftModel.from_pretrained(convolutions(), adapter).merge_and_unload().state_dict()
    )
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["wide", "narrow", "head"]},
        {
            "target_modules": ["wide", "head"],
            "use_rslora": True,
            "rank_pattern": {"wide": 3},
            "alpha_pattern": {"head": 9},
        },
    ],
    ids=["plain", "ranks and scales of their own"],
)
def test_convolutions_are_merged_and_averaged_as_peft_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    write(tmp_path, **settings)
    pool = Pool.open(tmp_path / "runs", base=tmp_path / "base")
    theirs = [merged(tmp_path / f"runs/run{k}") for k in range(2)]
    for k in range(2):
        for name, tensor in pool.tensors(k).items():
            assert torch.allclose(tensor, theirs[k][name], atol=1e-6), name
        assert not torch.allclose(pool.tensors(k)["wide.weight"], convolutions().wide.weight, atol=1e-3)
    adapters = Adapters.open(find_checkpoints(tmp_path / "runs"))
    soup = average_adapters(adapters, Recipe.uniform(range(2), 2))
    save_adapter(soup, adapters[0].adapter, tmp_path / "soup", {})
    for name, tensor in merged(tmp_path / "soup").items():
        want = (theirs[0][name].double() + theirs[1][name].double()) / 2
        assert torch.allclose(tensor.double(), want, atol=1e-6), name


@pytest.mark.filterwarnings("ignore")
def test_a_rank_for_convolutions_is_the_nearest_there_is(tmp_path: Path) -> None:
    write(tmp_path, target_modules=["wide"])
    adapters = Adapters.open(find_checkpoints(tmp_path / "runs"))
    soup = average_adapters(adapters, Recipe.uniform(range(2), 2), rank=2)
    save_adapter(soup, adapters[0].adapter, tmp_path / "soup", {})
    base = convolutions().wide.weight.detach()
    change = sum(merged(tmp_path / f"runs/run{k}")["wide.weight"].double() - base for k in range(2)) / 2
    got = merged(tmp_path / "soup")["wide.weight"].double() - base
    values = torch.linalg.svdvals(change.reshape(len(change), -1))
    assert float((got - change).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
    assert soup.error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_convolutions_in_groups_are_refused(tmp_path: Path) -> None:
    write(tmp_path, target_modules=["grouped"])
    with pytest.raises(CheckpointError, match="'grouped' is a convolution in 2 groups"):
        Pool.open(tmp_path / "runs", base=tmp_path / "base")
    with pytest.raises(CheckpointError, match="'grouped'"):
        Adapters.open(find_checkpoints(tmp_path / "runs"))
