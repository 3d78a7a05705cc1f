"""hf models whose examples are words with tags, choices, or plain language: data, shapes and scores."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import radin
import ready_made
from radin import Pool, Task, TaskError, metrics
from radin.engine.device import Device
from radin.run.commands import evaluate_pool

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

TAGS = ["O", "B-THING", "I-THING"]


def by_name(name):
    """Skip where this metric is not there."""
    try:
        metrics.get(name)
    except TaskError:
        pytest.skip(f"no metric {name}")


def evaluated(pool, ready):
    return [member.score for member in evaluate_pool(pool, ready, "validation", Device.create("cpu")).members]


def choice_pool(folder):
    torch.manual_seed(0)
    model = transformers.BertForMultipleChoice(ready_made.bert())
    return Pool.open(ready_made.noisy(folder, model, scale=0.3, beside=[ready_made.tokenizer()])), model


QUESTIONS = [
    ("the film was", ("good", "bad fun", "dull")),
    ("the plot", ("and the cast", "is", "was awful")),
    ("fun", ("is good", "is great fun", "the")),
]
ANSWERS = (2, 0, 1)


@pytest.mark.parametrize("kind", ["list", "letters", "numbered"])
def test_multiple_choice_scores_as_by_transformers(tmp_path, kind):
    pool, model = choice_pool(tmp_path / "runs")
    if kind == "numbered":
        path = tmp_path / "val.csv"
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["sent1", "sent2", "ending0", "ending1", "ending2", "label"])
            table.writerows(
                (before, "the", *(e.removeprefix("the ") for e in endings), answer)
                for (before, endings), answer in zip(QUESTIONS, ANSWERS, strict=True)
            )
        data = f"csv:{path}"
    else:
        endings = [list(found) for _, found in QUESTIONS]
        columns = {"question": [before for before, _ in QUESTIONS]}
        if kind == "list":
            columns |= {"endings": endings, "label": list(ANSWERS)}
        else:
            columns |= {
                "choices": [{"text": found, "label": ["A", "B", "C"]} for found in endings],
                "answerKey": ["ABC"[k] for k in ANSWERS],
            }
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "val.parquet")
        data = f"parquet:{tmp_path / 'val.parquet'}"
    ready = radin.ready_task(pool, "hf", data, metric="nll")
    found = evaluated(pool, ready)
    words = ready_made.tokenizer()
    for k in range(3):
        model.load_state_dict(pool.tensors(k))
        losses = []
        for (before, endings), answer in zip(QUESTIONS, ANSWERS, strict=True):
            if kind == "numbered":
                endings = [f"the {e.removeprefix('the ')}" for e in endings]
            inputs = words([before] * 3, list(endings), padding=True, return_tensors="pt")
            with torch.no_grad():
                outputs = model.eval()(**{name: rows[None] for name, rows in inputs.items()}).logits
            losses.append(torch.nn.functional.cross_entropy(outputs, torch.tensor([answer])).item())
        assert found[k] == pytest.approx(np.mean(losses), rel=1e-4)
    assert Task.load(radin.ready_task(pool, "hf", data)).metric == "accuracy"


VARYING = [
    ("the film was", ("good", "bad fun", "dull", "awful")),
    ("the plot", ("and the cast", "was awful")),
    ("fun", ("is good", "is great fun", "the")),
]


@pytest.mark.parametrize("kind", ["list", "letters", "numbered"])
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_choices_that_vary_in_number_score_as_by_transformers(tmp_path, kind, family):
    torch.manual_seed(0)
    config = ready_made.bert()
    if family == "Roberta":
        config = transformers.RobertaConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"})
        config.update({"type_vocab_size": 2, "pad_token_id": 0})
    model = getattr(transformers, f"{family}ForMultipleChoice")(config)
    pool = Pool.open(ready_made.noisy(tmp_path / "runs", model, scale=0.3, beside=[ready_made.tokenizer()]))
    answers = (3, 0, 1)
    if kind == "numbered":  # an example may lack one between others
        lines = ["question,answer1,answer2,answer3,answer4,label"]
        for (before, endings), answer in zip(VARYING, answers, strict=True):
            moved = endings if len(endings) == 4 else (endings[0], "", *endings[1:], "", "")[:4]
            lines.append(",".join([before, *moved, str(answer + (len(endings) < 4 and answer > 0))]))
        (tmp_path / "val.csv").write_text("\n".join(lines))
        data = f"csv:{tmp_path / 'val.csv'}"
    else:
        endings = [list(found) for _, found in VARYING]
        columns = {"question": [before for before, _ in VARYING]}
        if kind == "list":
            columns |= {"choices": endings, "label": list(answers)}
        else:
            columns |= {"choices": [{"text": found} for found in endings], "answerKey": ["ABCD"[k] for k in answers]}
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "val.parquet")
        data = f"parquet:{tmp_path / 'val.parquet'}"
    words = ready_made.tokenizer()
    expected = []
    for k in range(3):
        model.load_state_dict(pool.tensors(k))
        losses, right = [], []
        for (before, endings), answer in zip(VARYING, answers, strict=True):
            inputs = words([before] * len(endings), list(endings), padding=True, return_tensors="pt")
            with torch.no_grad():
                said = model.eval()(**{name: rows[None] for name, rows in inputs.items()}).logits
            losses.append(torch.nn.functional.cross_entropy(said, torch.tensor([answer])).item())
            right.append(int(said.argmax()) == answer)
        expected.append((np.mean(losses), np.mean(right)))
    found = evaluated(pool, radin.ready_task(pool, "hf", data, metric="nll"))
    assert found == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    for metric in (None, "multiple_choice"):
        found = evaluated(pool, radin.ready_task(pool, "hf", data, metric=metric))
        assert found == pytest.approx([score for _, score in expected], abs=1e-12)


def test_choices_that_vary_are_cooked_and_the_printed_file_is_plain(tmp_path):
    pool, _ = choice_pool(tmp_path / "runs")
    rows = {"question": [b for b, _ in VARYING] * 9, "choices": [list(e) for _, e in VARYING] * 9}
    datasets.Dataset.from_dict(rows | {"label": [3, 0, 1] * 9}).to_parquet(tmp_path / "val.parquet")
    few = {"question": ["fun"], "choices": [["is good", "the"]], "label": [1]}
    datasets.Dataset.from_dict(few).to_parquet(tmp_path / "test.parquet")
    data = f"parquet:{tmp_path / 'val.parquet'},test={tmp_path / 'test.parquet'}"
    out = tmp_path / "out"
    result = radin.cook(pool, radin.ready_task(pool, "hf", data), budget=3, out=out)
    soup = Pool.open([out / "soup"])
    text = radin.ready_task(soup, "hf", data).text
    (tmp_path / "task.py").write_text(text)
    assert evaluated(soup, tmp_path / "task.py")[0] == pytest.approx(result.best.score, abs=1e-12)
    # A long path stands in a line of its own.
    command = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--line-length=240", "task.py"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_choices_without_an_answer_among_them_are_told(tmp_path):
    pool, _ = choice_pool(tmp_path / "runs")
    rows = {"question": ["x", "y"], "choices": [["a", "b", "c"], ["a", "b"]], "label": [2, 2]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "vary.parquet")
    with pytest.raises(TaskError, match="'label' of validation, row 2: the row has 2 choices, and the right one is"):
        radin.ready_task(pool, "hf", f"parquet:{tmp_path / 'vary.parquet'}")
    odd = {"question": ["x"], "choices": [["a", "b"]], "label": ["yes"]}
    datasets.Dataset.from_dict(odd).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(TaskError, match="a number from 0 or a letter from A; got 'yes'"):
        radin.ready_task(pool, "hf", f"parquet:{tmp_path / 'odd.parquet'}")
    beyond = {"question": ["x"], "choices": [["a", "b"]], "label": [2]}
    datasets.Dataset.from_dict(beyond).to_parquet(tmp_path / "beyond.parquet")
    with pytest.raises(TaskError, match="2 choices, and the right one is said to be 2; they count from 0"):
        radin.ready_task(pool, "hf", f"parquet:{tmp_path / 'beyond.parquet'}")


def tagged(folder):
    """Members that tag words, and a saved table of words cut into several tokens each."""
    torch.manual_seed(0)
    config = ready_made.bert(id2label=dict(enumerate(TAGS)), label2id={name: k for k, name in enumerate(TAGS)})
    model = transformers.BertForTokenClassification(config)
    pool = Pool.open(ready_made.noisy(folder / "runs", model, scale=0.3, beside=[ready_made.tokenizer()]))
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")),
        ner_tags=datasets.List(datasets.ClassLabel(names=["B-THING", "O", "I-THING"])),
    )
    rows = {
        "tokens": [["the", "film", "was", "dull,so"], ["good,", "plot"], ["cast"]],
        "ner_tags": [[1, 0, 1, 2], [0, 2], [1]],
    }
    datasets.Dataset.from_dict(rows, features).save_to_disk(folder / "saved")
    return pool, model, rows


def test_words_with_tags_have_the_tag_on_the_first_token_of_each(tmp_path):
    by_name("token_accuracy")
    pool, _, _ = tagged(tmp_path)
    task = Task.load(radin.ready_task(pool, "hf", f"datasets:{tmp_path / 'saved'}"))
    (_, first), (_, second), (_, third) = task.validation()
    # [CLS] the film was dull , so [SEP]: the data's tags are 1 0 1 2, which the model calls 0 1 0 2
    assert first.tolist() == [-100, 0, 1, 0, 2, -100, -100, -100]
    assert second.tolist() == [-100, 1, -100, 2, -100, -100, -100, -100]
    assert third.tolist() == [-100, 0, *[-100] * 6]
    assert task.metric == "token_accuracy"


def test_words_with_tags_score_as_by_transformers(tmp_path):
    by_name("token_accuracy")
    pool, model, rows = tagged(tmp_path)
    found = evaluated(pool, radin.ready_task(pool, "hf", f"datasets:{tmp_path / 'saved'}"))
    words, own = ready_made.tokenizer(), [1, 0, 2]
    for k in range(3):
        model.load_state_dict(pool.tensors(k))
        right = []
        for tokens, tags in zip(rows["tokens"], rows["ner_tags"], strict=True):
            inputs = words(tokens, is_split_into_words=True, return_tensors="pt")
            with torch.no_grad():
                chosen = model.eval()(**inputs).logits[0].argmax(1).tolist()
            places = inputs.word_ids(0)
            right += [chosen[places.index(w)] == own[tag] for w, tag in enumerate(tags)]
        assert found[k] == pytest.approx(np.mean(right), abs=1e-9)


def test_spans_go_by_the_tags_that_the_config_names(tmp_path):
    by_name("span_f1")
    seqeval = pytest.importorskip("seqeval.metrics")
    pool, model, rows = tagged(tmp_path)
    found = evaluated(pool, radin.ready_task(pool, "hf", f"datasets:{tmp_path / 'saved'}", metric="span_f1"))
    words, data_names = ready_made.tokenizer(), ["B-THING", "O", "I-THING"]
    expected = []
    for k in range(3):
        model.load_state_dict(pool.tensors(k))
        said = []
        for tokens in rows["tokens"]:
            inputs = words(tokens, is_split_into_words=True, return_tensors="pt")
            with torch.no_grad():
                chosen = model.eval()(**inputs).logits[0].argmax(1).tolist()
            said.append([TAGS[chosen[inputs.word_ids(0).index(w)]] for w in range(len(tokens))])
        true = [[data_names[tag] for tag in tags] for tags in rows["ner_tags"]]
        expected.append(seqeval.f1_score(true, said))
    assert found == pytest.approx(expected, abs=1e-9)
    assert max(expected) > 0


def test_plain_language_scores_its_perplexity_as_by_transformers(tmp_path):
    by_name("perplexity")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    pool = Pool.open(ready_made.noisy(tmp_path / "runs", model, scale=0.3, beside=[ready_made.tokenizer()]))
    path = tmp_path / "text.csv"
    texts = ["the film was good and the cast was great", "dull", ",".join(ready_made.WORDS), ""]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    found = evaluated(pool, radin.ready_task(pool, "hf", f"csv:{path}"))
    words = ready_made.tokenizer()
    for k in range(3):
        model.load_state_dict(pool.tensors(k), strict=False)  # its head is tied to the embedding
        loss, count = 0.0, 0
        for text in texts:
            ids = words(text)["input_ids"]
            for start in range(0, len(ids), 16):
                piece = torch.tensor([ids[start : start + 16]])
                if piece.shape[1] > 1:
                    with torch.no_grad():
                        mean = model.eval()(input_ids=piece, labels=piece).loss.item()
                    loss, count = loss + mean * (piece.shape[1] - 1), count + piece.shape[1] - 1
        assert found[k] == pytest.approx(math.exp(loss / count), rel=1e-4)
