"""Cook by a program that scores as lm-evaluation-harness does, from its members' sample logs: from end to end."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import radin
from radin.run.ledger import Ledger

MEMBERS, DOCUMENTS = 4, 60

# A linear scorer of choices. With a folder as second argument it writes the log that --log_samples leaves there.
SCORE = """
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
w = load_file(Path(sys.argv[1]) / "model.safetensors")["w"]
with np.load("documents.npz") as data:
    features, targets, counts = data["features"], data["targets"], data["counts"]
values, lines = [], []
with open("calls.txt", "a") as calls:
    calls.write(sys.argv[1] + "\\n")
for k, (x, target, count) in enumerate(zip(features, targets, counts)):
    likelihoods = [float(np.float32(v)) for v in np.tanh(x[:count] @ w) * 9 - 20]
    values.append(float(int(np.argmax(likelihoods)) == target))
    pairs = [[str(v), "False"] for v in likelihoods]
    lines.append({
        "doc_id": k, "doc": {"question": f"question {k}"}, "target": str(target),
        "arguments": {f"gen_args_{c}": {"arg_0": "Q", "arg_1": f" choice {c}"} for c in range(count)},
        "resps": [[pair] for pair in pairs], "filtered_resps": pairs, "filter": "none", "metrics": ["acc"],
        "doc_hash": f"{k:064d}", "prompt_hash": "0", "target_hash": "0", "acc": values[-1],
    })
if len(sys.argv) > 2:
    place = Path(sys.argv[2])
    place.mkdir(parents=True)
    log = "".join(json.dumps(line) + "\\n" for line in lines)
    (place / "samples_arc_easy_2026-01-02T03-04-05.678901.jsonl").write_text(log)
print(json.dumps({"score": float(np.mean(values)), "values": values}))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The members' folders, with the program and its documents beside them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth, features = rng.normal(size=8), rng.normal(size=(DOCUMENTS, 5, 8)).astype(np.float32)
    counts = rng.integers(3, 6, DOCUMENTS)
    noisy = features @ truth + rng.normal(size=(DOCUMENTS, 5))
    targets = np.array([scores[:count].argmax() for scores, count in zip(noisy, counts, strict=True)])
    np.savez(tmp_path / "documents.npz", features=features, targets=targets, counts=counts)
    (tmp_path / "score.py").write_text(SCORE)
    paths = []
    for k in range(MEMBERS):
        paths.append(tmp_path / "models" / f"m{k}")
        paths[-1].mkdir(parents=True)
        weights = (0.1 * (truth + rng.normal(0, 0.7, 8))).astype(np.float32)
        save_file({"w": weights}, paths[-1] / "model.safetensors")
    return paths


def likelihoods(weights):
    """(documents, choices) of the program's, -inf where a document has fewer; and its targets."""
    with np.load("documents.npz") as data:
        found = (np.tanh(data["features"] @ weights) * 9 - 20).astype(np.float32).astype(np.float64)
        found[np.arange(5) >= data["counts"][:, None]] = -np.inf
        return found, data["targets"]


def accuracy(found, targets):
    return float((found.argmax(axis=1) == targets).mean())


def test_cook_ranks_by_sample_logs_and_is_scored_by_the_program(here, tmp_path, program):
    for path in here:
        program("score.py", path, tmp_path / "logs" / f"models__{path.name}")
    (tmp_path / "calls.txt").unlink()
    command = f"'{sys.executable}' score.py {{soup}}"

    def cook():
        task = radin.Command(command, metric="acc")
        return radin.cook(
            here, task, budget=4, out=tmp_path / "run", outputs=tmp_path / "logs", metric="multiple_choice"
        )

    result = cook()
    weights = [load_file(path / "model.safetensors")["w"] for path in here]
    singles = [accuracy(*likelihoods(w)) for w in weights]
    assert result.best_single.score == pytest.approx(max(singles))
    soup = load_file(tmp_path / "run" / "soup" / "model.safetensors")["w"]
    assert result.best.score == pytest.approx(accuracy(*likelihoods(soup)))
    assert result.best.score >= max(singles)
    assert result.examples == DOCUMENTS
    assert (result.passes.members, result.passes.soups) == (MEMBERS, 4)
    # The logs give the program's own scores, so estimates are accuracies of averaged log-likelihoods, as they are.
    assert not any("scaled" in note for note in result.notes)
    assert len(result.evaluations) == 4
    for found in result.evaluations:
        mixed = sum(w * likelihoods(v)[0] for w, v in zip(found.recipe.weights, weights, strict=True) if w)
        assert found.estimate == pytest.approx(accuracy(mixed, likelihoods(weights[0])[1]), abs=1e-12)
    # A second session finds everything and runs nothing; a larger budget goes on from there.
    assert len((tmp_path / "calls.txt").read_text().splitlines()) == MEMBERS + 4
    again = cook()
    assert (again.best, again.evaluations) == (result.best, result.evaluations)
    assert len((tmp_path / "calls.txt").read_text().splitlines()) == MEMBERS + 4
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True)
    assert len(ledger.soups()) == 4
    ledger.close()


def test_other_logs_are_refused_by_a_second_session(here, tmp_path, program):
    for path in here:
        program("score.py", path, tmp_path / "logs" / f"models__{path.name}")
    task = radin.Command(f"'{sys.executable}' score.py {{soup}}", metric="acc")
    given = {"budget": 1, "out": tmp_path / "run", "outputs": tmp_path / "logs", "metric": "multiple_choice"}
    radin.cook(here, task, **given)
    log = next((tmp_path / "logs" / "models__m1").iterdir())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[3]["filtered_resps"][0][0] = "-1.5"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(radin.RunError, match="outputs to estimate from"):
        radin.cook(here, task, **given)


@pytest.fixture
def program():
    """Runs a program of this folder's by hand, as a user would for the members."""

    def run(*arguments):
        subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)

    return run
