"""The examples run as they are, in a process of their own, on real data; what they leave is looked at here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import radin

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, out: Path) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"optuna_study.py", "lightning_run.py", "trainer_sweep.py"}


def test_an_optuna_study_is_cooked_from_the_folder_of_its_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    said = run("optuna_study.py", tmp_path / "study")

    result = radin.Result.load(tmp_path / "study" / "soup")
    assert len(result.member_names) == 8
    assert result.best.score >= result.best_single.score
    # the trials' own accuracy, which Optuna was told, is what radin measures of the best of them
    assert f"best trial {result.best_single.score:.4f}, soup {result.best.score:.4f}" in said


def test_a_lightning_run_is_cooked_at_the_end_of_fit_and_loads_from_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    said = run("lightning_run.py", tmp_path / "run")

    result = radin.Result.load(tmp_path / "run" / "soup")
    assert len(result.member_names) == 10
    # Lightning's own validation of the soup that load_from_checkpoint opened gives radin's score of it
    assert f"soup {result.best.score:.4f} on validation" in said
    written = torch.load(tmp_path / "run" / "soup" / "soup.ckpt", weights_only=False)
    assert set(written["state_dict"]) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert written["hyper_parameters"] == {"width": 96, "rate": 3e-3}
    assert "optimizer_states" not in written  # it would not be true of the soup


def test_a_trainer_sweep_is_cooked_and_the_soup_opens_with_from_pretrained(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run("trainer_sweep.py", tmp_path / "sweep")

    result = radin.Result.load(tmp_path / "sweep" / "soup")
    assert len(result.member_names) == 4
    assert result.best.score >= result.best_single.score
    own = tmp_path / "sweep" / "run-0" / "soup" / "soup"  # what the callback left
    model = transformers.AutoModelForSequenceClassification.from_pretrained(own)
    recipe = radin.Result.load(own.parent).best.recipe
    members = [own.parents[1] / f"checkpoint-{step}" for step in (32, 64)]
    states = [
        transformers.AutoModelForSequenceClassification.from_pretrained(path).state_dict()
        for path in sorted(own.parents[1].glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    ]
    assert len(states) == len(members)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            exact = sum(p * state[name].double() for p, state in zip(recipe.weights, states, strict=True))
            torch.testing.assert_close(tensor, exact.float(), rtol=0, atol=0)
