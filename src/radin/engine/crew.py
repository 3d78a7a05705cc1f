"""Workers, wherever they are: what they are made from, what they are given to do, and who holds them.

    crew.submit(work)                       any number; a free worker takes the next
    for work, reply in crew.wait():         those that are there, in any order
    crew.close()

A crew is processes on this machine, actors of a cluster or jobs of a queue. What it hands out and takes back is the
same: ``Work`` and ``Reply``, and in the worker ``Plan.worker().do(work)``. It alone knows how these travel, and who
died.
"""

from __future__ import annotations

import math
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from radin.data.task import Task, TaskText
from radin.engine.answers import AnswerError
from radin.engine.command import Command, CommandEngine
from radin.engine.device import Device
from radin.engine.worker import MemberRows, Statistics, Worker
from radin.errors import RadinError
from radin.question import VALIDATION, Answer, Failure, Question
from radin.recipe import Recipe
from radin.weights import Pool

_SOON = 1.0  # seconds: nothing is repeated before


@dataclass(frozen=True, eq=False)
class Work:
    """What one worker does at one go: answer a question, or make a member's outputs over validation().

    Two are equal only when they are the same object. ``member``: its place in the pool, where that is asked. ``kept``:
    BatchNorm statistics that the soup was given before. ``data``: split -> fingerprint of the data that it must be.
    """

    question: Question | None = None
    member: int | None = None
    kept: Statistics | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    def called(self, names: tuple[str, ...]) -> str:
        """What it is, for a message; ``names``: the members'."""
        if self.member is not None:
            return f"the outputs of {names[self.member]}"
        assert self.question is not None
        recipe = self.question.recipe
        where = "" if self.question.split == VALIDATION else f" on {self.question.split}"
        if recipe.size == 1:
            return names[recipe.members[0]] + where
        shown = ", ".join(names[k] for k in recipe.members[:4])
        return f"the soup of {recipe.size} members ({shown}{', ...' if recipe.size > 4 else ''}){where}"


@dataclass(frozen=True, eq=False)
class Reply:
    """What came back. ``estimated``: the BatchNorm statistics that the soup was given; ``said``: the device's notes."""

    found: Answer | Failure | MemberRows
    estimated: Statistics | None = None
    said: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Plan:
    """What workers are made from; it can be pickled, whole, for wherever they run.

    source: the task, or where it comes from, or a program. device, precision, batch_size: as ``Device.create`` takes
    them, on the machine that the worker is on. integers_from: the member whose integer tensors soups take.
    """

    pool: Pool
    source: Task | TaskText | str | Command
    device: str = "auto"
    precision: str = "float32"
    batch_size: int | None = None
    integers_from: str | None = None

    def worker(self, device: Device | None = None) -> TaskWorker | ProgramWorker:
        """A worker in this process, on ``device`` where one is given.

        Raises RadinError: a task that cannot be loaded, a device that is not there.
        """
        if isinstance(self.source, Command):
            return ProgramWorker(self.pool, self.source, self.integers_from)
        placed = device or Device.create(self.device, self.precision, self.batch_size)
        return TaskWorker(self.pool, Task.load(self.source), placed, self.integers_from)


class TaskWorker:
    """Does work with a task's model."""

    def __init__(self, pool: Pool, task: Task, device: Device, integers_from: str | None) -> None:
        self._device = device
        self._worker = Worker.create(pool, task, device, integers_from)

    def do(self, work: Work) -> Reply:
        """Raises RadinError where the user's own code or data fail: that would meet all further work too."""
        started = time.monotonic()
        self._worker.data.update(work.data)
        found: Answer | Failure | MemberRows
        if work.member is not None:
            found, estimated = self._worker.outputs(work.member), None
        else:
            assert work.question is not None
            found, estimated = self._worker.answer(work.question, work.kept)
        return Reply(found, estimated, self._device.said, time.monotonic() - started)

    def write(self, recipe: Recipe, path: Path, kept: Statistics | None, files_from: str | None) -> None:
        """Write a soup, as ``Worker.write``."""
        self._worker.write(recipe, path, kept, files_from)

    def close(self) -> None:
        """Nothing is held that does not end with the process."""


class ProgramWorker:
    """Does work by running a program, with the soup in a temporary folder of the machine that it runs on."""

    def __init__(self, pool: Pool, command: Command, integers_from: str | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="radin-")
        scratch = Path(self._folder.name) / "scratch"
        self._engine = CommandEngine(pool, replace(command, jobs=1), scratch, integers_from)

    def do(self, work: Work) -> Reply:
        """Raises RadinError where no further run can help, such as a full disk."""
        assert work.question is not None, "a program gives scores, not outputs"
        self._engine.submit(work.question)
        ((_, found),) = self._engine.wait()
        return Reply(found)

    def close(self) -> None:
        """End what is running and remove the soup."""
        self._engine.close()
        self._folder.cleanup()


class Crew(ABC):
    """Holds workers and hands out work to them. ``size``: how many there are at most."""

    size: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, in sentences: who died, what was done again, and where."""
        return ()

    @abstractmethod
    def submit(self, work: Work) -> None:
        """Take up some work; more than there are workers waits for a free one."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[tuple[Work, Reply]]:
        """What was done since the last call, at least one unless ``timeout`` seconds pass; [] if nothing is in work.

        Each work is given back once. One that no worker could finish has a Failure for its reply. Raises RadinError for
        what makes all further work pointless, once what was done before it has been given back.
        """

    def write(self, recipe: Recipe, path: Path, kept: Statistics | None, files_from: str | None) -> bool:
        """Have the worker that built this recipe last write it; False where none did, or none can reach ``path``."""
        return False

    @abstractmethod
    def close(self) -> None:
        """End all workers, whatever they are at."""


class Cluster(ABC):
    """Where workers run, other than in this process; what ``cook(engine=...)`` takes. Holds settings alone.

    name: as it is called on the command line. workers: how many; None: as many as there is room for.
    """

    name: str
    workers: int | None

    def count(self) -> int:
        """How many workers there will be at most. Raises RadinError where that takes asking and nobody answers."""
        return self.workers or 1

    @abstractmethod
    def crew(self, plan: Plan, folder: Path) -> Crew:
        """Start workers. ``folder``: the run's, for what has to lie where they can reach it.

        Raises RadinError, at once, where they cannot be had: a library that is missing, a wrong address.
        """


def told_of(error: BaseException, node: str) -> RadinError:
    """What a worker's error is, told where it happened; of the same kind, so that it can be sent and raised here."""
    if isinstance(error, RadinError):
        if error.args:
            error.args = (f"on {node}: {error.args[0]}", *error.args[1:])
        return error
    text = "".join(traceback.format_exception(error)).rstrip()
    return RadinError(f"a worker on {node} failed: {error!r}\n{text}")


class Roster:
    """Who works on what. Knows no processes and no network: it is told what happened, and says what to do.

    tries: workers that may die over one work. late: near the end, work that has taken this many times the median is
    given to a free worker as well; the first to finish counts. ``Worker`` names are any values that can be keys.
    """

    def __init__(self, tries: int = 3, late: float = 2.0) -> None:
        self._tries, self._late = tries, late
        self._waiting: list[Work] = []
        self._open: dict[Work, dict[object, float]] = {}  # work -> who is at it, since when
        self._deaths: dict[Work, list[str]] = {}
        self._took: dict[bool, list[float]] = {True: [], False: []}  # by whether outputs were made
        self.repeated = 0

    def __len__(self) -> int:
        """How much work is not done."""
        return len(self._waiting) + len(self._open)

    def add(self, work: Work) -> None:
        """Work that waits for a free worker."""
        self._waiting.append(work)

    def take(self, worker: object, now: float, prefers: Callable[[Work], bool] = lambda work: False) -> Work | None:
        """What a free worker does next; None: nothing. ``prefers``: work that is less to do for this very worker."""
        if self._waiting:
            place = next((k for k, work in enumerate(self._waiting) if prefers(work)), 0)
            work = self._waiting.pop(place)
        else:
            found = self._late_one(worker, now)
            if found is None:
                return None
            work = found
            self.repeated += 1
        self._open.setdefault(work, {})[worker] = now
        return work

    def _late_one(self, worker: object, now: float) -> Work | None:
        """The one that has been in work for longest, by another worker alone, and for long."""
        alone = [(min(who.values()), work) for work, who in self._open.items() if len(who) == 1 and worker not in who]
        for since, work in sorted(alone, key=lambda pair: pair[0]):
            usual = self._took[work.member is not None]
            if usual and now - since > max(self._late * float(np.median(usual)), _SOON):
                return work
        return None

    def done(self, worker: object, work: Work, now: float) -> bool:
        """A worker finished; whether that is news, since another may have been first."""
        if work in self._waiting:  # given back, and finished by the one that was thought dead
            self._waiting.remove(work)
            self._deaths.pop(work, None)
            return True
        who = self._open.pop(work, None)
        self._deaths.pop(work, None)
        if who is None:
            return False
        if worker in who:
            self._took[work.member is not None].append(now - who[worker])
        return True

    def others(self, work: Work, worker: object) -> list[object]:
        """Who else is at this work, before it is done."""
        return [name for name in self._open.get(work, {}) if name != worker]

    def died(self, worker: object, why: str, *, counts: bool = True) -> list[tuple[Work, str]]:
        """A worker is gone: what it was at waits again, first. Returns what is given up, with all the reasons.

        counts: whether that may be the work's fault; it is not where a worker's time was over that had done other work.
        """
        given_up = []
        for work in [work for work, who in self._open.items() if worker in who]:
            reasons = self._deaths.setdefault(work, [])
            if counts:
                reasons.append(why)
            del self._open[work][worker]
            if self._open[work]:
                continue
            del self._open[work]
            if len(reasons) >= self._tries:
                given_up.append((work, "; ".join(dict.fromkeys(self._deaths.pop(work)))))
            else:
                self._waiting.insert(0, work)
        return given_up


class CrewCommandEngine(CommandEngine):
    """A program, run by a crew's workers, each on the machine that it is on.

    What a CommandEngine does here, too, is what needs no program: identity, notes and the soup that is written.
    """

    def __init__(
        self,
        pool: Pool,
        command: Command,
        scratch: Path,
        start: Callable[[Plan], Crew],
        size: int,
        integers_from: str | None = None,
        files_from: str | None = None,
    ) -> None:
        super().__init__(pool, replace(command, jobs=1), scratch, integers_from, files_from=files_from)
        self.slots = size
        self._start, self._plan = start, Plan(pool, command, integers_from=integers_from)
        self._crew: Crew | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the members, and what happened to workers."""
        return super().notes + (() if self._crew is None else self._crew.notes)

    def submit(self, question: Question) -> None:
        """Start to work on a question."""
        self.check(question)
        if self._crew is None:
            self._crew = self._start(self._plan)
        self._crew.submit(Work(question))

    def wait(self, timeout: float | None = None) -> list[tuple[Question, Answer | Failure]]:
        """What has been answered."""
        done: list[tuple[Question, Answer | Failure]] = []
        for work, reply in [] if self._crew is None else self._crew.wait(timeout):
            assert work.question is not None
            assert not isinstance(reply.found, MemberRows)
            found = reply.found
            if isinstance(found, Answer) and work.question.examples is None and not math.isnan(found.score):
                try:
                    self.learn(work.question, found.values)
                except AnswerError as error:
                    found = Failure(f"the command gave no answer: {error}")
            done.append((work.question, found))
        return done

    def close(self) -> None:
        """End the workers."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None
        super().close()
