"""Metrics and estimates by position, against plain loops, seqeval, scikit-learn and transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import multiclass_jaccard_index

from radin import Metric, OutputsError, TaskError, metrics
from radin.data.batches import Batch
from radin.engine.rows import Rows
from radin.estimate import DenseEstimator, Keys, estimator
from radin.positions import UNCOUNTED, counted
from radin.positions import rows_of as rows_of_examples

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
MEMBERS, EXAMPLES, LENGTH = 4, 30, 12


@pytest.fixture(scope="module")
def sequences():
    """Logits (N, M, L, C) of four taggers and labels (M, L), -100 at the padding; one example counts nowhere."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(TAGS), (EXAMPLES, LENGTH))
    for k in range(EXAMPLES):
        labels[k, int(rng.integers(3, LENGTH)) :] = -100
    labels[7] = -100
    logits = rng.normal(size=(MEMBERS, EXAMPLES, LENGTH, len(TAGS))).astype(np.float32)
    truth = np.maximum(labels, 0)[None, :, :, None]
    np.put_along_axis(logits, truth, np.take_along_axis(logits, truth, 3) + 1, 3)
    return logits, labels


class Fixed(torch.nn.Module):
    """Gives the outputs that it was made with, whatever the inputs."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = torch.as_tensor(outputs)

    def forward(self, inputs):
        return self.outputs


def rows_of(metric, outputs, labels):
    """(rows, targets) of outputs and labels as a batch gives them."""
    chosen = metrics.get(metric)
    batch = Batch(torch.zeros(len(labels), 1), torch.as_tensor(labels), len(labels))
    made = Rows(chosen)
    return made.outputs(Fixed(outputs), batch.inputs, batch).numpy(), made.targets(batch)


def score(metric, outputs, labels):
    rows, targets = rows_of(metric, outputs, labels)
    return metrics.get(metric).value(rows, targets)


def test_token_accuracy_by_a_plain_loop(sequences):
    logits, labels = sequences
    right = total = 0
    for example, tags in zip(logits[0], labels, strict=True):
        for outputs, tag in zip(example, tags, strict=True):
            if tag != -100:
                right, total = right + (int(outputs.argmax()) == tag), total + 1
    assert score("token_accuracy", logits[0], labels) == right / total


def test_an_example_in_which_nothing_counts_is_still_one(sequences):
    _, labels = sequences
    _, targets = counted(labels, -100, 5)
    assert metrics.get("token_accuracy").examples(targets) == EXAMPLES
    assert targets[targets[:, 1] == 12].tolist() == [[UNCOUNTED, 12]]


def test_padding_to_another_length_changes_nothing(sequences):
    logits, labels = sequences
    more = np.concatenate([labels, np.full((EXAMPLES, 5), -100)], axis=1)
    padded = np.concatenate([logits[0], np.ones((EXAMPLES, 5, len(TAGS)), np.float32)], axis=1)
    for metric in ("token_accuracy", "token_nll", "span_f1", "mean_iou"):
        assert score(metric, padded, more) == score(metric, logits[0], labels)


def test_span_f1_is_seqevals(sequences):
    logits, labels = sequences
    guesses = logits[0].argmax(axis=2)
    names = [
        [[TAGS[t] for t, y in zip(a, b, strict=True) if y != -100] for a, b in zip(x, labels, strict=True)]
        for x in (labels, guesses)
    ]
    expected = f1_score(*names)
    assert 0.1 < expected < 0.9
    assert score("span_f1", logits[0], labels) == pytest.approx(expected, abs=1e-12)
    assert score(metrics.span_f1(TAGS), logits[0], labels) == pytest.approx(expected, abs=1e-12)


def test_span_f1_needs_names_where_the_usual_layout_does_not_fit(sequences):
    logits, labels = sequences
    with pytest.raises(TaskError, match=r"4 classes: name them with metric = radin.metrics.span_f1"):
        score("span_f1", logits[0][..., :4], np.minimum(labels, 3))


def test_mean_iou_is_scikit_learns_on_pictures(sequences):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (6, 5, 7))
    labels[0, :2] = 255
    outputs = rng.normal(size=(6, 5, 5, 7)).astype(np.float32)  # class 4 is never there
    metric = replace(metrics.get("mean_iou"), ignore_index=255)
    counts = labels != 255
    expected = jaccard_score(labels[counts], outputs.argmax(axis=1)[counts], average="macro")
    assert score(metric, outputs, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ignored", [255, 2])
def test_mean_iou_is_torchmetrics_and_a_plain_loops(ignored):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, (5, 6, 6))  # of the 6 classes 5 is never there, 4 is only predicted
    labels[1, 3:] = ignored
    outputs = rng.normal(size=(5, 6, 6, 6)).astype(np.float32)
    outputs[:, 5] = -9
    metric = replace(metrics.get("mean_iou"), ignore_index=ignored)
    found = score(metric, outputs, labels)
    theirs = multiclass_jaccard_index(
        torch.from_numpy(outputs), torch.from_numpy(labels), num_classes=6, average="macro", ignore_index=ignored
    )
    if ignored == 255:  # torchmetrics leaves an ignored class out of the mean, here only its positions do not count
        assert found == pytest.approx(float(theirs), abs=1e-6)
    shares = []
    for c in range(6):
        both = either = 0
        for picture, marked in zip(outputs, labels, strict=True):
            for y, x in np.ndindex(6, 6):
                if marked[y, x] != ignored:
                    mine, there = picture[:, y, x].argmax() == c, marked[y, x] == c
                    both, either = both + int(mine and there), either + int(mine or there)
        if either:
            shares.append(both / either)
    assert len(shares) == 5
    assert found == pytest.approx(np.mean(shares), abs=1e-12)


def test_rows_of_some_examples(sequences):
    logits, labels = sequences
    rows, targets = rows_of("token_accuracy", logits[0], labels)
    some = np.array([0, 6, 7, 29])
    mine, beside = rows_of("token_accuracy", logits[0][some], labels[some])
    at = rows_of_examples(targets, some)
    assert np.array_equal(rows[at], mine)
    assert np.array_equal(targets[at, 0], beside[:, 0])


def test_only_contested_positions_are_held_and_the_file_of_other_labels_is_made_again(sequences, tmp_path):
    logits, labels = sequences
    metric, names = metrics.get("token_accuracy"), ("a", "b", "c", "d")
    made = [rows_of(metric, member, labels) for member in logits]
    outputs, targets = [rows for rows, _ in made], made[0][1]
    path = tmp_path / "compiled.safetensors"
    first = estimator(outputs, targets, metric, cache=path, keys=Keys(names, "data"))
    right = np.stack([rows.argmax(axis=1) == targets[:, 0] for rows in outputs])
    counts = targets[:, 0] >= 0
    # Where all are right each has the largest output at the target, and so has every average; not so where all err.
    assert first.compiled.right.sum() == (right.all(axis=0) & counts).sum()
    assert len(first.compiled.owner) == first.margins.examples <= counts.sum() - first.compiled.right.sum()
    turned = estimator(outputs[::-1], targets, metric, cache=path, keys=Keys(names[::-1], "data"))
    weights = np.random.default_rng(0).dirichlet(np.ones(MEMBERS), 9)
    assert np.array_equal(turned.scores(weights[:, ::-1].copy()), first.scores(weights))
    other = targets.copy()
    other[:, 0] = np.where(targets[:, 0] >= 0, (targets[:, 0] + 1) % len(TAGS), targets[:, 0])
    again = estimator(outputs, other, metric, cache=path, keys=Keys(names, "data"))
    dense = DenseEstimator(outputs, other, replace(metric, family="other"))
    assert again.scores(weights) == pytest.approx(dense.scores(weights), abs=1e-12)
    with pytest.raises(OutputsError, match="compiled from other data"):
        estimator(outputs, targets, metric, cache=path, keys=Keys(names, "others"))
    fewer = estimator(outputs[:3], targets, metric, cache=path, keys=Keys(names[:3], "data"))
    assert fewer.members == 3


def test_answers_of_examples_are_those_of_averaged_outputs(sequences):
    logits, labels = sequences
    made = [rows_of("token_accuracy", member, labels) for member in logits]
    outputs, targets = [rows for rows, _ in made], made[0][1]
    found = estimator(outputs, targets, metrics.get("token_accuracy"))
    weights = np.random.default_rng(1).dirichlet(np.ones(MEMBERS), 5)
    right, soft, unsure = found.answers(weights, 0.3)
    for row, hits in zip(weights, right, strict=True):
        mixed = np.tensordot(row, np.stack(outputs).astype(np.float64), 1)
        assert np.array_equal(hits, metrics.get("token_accuracy").totals(mixed, targets)[:, 0])
    assert (soft >= 0).all()
    assert (np.abs(soft - right) <= unsure + 1e-12).all()
    assert 0 < unsure.sum() < right.sum()


def test_coarse_outputs_are_brought_to_the_pictures_size():
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    outputs = torch.zeros(2, 3, 2, 2)
    outputs[:, 1, :, 1] = 4.0
    expected = torch.nn.functional.interpolate(outputs, size=(8, 8), mode="bilinear").argmax(dim=1) == labels
    assert score("pixel_accuracy", outputs, labels) == pytest.approx(float(expected.float().mean()))


def test_perplexity_is_transformers_own_loss():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, 50, (3, 10))
    labels = tokens.clone()
    labels[1, 6:] = -100
    batch = Batch({"input_ids": tokens}, labels, 3)
    made = Rows(metrics.get("perplexity"))
    with torch.inference_mode():
        rows, targets = made.outputs(model, batch.inputs, batch).numpy(), made.targets(batch)
        loss = float(model(input_ids=tokens, labels=labels).loss)
    assert rows.shape == (len(targets), 1)
    assert metrics.get("token_nll").value(rows, targets) == pytest.approx(loss, rel=1e-6)
    assert metrics.get("perplexity").value(rows, targets) == pytest.approx(np.exp(loss), rel=1e-6)
    # Labels that were moved already are taken as they are.
    moved = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], dim=1)
    again = Batch({"input_ids": tokens}, moved, 3)
    with torch.inference_mode():
        assert np.array_equal(made.outputs(model, again.inputs, again).numpy(), rows)


@pytest.mark.parametrize("metric", ["token_accuracy", "mean_iou"])
def test_compiled_estimates_are_the_metric_of_averaged_outputs(sequences, metric):
    logits, labels = sequences
    made = [rows_of(metric, member, labels) for member in logits]
    outputs, targets = [rows for rows, _ in made], made[0][1]
    recipes = np.random.default_rng(2).dirichlet(np.ones(MEMBERS), 20)
    found = estimator(outputs, targets, metrics.get(metric))
    assert type(found).__name__ in ("PositionAccuracy", "MacroF1Estimator")
    expected = [score(metric, np.tensordot(w, logits.astype(np.float64), 1), labels) for w in recipes]
    assert found.scores(recipes) == pytest.approx(expected, abs=1e-12)
    assert DenseEstimator(outputs, targets, metrics.get(metric)).scores(recipes) == pytest.approx(expected, abs=1e-12)


def test_the_likelihood_estimate_is_that_of_averaged_probabilities(sequences):
    logits, labels = sequences
    made = [rows_of("perplexity", member, labels) for member in logits]
    recipes = np.random.default_rng(2).dirichlet(np.ones(MEMBERS), 20)
    logs = torch.log_softmax(torch.from_numpy(logits).double(), dim=3).numpy()
    found = estimator([rows for rows, _ in made], made[0][1], metrics.get("perplexity"))
    places = np.nonzero(labels != -100)
    for w, value in zip(recipes, found.scores(recipes), strict=True):
        mixed = np.log(np.tensordot(w, np.exp(logs), 1))[(*places, labels[places])]
        assert value == pytest.approx(np.exp(-mixed.mean()), rel=1e-5)
    value, gradient = found.value_and_gradient(recipes[0])
    step = np.eye(MEMBERS)[1] * 1e-6
    slope = (found.value_and_gradient(recipes[0] + step)[0] - found.value_and_gradient(recipes[0] - step)[0]) / 2e-6
    assert gradient[1] == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("metric", ["token_accuracy", "perplexity", "mean_iou", "span_f1"])
def test_numbers_per_example_average_to_the_score_and_give_its_error(sequences, metric):
    logits, labels = sequences
    rows, targets = rows_of(metric, logits[0], labels)
    chosen = metrics.get(metric)
    totals = chosen.totals(rows, targets)
    values = chosen.values(totals)
    assert len(values) == EXAMPLES
    assert values.mean() == pytest.approx(chosen.value(rows, targets), rel=1e-12)
    rng = np.random.default_rng(3)
    draws = [chosen.from_totals(totals[rng.integers(0, EXAMPLES, EXAMPLES)].sum(axis=0)) for _ in range(2000)]
    assert chosen.standard_error(rows, targets) == pytest.approx(np.std(draws), rel=0.2)


def test_the_error_of_token_accuracy_is_the_ratio_estimators(sequences):
    logits, labels = sequences
    rows, targets = rows_of("token_accuracy", logits[0], labels)
    chosen = metrics.get("token_accuracy")
    sums, counts = chosen.totals(rows, targets).T
    share = sums.sum() / counts.sum()
    expected = np.std((sums - share * counts) / counts.mean(), ddof=1) / np.sqrt(EXAMPLES)
    assert chosen.standard_error(rows, targets) == pytest.approx(expected, rel=1e-6)


def test_a_metric_of_ones_own_by_position(sequences):
    logits, labels = sequences
    mine = Metric(
        per_position=lambda outputs, classes: outputs[np.arange(len(classes)), classes],
        higher_is_better=True,
        name="mine",
    )
    expected = np.mean([logits[0, i, j, labels[i, j]] for i, j in zip(*np.nonzero(labels != -100), strict=True)])
    assert score(mine, logits[0], labels) == pytest.approx(expected, rel=1e-6)
    rows, targets = rows_of(mine, logits[0], labels)
    mine.probe(rows, targets)
    with pytest.raises(TaskError, match="per_example must return an array of"):
        replace(mine, per_position=lambda outputs, classes: 1.0).probe(rows, targets)


def test_choices_that_are_not_there_never_win_and_move_no_answer():
    outputs = torch.tensor([[1.0, 3.0, -torch.inf], [-9e3, -8e3, -7e3]])
    rows, _ = rows_of("multiple_choice", outputs, [1, 2])
    assert np.isfinite(rows).all()
    assert rows[0, 2] == -29
    assert rows.argmax(axis=1).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "said"),
    [
        ("token_accuracy", torch.zeros(2, 3, 4), [[0, 1, 4]] * 2, "the targets hold 4.*ignore_index = 4"),
        ("token_nll", torch.zeros(2, 3, 4), [[0, 1, 255]] * 2, "the targets hold 255.*ignore_index = 255"),
        ("token_accuracy", torch.zeros(2, 3), [[0, 1, 2]] * 2, r"the model returns \(2, 3\), the targets are \(2, 3\)"),
        ("token_accuracy", torch.zeros(2, 3, 4), [1, 2], r"class index at each position.*int64 \(2,\)"),
        ("accuracy", torch.zeros(2, 3, 4), [1, 2], "such as token_accuracy or mean_iou"),
    ],
)
def test_what_does_not_fit_is_said(metric, outputs, labels, said):
    with pytest.raises(TaskError, match=f"(?s){said}"):
        rows_of(metric, outputs, labels)
