"""What lies in the reader's folder when a page of the documentation begins, made in a second or two."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import ready_made
import toy

Names = dict[str, Any]
World = Callable[[Path, Path], Names]
"""(an empty folder, the toy pool's folder) -> names that the page's Python takes for granted."""


def empty(folder: Path, toys: Path) -> Names:
    """Nothing at all."""
    return {}


def sweep(folder: Path, toys: Path) -> Names:
    """runs/NAME/best.safetensors and task.py."""
    for path in toys.glob("*.safetensors"):
        (folder / "runs" / path.stem).mkdir(parents=True)
        shutil.copy(path, folder / "runs" / path.stem / "best.safetensors")
    shutil.copy(toys / "task.py", folder)
    return {"training_batches": toy.batches(toy.TRAINING)}


def cooked(folder: Path, toys: Path) -> Names:
    """The same, and a finished run."""
    import radin

    names = sweep(folder, toys)
    radin.cook("runs/*/best.safetensors", "task.py", budget=3, out="run")
    return names


def files(folder: Path, toys: Path) -> Names:
    """Checkpoints of several kinds under several names, and a list of them."""
    net = toy.model()
    for k, place in enumerate(
        ("runs/lr1/best.pt", "runs/lr3/best.pt", "extra.ckpt", "runs/lr1/last.ckpt", "runs/lr3/last.ckpt")
    ):
        torch.manual_seed(k)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        state = {n: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t for n, t in net.state_dict().items()}
        torch.save({"state_dict": state}, folder / place)
    (folder / "more.txt").write_text("runs/lr1/best.pt\nextra.ckpt  \n# nothing\n")
    return {}


def metrics(folder: Path, toys: Path) -> Names:
    """A loss of the user's own."""

    def huber(outputs: Any, targets: Any) -> float:
        return float(torch.nn.functional.huber_loss(torch.as_tensor(outputs), torch.as_tensor(targets)))

    return {"huber": huber, "torch": torch}


def encoder(folder: Path, toys: Path) -> Names:
    """members/: three files with the tensors of an encoder's last layer."""
    (folder / "members").mkdir()
    for k in range(3):
        tensors = {
            name: torch.full((2,), float(k + 1))
            for name in ("embed.weight", "encoder.layer.11.key", "encoder.layer.11.output.weight")
        }
        save_file(tensors, folder / "members" / f"run-{k}.safetensors")
    return {}


def folders(folder: Path, toys: Path) -> Names:
    """run1, run2, run3 and members/: fine-tuned folders; base_model, adapters/ to it; task.py."""
    import peft
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model, words = BertForSequenceClassification(ready_made.bert()), ready_made.tokenizer()
    for part in (model, words):
        part.save_pretrained(folder / "base_model")
    for k, path in enumerate(ready_made.noisy(folder / "members", model, beside=[words])):
        shutil.copytree(path, folder / f"run{k + 1}")
    for k in range(3):
        torch.manual_seed(k)
        start = BertForSequenceClassification.from_pretrained(folder / "base_model")
        adapted = peft.get_peft_model(
            start, peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
        )
        for name, tensor in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(tensor, std=0.1)
        adapted.save_pretrained(folder / "adapters" / f"a{k}")
    import radin

    ready_made.reviews(folder / "validation.csv", 60, 1)
    task = radin.ready_task(radin.Pool.open(["run1", "run2", "run3"]), "hf", "csv:validation.csv")
    (folder / "task.py").write_text(task.text)
    return {}


def language_models(folder: Path, toys: Path) -> Names:
    """models/: folders; score.py, a program that scores one and writes logs as lm-evaluation-harness does; logs/."""
    made = runpy.run_path(str(Path(__file__).parents[1] / "outputs" / "test_lm_eval_cook.py"))
    rng = np.random.default_rng(0)
    truth, features = rng.normal(size=8), rng.normal(size=(60, 5, 8)).astype(np.float32)
    counts = rng.integers(3, 6, 60)
    noisy = features @ truth + rng.normal(size=(60, 5))
    targets = np.array([scores[:count].argmax() for scores, count in zip(noisy, counts, strict=True)])
    np.savez(folder / "documents.npz", features=features, targets=targets, counts=counts)
    (folder / "score.py").write_text(made["SCORE"])
    for k in range(4):
        place = folder / "models" / f"m{k}"
        place.mkdir(parents=True)
        weights = torch.tensor(0.1 * (truth + rng.normal(0, 0.7, 8)), dtype=torch.float32)
        save_file({"w": weights}, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"model_type": "scorer"}))
        with_argv(folder / "score.py", str(place), str(folder / "logs" / place.name))
    return {}


def with_argv(program: Path, *arguments: str) -> None:
    """Run a Python program in this process."""
    import contextlib
    import io
    import sys

    kept, sys.argv = sys.argv, [str(program), *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(str(program), run_name="__main__")
    finally:
        sys.argv = kept


def trainings(folder: Path, toys: Path) -> Names:
    """A Lightning module with its data, and a BERT with datasets, as training begins."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import BertForSequenceClassification

    class MyModule(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(64, 10)

        def forward(self, inputs: Any) -> Any:
            return self.net(inputs)

        def training_step(self, batch: Any) -> Any:
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any) -> None:
            self.log("val_loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return self._of(toy.TRAINING, shuffle=True)

        def val_dataloader(self) -> Any:
            return self._of(toy.VALIDATION)

        def _of(self, rows: slice, **more: Any) -> Any:
            inputs, targets = (torch.cat(parts) for parts in zip(*toy.batches(rows), strict=True))
            return DataLoader(TensorDataset(inputs, targets), 100, **more)

    words = ready_made.tokenizer()
    examples = [
        {**words(text, padding="max_length", max_length=8), "label": label}
        for text, label in [
            ("the film was good", 1),
            ("the plot is dull", 0),
            ("great fun", 1),
            ("the cast was bad", 0),
        ]
        * 6
    ]
    return {
        "MyModule": MyModule,
        "module": MyModule(),
        "data": Data(),
        "model": BertForSequenceClassification(ready_made.bert()),
        "training": examples,
        "validation": examples[:12],
    }
