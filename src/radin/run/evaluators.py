"""What evaluates the pool: a task's model in radin's own processes, or any program; behind one face for cook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radin.data.task import Task
from radin.engine.base import Engine
from radin.engine.command import Command, CommandEngine
from radin.engine.device import Device
from radin.engine.local import LocalEngine
from radin.errors import RadinError, TaskError
from radin.metrics import Metric
from radin.question import VALIDATION, Indices, Rates
from radin.run.job import Job
from radin.run.members import Known, some_examples, stored_outputs, streamed_outputs
from radin.run.preflight import preflight
from radin.weights import Pool

_NONE = "none"  # a split that the task does not have, as the identity of a run says it


class Evaluator(ABC):
    """An engine, and what cook must know of it before and after the members are evaluated.

    about: (BatchNorm layers, whether they are estimated again, notes for the user).
    """

    engine: Engine
    metric: Metric
    about: tuple[int, bool, tuple[str, ...]]

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What may not change between the sessions of a run; None where it is not known yet."""

    @abstractmethod
    def require_halves(self) -> None:
        """Raise RadinError when one half of the examples cannot be told from the other."""

    @abstractmethod
    def verify(self, job: Job, asked: Mapping[str, Any]) -> None:
        """Raise RunError when data that an earlier session used have changed."""

    @abstractmethod
    def members(self, job: Job) -> Known:
        """The members' scores, and their outputs where they can be had."""

    @abstractmethod
    def bind(self, job: Job, known: Known, asked: Mapping[str, Any]) -> Rates:
        """Bind run and engine to the data; what questions cost."""

    def bind_looks(self, job: Job, asked: Mapping[str, Any]) -> None:
        """Bind the run to the further data that were looked at."""
        return

    def some_examples(self, job: Job, known: Known, examples: Indices) -> Known:
        """What is known of the members on some of the examples (m,)."""
        raise RadinError("choosing on half of validation needs the members' outputs")


class TaskEvaluator(Evaluator):
    """A task's model, on this machine. Checks that model, data, metric and pool fit before anything long starts."""

    engine: LocalEngine

    def __init__(
        self,
        pool: Pool,
        task: Task,
        spec: str | Path | None,
        *,
        workers: int,
        device: str,
        precision: str,
        batch_size: int | None,
        members_at_once: int | None,
        outputs: str | Path | None,
        outputs_dtype: str,
        keep_outputs: bool,
        integers_from: str | None,
    ) -> None:
        self.metric = task.get_metric()
        placed = Device.create(device, precision, batch_size, members_at_once)
        self.engine = LocalEngine(pool, task, placed, spec=spec, integers_from=integers_from, workers=workers)
        self._task = task
        self._outputs, self._dtype, self._keep = outputs, outputs_dtype, keep_outputs
        self._first = preflight(task, pool.shapes, pool[0].name, lambda: pool.tensors(0), placed, self.metric)
        self._calibrates = bool(self._first.batchnorm_layers) and task.calibration is not None
        self.about = (self._first.batchnorm_layers, self._calibrates, self._first.notes)
        self._calibration: tuple[str, int] = (_NONE, 0)
        if not keep_outputs and self.metric.family != "accuracy":
            raise RadinError(
                f"outputs need not be kept for accuracy and top-k only; metric {self.metric.name!r} needs them"
            )

    def require_halves(self) -> None:
        """Takes a metric that is a mean, and the outputs kept."""
        if self.metric.per_example is None:
            raise RadinError(
                f"choosing on half of validation takes a metric that is a mean; {self.metric.name!r} is none"
            )
        if not self._keep:
            raise RadinError("choosing on half of validation needs the outputs kept")

    def identity(self) -> dict[str, Any]:
        """All data by content, once they are known."""
        return {
            VALIDATION: None,
            "calibration data": None,
            **{_named(split): None for split in self.engine.splits},
            "outputs stored as": self._dtype,
            "outputs kept": self._keep,
            **self.engine.identity(),
        }

    def verify(self, job: Job, asked: Mapping[str, Any]) -> None:
        """Read, without a model, what an earlier session has used: test, shifts and calibration."""
        if self._calibrates:
            job.report("reading calibration()")
            try:
                self._calibration = self.engine.fingerprint("calibration")
            except TaskError:
                raise TaskError("calibration() gave no batches: BatchNorm statistics cannot be re-estimated") from None
        job.directory.bind("calibration data", self._calibration[0], asked)
        for split in self.engine.splits:
            seen = job.ledger.data(split)
            if seen is not None:
                job.report(f"checking that {split} is as before")
                job.directory.bind(_named(split), seen, asked)
                found, _ = self.engine.fingerprint(split)
                job.directory.bind(_named(split), found, asked)
                self.engine.data[split] = found

    def members(self, job: Job) -> Known:
        """Their outputs, cached or compiled as they are made."""
        from radin.outputs.store import OutputStore

        folder = Path(self._outputs or job.directory.outputs)
        store = OutputStore(folder, precision=self.engine.device.precision, dtype=self._dtype)
        collect = stored_outputs if self._keep else streamed_outputs
        return collect(job, self.engine, self._first, store)

    def bind(self, job: Job, known: Known, asked: Mapping[str, Any]) -> Rates:
        """A pass is the validation and the calibration examples."""
        job.directory.bind(VALIDATION, known.data, asked)
        rates = Rates(known.examples, self._calibration[1])
        self.engine.bind(known.data, rates)
        return rates

    def bind_looks(self, job: Job, asked: Mapping[str, Any]) -> None:
        """Test and shifts, whose content is known once they were looked at."""
        for split in self.engine.splits:
            if split in self.engine.data:
                job.directory.bind(_named(split), self.engine.data[split], asked)

    def some_examples(self, job: Job, known: Known, examples: Indices) -> Known:
        """Their outputs copied to files in the run directory, for as long as the run lasts."""
        return some_examples(job, self.engine, known, examples, job.directory.searched_half)


def _named(split: str) -> str:
    return f"{split} data"


class ProgramEvaluator(Evaluator):
    """A program of the user's. ``scores``: the members' own, if they are known; ``outputs``: a folder of saved ones."""

    engine: CommandEngine

    def __init__(
        self,
        pool: Pool,
        command: Command,
        out: Path,
        *,
        scores: str | Path | Sequence[float] | None,
        outputs: str | Path | None,
        metric: str,
        integers_from: str | None,
    ) -> None:
        raise NotImplementedError
