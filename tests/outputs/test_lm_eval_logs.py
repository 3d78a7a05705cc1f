"""Sample logs in the format that lm-evaluation-harness 0.4.13 writes, as outputs to estimate from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from radin import OutputsError, Pool, metrics
from radin.estimate import estimator
from radin.outputs.files import read_outputs


@pytest.fixture
def pool(tmp_path):
    torch.manual_seed(0)
    for k in range(3):
        folder = tmp_path / "models" / f"m{k}"
        folder.mkdir(parents=True)
        save_file({"w": torch.randn(4)}, folder / "model.safetensors")
    return Pool.open([tmp_path / "models" / f"m{k}" for k in range(3)])


def sample(number, likelihoods, target, document="", metrics=("acc",)):
    """One line, as evaluator.py makes it and evaluation_tracker.py sanitizes it."""
    pairs = [[str(value), "False"] for value in likelihoods]
    return {
        "doc_id": number,
        "doc": {"question": f"question {number}"},
        "target": str(target),
        "arguments": {f"gen_args_{k}": {"arg_0": "Q", "arg_1": f" choice {k}"} for k in range(len(pairs))},
        "resps": [[pair] for pair in pairs],
        "filtered_resps": pairs,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": f"{number:064d}{document}",
        "prompt_hash": "0",
        "target_hash": "0",
        "acc": float(np.argmax(likelihoods) == target) if isinstance(target, int) else 0.0,
    }


def write(folder, member, samples, task="arc_easy", date="2026-01-02T03-04-05.678901"):
    place = folder / f"models__{member}"
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"samples_{task}_{date}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in samples))
    return path


def logged(seed, documents=20):
    """Documents of three to five choices, with the same targets for every seed."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    samples = []
    for number in range(documents):
        choices = 3 + number % 3
        target = int(shared.integers(0, choices))
        likelihoods = rng.normal(-20, 2, choices)
        likelihoods[target] += 2
        samples.append(sample(number, likelihoods, target))
    return samples


def test_accuracy_is_that_of_the_harness(pool, tmp_path):
    for k in range(3):
        write(tmp_path / "logs", f"m{k}", logged(k)[::-1])  # ranks may write them in any order
    found = read_outputs(tmp_path / "logs", pool)
    assert [array.shape for array in found.outputs] == [(20, 5)] * 3
    metric = metrics.get("multiple_choice")
    for k, outputs in enumerate(found.outputs):
        assert metric.value(outputs, found.targets) == np.mean([line["acc"] for line in logged(k)])
    # Averages of log-likelihoods, choice by choice.
    parts = [logged(k) for k in range(3)]
    right = 0
    for lines in zip(*parts, strict=True):
        mean = np.mean([[float(pair[0]) for pair in line["filtered_resps"]] for line in lines], axis=0)
        right += int(mean.argmax() == int(lines[0]["target"]))
    made = estimator(found.outputs, found.targets, metric)
    assert made.scores(np.full((1, 3), 1 / 3)) == pytest.approx([right / 20])


def test_the_newest_log_of_each_task_counts_and_targets_may_be_texts(pool, tmp_path):
    for k in range(3):
        write(tmp_path, f"m{k}", logged(9), date="2025-12-31T00-00-00.000000")
        write(tmp_path, f"m{k}", [sample(0, [-1.0, -2.0, -9.0, -9.0], "choice 1", metrics=["acc", "acc_mutual_info"])])
        write(tmp_path, f"m{k}", [sample(0, [-3.0, -1.0], 1)], task="boolq")
    found = read_outputs(tmp_path, pool)
    assert found.outputs[0].tolist() == [[-1.0, -2.0], [-3.0, -1.0]]
    assert found.targets.tolist() == [1, 1]


def test_what_does_not_fit_is_said(pool, tmp_path):
    for k in range(2):
        write(tmp_path, f"m{k}", logged(k))
    with pytest.raises(
        OutputsError, match="no sample logs of m2; looked for a folder m2, there are models__m0, models__m1"
    ):
        read_outputs(tmp_path, pool)
    other = logged(2)
    other[7] = sample(7, [-1.0, -2.0, -3.0, -4.0], 0, document="x")
    path = write(tmp_path, "m2", other)
    with pytest.raises(OutputsError, match=r"of m2 and m0 are of different documents, first at arc_easy document 7 "):
        read_outputs(tmp_path, pool)
    write(tmp_path, "m2", logged(2)[:15])
    with pytest.raises(OutputsError, match="of m2 hold 15 documents, those of m0 20"):
        read_outputs(tmp_path, pool)
    path.write_text(json.dumps({"doc_id": 0, "filtered_resps": ["an answer"], "doc_hash": "0", "target": "0"}) + "\n")
    with pytest.raises(OutputsError, match=r"line 1: no document of .* no pairs of a log-likelihood"):
        read_outputs(tmp_path, pool)
    path.write_text("{")
    with pytest.raises(OutputsError, match="line 1: no document"):
        read_outputs(tmp_path, pool)
