"""A tied pair that some members store twice, in two shards: what is written is what its index says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from radin.cli.group import cli


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20}
    return LlamaForCausalLM(
        LlamaConfig(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, **size)
    ).eval()


def once(seed: int, folder: Path) -> None:
    """As save_pretrained writes it: lm_head is not stored."""
    model(seed).save_pretrained(folder, max_shard_size="3KB")


def twice(seed: int, folder: Path, kind: str = "safetensors") -> None:
    """As scripts that gather a whole state dict write it: embed_tokens in the first shard, lm_head in the second."""
    folder.mkdir(parents=True)
    state = {name: tensor.detach().clone() for name, tensor in model(seed).state_dict().items()}
    first = {name: tensor for name, tensor in state.items() if "embed" in name}
    shards = [first, {name: tensor for name, tensor in state.items() if name not in first}]
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places = {}
    for k, tensors in enumerate(shards):
        name = f"{stem}-{k + 1:05d}-of-00002.{kind}"
        places |= dict.fromkeys(tensors, name)
        if kind == "safetensors":
            save_file(tensors, folder / name, metadata={"format": "pt"})
        else:
            torch.save(tensors, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    model(seed).config.save_pretrained(folder)


def twice_bin(seed: int, folder: Path) -> None:
    twice(seed, folder, "bin")


Save = Callable[[int, Path], None]


@pytest.mark.parametrize(
    "saved",
    [(twice, twice), (once, once), (twice, once), (once, twice), (twice_bin, twice_bin), (twice_bin, once)],
    ids=lambda saved: "+".join(each.__name__ for each in saved),
)
def test_the_index_names_what_the_shards_hold(tmp_path: Path, saved: tuple[Save, Save]) -> None:
    for k, save in enumerate(saved):
        save(k, tmp_path / f"run{k}")
    words = ["average", str(tmp_path / "run0"), str(tmp_path / "run1"), "-o", str(tmp_path / "soup")]
    run = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    [index] = (tmp_path / "soup").glob("*.index.json")
    places = json.loads(index.read_text())["weight_map"]
    assert ("lm_head.weight" in places) == (saved[0] is not once)
    held = {}
    for file in set(places.values()):
        path = tmp_path / "soup" / file
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        assert sorted(tensors) == sorted(name for name, shard in places.items() if shard == file)
        held |= tensors
    states = [model(k).state_dict() for k in range(2)]
    want = {name: ((states[0][name].double() + states[1][name]) / 2).float() for name in states[0]}
    assert all(torch.equal(tensor, want[name]) for name, tensor in held.items())
    soup = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    assert soup.lm_head.weight is soup.model.embed_tokens.weight
    assert all(torch.equal(tensor, want[name]) for name, tensor in soup.state_dict().items())
