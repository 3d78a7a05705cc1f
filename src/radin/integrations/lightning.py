"""A Lightning callback that cooks, at the end of fit, the checkpoints that ModelCheckpoint kept."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from radin.errors import RadinError
from radin.integrations.after_training import CookAtEnd

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")


def _library() -> Any:
    """The package of Lightning that the program uses: the one it imported, else one that is installed."""
    for name in (*(name for name in _PACKAGES if name in sys.modules), *_PACKAGES):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise RadinError("the callback needs Lightning: pip install pytorch-lightning")


_Callback: Any = _library().Callback


class CookCallback(CookAtEnd, _Callback):  # type: ignore[misc]
    """At the end of fit, finds the best soup of the run's checkpoints and writes it as a .ckpt file.

        trainer = Trainer(callbacks=[ModelCheckpoint(save_top_k=-1), CookCallback(metric="accuracy", budget=8)])

    Arguments and what is found: see CookAtEnd. The metric is computed from what the module's ``forward`` returns.
    ``load_from_checkpoint`` opens the soup.
    """

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Cook, on the process that writes checkpoints; the others wait."""
        if trainer.is_global_zero:
            paths = self.checkpoints or checkpoints_of(trainer)
            validation = trainer.val_dataloaders
            if isinstance(validation, list | tuple | dict):  # of several, the user says which
                validation = validation[0] if len(validation) == 1 and not isinstance(validation, dict) else None
            folder = Path(paths[0]).absolute().parent.parent if paths else Path(trainer.default_root_dir)
            keep = "Keep more: ModelCheckpoint(monitor=..., save_top_k=5), or save_top_k=-1 for all"
            self._cook(pl_module, paths, validation, folder, keep)
        trainer.strategy.barrier("radin")


def checkpoints_of(trainer: Any) -> list[Path]:
    """The files that a trainer's ModelCheckpoint callbacks kept, oldest first."""
    found: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        kept = [*callback.best_k_models, callback.best_model_path, callback.last_model_path]
        if callback.save_top_k == -1 and callback.dirpath:  # without a monitor it notes the last one alone
            kept += Path(callback.dirpath).glob(f"*{callback.FILE_EXTENSION}")
        found += [Path(path) for path in kept if path]
    there = [path for path in dict.fromkeys(found) if path.exists()]
    return sorted(there, key=lambda path: path.stat().st_mtime_ns)
