"""An Optuna study whose trials leave checkpoints, and the soup of them.

    pip install radin optuna scikit-learn
    python examples/optuna_study.py --out study

Every trial fine-tunes one and the same pre-trained network (what makes averaging work), with hyperparameters that
Optuna proposes, and saves its weights. radin then finds which trials to average. This file is its own task file: radin
reads model(), validation() and test() from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import radin

TRIALS, BUDGET = 8, 6


def digits() -> TensorDataset:
    """1,797 digits of 8 x 8 pixels, in a fixed random order."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return TensorDataset(torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order])


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


def validation() -> Subset:
    return Subset(digits(), range(900, 1400))


def test() -> Subset:
    return Subset(digits(), range(1400, 1797))


def train(network: nn.Module, rows: range, rate: float, epochs: int, smoothing: float = 0.0, seed: int = 0) -> None:
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    for _ in range(epochs):
        for images, labels in DataLoader(Subset(digits(), rows), batch_size=32, shuffle=True):
            optimizer.zero_grad()
            loss(network(images + 0.1 * torch.randn_like(images)), labels).backward()
            optimizer.step()


def accuracy(network: nn.Module, data: Subset) -> float:
    with torch.no_grad():
        return sum(int((network(x).argmax(1) == y).sum()) for x, y in DataLoader(data, 256)) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("study"))
    out = parser.parse_args().out

    torch.manual_seed(0)
    start = model()
    train(start, range(300), rate=1e-3, epochs=4)  # stands for the pre-trained network

    def objective(trial: optuna.Trial) -> float:
        network = model()
        network.load_state_dict(start.state_dict())
        rate = trial.suggest_float("rate", 3e-4, 1e-2, log=True)
        smoothing = trial.suggest_float("smoothing", 0.0, 0.2)
        train(network, range(900), rate, trial.suggest_int("epochs", 2, 5), smoothing, seed=trial.number)
        folder = out / "trials" / f"trial_{trial.number}"
        folder.mkdir(parents=True)
        torch.save(network.state_dict(), folder / "best.pt")
        return accuracy(network, validation())

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=TRIALS)

    result = radin.cook(sorted(out.glob("trials/*/best.pt")), __file__, budget=BUDGET, out=out / "soup")
    print(result)
    print(f"best trial {study.best_value:.4f}, soup {result.best.score:.4f} on validation: {result.soup}")


if __name__ == "__main__":
    main()
