"""LoRA adapters that PEFT wrote: their average against PEFT's own reading of it, merging into the base, refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from radin import CheckpointError, Pool, PoolError, Recipe, average
from radin.cli.group import cli
from radin.recipe import Group
from radin.run.average import average_adapter_pool
from radin.weights.adapter_pool import Adapters, average_adapters
from radin.weights.paths import find_checkpoints

RATIOS = (0.5, 0.2, 0.3)
TOKENS = torch.arange(12).reshape(2, 6)


def llama() -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **size)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)).eval()


def randomised(model: nn.Module, seed: int) -> None:
    """Every trainable parameter away from its start: PEFT begins with B = 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def write(folder: Path, build: Any, count: int = 3, each: Any = lambda k: {}, **settings: Any) -> Path:
    """``count`` adapters of one base, which lies beside them."""
    build().save_pretrained(folder / "base")
    for k in range(count):
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        config = peft.LoraConfig(**{"r": 2, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings, **each(k)})
        wrapped = peft.get_peft_model(model, config)
        randomised(wrapped, k)
        wrapped.save_pretrained(folder / "adapters" / f"run{k}")
    return folder


def deltas(folder: Path) -> list[dict[str, torch.Tensor]]:
    """What PEFT itself makes of each adapter, merged into the base: every tensor's change, in float64."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base").state_dict()
    found = []
    for path in sorted((folder / "adapters").iterdir()):
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), path)
        merged = model.merge_and_unload().state_dict()
        found.append({name: merged[name].double() - base[name].double() for name in base})
    return found


def reference(folder: Path) -> nn.Module:
    """The base plus the mean of the members' changes."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base").double().eval()
    changes = deltas(folder)
    state = model.state_dict()
    for name in state:
        state[name] = state[name] + sum(p * change[name] for p, change in zip(RATIOS, changes, strict=True))
    model.load_state_dict(state)
    return model


def opened(folder: Path, adapter: Path) -> nn.Module:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), adapter)
    return model.eval()


def made(folder: Path, **more: Any) -> Any:
    pool = Adapters.open(find_checkpoints(folder / "adapters"))
    ratios = [",".join(f"{ratio}" for ratio in RATIOS)]
    return average_adapter_pool(pool, ratios, None, folder / "soup", **more)


CASES = {
    "plain": (llama, {"target_modules": ["q_proj", "down_proj"]}, lambda k: {}),
    "rank-stabilised, alphas of their own": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        lambda k: {"lora_alpha": 3 + k},
    ),
    "ranks by module": (
        llama,
        {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"k_proj": 5}},
        lambda k: {},
    ),
    "embedding and a head trained whole": (
        llama,
        {"target_modules": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
        lambda k: {},
    ),
    "Conv1D, with biases": (
        gpt2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "bias": "all"},
        lambda k: {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_average_is_the_base_plus_the_mean_of_the_changes(tmp_path, case):
    build, settings, each = CASES[case]
    write(tmp_path, build, each=each, **settings)
    found = made(tmp_path)
    assert "exactly" in found.notes[0]
    with torch.no_grad():
        got = opened(tmp_path, tmp_path / "soup")(TOKENS).logits
        expected = reference(tmp_path)(TOKENS).logits
    assert torch.allclose(got.double(), expected, atol=2e-5)
    config = json.loads((tmp_path / "soup/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (6, 6, False)
    # The members' own soups of A and B, one by one, are something else: the test can fail.
    one = load_file(tmp_path / "soup/adapter_model.safetensors")
    apart = [load_file(tmp_path / f"adapters/run{k}/adapter_model.safetensors") for k in range(3)]
    plain = {name: sum(p * a[name] for p, a in zip(RATIOS, apart, strict=True)) for name in apart[0]}
    name = next(name for name in plain if "lora_A" in name and "embed" not in name)
    product = plain[name.replace("lora_A", "lora_B")] @ plain[name] * 3
    exact = one[name.replace("lora_A", "lora_B")] @ one[name]
    assert not torch.allclose(product, exact, atol=1e-2)


def test_a_rank_approximates_and_the_error_is_the_one_measured(tmp_path):
    write(tmp_path, llama, target_modules=["q_proj", "down_proj"])
    pool = Adapters.open(find_checkpoints(tmp_path / "adapters"))
    recipe = Recipe(RATIOS)
    exact, short = average_adapters(pool, recipe), average_adapters(pool, recipe, rank=2)
    assert (exact.error, exact.ranks, short.ranks) == (None, (6, 6), (2, 2))
    lost = whole = 0.0
    for name, a in exact.tensors.items():
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            product = exact.tensors[other].double() @ a.double()
            near = short.tensors[other].double() @ short.tensors[name].double()
            lost, whole = lost + float((product - near).square().sum()), whole + float(product.square().sum())
            tail = torch.linalg.svdvals(product)[2:]
            assert float((product - near).norm()) == pytest.approx(float(tail.norm()), rel=1e-4)
    assert short.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert 0.05 < short.error < 1
    made(tmp_path, rank=4)
    assert json.loads((tmp_path / "soup/adapter_config.json").read_text())["r"] == 4
    assert opened(tmp_path, tmp_path / "soup")(TOKENS).logits.isfinite().all()
    assert average_adapters(pool, recipe, rank=6).error is None


@pytest.mark.parametrize("case", CASES)
def test_merged_into_the_base_members_are_what_peft_merges(tmp_path, case):
    build, settings, each = CASES[case]
    write(tmp_path, build, each=each, **settings)
    pool = Pool.open(tmp_path / "adapters", base=tmp_path / "base")
    assert pool.member_names == ("run0", "run1", "run2")
    for k in range(3):
        theirs = opened(tmp_path, tmp_path / f"adapters/run{k}").merge_and_unload().state_dict()
        for name, tensor in pool.tensors(k).items():
            assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    expected = reference(tmp_path).state_dict()
    for name, tensor in average(pool, Recipe(RATIOS)).items():
        assert torch.allclose(tensor.double(), expected[name], atol=1e-6), name


def test_base_writes_a_whole_model_that_transformers_opens(tmp_path):
    write(tmp_path, llama, target_modules=["q_proj"])
    words = ["average", tmp_path / "adapters", "--base", tmp_path / "base", "-o", tmp_path / "soup"]
    run = CliRunner().invoke(cli, [*map(str, words), "--ratios", "5,2,3"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "soup").eval()
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits.double(), reference(tmp_path)(TOKENS).logits, atol=2e-5)
    assert "A model soup: the average of the weights of 3 checkpoints" in (tmp_path / "soup/README.md").read_text()


def test_a_name_with_the_adapter_in_it_and_a_torch_file_are_the_same_adapter(tmp_path):
    write(tmp_path, llama, target_modules=["q_proj"])
    before = made(tmp_path)
    path = tmp_path / "adapters/run1"
    tensors = load_file(path / "adapter_model.safetensors")
    (path / "adapter_model.safetensors").unlink()
    torch.save(
        {name.replace(".weight", ".default.weight"): t for name, t in tensors.items()}, path / "adapter_model.bin"
    )
    expected = load_file(tmp_path / "soup/adapter_model.safetensors")
    made(tmp_path)
    got = load_file(tmp_path / "soup/adapter_model.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert before.recipe == Recipe.normalized(RATIOS)


def test_a_scale_makes_another_adapter_and_the_same_twice_is_one(tmp_path):
    write(tmp_path, llama, 2, target_modules=["q_proj"])
    for name in ("again", "louder"):
        (tmp_path / "adapters" / name).mkdir()
        for file in (tmp_path / "adapters/run0").iterdir():
            (tmp_path / "adapters" / name / file.name).write_bytes(file.read_bytes())
    change(tmp_path / "adapters/louder", lora_alpha=60)
    pool = Adapters.open(find_checkpoints(tmp_path / "adapters"))
    assert sorted(pool.member_names) == ["again", "louder", "run1"]
    assert [kept.name for _, kept in pool.duplicates] == ["again"]


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, r"run1: not a plain LoRA adapter \(its peft_type is 'LOHA'\)"),
        ({"use_dora": True}, r"not a plain LoRA adapter \(it has use_dora\)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changed its base"),
        ({"base_model_name_or_path": "other"}, r"run1 was trained on 'other'; expected '.*base' as .*run0 was"),
        ({"r": 4}, r"has rank 2; adapter_config.json says 4"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much'; expected a number"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern is not made of modules' names"),
    ],
)
def test_what_cannot_be_averaged_is_refused_by_its_name(tmp_path, settings, message):
    write(tmp_path, llama, 2, target_modules=["q_proj"])
    change(tmp_path / "adapters/run1", **settings)
    with pytest.raises((CheckpointError, PoolError), match=message):
        Adapters.open(find_checkpoints(tmp_path / "adapters"))
    with pytest.raises((CheckpointError, PoolError), match=message):
        Pool.open(tmp_path / "adapters", base=tmp_path / "base")


def test_other_ranks_and_modules_are_refused(tmp_path):
    write(tmp_path / "ranks", llama, 2, each=lambda k: {"r": 2 + k}, target_modules=["q_proj"])
    with pytest.raises(PoolError, match=r"run1 has rank 3 in '.*q_proj'; expected 2 .*with --base FOLDER"):
        Adapters.open(find_checkpoints(tmp_path / "ranks/adapters"))
    assert len(Pool.open(tmp_path / "ranks/adapters", base=tmp_path / "ranks/base")) == 2
    write(tmp_path / "modules", llama, 2, each=lambda k: {"target_modules": [("q_proj", "v_proj")[k]]})
    with pytest.raises(PoolError, match=r"run1 has other target modules than .*run0: .*q_proj"):
        Adapters.open(find_checkpoints(tmp_path / "modules/adapters"))


def test_real_dora_is_refused(tmp_path):
    write(tmp_path, llama, 2, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(CheckpointError, match=r"not a plain LoRA adapter \(it has use_dora\).*merge_and_unload"):
        Adapters.open(find_checkpoints(tmp_path / "adapters"))


def test_factors_are_never_averaged_one_by_one(tmp_path):
    write(tmp_path, llama, 2, target_modules=["q_proj"])
    with pytest.raises(
        PoolError, match=r"run0 is an adapter: .* not that of their products B A. 'radin average' .*--base"
    ):
        Pool.open(tmp_path / "adapters")
    wrapped = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for k in range(2):
        randomised(wrapped, k)
        torch.save(copy.deepcopy(wrapped.state_dict()), tmp_path / f"whole{k}.pt")
    with pytest.raises(PoolError, match=r"whole0.pt is an adapter: .*merge each adapter into its model first"):
        Pool.open([tmp_path / "whole0.pt", tmp_path / "whole1.pt"])


def test_base_must_be_the_model_and_adapters_must_be_there(tmp_path):
    write(tmp_path, llama, 2, target_modules=["q_proj"])
    gpt2().save_pretrained(tmp_path / "other")
    with pytest.raises(
        PoolError, match=r"1 of the 1 tensors that it changes are not in the base .*other \(first model"
    ):
        Pool.open(tmp_path / "adapters", base=tmp_path / "other")
    with pytest.raises(PoolError, match="is an adapter itself"):
        Pool.open(tmp_path / "adapters", base=tmp_path / "adapters/run0")
    with pytest.raises(PoolError, match=r"--base .* is for adapters; none of the 1 checkpoints is one"):
        Pool.open(tmp_path / "other", base=tmp_path / "base")
    (tmp_path / "adapters/run1/adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"run1/adapter_config.json: not there; an adapter cannot be read"):
        Adapters.open(find_checkpoints(tmp_path / "adapters"))


def test_an_adapter_whose_json_changes_is_another_member(tmp_path):
    write(tmp_path, llama, 2, target_modules=["q_proj"])
    first = Pool.open(tmp_path / "adapters", base=tmp_path / "base").fingerprints
    change(tmp_path / "adapters/run1", lora_alpha=60)
    again = Pool.open(tmp_path / "adapters", base=tmp_path / "base").fingerprints
    assert first[0] == again[0]
    assert first[1] != again[1]


def test_factors_that_do_not_fit_each_other_are_refused(tmp_path):
    write(tmp_path, llama, 2, target_modules=["q_proj"])
    path = tmp_path / "adapters/run1/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: torch.ones(16, 3)}, path)
    with pytest.raises(
        CheckpointError, match=r"factors of '.*q_proj' do not fit each other: A is \(2, 16\), B is \(16, 3\)"
    ):
        Adapters.open(find_checkpoints(tmp_path / "adapters"))


def test_groups_name_modules_of_the_model_and_their_products_are_averaged(tmp_path):
    write(tmp_path, llama, target_modules=["q_proj", "v_proj", "down_proj"])
    pool = Adapters.open(find_checkpoints([tmp_path / "adapters"]))
    attention, query = (0.0, 0.25, 0.75), (0.0, 1.0, 0.0)
    layer = "model.layers.0.self_attn"
    recipe = Recipe(RATIOS, groups=(Group(layer, attention), Group(f"{layer}.q_proj", query)))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json(pool.member_names, pool.fingerprints)))
    found = average_adapter_pool(pool, (), tmp_path / "recipe.json", tmp_path / "soup")
    assert "ranks 2 to 6" in found.notes[0].replace("ranks 6 to 2", "ranks 2 to 6")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = {name: tensor.double() for name, tensor in base.state_dict().items()}
    after = peft.PeftModel.from_pretrained(base, tmp_path / "soup").merge_and_unload().state_dict()
    changes = deltas(tmp_path)
    for name in before:
        row = query if "q_proj" in name else attention if "self_attn" in name else RATIOS
        expected = sum(p * change[name] for p, change in zip(row, changes, strict=True))
        assert torch.allclose(after[name].double() - before[name], expected, rtol=0, atol=2e-6), name
    with pytest.raises(
        PoolError, match=r"group model\.layers\.0\.mlp\.up_proj names no module that the adapters change"
    ):
        average_adapters(pool, Recipe(RATIOS, groups=(Group("model.layers.0.mlp.up_proj", query),)))
