"""Hugging Face folders in, a folder out: what from_pretrained opens, what is said, and the model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)

import radin
from radin import PoolError, RunError, Task
from radin.checksums import file_checksum
from radin.cli.group import cli
from radin.run.ledger import Ledger
from radin.weights import read_recipe

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{k}" for k in range(25))]
NAMES = ("run1", "run2", "run3")


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **size)).eval()


class Logits(torch.nn.Module):
    """A model as a task has it: logits, and the names of the checkpoints' tensors."""

    def __init__(self) -> None:
        super().__init__()
        whole = model()
        self.bert, self.dropout, self.classifier = whole.bert, whole.dropout, whole.classifier

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.bert(ids).pooler_output))


INPUTS = torch.randint(5, 30, (60, 6), generator=torch.Generator().manual_seed(1))
TEST = torch.randint(5, 30, (20, 6), generator=torch.Generator().manual_seed(2))


def targets(inputs: torch.Tensor = INPUTS) -> torch.Tensor:
    with torch.no_grad():
        return model()(inputs).logits.argmax(1)


def task() -> Task:
    return Task(model=Logits, validation=[(INPUTS, targets())], test=[(TEST, targets(TEST))])


def write(folder: Path, shard: str = "5GB") -> Path:
    """Three members near one model, each saved by the libraries themselves, with a card of its own."""
    for k, name in enumerate(NAMES):
        member = model()
        torch.manual_seed(k + 1)
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        member.save_pretrained(folder / name, max_shard_size=shard)
        BertTokenizerFast(vocab={word: k for k, word in enumerate(WORDS)}).save_pretrained(folder / name)
        text = f"---\nlicense: mit\nbase_model: org/tiny-bert\nmetrics:\n- accuracy\n---\n# {name}\n"
        (folder / name / "README.md").write_text(text)
        (folder / name / "trainer_state.json").write_text("{}")
        torch.save({}, folder / name / "training_args.bin")
    return folder


@pytest.fixture
def members(tmp_path) -> Path:
    return write(tmp_path / "pool")


def radin_says(*words: object, code: int = 0) -> str:
    run = CliRunner().invoke(cli, [str(word) for word in words])
    assert (run.exit_code == 0) == (code == 0), run.output
    return run.output if code == 0 else str(run.exception)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()(INPUTS).logits


def mean(folders: list[Path], ratios: list[float]) -> torch.Tensor:
    """What transformers makes of the average of the members' own state dicts."""
    states = [AutoModelForSequenceClassification.from_pretrained(folder).state_dict() for folder in folders]
    made = AutoModelForSequenceClassification.from_pretrained(folders[0]).eval()
    floats = {n: sum(p * s[n].double() for p, s in zip(ratios, states, strict=True)).float() for n in states[0]}
    made.load_state_dict(floats)
    with torch.no_grad():
        return made(INPUTS).logits


@pytest.mark.parametrize("shard", ["5GB", "8KB"])
def test_average_writes_a_folder_that_from_pretrained_opens(tmp_path, shard):
    pool = write(tmp_path / "pool", shard)
    said = radin_says("average", *(pool / n for n in NAMES), "--ratios", "2,1,1", "-o", tmp_path / "soup")
    soup = tmp_path / "soup"
    assert len(list(soup.glob("*.safetensors"))) == (
        1 if shard == "5GB" else len(list((pool / "run1").glob("*.safetensors")))
    )
    assert (soup / "model.safetensors.index.json").exists() == (shard == "8KB")
    assert torch.allclose(logits(soup), mean([pool / n for n in NAMES], [0.5, 0.25, 0.25]), atol=1e-6)
    assert AutoTokenizer.from_pretrained(soup)("w1 w2")["input_ids"] == [2, 6, 7, 3]
    assert not {"trainer_state.json", "training_args.bin"} & {path.name for path in soup.iterdir()}
    assert "differs" not in said
    assert [member["weight"] for member in read_recipe(soup)["members"]] == [0.5, 0.25, 0.25]
    # A file, where a file is asked for.
    radin_says("average", *(pool / n for n in NAMES), "--ratios", "2,1,1", "-o", tmp_path / "soup.safetensors")
    whole = {name: t for file in soup.glob("*.safetensors") for name, t in load_file(file).items()}
    flat = load_file(tmp_path / "soup.safetensors")
    assert all(torch.equal(flat[name], tensor) for name, tensor in whole.items())


def test_the_card_of_an_average_is_the_hubs_and_holds_the_recipe(members, tmp_path):
    radin_says("average", *(members / n for n in NAMES), "--ratios", "2,1,1", "-o", tmp_path / "soup")
    card = ModelCard.load(tmp_path / "soup/README.md")
    assert (card.data.license, card.data.base_model, card.data.library_name) == ("mit", "org/tiny-bert", "transformers")
    assert "model-soup" in card.data.tags
    pool = radin.Pool.open(members)
    for member, ratio in zip(pool, ("0.5", "0.25", "0.25"), strict=True):
        assert f"| {member.name} | {ratio} | `{member.fingerprint[:16]}` |" in card.text
    assert radin.__version__ in card.text.replace("\\", "")
    assert "## Scores" not in card.text


def test_a_license_that_is_not_all_members_is_not_the_soups(members, tmp_path):
    (members / "run2/README.md").write_text("---\nlicense: other\nbase_model: org/tiny-bert\n---\n")
    radin_says("average", members, "-o", tmp_path / "soup")
    data = ModelCard.load(tmp_path / "soup/README.md").data
    assert (data.license, data.base_model) == (None, "org/tiny-bert")


def test_files_are_those_of_the_member_named_and_differences_are_said(members, tmp_path):
    def change(name: str, **more: Any) -> None:
        path = members / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))

    change("run2", id2label={"0": "b", "1": "a", "2": "c"}, _name_or_path="elsewhere", transformers_version="4.0")
    change("run3", _name_or_path="there", transformers_version="5.0")
    (members / "run3/tokenizer_config.json").unlink()
    said = radin_says("average", members, "-o", tmp_path / "one", "--ratios", "2,1,1")
    assert "note: config.json differs in 1 key (id2label) in run2: the soup has run1's" in said
    assert "note: tokenizer_config.json is not there in run3: the soup has run1's" in said
    radin_says("average", members, "-o", tmp_path / "two", "--files-from", "run2")
    assert json.loads((tmp_path / "two/config.json").read_text())["_name_or_path"] == "elsewhere"
    assert "differs in 1 key" in (tmp_path / "one/README.md").read_text().replace("\\", "")
    assert "no member is named 'run9'" in radin_says(
        "average", members, "-o", tmp_path / "three", "--files-from", "run9", code=2
    )


def test_a_folder_that_radin_did_not_write_stays(members, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    assert "exists" in radin_says("average", members, "-o", tmp_path / "mine", code=2)
    assert "no soup of radin's" in radin_says("average", members, "-o", tmp_path / "mine", "--force", code=2)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years"
    radin_says("average", members, "-o", tmp_path / "soup")
    radin_says("average", members, "-o", tmp_path / "soup", "--force", "--ratios", "1,1,2")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_cook_writes_a_folder_and_its_card(members, tmp_path, workers):
    made = {} if workers == 1 else {"workers": 2}
    given = task() if workers == 1 else _task_file(tmp_path)
    result = radin.cook(members, given, budget=3, out=tmp_path / "run", command="radin cook ...", **made)
    assert result.soup == tmp_path / "run/soup"
    with torch.no_grad():
        right = (logits(result.soup).argmax(1) == targets()).float().mean()
    assert float(right) == pytest.approx(result.best.score)
    assert result.best.recipe == radin.Recipe.from_json(read_recipe(result.soup), result.fingerprints)
    card = ModelCard.load(result.soup / "README.md")
    text = card.text.replace("\\", "")
    assert card.data.base_model == "org/tiny-bert"
    assert f"{result.best.score:.4f} ± {result.best.stderr:.4f}" in text
    assert "budget 3 passes" in text
    assert "radin cook ..." in text
    assert "| test |" in text
    for k in result.best.recipe.members:
        assert result.fingerprints[k][:16] in text
    ledger = Ledger(tmp_path / "run/ledger.sqlite", run=json.loads((tmp_path / "run/run.json").read_text())["run"])
    assert ledger.written()[1] == file_checksum(result.soup)
    ledger.close()
    assert radin.Result.load(tmp_path / "run").soup == result.soup


def _task_file(folder: Path) -> Path:
    text = "import test_folders_out as t\nmodel = t.Logits\n"
    text += "def validation(): return [(t.INPUTS, t.targets())]\ndef test(): return [(t.TEST, t.targets(t.TEST))]\n"
    (folder / "task.py").write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{text}")
    return folder / "task.py"


def test_a_run_that_goes_on_keeps_its_folder_and_mends_a_damaged_one(members, tmp_path):
    first = radin.cook(members, task(), budget=2, out=tmp_path / "run")
    before = file_checksum(first.soup)
    again = radin.cook(members, task(), budget=2, out=tmp_path / "run")
    assert file_checksum(again.soup) == before
    assert not any("made again" in note for note in again.notes)
    (first.soup / "config.json").write_text("{}")
    mended = radin.cook(members, task(), budget=2, out=tmp_path / "run")
    assert any("made again" in note for note in mended.notes)
    assert json.loads((mended.soup / "config.json").read_text())["model_type"] == "bert"
    other = radin.cook(members, task(), budget=2, out=tmp_path / "run", files_from="run3")
    assert not any("made again" in note for note in other.notes)
    assert "run3" in (other.soup / "README.md").read_text().split("files beside the weights")[1]
    with pytest.raises(PoolError, match="files_from: no member is named 'x'"):
        radin.cook(members, task(), budget=2, out=tmp_path / "new", files_from="x")


def test_a_result_is_saved_as_a_folder_or_as_a_file(members, tmp_path):
    result = radin.cook(members, task(), budget=2, out=tmp_path / "run")
    assert torch.equal(logits(result.save(tmp_path / "there")), logits(result.soup))
    file = result.save(tmp_path / "one.safetensors")
    held = load_file(file)
    assert all(torch.equal(held[n], t) for n, t in load_file(result.soup / "model.safetensors").items())
    assert read_recipe(file) == read_recipe(result.soup)
    with pytest.raises(RunError, match="the soup is a folder"):
        result.save(tmp_path / "one.ckpt")


def test_files_and_folders_together_give_a_file(members, tmp_path):
    shutil.copy(members / "run1/model.safetensors", tmp_path / "one.safetensors")
    paths = [tmp_path / "one.safetensors", members / "run2", members / "run3"]
    result = radin.cook(paths, task(), budget=2, out=tmp_path / "run")
    assert result.soup == tmp_path / "run/soup.safetensors"
    assert result.soup.is_file()
    assert "cannot write this kind of file" in radin_says("average", *paths, "-o", tmp_path / "soup", code=2)


def test_adapters_are_cooked_over_their_base(tmp_path):
    model().save_pretrained(tmp_path / "base")
    for k in range(3):
        config = peft.LoraConfig(r=2, target_modules=["query", "dense"], modules_to_save=["classifier"])
        wrapped = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), config)
        torch.manual_seed(k)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        wrapped.save_pretrained(tmp_path / f"adapters/run{k}")
    with pytest.raises(PoolError, match="--base FOLDER"):
        radin.cook(tmp_path / "adapters", task(), budget=2, out=tmp_path / "run")
    pool = radin.Pool.open(tmp_path / "adapters", base=tmp_path / "base")
    result = radin.cook(pool, task(), budget=3, out=tmp_path / "run")
    with torch.no_grad():
        found = logits(result.soup)
    assert float((found.argmax(1) == targets()).float().mean()) == pytest.approx(result.best.score)
    # The best single member scores what PEFT's own reading of it does.
    single = result.best_single.recipe.members[0]
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(whole, pool[single].path).eval()
    with torch.no_grad():
        right = (theirs(INPUTS).logits.argmax(1) == targets()).float().mean()
    assert float(right) == pytest.approx(result.best_single.score)
