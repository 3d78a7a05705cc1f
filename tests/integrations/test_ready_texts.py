"""hf with tables of text: real Trainer folders, cooked by the command, and scored the same by transformers alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import radin
import ready_made
from radin import Pool, Task, TaskError
from radin.engine.device import Device
from radin.run.commands import evaluate_pool

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    train = ready_made.reviews(folder / "train.csv", 160, 0)
    return SimpleNamespace(
        folder=folder,
        members=ready_made.trained_members(folder / "runs", train),
        validation=ready_made.reviews(folder / "val.csv", 150, 1),
        test=ready_made.reviews(folder / "test.csv", 120, 2),
    )


@pytest.fixture(scope="module")
def pool(made):
    return Pool.open(made.members)


def predictions(folder, table):
    """Classes and labels by transformers alone, text by text, nothing padded, of the model in a folder."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with torch.no_grad():
        logits = [model.eval()(**words(row["text"], return_tensors="pt")).logits[0] for row in rows]
    found = torch.stack(logits).argmax(1)
    return found, torch.tensor([model.config.label2id[row["label"]] for row in rows])


def scores(pool, task, split="validation"):
    found = evaluate_pool(pool, task, split, Device.create("cpu"))
    return [member.score for member in found.members], found.data


@pytest.mark.long
def test_folders_of_trainer_are_cooked_by_the_command_and_the_soup_scores_the_same_in_transformers(
    made, tmp_path, radin_command
):
    data = f"csv:{made.validation},test={made.test}"
    ready = ("--model", "hf", "--data", data)
    done = radin_command("cook", *made.members, *ready, "--budget", 3, "--out", tmp_path / "run", "--jobs", 2, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for table, split in ((made.validation, "validation"), (made.test, "test")):
        found, labels = predictions(tmp_path / "run" / "soup", table)
        score = result["best"]["score"] if split == "validation" else result["test"]["best"]["score"]
        assert score == pytest.approx((found == labels).double().mean().item(), abs=1e-12), split
    assert result["best"]["score"] > 0.7


@pytest.mark.long
def test_the_printed_file_gives_the_same_data_and_scores(made, pool, tmp_path, radin_command):
    data = f"csv:{made.validation},test={made.test}"
    done = radin_command("task", *made.members, "--model", "hf", "--data", data, "-o", tmp_path / "task.py")
    assert done.returncode == 0, done.stderr
    ready = radin.ready_task(pool, "hf", data)
    assert (tmp_path / "task.py").read_text() == ready.text
    for split in ("validation", "test"):
        assert scores(pool, tmp_path / "task.py", split) == scores(pool, ready, split)


def test_a_run_that_continues_with_other_data_or_another_model_is_refused(made, pool, tmp_path):
    ready = radin.ready_task(pool, "hf", f"csv:{made.validation}")
    radin.cook(pool, ready, budget=1, out=tmp_path / "run")
    with pytest.raises(radin.RunError, match="validation"):
        radin.cook(pool, radin.ready_task(pool, "hf", f"csv:{made.test}"), budget=1, out=tmp_path / "run")
    other = radin.ready_task(pool, f"hf:{made.members[1]}", f"csv:{made.validation}")
    with pytest.raises(radin.RunError, match="'hf'"):
        radin.cook(pool, other, budget=1, out=tmp_path / "run")


def test_the_batch_size_changes_no_score_and_padding_is_cut_off(made, pool):
    ready = radin.ready_task(pool, "hf", f"csv:{made.validation}")
    task = Task.load(ready)
    seen = []
    model = task.build_model()
    model.bert.embeddings.register_forward_pre_hook(
        lambda module, args, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    data = task.validation()
    short = min(range(len(data)), key=lambda k: int(data[k][0]["attention_mask"].sum()))
    inputs = {name: rows[None] for name, rows in data[short][0].items()}
    model(**inputs)
    assert seen == [int(inputs["attention_mask"].sum())]
    assert seen[0] < inputs["input_ids"].shape[1]
    small = evaluate_pool(pool, ready, "validation", Device.create("cpu", batch_size=7))
    assert ([m.score for m in small.members], small.data) == scores(pool, ready)


def test_labels_go_by_the_config_then_by_the_datas_own_names_then_in_sorted_order(made, pool, tmp_path):
    reference = scores(pool, radin.ready_task(pool, "hf", f"csv:{made.validation}"))[0]
    shouted = ready_made.reviews(tmp_path / "shouted.csv", 150, 1, names=("NEGATIVE", "Positive"))
    assert scores(pool, radin.ready_task(pool, "hf", f"csv:{shouted}"))[0] == reference
    numbered = ready_made.reviews(tmp_path / "numbered.csv", 150, 1, names=("0", "1"))
    assert scores(pool, radin.ready_task(pool, "hf", f"csv:{numbered}"))[0] == reference
    # "bad" < "fine" in sorted order, and so they are 0 and 1, which is said
    other = radin.ready_task(pool, "hf", f"csv:{ready_made.reviews(tmp_path / 'o.csv', 150, 1, names=('bad', 'fine'))}")
    assert scores(pool, other)[0] == reference
    assert other.notes == ("classes in sorted order: bad 0, fine 1",)
    # names in another order than the model's: each goes to the model's output of that name
    with made.validation.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["positive", "negative"])
    )
    table = datasets.Dataset.from_dict(
        {"text": [row["text"] for row in rows], "label": [int(row["label"] == "negative") for row in rows]}, features
    )
    datasets.DatasetDict({"valid": table, "train": table}).save_to_disk(tmp_path / "saved")
    saved = radin.ready_task(pool, "hf", f"datasets:{tmp_path / 'saved'}")
    assert scores(pool, saved)[0] == reference
    assert Task.load(saved).calibration is None  # no BatchNorm: training data are of no use
    table.to_parquet(tmp_path / "part-0.parquet")
    files = radin.ready_task(pool, "hf", f"parquet:{tmp_path}/part-*.parquet")
    assert scores(pool, files)[0] == reference


def test_pairs_other_columns_and_a_number_for_each(made, tmp_path):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(ready_made.bert(id2label={0: "x"}, label2id={"x": 0}))
    words = ready_made.tokenizer()
    pool = Pool.open(ready_made.noisy(tmp_path / "runs", model, beside=[words]))
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\thow near\nthe film\tthe plot\t0.5\ngood fun\tbad film\t-1\nthe cast\tthe cast\t2\n")
    ready = radin.ready_task(pool, "hf,max_length=6", f"csv:{path}", columns="text=a+b,label=how near")
    found, _ = scores(pool, ready)
    model.load_state_dict(pool.tensors(0))
    inputs = words(
        ["the film", "good fun", "the cast"],
        ["the plot", "bad film", "the cast"],
        truncation=True,
        max_length=6,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        errors = model.eval()(**inputs).logits[:, 0] - torch.tensor([0.5, -1.0, 2.0])
    assert inputs["input_ids"].shape == (3, 6)
    assert inputs["token_type_ids"].max() == 1
    assert found[0] == pytest.approx(errors.square().mean().item(), rel=1e-5)


def bad_texts():
    return {
        "no config": ("hf:{folder}/empty", "csv:{val}", None, r"no config\.json in .*empty.*--model hf:FOLDER"),
        "unknown kind": ("keras:x", "csv:{val}", None, "no such kind of model 'keras'; there are timm:NAME, hf"),
        "unknown data": ("hf", "json:{val}", None, "no such kind of data 'json'; there are imagefolder:DIR"),
        "no file": ("hf", "csv:{folder}/none.csv", None, "none.csv: no such file"),
        "no column": ("hf", "csv:{val}", "text=review", "no column 'review'; there are id, text, label"),
        "not guessed": ("hf", "csv:{odd}", None, "which column is the text.*are a, b; say it with --columns"),
        "role": ("hf", "csv:{val}", "picture=id", "no role 'picture'.*there are text, label"),
        "three": ("hf", "csv:{three}", None, "3 classes .*checkpoints have 2; the model's config names negative, posi"),
        "index": ("hf", "csv:{val}", "text=text,label=id", "label 10, and the checkpoints have 2 classes"),
        "ragged": ("hf", "csv:{ragged}", None, r"ragged.csv: row 3 has another number of fields.*in quotes"),
        "option": ("hf,length=3", "csv:{val}", None, "hf has no option 'length'; it has max_length"),
        "split": ("hf", "csv:{val},tset={val}", None, "no such split 'tset'"),
        "images": ("hf", "imagefolder:{folder}", None, "takes text; give csv:, parquet: or datasets:"),
        "not saved": ("hf", "datasets:{folder}", None, "no folder that save_to_disk has written"),
        "empty": ("hf", "csv:{header}", None, "header.csv: no rows"),
        "python": ("hf", "python:nowhere.at.all:x", None, "no module 'nowhere.at.all'"),
    }


@pytest.mark.parametrize("kind", [*bad_texts()])
def test_what_cannot_be_is_one_clear_message(made, pool, tmp_path, kind):
    (tmp_path / "empty").mkdir()
    files = {
        "odd": "a,b\nx,0\n",
        "three": "text,label\nx,good\ny,bad\nz,so so\n",
        "ragged": "text,label\nx,0\nso, so,1\n",
        "header": "text,label\n",
    }
    places = {name: tmp_path / f"{name}.csv" for name in files}
    for name, text in files.items():
        places[name].write_text(text)
    model, data, columns, words = bad_texts()[kind]
    places |= {"folder": tmp_path, "val": made.validation}
    with pytest.raises(TaskError, match=words):
        radin.ready_task(pool, model.format(**places), data.format(**places), columns=columns)


def test_a_config_that_is_of_no_use_is_named(made, pool, tmp_path):
    config = json.loads((made.members[0] / "config.json").read_text())

    def refused(words, **changes):
        folder = tmp_path / words.split()[0]
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | changes))
        (folder / "tokenizer.json").write_bytes((made.members[0] / "tokenizer.json").read_bytes())
        return pytest.raises(TaskError, match=words), f"hf:{folder}"

    for words, changes in (
        ("BertForMaskedLM; ready tasks are there for sequence classification,", {"architectures": ["BertForMaskedLM"]}),
        ("architecture none", {"architectures": None}),
        ("take a task file", {"model_type": "my-own", "auto_map": {"AutoConfig": "mine.Config"}}),
    ):
        raises, model = refused(words, **changes)
        with raises:
            radin.ready_task(pool, model, f"csv:{made.validation}")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{")
    with pytest.raises(TaskError, match=r"config\.json: no JSON"):
        radin.ready_task(pool, f"hf:{tmp_path / 'x'}", f"csv:{made.validation}")


def test_members_whose_outputs_mean_other_classes_are_refused(tmp_path):
    model = transformers.BertForSequenceClassification(ready_made.bert())
    paths = ready_made.noisy(tmp_path, model, beside=[ready_made.tokenizer()])
    config = json.loads((paths[1] / "config.json").read_text())
    config["id2label"] = {"0": "positive", "1": "negative"}
    (paths[1] / "config.json").write_text(json.dumps(config))
    table = ready_made.reviews(tmp_path / "val.csv", 10, 1)
    with pytest.raises(TaskError, match=r"run-1/config\.json and .*run-0/config\.json differ in 'id2label'"):
        radin.ready_task(Pool.open(paths), "hf", f"csv:{table}")


def test_nothing_in_names_becomes_code(made, pool, tmp_path):
    path = tmp_path / 'it\'s "odd".csv'
    names = ("'''\nraise SystemExit('run')\n'''", '"); raise SystemExit("run") #')
    ready_made.reviews(path, 20, 1, names=names)
    ready = radin.ready_task(pool, "hf", f"csv:{path}")
    assert [int(y) for _, y in Task.load(ready).validation()] == [
        sorted(names).index(row["label"]) for row in csv.DictReader(path.open(newline=""))
    ]


def test_a_missing_library_is_one_line_with_the_command(made, pool, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(TaskError) as caught:
        radin.ready_task(pool, "hf", f"csv:{made.validation}")
    assert str(caught.value) == "--model hf needs transformers: pip install transformers"


def test_the_command_says_what_belongs_together(made, radin_command):
    for arguments, words in (
        (("cook", "--model", "hf", "--budget", "1", "--out", "x"), "--model needs --data"),
        (("check", "--data", "csv:x"), "--data needs --model"),
        (("evaluate",), "say what evaluates"),
    ):
        done = radin_command(*arguments, *made.members)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not Path("x").exists()
