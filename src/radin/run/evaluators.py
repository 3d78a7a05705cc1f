"""What evaluates the pool: a task's model in radin's own processes, or any program; behind one face for cook."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from radin import metrics
from radin.data.task import Task, TaskText
from radin.engine.base import Engine
from radin.engine.crew import Crew, Plan
from radin.engine.device import Device
from radin.engine.local import LocalEngine
from radin.engine.scores import read_scores
from radin.errors import RadinError, TaskError
from radin.estimate import AccuracyEstimator, Estimator, estimator
from radin.metrics import Metric
from radin.outputs.files import SavedOutputs, located, read_outputs
from radin.outputs.store import OutputStore
from radin.question import VALIDATION, Floats, Indices, Rates
from radin.run.identity import code_identity, metric_identity
from radin.run.job import Job, data_name
from radin.run.members import Known, asked_scores, slice_cost, some_examples, stored_outputs, streamed_outputs
from radin.run.preflight import preflight
from radin.weights import Pool
from radin.weights.remote import is_url
from radin.weights.shared_folder import SharedFolder

_ROWS = 4096
_NONE = "none"  # a split that the task does not have, as the identity of a run says it


class Evaluator(ABC):
    """An engine, and what cook must know of it before and after the members are evaluated.

    about: (BatchNorm layers, whether they are estimated again, notes for the user). parts: whether the search may ask
    about some of the examples; known once the members are evaluated. device: what models run on; None where that is
    not radin's affair.
    """

    engine: Engine
    metric: Metric
    parts: bool = False
    device: str | None = None
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
    def cached(self, job: Job) -> int:
        """How many members need no pass, because what it would give is there before the run starts."""

    @abstractmethod
    def members(self, job: Job) -> Known:
        """The members' scores, and their outputs where they can be had."""

    @abstractmethod
    def bind(self, job: Job, known: Known, asked: Mapping[str, Any]) -> Rates:
        """Bind run and engine to the data; what questions cost."""

    def bind_splits(self, job: Job, asked: Mapping[str, Any]) -> None:
        """Bind the run to the other splits that were evaluated."""
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
        spec: str | Path | TaskText | None,
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
        files_from: str | None = None,
        crew: Callable[[Plan], Crew] | None = None,
    ) -> None:
        self.metric = task.get_metric()
        placed = Device.create(device if crew is None else "auto", precision, batch_size, members_at_once)
        self.engine = LocalEngine(
            pool,
            task,
            placed,
            spec=spec,
            integers_from=integers_from,
            files_from=files_from,
            workers=workers,
            crew=crew,
            asked=device,
        )
        self.device = placed.name if crew is None else None
        self._task = task
        self._ready = spec.model if isinstance(spec, TaskText) else None
        self._outputs, self._dtype, self._keep = outputs, outputs_dtype, keep_outputs
        self._kept: OutputStore | None = None
        self._first = preflight(task, pool.shapes, pool[0].name, lambda: pool.tensors(0), placed, self.metric)
        self._calibrates = bool(self._first.batchnorm_layers) and task.calibration is not None
        self.about = (self._first.batchnorm_layers, self._calibrates, self._first.notes)
        self.parts = self.engine.parts
        self._calibration: tuple[str, int] = (_NONE, 0)
        compiles = self.metric.family in ("accuracy", "position_accuracy", "mean_iou")
        if not keep_outputs and (not compiles or self.metric.choices):
            raise RadinError(
                "outputs need not be kept for accuracy, top-k, token and pixel accuracy and mean IoU only; metric "
                f"{self.metric.name!r} needs them"
            )
        self._shared = SharedFolder(str(outputs)) if is_url(outputs) else None
        if not keep_outputs and self._shared is not None:
            raise RadinError("outputs that are not kept cannot be shared: leave out --no-keep-outputs, or --outputs")
        if not keep_outputs and crew is not None:
            raise RadinError("workers elsewhere give the members' outputs to be kept: leave out --no-keep-outputs")

    def require_halves(self) -> None:
        """Takes a metric that is a mean or by position, and the outputs kept."""
        if not self.engine.parts:
            raise RadinError(
                f"choosing on half of validation takes a metric that is a mean; {self.metric.name!r} is none"
            )
        if not self._keep:
            raise RadinError("choosing on half of validation needs the outputs kept")

    def identity(self) -> dict[str, Any]:
        """All data by content, once they are known."""
        return {
            "the metric's code": metric_identity(self.metric),
            "the ready model": self._ready,
            VALIDATION: None,
            "calibration data": None,
            **{data_name(split): None for split in self.engine.splits},
            "outputs stored as": self._dtype,
            "outputs kept": self._keep,
            "the code of outputs()": _NONE if self._task.outputs is None else code_identity(self._task.outputs),
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
        evaluated = job.ledger.data(VALIDATION)  # the members', though a kill came before it was bound
        if evaluated is not None:
            job.directory.bind(VALIDATION, evaluated, asked)
        for split in self.engine.splits:
            seen = job.ledger.data(split)
            if seen is not None:
                job.report(f"checking that {split} is as before")
                job.directory.bind(data_name(split), seen, asked)
                found, _ = self.engine.fingerprint(split)
                job.directory.bind(data_name(split), found, asked)
                self.engine.data[split] = found

    def cached(self, job: Job) -> int:
        """Those whose outputs another run has left in a folder that they share."""
        store = self._store(job)
        return sum(store.get(fingerprint) is not None for fingerprint in job.pool.fingerprints)

    def members(self, job: Job) -> Known:
        """Their outputs, cached or compiled as they are made."""
        collect = stored_outputs if self._keep else streamed_outputs
        return collect(job, self.engine, self._first, self._store(job))

    def _store(self, job: Job) -> OutputStore:
        """One for the session: what it has found to be whole is not read again."""
        if self._kept is None:
            folder = job.directory.outputs if self._shared else Path(self._outputs or job.directory.outputs)
            precision = self.engine.device.precision
            self._kept = OutputStore(folder, precision=precision, dtype=self._dtype, shared=self._shared)
            self._kept.receive(job.pool.fingerprints, job.progress)
        return self._kept

    def bind(self, job: Job, known: Known, asked: Mapping[str, Any]) -> Rates:
        """A pass is the validation and the calibration examples."""
        job.directory.bind(VALIDATION, known.data, asked)
        share = self.engine.evaluator.reading_share(VALIDATION, self._first.seconds_per_batch)
        rates = Rates(known.examples, self._calibration[1], share if self.engine.parts else 0.0)
        self.engine.bind(known.data, rates)
        return rates

    def bind_splits(self, job: Job, asked: Mapping[str, Any]) -> None:
        """Test and shifts, whose content is known once they were evaluated."""
        for split in self.engine.splits:
            if split in self.engine.data:
                job.directory.bind(data_name(split), self.engine.data[split], asked)

    def some_examples(self, job: Job, known: Known, examples: Indices) -> Known:
        """Their outputs copied to files in the run directory, for as long as the run lasts."""
        return some_examples(job, self.engine, known, examples, job.directory.searched_half)


class EngineEvaluator(Evaluator):
    """Any other engine, such as a program. ``scores``: the members' own, where known; ``outputs``: a folder of them."""

    def __init__(
        self,
        pool: Pool,
        engine: Engine,
        *,
        scores: str | Path | Sequence[float] | None,
        outputs: str | Path | None,
        metric: str,
    ) -> None:
        self.engine = engine
        self.metric = engine.metric
        self.about = (0, False, engine.notes)
        self._pool = pool
        self._scores = _scores(pool, scores)
        self._reading = 0.0
        self._saved = None if outputs is None else read_outputs(located(outputs), pool)
        self._estimate = metrics.get(metric)
        if self._saved is not None:
            self._estimate.check(np.asarray(self._saved.targets), self._saved.outputs[0].shape[1])
            if self._estimate.higher_is_better != engine.metric.higher_is_better:
                raise RadinError(
                    f"recipes are estimated by {metric!r}, where {_better(self._estimate.higher_is_better)} is better, "
                    f"but of the program's scores {_better(engine.metric.higher_is_better)} is: choose another metric"
                )

    def require_halves(self) -> None:
        """A program scores what it scores: which examples those are is its own affair."""
        raise RadinError("choosing on half of validation takes a task: a program's examples cannot be split by radin")

    def identity(self) -> dict[str, Any]:
        """The command and the content of the files it names; what recipes are estimated by."""
        saved = None if self._saved is None else fingerprint_of(self._saved)
        return {**self.engine.identity(), "outputs to estimate from": saved or _NONE}

    def verify(self, job: Job, asked: Mapping[str, Any]) -> None:
        """Nothing is read here but checkpoints."""

    def cached(self, job: Job) -> int:
        """All of them where their scores are given."""
        return 0 if self._scores is None else len(job.pool)

    def members(self, job: Job) -> Known:
        """Their scores by the program, or as given; and what saved outputs make of recipes.

        Where those give the members' very scores, all is as with a task's own outputs: slices too, if the program gives
        values. Else they rank recipes. Without outputs only whole soups are asked about: members' values per example
        alone, as votes or as a choice of slices, did worse than none (docs/evaluators.md).
        """
        known = asked_scores(job, self.engine, self._scores)
        if self._saved is None:
            return known
        outputs, targets = self._saved
        examples = self._estimate.examples(targets)
        if known.examples not in (0, examples):
            raise RadinError(
                f"the saved outputs are over {examples:,} examples, the program gave values for "
                f"{known.examples:,}: they must be over the same, in the same order"
            )
        singles = np.array([job.single(k).score for k in range(len(job.pool))])
        made = estimator(outputs, targets, self._estimate, names=job.names)
        scaled = in_units_of(made, singles, job.metric)
        if scaled is not made:
            job.notes += ("the outputs' scores are not the program's: they rank recipes, scaled to its scores",)
            return replace(known, estimator=scaled)
        job.metric = replace(self._estimate, name=self.metric.name)
        if (
            self.engine.parts
            and known.examples
            and isinstance(made, AccuracyEstimator)
            and not self._estimate.by_position
        ):
            rates = job.directory.read().get("settings", {}).get("rates")
            self.parts = True
            self._reading = slice_cost(job, self.engine, known.examples) if rates is None else rates["reading"]
        return Known(known.data, examples, made, np.asarray(targets), outputs)

    def bind(self, job: Job, known: Known, asked: Mapping[str, Any]) -> Rates:
        """A pass is one run of the program over all that it scores."""
        rates = Rates(known.examples, 0, self._reading)
        self.engine.bind(known.data, rates)
        return rates


def _better(higher: bool) -> str:
    return "higher" if higher else "lower"


def _scores(pool: Pool, given: str | Path | Sequence[float] | None) -> Sequence[float] | None:
    if given is None:
        return None
    if isinstance(given, str | Path):
        dropped = [path for path, _ in pool.duplicates]
        found = read_scores(Path(given), pool.member_names, [member.path for member in pool], dropped=dropped)
        return [float(score) for score in found]
    scores = [float(score) for score in given]
    if len(scores) != len(pool):
        raise RadinError(f"scores must be one for each of the {len(pool)} members; got {len(scores)}")
    return scores


class _Scaled:
    """An estimator in other units: offset + scale * its scores."""

    def __init__(self, made: Estimator, offset: float, scale: float) -> None:
        self._made, self._offset, self._scale = made, offset, scale
        self.members, self.examples = made.members, made.examples

    def scores(self, weights: Floats) -> Floats:
        """Estimated scores of recipes (S, N), (S,)."""
        return self._offset + self._scale * np.asarray(self._made.scores(weights), dtype=np.float64)


def in_units_of(made: Estimator, singles: Floats, metric: Metric) -> Estimator:
    """The estimator as it is where it gives the members' scores (N,); else its least-squares line through them.

    Raises RadinError when the members' estimates do not rise with their scores: then they say nothing about them.
    """
    own = np.asarray(made.scores(np.eye(len(singles))), dtype=np.float64)
    known = np.isfinite(singles) & np.isfinite(own)
    if known.any() and np.allclose(own[known], singles[known], rtol=1e-6, atol=1e-9):
        return made
    if known.sum() < 3 or np.ptp(own[known]) == 0 or np.ptp(singles[known]) == 0:
        raise RadinError(f"the saved outputs do not give the members' {metric.name}, and too few differ to scale them")
    scale, offset = np.polyfit(own[known], singles[known], 1)
    if scale <= 0:
        raise RadinError(
            f"the saved outputs say nothing about {metric.name}: members with better outputs have worse scores. Are "
            "they of these members, and is it the right metric?"
        )
    return _Scaled(made, float(offset), float(scale))


def fingerprint_of(saved: SavedOutputs) -> str:
    """A hash of saved outputs and targets by content."""
    digest = hashlib.sha256()
    for array in (*saved.outputs, saved.targets):
        digest.update(repr((array.shape, str(array.dtype))).encode())
        for start in range(0, len(array), _ROWS):
            digest.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
    return digest.hexdigest()
