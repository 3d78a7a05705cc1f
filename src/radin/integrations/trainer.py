"""A callback for transformers' Trainer that cooks, when training ends, the checkpoints in its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radin.errors import RadinError
from radin.integrations.after_training import CookAtEnd
from radin.weights.paths import natural_key

try:
    from transformers import TrainerCallback
except ModuleNotFoundError:
    raise RadinError("the callback needs transformers: pip install transformers") from None


class CookCallback(CookAtEnd, TrainerCallback):
    """When training ends, finds the best soup of the run's checkpoints and writes it as a folder for from_pretrained.

        trainer = Trainer(model, arguments, ..., callbacks=[CookCallback(metric="accuracy", budget=8)])

    Arguments and what is found: see CookAtEnd. The metric is computed from the model's logits and the batches' labels.
    The trainer's evaluation data is known to it once it has evaluated; the checkpoints are all of its output_dir.
    """

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cook, on the process that writes checkpoints."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            kept = sorted(folder.glob("checkpoint-*"), key=natural_key)
            keep = "Keep more: TrainingArguments(save_strategy='epoch', save_total_limit=None)"
            self._cook(kwargs["model"], self.checkpoints or kept, kwargs.get("eval_dataloader"), folder, keep)
