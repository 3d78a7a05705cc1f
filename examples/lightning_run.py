"""A Lightning run that keeps its checkpoints, and cooks them at the end of fit.

    pip install radin pytorch-lightning scikit-learn
    python examples/lightning_run.py --out run

ModelCheckpoint keeps the weights of every epoch; CookCallback finds which to average and writes a .ckpt that
load_from_checkpoint opens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from radin.integrations.lightning import CookCallback

EPOCHS, BUDGET = 10, 6


class Digits(pl.LightningModule):
    def __init__(self, width: int = 96, rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images + 0.2 * torch.randn_like(images)), labels)

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)


def loaders() -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training, validation and test batches of 1,797 digits."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order])
    training, validation, test = (Subset(data, range(*rows)) for rows in ((0, 700), (700, 1250), (1250, 1797)))
    return DataLoader(training, 32, shuffle=True), DataLoader(validation, 128), DataLoader(test, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("run"))
    out = parser.parse_args().out

    pl.seed_everything(0, verbose=False)
    training, validation, test = loaders()
    keep = ModelCheckpoint(out / "checkpoints", monitor="accuracy", mode="max", save_top_k=-1)
    cook = CookCallback(budget=BUDGET, metric="accuracy", test=test, out=out / "soup")
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        callbacks=[keep, cook],
        accelerator="cpu",
        default_root_dir=out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), training, validation)
    if cook.result is None:
        raise SystemExit(cook.problem)
    print(cook.result)

    soup = Digits.load_from_checkpoint(cook.soup)
    found = trainer.validate(soup, validation, verbose=False)[0]["accuracy"]
    print(f"best epoch {keep.best_model_score:.4f}, soup {found:.4f} on validation: {cook.soup}")


if __name__ == "__main__":
    main()
