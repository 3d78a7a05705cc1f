"""A tiny real pool, made in a second: a small BatchNorm network fine-tuned a few ways on scikit-learn's digits."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

TASK = """
import toy
model = toy.model
def validation(): return toy.batches(toy.VALIDATION)
def test(): return toy.batches(toy.TEST)
def shifts(): return {"noisy": [(x + 0.5 * torch.sin(37 * x), y) for x, y in toy.batches(toy.TEST)]}
def calibration(): return toy.batches(toy.TRAINING)
import torch
"""

TRAINING, VALIDATION, TEST = slice(0, 700), slice(700, 1300), slice(1300, 1797)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))


@cache
def _digits() -> tuple[Any, Any]:
    return load_digits(return_X_y=True)


def batches(rows: slice, size: int = 100) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = _digits()
    inputs = torch.tensor(images[rows], dtype=torch.float32) / 16
    targets = torch.tensor(labels[rows])
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def _train(net: nn.Module, rate: float, epochs: int, seed: int, rows: slice) -> None:
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches(rows), strict=True))
    net.train()
    for _ in range(epochs):
        for picked in torch.randperm(len(inputs)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[picked]), targets[picked]).backward()
            optimizer.step()
    net.eval()


def build(folder: Path, members: int = 6) -> list[Path]:
    """Checkpoints and task.py in ``folder``; returns the checkpoints' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    start = model()
    _train(start, 0.05, 2, 0, slice(0, 300))
    paths = []
    for k in range(members):
        net = model()
        net.load_state_dict(start.state_dict())
        # Each sees its own few images, for too long: what averaging is good for.
        _train(net, 0.05 * (1 + k % 3), 6 - k % 2, k + 1, slice(50 * k, 50 * k + 350))
        paths.append(folder / f"run-{k}.safetensors")
        save_file(net.state_dict(), paths[-1])
    (folder / "task.py").write_text(TASK)
    (folder / "settings.json").write_text(json.dumps({"members": members}))
    return paths


def what_matters(out: Path) -> dict[str, Any]:
    """Of a run's result.json, what two runs over the same must have in common."""
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    for gone in ("seconds", "soup", "checksum", "notes", "passes"):
        found.pop(gone)
    for scored in [found["best"], found["best_single"], found["uniform"], *found["evaluations"]]:
        scored.pop("seconds")
    return found
