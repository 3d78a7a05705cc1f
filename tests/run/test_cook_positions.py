"""Cook on sequences and pictures, from end to end: a tagger and a language model of transformers, a small segmenter."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

import radin
from radin import Task, metrics
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.outputs import collect as collecting
from radin.run.ledger import Ledger
from radin.stats.split import split_halves
from radin.weights import average

transformers = pytest.importorskip("transformers")
MEMBERS = 4


def trained(start, batches, loss_of, folder, rates=(0.02, 0.03, 0.05, 0.08)):
    """Checkpoints of one start, trained on with other rates and orders."""
    paths = []
    for k, rate in enumerate(rates):
        torch.manual_seed(k)
        model = start()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        for step in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            loss_of(model, batches[step]).backward()
            optimizer.step()
        paths.append(folder / f"m{k}.safetensors")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, paths[-1])
    return paths


def scenes(count, seed):
    """Pictures (b, 1, 16, 16) of four real digits each, and the class of each pixel: 0 ground, 1-3 kinds of digits."""
    digits, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    pictures, classes = np.zeros((count, 1, 16, 16), np.float32), np.zeros((count, 16, 16), np.int64)
    for picture, marked in zip(pictures, classes, strict=True):
        for place, k in enumerate(rng.integers(0, len(digits), 4)):
            at = np.s_[place // 2 * 8 : place // 2 * 8 + 8, place % 2 * 8 : place % 2 * 8 + 8]
            picture[0][at] = digits[k].reshape(8, 8) / 16
            marked[at] = np.where(digits[k].reshape(8, 8) > 6, 1 + labels[k] % 3, 0)
        marked[0] = 255  # not marked
    return torch.from_numpy(pictures), torch.from_numpy(classes)


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 4, 1)
        )

    def forward(self, pictures):
        return self.layers(pictures)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(checkpoints, task) of a segmenter."""
    folder = tmp_path_factory.mktemp("pictures")
    inputs, classes = scenes(240, 0)
    batches = list(zip(inputs.split(8), classes.split(8), strict=True))

    def loss_of(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=255)

    torch.manual_seed(0)
    first = Segmenter()
    optimizer = torch.optim.Adam(first.parameters(), lr=5e-3)
    for batch in batches * 2:
        optimizer.zero_grad()
        loss_of(first, batch).backward()
        optimizer.step()

    def start():
        model = Segmenter()
        model.load_state_dict(first.state_dict())
        return model

    held, marks = scenes(60, 1)
    task = Task(Segmenter, list(zip(held.split(16), marks.split(16), strict=True)), metric="mean_iou", ignore_index=255)
    return trained(start, batches, loss_of, folder), task


def by_hand(model, weights, batches, score):
    """The score of (predictions, labels) at all positions together, by a plain loop over batches."""
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        return score([(model(inputs), labels) for inputs, labels in batches])


def iou(found):
    guessed = torch.cat([outputs.argmax(dim=1) for outputs, _ in found])
    marked = torch.cat([labels for _, labels in found])
    counts = marked != 255
    shares = []
    for c in range(4):
        mine, theirs = (guessed == c) & counts, (marked == c) & counts
        if (mine | theirs).any():
            shares.append(float((mine & theirs).sum() / (mine | theirs).sum()))
    return np.mean(shares)


def pixels(found):
    guessed = torch.cat([outputs.argmax(dim=1) for outputs, _ in found])
    marked = torch.cat([labels for _, labels in found])
    return float((guessed == marked)[marked != 255].double().mean())


@pytest.mark.parametrize(("metric", "score"), [("mean_iou", iou), ("pixel_accuracy", pixels)])
def test_a_segmenter_is_cooked_and_scored_as_by_hand(pictures, tmp_path, metric, score):
    paths, task = pictures
    result = radin.cook(paths, replace(task, metric=metric), budget=3, out=tmp_path / "run")
    assert result.examples == 60
    if metric == "mean_iou":
        assert len(result.evaluations) == 3
    else:  # many soups are started on some pictures, few continued
        assert result.passes.started > 5
        assert len(result.evaluations) >= 1
    assert result.passes.soups <= 3
    singles = [by_hand(Segmenter(), load_file(path), task.validation, score) for path in paths]
    assert result.best_single.score == pytest.approx(max(singles), abs=1e-6)
    soup = by_hand(Segmenter(), load_file(tmp_path / "run" / "soup.safetensors"), task.validation, score)
    assert result.best.score == pytest.approx(soup, abs=1e-6)
    assert result.best.score >= result.best_single.score
    assert 0 < result.best.stderr < 0.1
    # The estimate of a recipe is the metric of averaged outputs.
    assert result.ensemble.score == pytest.approx(ensemble(paths, result.ensemble.recipe, task, score), abs=1e-6)
    again = radin.cook(paths, replace(task, metric=metric), budget=3, out=tmp_path / "run")
    assert again.best.score == result.best.score
    assert again.passes.soups == result.passes.soups


def ensemble(paths, recipe, task, score):
    model, found = Segmenter().eval(), []
    with torch.no_grad():
        for inputs, labels in task.validation:
            total = 0.0
            for weight, path in zip(recipe.weights, paths, strict=True):
                model.load_state_dict(load_file(path))
                total = total + weight * model(inputs).double()
            found.append((total, labels))
    return score(found)


def test_the_batch_size_changes_nothing(pictures):
    paths, task = pictures
    scores = []
    for size in (7, 60):
        evaluator = Evaluator(task, Device.create("cpu", batch_size=size), task.get_metric())
        model, _ = evaluator.prepare(load_file(paths[0]), "m0", calibrate=False)
        scores.append(evaluator.score(model, "validation", "m0"))
    assert scores[0].score == scores[1].score
    assert np.array_equal(scores[0].values, scores[1].values)


def test_a_run_that_was_killed_goes_on_to_the_same_result(pictures, tmp_path, monkeypatch):
    paths, task = pictures
    whole = radin.cook(paths, task, budget=2, out=tmp_path / "whole")
    monkeypatch.setattr("radin.outputs.store._SAFE_EVERY", 0.0)
    append, left = collecting.PendingOutputs.append, [3]

    def stopping(*given):
        append(*given)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collecting.PendingOutputs, "append", stopping)
        with pytest.raises(KeyboardInterrupt):
            radin.cook(paths, task, budget=2, out=tmp_path / "cut")
    seen = []
    outputs = Device.outputs

    def counting(self, models, batch, rows=None):
        seen.append((len(models), batch.size))
        return outputs(self, models, batch, rows)

    monkeypatch.setattr(Device, "outputs", counting)
    cut = radin.cook(paths, task, budget=2, out=tmp_path / "cut")
    assert sum(size for models, size in seen if models == MEMBERS) == 60 - 3 * 16
    assert cut.best.score == whole.best.score
    assert cut.best.recipe == whole.best.recipe
    for path in (tmp_path / "whole" / "outputs").glob("*.safetensors"):
        if path.name != "compiled.safetensors":
            assert path.read_bytes() == (tmp_path / "cut" / "outputs" / path.name).read_bytes()


def doctored(pool, task):
    return radin.doctor(pool, task, examples=20)


def test_the_doctor_looks_at_pictures(pictures):
    paths, task = pictures
    found = doctored(paths, task)
    assert found.slice.examples == 20
    assert found.slice.soups is not None
    assert found.findings


# ---------------------------------------------------------------- sequences


def sentences(count, seed, length=14):
    """Sentences, a mapping per batch, each of another length: names (tokens 4-15) of two types follow titles (1-2)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        width = int(rng.integers(length - 6, length))
        tokens = rng.integers(16, 40, (8, width))
        labels = np.zeros_like(tokens)
        for row, tags in zip(tokens, labels, strict=True):
            at, kind, size = int(rng.integers(0, width - 4)), int(rng.integers(0, 2)), int(rng.integers(1, 4))
            row[at] = 1 + kind
            row[at + 1 : at + 1 + size] = rng.integers(4, 16, size)
            tags[at + 1] = 1 + 2 * kind
            tags[at + 2 : at + 1 + size] = 2 + 2 * kind
        ends = rng.integers(width - 3, width + 1, 8)
        mask = np.arange(width) < ends[:, None]
        labels[~mask] = -100
        yield {
            "input_ids": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }


def tagger():
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        num_labels=5,
    )
    return transformers.BertForTokenClassification(config)


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tags")
    torch.manual_seed(0)
    first = tagger()
    optimizer = torch.optim.Adam(first.parameters(), lr=3e-3)
    for batch in sentences(60, 0):
        optimizer.zero_grad()
        first(**batch).loss.backward()
        optimizer.step()

    def start():
        model = tagger()
        model.load_state_dict(first.state_dict())
        return model

    paths = trained(start, list(sentences(40, 1)), lambda model, batch: model(**batch).loss, folder)
    return paths, Task(tagger, lambda: sentences(10, 2), metric="token_accuracy")


@pytest.mark.parametrize("metric", ["token_accuracy", "span_f1"])
def test_a_transformers_tagger_is_cooked(tags, tmp_path, metric):
    from seqeval.metrics import f1_score

    paths, task = tags
    result = radin.cook(paths, replace(task, metric=metric), budget=3, out=tmp_path / "run")
    assert result.examples == 80
    model = tagger().eval()
    model.load_state_dict(load_file(tmp_path / "run" / "soup.safetensors"))
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    there, guessed = [], []
    with torch.no_grad():
        for batch in sentences(10, 2):
            labels = batch.pop("labels")
            for row, truth in zip(model(**batch).logits.argmax(dim=2), labels, strict=True):
                there.append([names[t] for t in truth if t != -100])
                guessed.append([names[g] for g, t in zip(row, truth, strict=True) if t != -100])
    if metric == "span_f1":
        expected = f1_score(there, guessed)
    else:
        expected = np.mean([a == b for x, y in zip(there, guessed, strict=True) for a, b in zip(x, y, strict=True)])
    assert result.best.score == pytest.approx(expected, abs=1e-9)
    assert result.best.score >= result.best_single.score
    assert result.paired is None or result.paired.examples == 80


TEXT = " ".join((sys.__doc__ or "").split() + (np.einsum.__doc__ or "").split())[:9000]
LETTERS = sorted(set(TEXT))


def text(rows):
    """Rows of 32 characters of real text, as a causal language model of transformers takes them."""
    codes = torch.tensor([LETTERS.index(letter) for letter in TEXT])
    cut = codes[: len(codes) // 32 * 32].reshape(-1, 32)[rows]
    return [{"input_ids": part, "labels": part} for part in cut.split(16)]


def speaker():
    config = transformers.LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def test_a_causal_language_model_is_cooked_by_perplexity(tmp_path):
    torch.manual_seed(0)
    first = speaker()
    optimizer = torch.optim.Adam(first.parameters(), lr=5e-3)
    for batch in text(slice(0, 160)) * 6:
        optimizer.zero_grad()
        first(**batch).loss.backward()
        optimizer.step()

    def start():
        model = speaker()
        model.load_state_dict(first.state_dict())
        return model

    paths = trained(start, text(slice(0, 160)) * 3, lambda model, batch: model(**batch).loss, tmp_path)
    task = Task(speaker, text(slice(160, 280)), metric="perplexity")
    result = radin.cook(paths, task, budget=3, out=tmp_path / "run")
    assert not result.higher_is_better
    assert result.ensemble.name == "probability ensemble"
    assert result.best.score <= result.best_single.score
    model = speaker().eval()
    model.load_state_dict(load_file(tmp_path / "run" / "soup.safetensors"))
    with torch.no_grad():
        losses = [(float(model(**batch).loss), len(batch["input_ids"])) for batch in task.validation]
    expected = np.exp(np.average([loss for loss, _ in losses], weights=[size for _, size in losses]))
    assert result.best.score == pytest.approx(expected, rel=1e-5)
    # What is kept of a member is one number for each character that is to be said.
    kept = load_file(next((tmp_path / "run" / "outputs").glob("[0-9a-f]*.safetensors")))["outputs"]
    assert kept.shape == (sum(size for _, size in losses) * 31, 1)
    assert metrics.get("perplexity").target_only


# ---------------------------------------------------------------- halves, slices, outputs that are not kept


@pytest.mark.parametrize(("metric", "score"), [("mean_iou", iou), ("pixel_accuracy", pixels)])
def test_chosen_on_half_of_the_pictures_and_scored_there_as_by_hand(pictures, tmp_path, metric, score):
    paths, task = pictures
    task = replace(task, metric=metric)
    result = radin.cook(paths, task, budget=6, out=tmp_path / "run", choose_on_half=True)
    _, choose = split_halves(60, 0)
    assert (result.searched, result.examples) == (30, 30)
    inputs, labels = (torch.cat([batch[k] for batch in task.validation])[choose] for k in (0, 1))
    half = [(inputs, labels)]
    singles = [by_hand(Segmenter(), load_file(path), half, score) for path in paths]
    assert result.best_single.score == pytest.approx(max(singles), abs=1e-6)
    soup = by_hand(Segmenter(), load_file(tmp_path / "run" / "soup.safetensors"), half, score)
    assert result.best.score == pytest.approx(soup, abs=1e-6)
    on_half = ensemble(paths, result.ensemble.recipe, replace(task, validation=half), score)
    assert result.ensemble.score == pytest.approx(on_half, abs=1e-6)
    assert result.optimism is not None
    assert result.optimism.corrected <= result.best.score
    assert result.passes.soups <= 6
    again = radin.cook(paths, task, budget=6, out=tmp_path / "run", choose_on_half=True)
    assert (again.best.score, again.optimism) == (result.best.score, result.optimism)


def test_a_soup_of_slices_has_to_the_last_digit_the_score_of_one_evaluated_whole(pictures, tmp_path):
    paths, task = pictures
    task = replace(task, metric="pixel_accuracy")
    result = radin.cook(paths, task, budget=2, out=tmp_path / "run")
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True, metric=task.get_metric())
    asked = [q for q in ledger.questions() if q.answer is not None]
    ledger.close()
    shares = [len(q.examples) / 60 for q in asked]
    assert min(shares) <= 0.1
    assert sum(shares) == pytest.approx(result.passes.soups)
    assert result.passes.started > 2 >= result.passes.soups
    evaluator = Evaluator(task, Device.create("cpu"), task.get_metric())
    for found in result.evaluations:
        tensors = average(radin.Pool.open(paths), found.recipe)
        model, _ = evaluator.prepare(tensors, "soup", calibrate=True)
        whole = evaluator.score(model, "validation", "soup")
        assert found.score == pytest.approx(whole.score, abs=1e-12)
        assert found.stderr == pytest.approx(whole.stderr, abs=1e-12)


@pytest.mark.parametrize("metric", ["pixel_accuracy", "mean_iou"])
def test_outputs_by_position_need_not_be_kept(pictures, tmp_path, metric):
    paths, task = pictures
    task = replace(task, metric=metric)
    kept = radin.cook(paths, task, budget=2, out=tmp_path / "kept")
    result = radin.cook(paths, task, budget=2, out=tmp_path / "run", keep_outputs=False)
    assert [path.name for path in (tmp_path / "run" / "outputs").iterdir()] == ["compiled.safetensors"]
    assert result.best.score == pytest.approx(kept.best.score, abs=0.01)  # no fitted recipes without outputs
    assert result.best_single.score == kept.best_single.score
    assert 0 < result.best.stderr < 0.1
    if metric == "pixel_accuracy":
        assert 0 < result.ensemble.stderr < 0.1
    again = radin.cook(paths, task, budget=2, out=tmp_path / "run", keep_outputs=False)
    assert again.best == result.best


def test_another_model_is_refused_where_outputs_are_not_kept(pictures, tmp_path):
    paths, task = pictures
    task = replace(task, metric="pixel_accuracy")
    radin.cook(paths, task, budget=1, out=tmp_path / "run", keep_outputs=False)

    class Turned(Segmenter):
        def forward(self, images):
            return super().forward(images).flip(1)

    with pytest.raises(radin.RunError, match=r"the answers in 1[0-9] of 16 examples are others"):
        radin.cook(paths, replace(task, model=Turned), budget=2, out=tmp_path / "run", keep_outputs=False)


@pytest.mark.parametrize("metric", ["pixel_accuracy", "mean_iou"])
def test_compiled_margins_are_kept_and_damage_is_noticed(pictures, tmp_path, metric, monkeypatch):
    paths, task = pictures
    task = replace(task, metric=metric)
    first = radin.cook(paths, task, budget=1, out=tmp_path / "run")
    path = tmp_path / "run" / "outputs" / "compiled.safetensors"
    whole = path.read_bytes()
    with monkeypatch.context() as patch:  # the next session compiles nothing
        patch.setattr("radin.estimate.by_position.compile_positions", None)
        again = radin.cook(paths, task, budget=1, out=tmp_path / "run")
    assert (again.best, again.ensemble) == (first.best, first.ensemble)
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    again = radin.cook(paths, task, budget=1, out=tmp_path / "run")
    assert any("made again" in note and "compiled.safetensors" in note for note in again.notes)
    assert path.read_bytes() == whole
    # Another run shares the outputs but not what was compiled for this metric or for these labels.
    other = replace(task, metric="mean_iou" if metric == "pixel_accuracy" else "pixel_accuracy")
    alone = radin.cook(paths, other, budget=1, out=tmp_path / "alone")
    shared = radin.cook(paths, other, budget=1, out=tmp_path / "other", outputs=tmp_path / "run" / "outputs")
    assert shared.ensemble == alone.ensemble


# ---------------------------------------------------------------- choices, and outputs() of one's own


class Towers(nn.Module):
    """Two towers: a picture is to be told by the nearest of some texts."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)


def similarity(model, inputs):
    query, choices, there = inputs
    found = torch.einsum("bd,bcd->bc", model.left(query), model.right(choices))
    return found.masked_fill(~there, -torch.inf)


def louder(model, inputs):
    return 2 * similarity(model, inputs)


def questions(widths=(2, 4, 3)):
    generator = torch.Generator().manual_seed(0)
    for width in widths:
        query = torch.randn(20, 6, generator=generator)
        choices = torch.randn(20, width, 6, generator=generator)
        target = torch.randint(0, 2, (20,), generator=generator)
        choices[torch.arange(20), target] += query
        there = torch.arange(width) < torch.randint(2, width + 1, (20, 1), generator=generator)
        yield (query, choices, there), target


def test_choices_of_another_number_in_each_batch_and_outputs_of_ones_own(tmp_path):
    paths = []
    torch.manual_seed(0)
    start = Towers()
    for k in range(3):
        model = Towers()
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), start.parameters(), strict=True):
                mine.copy_(theirs + 0.4 * torch.randn(theirs.shape))
        paths.append(tmp_path / f"m{k}.safetensors")
        save_file(model.state_dict(), paths[-1])
    task = Task(Towers, lambda: questions(), metric="multiple_choice", outputs=similarity)
    result = radin.cook(paths, task, budget=3, out=tmp_path / "run")
    expected = []
    for path in paths:
        model = Towers()
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            right = [similarity(model, inputs).argmax(dim=1) == target for inputs, target in questions()]
        expected.append(float(torch.cat(right).double().mean()))
    assert result.best_single.score == pytest.approx(max(expected))
    assert result.best.score >= max(expected)
    kept = load_file(next((tmp_path / "run" / "outputs").glob("[0-9a-f]*.safetensors")))["outputs"]
    assert kept.shape == (60, 4)
    assert np.isfinite(kept.numpy()).all()
    with pytest.raises(radin.RunError, match=r"the code of outputs\(\)"):
        radin.cook(paths, replace(task, outputs=louder), budget=3, out=tmp_path / "run")
