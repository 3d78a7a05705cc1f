"""Runs in experiment trackers: each is given to ``radin.cook(..., on_event=...)`` and logs what happens.

What every tracker gets: the run's settings as parameters; by passes spent, ``best`` with its standard error, ``score``
of each soup evaluated on all of validation, and ``spent``; by their number, ``member`` (the members' scores); at the
end the gain, and the scores on test and shifts. Trackers count steps in whole numbers: a pass is a hundred.
"""

from __future__ import annotations

import importlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from radin.errors import RadinError, printable
from radin.events import Event

NAMES = ("mlflow", "wandb", "tensorboard", "trackio")
"""What ``tracker`` knows."""

_STEPS = 100  # steps in a pass


class Tracker(ABC):
    """Turns events into what trackers know: parameters, numbers by step, an end."""

    def __init__(self) -> None:
        self._members = 0
        self._begun = False

    def __call__(self, event: Event) -> None:
        """Log one event."""
        fields = event.fields
        if event.kind == "started":
            self._begun = True
            self._members = 0
            self._start(_parameters(fields))
        if not self._begun:
            return
        step = round(_STEPS * float(fields.get("spent") or 0.0))
        if event.kind == "member_evaluated" and not fields["reestimated"]:
            self._members += 1
            self._log({"member": fields["score"]}, self._members)
        elif event.kind == "best_changed":
            self._log({"best": fields["score"], "best_stderr": fields["stderr"]}, step)
        elif event.kind == "question_answered":
            self._log({"spent": fields["spent"], "score": fields["soup_score"]}, step)
        elif event.kind == "finished":
            found = {name: fields[name] for name in ("gain", "gain_stderr", "single")}
            found |= {"best": fields["score"], "best_stderr": fields["stderr"]}
            found |= {split: scored["score"] for split, scored in fields["splits"].items()}
            self._log(found, step)
            self._finish(failed=False)
        elif event.kind == "failed":
            self._finish(failed=True)
        self._begun = self._begun and event.kind not in ("finished", "failed")

    def _log(self, numbers: Mapping[str, float | None], step: int) -> None:
        known = {name: float(v) for name, v in numbers.items() if v is not None and math.isfinite(v)}
        if known:
            self._write(known, step)

    @abstractmethod
    def _start(self, parameters: Mapping[str, str | float]) -> None:
        """Begin a run with these parameters."""

    @abstractmethod
    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        """Log finite numbers by name."""

    @abstractmethod
    def _finish(self, *, failed: bool) -> None:
        """End the run."""


class MLflow(Tracker):
    """A run of MLflow's. experiment, name, uri: of the run; by default those that MLflow knows.

    Raises RadinError where MLflow is missing.
    """

    def __init__(self, experiment: str | None = None, name: str | None = None, uri: str | None = None) -> None:
        super().__init__()
        mlflow = _library("mlflow", "mlflow")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._experiment, self._name = experiment or "radin", name
        self.run_id: str | None = None

    def _start(self, parameters: Mapping[str, str | float]) -> None:
        found = self._client.get_experiment_by_name(self._experiment)
        number = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(number, run_name=self._name).info.run_id
        for name, value in parameters.items():
            self._client.log_param(self.run_id, name, value)

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self.run_id, name, value, step=step)

    def _finish(self, *, failed: bool) -> None:
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


class WandB(Tracker):
    """A run of Weights & Biases'. options: of ``wandb.init``, such as project, name, mode="offline".

    Raises RadinError where wandb is missing.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._wandb = _library("wandb", "wandb")
        self._options = {"project": "radin", **options}
        self._run: Any = None

    def _start(self, parameters: Mapping[str, str | float]) -> None:
        self._run = self._wandb.init(config=dict(parameters), **self._options)
        # Its own step may only grow, and members are counted by another number than soups.
        self._run.define_metric("*", step_metric="step")

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def _finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TensorBoard(Tracker):
    """Events for TensorBoard in a folder, by ``torch.utils.tensorboard``. Raises RadinError where it is missing."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._writer_class = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def _start(self, parameters: Mapping[str, str | float]) -> None:
        self._writer = self._writer_class(str(self._folder))
        rows = [f"| {name} | {value} |" for name, value in parameters.items()]
        self._writer.add_text("parameters", "\n".join(["| name | value |", "|---|---|", *rows]))

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(f"radin/{name}", value, step)
        self._writer.flush()

    def _finish(self, *, failed: bool) -> None:
        self._writer.close()


class Trackio(Tracker):
    """A run of Trackio's, kept on this machine. options: of ``trackio.init``, such as project, name, space_id.

    Raises RadinError where trackio is missing.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._trackio = _library("trackio", "trackio")
        self._options = {"project": "radin", "embed": False, **options}
        self._run: Any = None

    def _start(self, parameters: Mapping[str, str | float]) -> None:
        self._run = self._trackio.init(config=dict(parameters), **self._options)

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def _finish(self, *, failed: bool) -> None:
        self._run.finish()


def tracker(text: str, out: Path) -> Tracker:
    """The tracker that a command line names: ``NAME``, or ``NAME:PLACE``. out: the run's directory.

    PLACE is MLflow's experiment, the project of Weights & Biases or Trackio, or TensorBoard's folder. Without it: what
    the library's own environment variable says, else "radin"; TensorBoard's is ``tensorboard`` in the run's directory.
    Raises RadinError for what is none of them, and where the library is missing.
    """
    name, colon, place = text.partition(":")
    run = out.resolve().name
    if name not in NAMES or (colon and not place):
        raise RadinError(
            f"--track takes {', '.join(NAMES)}, or one of these with a colon and the experiment, project or folder "
            f"(tensorboard:board); got {printable(text)!r}"
        )
    if name == "mlflow":
        return MLflow(place or os.environ.get("MLFLOW_EXPERIMENT_NAME"), run)
    if name == "tensorboard":
        return TensorBoard(place or out / "tensorboard")
    if name == "wandb":
        return WandB(project=place or os.environ.get("WANDB_PROJECT") or "radin", name=run)
    return Trackio(project=place or "radin", name=run)


def _parameters(fields: Mapping[str, Any]) -> dict[str, str | float]:
    """What a run was asked for, as names and plain values."""
    found: dict[str, str | float] = {name: fields[name] for name in ("run", "out", "metric", "strategy")}
    found |= {name: fields[name] for name in ("budget", "seed")}
    found["members"] = len(fields["members"])
    found |= {f"option.{name}": str(value) for name, value in fields["options"].items()}
    return found


def _library(name: str, package: str) -> Any:
    """A module. Raises RadinError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RadinError(f"this tracker needs {package} ({error}): pip install {package}") from None
