"""The examples of docs/evaluators.md run as they stand, on the toy pool laid out as they expect it."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import toy

pytestmark = pytest.mark.long

TEXT = (Path(__file__).parents[1] / "docs" / "evaluators.md").read_text()
SHELL, PYTHON = (re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) for language in ("sh", "python"))
COMMANDS = re.findall(r"^    (radin cook .*)$", TEXT, re.MULTILINE)

# What a reader brings: a way to evaluate a checkpoint.
PROJECT = """
import numpy as np
from safetensors.numpy import load_file

def validation_set():
    data = np.load("digits.npz")
    return data["images"], data["labels"]

def predict(path, images):
    return predicted(load_file(path), images)

def predicted(tensors, images):
    w = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    x = images @ w["0.weight"].T + w["0.bias"]
    x = (x - w["1.running_mean"]) / np.sqrt(w["1.running_var"] + 1e-5) * w["1.weight"] + w["1.bias"]
    return (np.maximum(x, 0) @ w["4.weight"].T + w["4.bias"]).argmax(1)

def correct(tensors, examples):
    images, labels = validation_set()
    chosen = slice(None) if examples is None else examples
    return predicted(tensors, images[chosen]) == labels[chosen]
"""
MY_EVAL = """
import argparse, json, os
import my_project
parser = argparse.ArgumentParser()
parser.add_argument("--checkpoint")
parser.add_argument("--report")
arguments = parser.parse_args()
images, labels = my_project.validation_set()
accuracy = float((my_project.predict(arguments.checkpoint, images) == labels).mean())
print("on GPU", os.environ["CUDA_VISIBLE_DEVICES"])
json.dump({"accuracy": accuracy}, open(arguments.report, "w"))
"""


@pytest.fixture
def project(toy_folder, tmp_path, monkeypatch):
    """runs/*/model.safetensors, what evaluates them, and `radin` and `python` to type."""
    for path in toy_folder.glob("*.safetensors"):
        (tmp_path / "runs" / path.stem).mkdir(parents=True)
        shutil.copy(path, tmp_path / "runs" / path.stem / "model.safetensors")
    images, labels = (torch.cat(parts).numpy() for parts in zip(*toy.batches(toy.VALIDATION), strict=True))
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    (tmp_path / "logits").mkdir()
    np.save(tmp_path / "logits" / "targets.npy", labels)
    for path in toy_folder.glob("*.safetensors"):
        model = toy.model().eval()
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            np.save(tmp_path / "logits" / f"{path.stem}-model.npy", model(torch.from_numpy(images)).numpy())
    (tmp_path / "my_project.py").write_text(PROJECT)
    (tmp_path / "my_eval.py").write_text(MY_EVAL)
    (tmp_path / "score.py").write_text(PYTHON[0])
    (tmp_path / "score.sh").write_text(SHELL[0])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "radin").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m radin "$@"\n')
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for path in (tmp_path / "score.sh", *(tmp_path / "bin").iterdir()):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def accuracy(path):
    import my_project

    images, labels = my_project.validation_set()
    return float((my_project.predict(path, images) == labels).mean())


def shell(line):
    done = subprocess.run(["/bin/sh", "-c", f"{line} --json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_is_nothing_else_to_run():
    assert [len(SHELL), len(PYTHON), len(COMMANDS)] == [1, 3, 3]


def test_the_shell_program_from_the_command_line_and_from_python(project):
    found = shell(COMMANDS[1])
    assert found["passes"]["soups"] == 12
    assert found["best"]["score"] == pytest.approx(accuracy(project / "run" / "soup.safetensors"))
    exec(PYTHON[1], space := {})
    assert space["result"].passes.soups == 4
    assert space["result"].metric == "accuracy"


def test_the_shortest_command(project):
    (project / "score.sh").write_text('#!/bin/sh\npython score.py "$1" ""\n')
    found = shell(COMMANDS[0])
    assert found["passes"]["started"] == found["passes"]["soups"] == 12


def test_the_python_program_is_asked_about_some_of_the_examples(project):
    found = shell(COMMANDS[2].replace("--budget 12", "--budget 2"))
    assert found["passes"]["soups"] <= 2
    assert found["ensemble"]["score"] > 0.9
    assert found["best"]["score"] == pytest.approx(accuracy(project / "run" / "soup.safetensors"))


def test_the_engine(project, monkeypatch):
    import my_project

    counts, correct = [], my_project.correct

    @functools.wraps(correct)
    def counted(tensors, examples):
        counts.append(600 if examples is None else len(examples))
        return correct(tensors, examples)

    monkeypatch.setattr(my_project, "correct", counted)
    exec(PYTHON[2], space := {})
    result = space["result"]
    assert counts == [600] * (6 + 4)  # the members, and whole soups: no outputs are given
    assert result.passes.soups == result.passes.started == 4
    assert result.best.score == pytest.approx(accuracy(project / "run-of-mine" / "soup.safetensors"))
    counts.clear()
    exec(PYTHON[2], again := {})
    assert counts == []
    assert [e.score for e in again["result"].evaluations] == [e.score for e in result.evaluations]
