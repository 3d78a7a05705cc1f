"""Passes that no search asked for: true scores of further soups of a finished or unfinished run, to compare with.

They go to ``truths.sqlite`` beside the run (see ``truths``) the moment they are known, so that the same command goes on
where it was stopped. The run's own budget, ledger and result stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from radin.checks import whole_number
from radin.data.task import Task, TaskText
from radin.engine.base import Engine
from radin.engine.command import Command, CommandEngine
from radin.errors import RunError
from radin.files import told
from radin.progress import Progress, logged
from radin.question import VALIDATION, Answer, Failure, Question
from radin.recipe import Recipe
from radin.run import replay
from radin.run.directory import RunDirectory
from radin.run.evaluators import EngineEvaluator, Evaluator, TaskEvaluator
from radin.run.job import Job
from radin.run.ledger import Ledger
from radin.run.mixing import Mixing, can_mix
from radin.run.record import RunRecord
from radin.run.truths import Truths
from radin.weights import Pool

_FAILURES = 3
_LARGEST_RATIO = "the member with the largest ratio"  # as the identity of a run says it

WANTED = ("mixing", "methods", "candidates")
"""What passes may be spent on: averaged outputs beside soups of the best three members; the soups that other methods
would evaluate; candidates drawn at random."""


@dataclass(frozen=True)
class Further:
    """What was done: passes over validation, passes over test, soups that could not be evaluated, seconds.

    complete: whether nothing is left that was wanted.
    """

    passes: int
    tests: int
    failed: int
    complete: bool
    seconds: float


def evaluate_further(
    directory: str | Path,
    task: Task | TaskText | Command | str | Path,
    passes: int,
    *,
    wanted: Iterable[str] = WANTED,
    test: bool = False,
    pool: Pool | None = None,
    outputs: str | Path | None = None,
    workers: int = 1,
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Further:
    """Evaluate further soups of a run, at most ``passes`` of them, each once ever; return what was done.

    In turn: the next soup on the line and in the simplex of the best members ("mixing", a task's models alone), the
    next one that each other method needs ("methods"), the next random candidate ("candidates"). task: the run's own,
    or its Command. test: afterwards also score on test() what the methods choose at the budgets of Table 1; these
    passes come on top. pool: the run's checkpoints, where they are no longer where they were. outputs: the folder of
    their outputs, where it is not in the run's directory.

    Raises RunError when the run is in use, or when anything is not as it was when it began.
    """
    started, progress = time.monotonic(), logged(progress)
    passes = whole_number("--evaluate, the number of passes to spend,", passes, 1)
    path = Path(directory)
    loaded = None if isinstance(task, Command) else Task.load(task)
    record = RunRecord.read(path, task=loaded, outputs=outputs)
    pool = _same_pool(record, pool, progress)
    evaluator = _evaluator(record, pool, task, loaded, outputs, workers, device, batch_size)
    identity = {
        **evaluator.identity(),
        "members": dict(zip(pool.fingerprints, pool.member_names, strict=True)),
        "metric": evaluator.metric.name,
        "higher_is_better": evaluator.metric.higher_is_better,
    }
    if isinstance(task, Command):
        identity["outputs to estimate from"] = None  # no estimates are needed to evaluate
    with told(path, doing="used"), RunDirectory(path, identity) as place, evaluator.engine as engine:
        ledger, truths = Ledger(place.ledger, run=place.run, read_only=True), None
        try:
            truths = Truths.beside(path, place.run)
            settings = place.read()["settings"]
            job = Job(pool, evaluator.metric, place, ledger, progress, *evaluator.about)
            evaluator.verify(job, settings)
            engine.bind(str(record.identity.get(VALIDATION) or ""), record.rates)
            work = _Work(record, job, evaluator, truths, Path(outputs or place.outputs), progress)
            found = work.spend(passes, tuple(wanted))
            tests = work.test() if test and "test" in engine.splits else 0
            evaluator.bind_splits(job, settings)
        finally:
            ledger.close()
            if truths is not None:
                truths.close()
    return replace(found, tests=tests, seconds=time.monotonic() - started)


def _same_pool(record: RunRecord, pool: Pool | None, progress: Progress) -> Pool:
    """The run's checkpoints in its order. Raises RunError where they are not all there as they were."""
    if pool is None:
        paths = record.settings.get("paths", {})
        pool = Pool.open(
            [paths[fingerprint] for fingerprint in record.fingerprints if fingerprint in paths],
            progress=lambda done, total: progress("reading checkpoints", done, total),
        )
    place = {fingerprint: k for k, fingerprint in enumerate(pool.fingerprints)}
    gone = [name for name, f in zip(record.names, record.fingerprints, strict=True) if f not in place]
    if gone or len(place) != record.members:
        what = f"not there, or changed: {', '.join(gone[:3])}" if gone else "there are others among them"
        raise RunError(
            f"{record.path} is a run of other checkpoints ({what}). Give those that it was started with, by --members."
        )
    return pool.reordered([place[fingerprint] for fingerprint in record.fingerprints])


def _evaluator(
    record: RunRecord,
    pool: Pool,
    task: Task | TaskText | Command | str | Path,
    loaded: Task | None,
    outputs: str | Path | None,
    workers: int,
    device: str,
    batch_size: int | None,
) -> Evaluator:
    """What evaluated the run, with the settings that its answers depend on."""
    integers = record.identity.get("integers from")
    integers = None if integers in (None, _LARGEST_RATIO) else str(integers)
    if loaded is None:
        assert isinstance(task, Command)
        engine = CommandEngine(pool, task, record.path / "scratch", integers)
        return EngineEvaluator(pool, engine, scores=None, outputs=None, metric="accuracy")
    return TaskEvaluator(
        pool,
        loaded,
        None if isinstance(task, Task | Command) else task,
        workers=workers,
        device=device,
        precision=str(record.identity.get("precision", "float32")),
        batch_size=batch_size,
        members_at_once=None,
        outputs=outputs,
        outputs_dtype=str(record.identity.get("outputs stored as", "float32")),
        keep_outputs=bool(record.identity.get("outputs kept", True)),
        integers_from=integers,
    )


class _Work:
    """The passes of one session: what is wanted next, its answer, and where it is kept."""

    def __init__(
        self, record: RunRecord, job: Job, evaluator: Evaluator, truths: Truths, outputs: Path, progress: Progress
    ) -> None:
        self._record, self._job, self._truths, self._progress = record, job, truths, progress
        self._engine: Engine = evaluator.engine
        self._scores = dict(record.scores)
        self._open: list[Recipe] = []
        self._failed: list[Recipe] = []
        self._mixing: Mixing | None = None
        if isinstance(evaluator, TaskEvaluator) and can_mix(evaluator.metric):
            self._mixing = Mixing(record, job, evaluator.engine, truths, outputs)
        self._methods = [Wanted(record, method) for method in replay.methods(record)]
        self._turns: list[str] = []

    def spend(self, passes: int, wanted: Iterable[str]) -> Further:
        """At most ``passes`` passes, those of each kind that is wanted in turn."""
        spent = 0
        self._turns = [name for name in WANTED if name in set(wanted)]
        left = True
        while left or self._open:
            while left and spent + len(self._open) < passes and len(self._open) < self._engine.slots:
                asked = self._next()
                if asked is None:
                    left = bool(self._open)  # an answer may tell what is wanted next
                    break
                if isinstance(asked, Recipe):
                    self._open.append(asked)
                    self._engine.submit(Question(asked))
                else:
                    spent += 1
                self._progress("passes on further soups", spent, passes)
            if self._open:
                for question, answer in self._engine.wait():
                    spent += 1
                    self._take(question, answer)
                self._progress("passes on further soups", spent, passes)
            elif spent >= passes:
                break
        return Further(spent, 0, len(self._failed), not left, 0.0)

    def _next(self) -> Recipe | Literal["made"] | None:
        """The soup to be evaluated next; "made" where its pass was made here; None where nothing is wanted now."""
        for _ in range(len(self._turns)):
            name = self._turns.pop(0)
            self._turns.append(name)
            if name == "mixing":
                if self._mixing is not None and self._mixing.step():
                    return "made"
            elif (recipe := self._of_methods() if name == "methods" else self._of_candidates()) is not None:
                return recipe
        return None

    def _of_methods(self) -> Recipe | None:
        for _ in range(len(self._methods)):
            method = self._methods.pop(0)
            self._methods.append(method)
            recipe = method.next(self._scores, self._open)
            if recipe is not None:
                return recipe
        return None

    def _of_candidates(self) -> Recipe | None:
        known = (*self._open, *self._failed)
        return next((r for r in self._record.candidates if r not in self._scores and r not in known), None)

    def _take(self, question: Question, answer: Answer | Failure) -> None:
        recipe = question.recipe
        self._open.remove(recipe)
        if isinstance(answer, Failure):
            self._failed.append(recipe)
            self._scores[recipe] = Answer(float("nan"), float("nan"), 0, 0.0)  # as a search takes it: never wins
            if len(self._failed) >= _FAILURES:
                raise RunError(
                    f"{_FAILURES} evaluations gave no answer. The last one: {answer.message}\n"
                    "Nothing finished is lost; the same command goes on."
                )
            return
        self._scores[recipe] = answer
        self._truths.keep(self._job.identity(recipe), self._job.to_json(recipe), question.split, answer)

    def test(self) -> int:
        """Score on test() what the methods and the run have chosen at each budget, where it is not known; how many."""
        curves = [replay.own_curve(self._record)]
        curves += [
            replay.replay(self._record, method, self._scores, replay.BUDGETS[-1])
            for method in replay.methods(self._record)
        ]
        found = [curve.at(budget) for curve in curves for budget in replay.BUDGETS]
        known = self._record.tests
        left = [r for r in dict.fromkeys(standing.recipe for standing in found if standing) if r not in known]
        done, count = 0, len(left)
        while left or self._open:
            while left and len(self._open) < self._engine.slots:
                self._progress("further soups on test", done, count)
                self._open.append(left.pop(0))
                self._engine.submit(Question(self._open[-1], None, "test"))
            for question, answer in self._engine.wait():
                done += 1
                if isinstance(answer, Failure):
                    raise RunError(f"test: {answer.message}")
                self._open.remove(question.recipe)
                recipe = question.recipe
                self._truths.keep(self._job.identity(recipe), self._job.to_json(recipe), "test", answer)
        return count


class Wanted:
    """The soups that a method needs, one after the other, within the largest budget of Table 1 or to greedy's end."""

    def __init__(self, record: RunRecord, method: replay.Method) -> None:
        self._record, self._method = record, method
        self._budget = max(replay.BUDGETS[-1], 2 * record.members)
        search = record.search(method.strategy, dict(method.options), self._budget)
        self._asked: list[Recipe] | None = None
        if search.strategy.independent:  # whatever is answered, it asks the same
            self._asked = []
            while len(self._asked) < replay.BUDGETS[-1] and (question := search.ask()) is not None:
                self._asked.append(question.recipe)

    def next(self, scores: Mapping[Recipe, Answer], working: Collection[Recipe]) -> Recipe | None:
        """The first soup whose score it lacks and nobody works on; None where there is none, or it waits for one."""
        if self._asked is not None:
            return next((r for r in self._asked if r not in scores and r not in working), None)
        lacking = replay.replay(self._record, self._method, scores, self._budget).missing
        return None if lacking in working else lacking
