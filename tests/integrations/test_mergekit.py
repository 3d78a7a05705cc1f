"""mergekit's recipes: what radin writes mergekit merges to the same soup, what mergekit reads radin averages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import radin
from radin import Task
from radin.cli.group import cli
from radin.integrations import mergekit

SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 20}
NAMES = ("run1", "run2", "run3")
TOKENS = torch.randint(0, 20, (40, 5), generator=torch.Generator().manual_seed(0))


def model(seed: int = 0) -> Any:
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **SIZE)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05 * (seed > 0))
    return made


@pytest.fixture
def members(tmp_path) -> Path:
    for k, name in enumerate(NAMES):
        model(k + 1).save_pretrained(tmp_path / "pool" / name)
    return tmp_path / "pool"


def says(*words: object) -> str:
    run = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.output


def refused(*words: object) -> str:
    run = CliRunner().invoke(cli, [str(word) for word in words])
    assert isinstance(run.exception, radin.RadinError), run.output
    return str(run.exception)


def merged(recipe: Path, out: Path) -> dict[str, torch.Tensor]:
    """By mergekit-yaml in a process of its own."""
    script = "import torchvision_on_cpu; torchvision_on_cpu.install()\n"
    script += "from mergekit.scripts.run_yaml import main; main()"
    words = [sys.executable, "-c", script, str(recipe), str(out), "--no-copy-tokenizer"]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {name: t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}


class Last(nn.Module):
    """The logits that follow the last token."""

    def __init__(self) -> None:
        super().__init__()
        whole = model()
        self.model, self.lm_head = whole.model, whole.lm_head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model(ids).last_hidden_state[:, -1])


@pytest.mark.long
def test_a_run_exported_and_merged_by_mergekit_is_its_soup(members, tmp_path):
    right = Last()
    states = [model(k + 1).state_dict() for k in range(3)]
    right.load_state_dict({name: sum(state[name] for state in states) / 3 for name in states[0]})
    with torch.no_grad():
        targets = right(TOKENS).argmax(1)
    task = Task(model=Last, validation=[(TOKENS, targets)])
    result = radin.cook(members, task, budget=3, out=tmp_path / "run", uniform=True)
    assert result.best.recipe.size == 3
    assert "mergekit-yaml" in says("export", tmp_path / "run", "--mergekit", tmp_path / "linear.yml")
    value = yaml.safe_load((tmp_path / "linear.yml").read_text())
    assert value["merge_method"] == "linear"
    weights = {Path(m["model"]).name: m["parameters"]["weight"] for m in value["models"]}
    assert weights == {result.member_names[k]: result.best.recipe.weights[k] for k in result.best.recipe.members}
    theirs, ours = merged(tmp_path / "linear.yml", tmp_path / "theirs"), load_file(result.soup / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.allclose(theirs[name], tensor, rtol=0, atol=2e-7), name
    AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    # The same file read by radin gives the very soup.
    says("average", tmp_path / "linear.yml", "-o", tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())


def test_a_run_that_one_member_won_is_exported_and_read_again(members, tmp_path):
    best = Last()
    best.load_state_dict(model(2).state_dict())
    with torch.no_grad():
        task = Task(model=Last, validation=[(TOKENS, best(TOKENS).argmax(1))])
    result = radin.cook(members, task, budget=1, out=tmp_path / "run")
    assert [result.member_names[k] for k in result.best.recipe.members] == ["run2"]
    says("export", tmp_path / "run", "--mergekit", tmp_path / "linear.yml")
    says("average", tmp_path / "linear.yml", "-o", tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert all(
        torch.equal(again[name], tensor) for name, tensor in load_file(members / "run2/model.safetensors").items()
    )
    assert "at least two" in refused("average", members / "run2", "-o", tmp_path / "alone")


def recipe(folder: Path, members: Path, weights: tuple[float, ...] = (2, 1, 1), **more: Any) -> Path:
    models = [
        {"model": str(members / name), "parameters": {"weight": weight}}
        for name, weight in zip(NAMES, weights, strict=True)
    ]
    value = {"merge_method": "linear", "models": models, "dtype": "float32", **more}
    (folder / "recipe.yml").write_text(yaml.safe_dump({name: part for name, part in value.items() if part is not None}))
    return folder / "recipe.yml"


@pytest.mark.long
def test_a_recipe_read_gives_what_mergekit_gives(members, tmp_path):
    path = recipe(tmp_path, members, base_model=str(members / "run2"), parameters={"normalize": True})
    says("average", path, "-o", tmp_path / "soup")
    theirs, ours = merged(path, tmp_path / "theirs"), load_file(tmp_path / "soup/model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(theirs[name], tensor, rtol=0, atol=2e-7) for name, tensor in ours.items())
    assert "run2" in (tmp_path / "soup/README.md").read_text().split("files beside the weights")[1].split("\n")[0]


def test_a_soup_says_its_recipe_and_members_are_found_by_content(members, tmp_path):
    says("average", members, "--ratios", "run1=3,run3=1", "-o", tmp_path / "soup")
    (members / "run3").rename(members / "elsewhere")
    assert "does not say where its members are" in refused(
        "export", tmp_path / "soup", "--mergekit", tmp_path / "a.yml"
    )
    says("export", tmp_path / "soup", members, "--mergekit", tmp_path / "a.yml", "--files-from", "elsewhere")
    value = yaml.safe_load((tmp_path / "a.yml").read_text())
    assert [(Path(m["model"]).name, m["parameters"]["weight"]) for m in value["models"]] == [
        ("elsewhere", 0.25),
        ("run1", 0.75),
    ]
    assert Path(value["base_model"]).name == "elsewhere"
    assert "--force" in refused("export", tmp_path / "soup", members, "--mergekit", tmp_path / "a.yml")
    files = [tmp_path / f"{name}.pt" for name in "ab"]
    for k, file in enumerate(files):
        torch.save({"w": torch.full((2,), float(k))}, file)
    says("average", *files, "-o", tmp_path / "soup.pt")
    said = refused("export", tmp_path / "soup.pt", *files, "--mergekit", tmp_path / "b.yml")
    assert "a.pt: mergekit merges folders of transformers models" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "ties"}, "recipe.yml: merge_method is ties; radin averages, so it reads linear alone"),
        ({"models": None, "slices": []}, "is made of slices, which are put together and not averaged"),
        ({"chat_template": "auto"}, "chat_template: not done by radin"),
        ({"dtype": "bfloat16"}, "asks for dtype bfloat16, and the models are float32"),
        ({"parameters": {"normalize": False}}, "normalize is false and the weights sum to 4: not an average"),
        ({"parameters": {"density": 0.5}}, "parameters may be weight, normalize here; got 'density'"),
        ({"base_model": "org/name"}, "the model 'org/name' is no path here, .*hf download"),
        ({"merge_method": None}, "no recipe of mergekit's: it has no merge_method"),
    ],
)
def test_what_is_no_average_of_local_models_is_refused(members, tmp_path, changes, message):
    import re

    said = refused("average", recipe(tmp_path, members, **changes), "-o", tmp_path / "soup")
    assert re.search(message, said), said
    assert not (tmp_path / "soup").exists()


def test_weights_by_layer_or_without_a_sum_and_other_paths_are_refused(members, tmp_path):
    path = recipe(tmp_path, members, ([0.1, 0.9], 1, 1))
    assert "the weight of" in refused("average", path, "-o", tmp_path / "soup")
    path = recipe(tmp_path, members, (-1, 2, -1))
    assert "must have a positive sum" in refused("average", path, "-o", tmp_path / "soup")
    assert "give no other paths" in refused("average", path, members, "-o", tmp_path / "soup")
    path.write_text("a: &a [1]\nb: *a\nmerge_method: linear\n")
    assert "YAML aliases" in refused("average", path, "-o", tmp_path / "soup")
    path.write_text("a: [1\n")
    assert "no YAML" in refused("average", path, "-o", tmp_path / "soup")


def test_yaml_is_an_extra(members, tmp_path, monkeypatch):
    path = recipe(tmp_path, members)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "pip install pyyaml" in refused("average", path, "-o", tmp_path / "soup")


def differing(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> list[str]:
    assert theirs.keys() == ours.keys()
    return [name for name, tensor in ours.items() if not torch.allclose(theirs[name], tensor, rtol=0, atol=2e-7)]


@pytest.mark.long
def test_ratios_by_group_are_merged_by_mergekit_to_the_same_soup_and_back(members, tmp_path):
    groups = {"model": [1, 3, 0], "model.layers.1": [1, 1, 2], "model.layers.1.mlp": [0, 0, 1], "model.norm": [0, 1, 1]}
    pool = radin.Pool.open(members)
    given = radin.Recipe.normalized([2, 1, 1], groups)
    (tmp_path / "recipe.json").write_text(json.dumps(given.to_json(pool.member_names, pool.fingerprints)))
    says("average", members, "--recipe", tmp_path / "recipe.json", "-o", tmp_path / "soup")
    says("export", tmp_path / "soup", members, "--mergekit", tmp_path / "a.yml")
    ours = load_file(tmp_path / "soup/model.safetensors")
    assert differing(merged(tmp_path / "a.yml", tmp_path / "theirs"), ours) == []
    says("average", members, "--ratios", "2,1,1", "-o", tmp_path / "plain")
    assert len(differing(load_file(tmp_path / "plain/model.safetensors"), ours)) > 5, "groups matter"
    says("average", tmp_path / "a.yml", "-o", tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert differing(again, ours) == []
    value = yaml.safe_load((tmp_path / "a.yml").read_text())
    assert value["models"][0]["parameters"]["weight"][-1] == {"value": 0.5}


def test_filters_are_texts_anywhere_in_a_name(tmp_path):
    """So layers.1 is not said by its name, where there is a layers.1 inside of another module."""
    for k in range(2):
        names = ("layers.1.w", "more.layers.1.w", "a", "ba")
        torch.save({name: torch.full((2,), float(k)) + len(name) for name in names}, tmp_path / f"{k}.pt")
    pool = radin.Pool.open(tmp_path)
    given = radin.Recipe.normalized([1, 1], {"layers": [1, 0], "a": [0, 1]})
    conditions = mergekit._conditions(pool, given)
    for name in pool.names:
        first = next((row for text, row in conditions if text in name), given.weights)
        assert first == given.of(name), name


@pytest.mark.long
def test_weights_by_filter_are_read_as_mergekit_reads_them(members, tmp_path):
    one = [{"filter": "self_attn", "value": 3}, {"filter": "layers.0", "value": 1}]
    two = [{"filter": "*", "value": 1}, {"filter": "mlp", "value": 5}]
    path = recipe(tmp_path, members, (one, two, 1), parameters={"weight": 2, "normalize": True})
    says("average", path, "-o", tmp_path / "soup")
    theirs, ours = merged(path, tmp_path / "theirs"), load_file(tmp_path / "soup/model.safetensors")
    assert differing(theirs, ours) == []
    path = recipe(tmp_path, members, (one, two, 1))
    assert "run1 has no weight for the tensor" in refused("average", path, "-o", tmp_path / "none")
    path = recipe(tmp_path, members, ([{"filter": 3, "value": 3}], two, 1))
    assert "must be one number, or a list of 'value: NUMBER' with 'filter: TEXT'" in refused(
        "average", path, "-o", tmp_path / "none"
    )


def test_weights_below_zero_are_merged_by_mergekit_to_the_same_soup_and_back(members, tmp_path):
    pool = radin.Pool.open(members)
    given = radin.Recipe.normalized([3, -1, 1], {"model.layers.1": [-1, 0, 3]}, affine=True)
    (tmp_path / "recipe.json").write_text(json.dumps(given.to_json(pool.member_names, pool.fingerprints)))
    says("average", members, "--recipe", tmp_path / "recipe.json", "-o", tmp_path / "soup")
    assert "Some are negative" in (tmp_path / "soup/README.md").read_text()
    says("export", tmp_path / "soup", members, "--mergekit", tmp_path / "a.yml")
    ours = load_file(tmp_path / "soup/model.safetensors")
    assert differing(merged(tmp_path / "a.yml", tmp_path / "theirs"), ours) == []
    assert (yaml.safe_load((tmp_path / "a.yml").read_text())["models"][1]["parameters"]["weight"][-1]["value"]) < 0
    says("average", tmp_path / "a.yml", "-o", tmp_path / "again")
    assert differing(load_file(tmp_path / "again/model.safetensors"), ours) == []
