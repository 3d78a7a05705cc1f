"""The trainers' callbacks: what they take, where they put the run, and that training never fails by them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from radin.integrations.after_training import free_folder

pl = pytest.importorskip("pytorch_lightning")

from pytorch_lightning.callbacks import ModelCheckpoint  # noqa: E402

from radin.integrations.lightning import CookCallback, checkpoints_of  # noqa: E402


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def training_step(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data(seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(90, 4, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=30)


def fit(folder: Path, callbacks: list[Any], *, validate: bool = True) -> Any:
    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=callbacks,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), data(0), data(1) if validate else None)
    return trainer


def test_the_checkpoints_are_those_that_modelcheckpoint_kept(tmp_path: Path) -> None:
    some = ModelCheckpoint(tmp_path / "some", monitor="loss", save_top_k=2)
    every = ModelCheckpoint(tmp_path / "every", save_top_k=-1)  # without a monitor it remembers none but the last
    trainer = fit(tmp_path, [some, every])
    found = checkpoints_of(trainer)
    assert sorted(found) == sorted([*(tmp_path / "some").iterdir(), *(tmp_path / "every").iterdir()])
    assert len(found) == 5


def test_a_run_of_one_checkpoint_says_how_to_keep_more_and_does_not_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cook = CookCallback()
    with caplog.at_level(logging.WARNING, "radin"):
        fit(tmp_path, [ModelCheckpoint(tmp_path / "kept"), cook])
    assert cook.result is None
    assert cook.soup is None
    assert cook.problem == (
        "a soup needs at least two checkpoints, and 1 of this run are there. Keep more: "
        "ModelCheckpoint(monitor=..., save_top_k=5), or save_top_k=-1 for all"
    )
    assert f"no soup was made: {cook.problem}" in caplog.text


def test_without_validation_data_the_callback_asks_for_it(tmp_path: Path) -> None:
    cook = CookCallback()
    fit(tmp_path, [ModelCheckpoint(tmp_path / "kept", save_top_k=-1), cook], validate=False)
    assert cook.problem == "the trainer has no validation data, or several: give CookCallback(validation=)"
    given = CookCallback(validation=data(1), budget=2)
    fit(tmp_path, [ModelCheckpoint(tmp_path / "other", save_top_k=-1), given], validate=False)
    assert given.problem is None
    assert given.result.passes.budget == 2


def test_what_cook_refuses_is_told_and_training_goes_on(tmp_path: Path) -> None:
    cook = CookCallback(metric="mse")
    trainer = fit(tmp_path, [ModelCheckpoint(tmp_path / "kept", save_top_k=-1), cook])
    assert trainer.state.finished
    assert "metric 'mse'" in cook.problem


def test_a_second_fit_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    cook = CookCallback(budget=2)
    for name in ("kept", "kept-again"):
        fit(tmp_path, [ModelCheckpoint(tmp_path / name, save_top_k=-1), cook])
    assert cook.soup == tmp_path / "soup-2" / "soup.ckpt"
    assert (tmp_path / "soup" / "soup.ckpt").exists()
    assert free_folder(tmp_path / "soup") == tmp_path / "soup-3"


def test_a_trainer_that_never_evaluated_is_asked_for_its_data(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from radin.integrations.trainer import CookCallback as TrainerCallback

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **shape))
    rows = [{"input_ids": [k % 20, 3, 4], "labels": k % 2} for k in range(32)]
    cook = TrainerCallback(budget=2)
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, save_strategy="epoch", report_to="none", use_cpu=True, disable_tqdm=True
    )
    transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[cook]).train()
    assert cook.problem == "the trainer has no validation data, or several: give CookCallback(validation=)"

    single = TrainerCallback(checkpoints=[tmp_path / "checkpoint-4"])
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[single]).train()
    assert single.problem == (
        "a soup needs at least two checkpoints, and 1 of this run are there. Keep more: "
        "TrainingArguments(save_strategy='epoch', save_total_limit=None)"
    )
