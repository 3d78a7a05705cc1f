"""An engine of simulated workers: passes take a given time on a clock that the driver's own work moves too.

The driver (search, session, ledger) is the real one. The processor time that it takes between two calls of the engine
is added to the clock, and for each commit of the ledger what one takes on a disk, while the simulated workers go on;
``wait`` then moves the clock to the next answer. So utilisation and makespan are those of a run whose passes really
took that long, whatever else the machine that simulates has to do.
"""

from __future__ import annotations

import heapq
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from radin import Answer, Engine, Failure, Metric, Question, Recipe

_SLOW = 1.5  # times what a pass usually takes, after which an idle worker repeats it
_ATTEMPTS = 5  # workers that a question may lose before it is given up


class Clock:
    """Seconds since the start: those simulated, and the driver's own unless ``real`` is False.

    ``commit``: seconds that each commit of the ledger is taken to need.
    """

    def __init__(self, *, real: bool = True, commit: float = 0.0) -> None:
        self._real, self._commit = real, commit
        self._now = 0.0
        self._mark = time.process_time()
        self._stopped = False
        self.driver = 0.0
        """Processor seconds of the driver among them."""
        self.commits = 0
        """How often the ledger was committed; see ``waited``."""

    def now(self) -> float:
        """Seconds since the start."""
        self._count()
        return self._now

    def _count(self) -> None:
        mark = time.process_time()
        if self._real and not self._stopped:
            self.driver += mark - self._mark
            self._now += mark - self._mark
        self._mark = mark

    @property
    def waited(self) -> float:
        """Seconds of the driver among them in which it waited for the disk."""
        return self.commits * self._commit

    def committed(self) -> None:
        """The ledger was committed."""
        self.commits += 1
        if self._real:
            self._now += self._commit

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While the simulator itself works, which no run would do."""
        self._count()
        self._stopped = True
        try:
            yield
        finally:
            self._stopped = False
            self._mark = time.process_time()

    def move(self, to: float) -> None:
        """On to a later moment; an earlier one changes nothing."""
        self._now = max(self._now, to)


@dataclass(frozen=True)
class Workers:
    """How many there are and what they are like.

    ``seconds``: what a pass takes; a question about some examples takes its share, and ``start`` seconds besides.
    ``spread``: standard deviation of the logarithm of a pass's length, whose mean stays. ``slow``: by worker, how many
    times as long its passes take. ``deaths``: by worker, when it dies; ``restart``: seconds until another is in its
    place, None: never. ``repeat``: whether an idle worker repeats what has taken unusually long.
    """

    count: int
    seconds: float = 10.0
    start: float = 0.0
    spread: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    deaths: Mapping[int, float] = field(default_factory=dict)
    restart: float | None = None
    repeat: bool = False
    seed: int = 0


@dataclass(eq=False)
class _Pass:
    """A question in work: on which workers since when, and what it would take on a usual one."""

    question: Question
    usual: float
    running: dict[int, float] = field(default_factory=dict)
    lost: int = 0
    watched: bool = False


class SimulatedEngine(Engine):
    """Answers with ``values(recipe)``, one number per example, when the simulated pass is over."""

    def __init__(self, metric: Metric, values: Callable[[Recipe], np.ndarray], workers: Workers, clock: Clock) -> None:
        self.metric, self.slots, self.parts = metric, workers.count, True
        self.workers, self.clock = workers, clock
        self._values = values
        self._rng = np.random.default_rng(workers.seed)
        self._idle = deque(range(workers.count))
        self._queue: deque[_Pass] = deque()
        self._in_work: list[_Pass] = []
        self._events: list[tuple[float, int, str, int, _Pass | None]] = []  # (when, order, what, worker, pass)
        self._order = 0
        self._done: list[tuple[Question, float]] = []
        self._ratios: list[float] = []
        self.answered: list[Question] = []
        self.useful = self.wasted = 0.0
        """Seconds of workers on passes whose answers were used, and on those that a death or a repetition wasted."""
        self.died = self.repeated = 0
        self.first: float | None = None
        self.before = 0.0
        """When the driver began to ask, and its processor seconds until then; see ``begin``."""
        for worker, when in workers.deaths.items():
            self._push(when, "death", worker, None)

    def identity(self) -> Mapping[str, Any]:
        return {"the engine": "simulated"}

    def begin(self) -> None:
        """The driver asks from now on; without this, from the first question submitted on."""
        self.first, self.before = self.clock.now(), self.clock.driver

    def submit(self, question: Question) -> None:
        with self.clock.stopped():
            now = self.clock.now()
            if self.first is None:
                self.begin()
            self._until(now)  # who became idle before this question came
            self._queue.append(self._made(question))
            self._in_work.append(self._queue[-1])
            self._start(now)

    def _made(self, question: Question) -> _Pass:
        share, workers = 1.0, self.workers
        if question.examples is not None:
            share = len(question.examples) / max(len(self._values(question.recipe)), 1)
        noise = np.exp(workers.spread * self._rng.standard_normal() - workers.spread**2 / 2) if workers.spread else 1.0
        return _Pass(question, workers.start + workers.seconds * share * float(noise))

    def wait(self, timeout: float | None = None) -> list[tuple[Question, Answer | Failure]]:
        with self.clock.stopped():
            self._until(self.clock.now())
            self._watch()
            while not self._done and self._in_work:
                if not self._events or (not self._idle and not any(event[2] != "death" for event in self._events)):
                    return self._given_up("every worker died")
                self.clock.move(self._events[0][0])
                self._until(self.clock.now())
            found, self._done = self._done, []
            return [(question, self._answer(question, seconds)) for question, seconds in found]

    def _given_up(self, why: str) -> list[tuple[Question, Answer | Failure]]:
        left, self._in_work = self._in_work, []
        self._queue.clear()
        return [(each.question, Failure(why)) for each in left]

    def _until(self, now: float) -> None:
        """Let happen what happens until now."""
        while self._events and self._events[0][0] <= now:
            when, _, what, worker, work = heapq.heappop(self._events)
            if what == "death":
                self._die(worker, when)
            elif what == "restart":
                self._idle.append(worker)
            elif work is None or work not in self._in_work:
                continue  # answered meanwhile by another worker
            elif what == "look":
                self._repeat(work, when)
            elif worker in work.running:
                self._finish(work, worker, when)
            self._start(when)

    def _start(self, now: float) -> None:
        while self._queue and self._idle:
            self._put(self._queue.popleft(), self._idle.popleft(), now)

    def _put(self, work: _Pass, worker: int, now: float) -> None:
        work.running[worker] = now
        self._push(now + work.usual * self.workers.slow.get(worker, 1.0), "finish", worker, work)

    def _push(self, when: float, what: str, worker: int, work: _Pass | None) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, what, worker, work))

    def _finish(self, work: _Pass, worker: int, now: float) -> None:
        self._in_work.remove(work)
        seconds = now - work.running.pop(worker)
        self.useful += seconds
        self._ratios.append(seconds / work.usual if work.usual else 1.0)
        self._idle.append(worker)
        for other, since in work.running.items():
            self.wasted += now - since
            self._idle.append(other)
        self.answered.append(work.question)
        self._done.append((work.question, seconds))

    def _die(self, worker: int, now: float) -> None:
        self.died += 1
        if worker in self._idle:
            self._idle.remove(worker)
        for work in self._in_work:
            if worker in work.running:
                self.wasted += now - work.running.pop(worker)
                work.lost += 1
                if not work.running and work.lost < _ATTEMPTS:
                    self._queue.appendleft(work)
        if self.workers.restart is not None:
            self._push(now + self.workers.restart, "restart", worker, None)

    def _watch(self) -> None:
        """Where nothing more is asked and workers are idle, look at what runs once it has taken unusually long."""
        if not (self.workers.repeat and self._idle and not self._queue and self._ratios):
            return
        usual = _SLOW * statistics.median(self._ratios)
        for work in self._in_work:
            if len(work.running) == 1 and not work.watched:
                work.watched = True
                ((worker, since),) = work.running.items()
                self._push(max(self.clock.now(), since + usual * work.usual), "look", worker, work)

    def _repeat(self, work: _Pass, now: float) -> None:
        if self._idle and len(work.running) == 1:
            self.repeated += 1
            self._put(work, self._idle.popleft(), now)
        else:
            work.watched = False

    def _answer(self, question: Question, seconds: float) -> Answer:
        values = self._values(question.recipe)
        values = values if question.examples is None else values[question.examples]
        stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        return Answer(float(values.mean()), stderr, len(values), seconds, "", values)

    def write(self, recipe: Recipe, path: Path) -> None:
        path.write_text(str(recipe.members))

    def close(self) -> None:
        self._given_up("closed")
