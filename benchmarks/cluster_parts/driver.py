"""The real driver over simulated workers: what a run takes, and what of that is the driver's own work."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.cluster_parts.engine import Clock, SimulatedEngine, Workers
from benchmarks.cluster_parts.pool import SimulatedPool

from radin import Recipe, metrics
from radin.question import Rates
from radin.run.directory import RunDirectory
from radin.run.job import Job
from radin.run.ledger import Ledger
from radin.run.members import asked_scores
from radin.run.session import Session
from radin.search import Search
from radin.search.account import Account

# Where the ledger is meanwhile: what its commits take on a disk is simulated, not waited for.
_MEMORY = Path("/dev/shm")
SEQUENTIAL = ("greedy", "pruned")  # strategies that have one question at a time, by what they are

_WATCHED = {
    "search": (Search, ("ask", "tell", "drop")),
    "ledger": (Ledger, ("ask", "tell", "fail", "pause", "wrote", "add", "get")),
    "account": (Account, ("affords", "cost", "unknown", "reserve", "release", "charge", "values")),
}


@dataclass(frozen=True)
class Phase:
    """One phase of a run. Seconds are simulated ones, with the driver's real ones among them.

    ``ideal``: all work shared by all workers, no worker starting a pass that ends after the others' by more than one
    pass; of a sequential strategy the sum of its passes. ``first``: until the search is ready to ask, ``before`` the
    processor's among them. ``useful``, ``wasted``: of all workers together. ``driver``: processor seconds; ``parts``:
    the same by part, those of parts inside it taken out. ``commits``: of the ledger, and ``waited`` the seconds that
    the disk was taken to need for them.
    """

    questions: int
    seconds: float
    first: float
    before: float
    useful: float
    wasted: float
    driver: float
    ideal: float
    parts: dict[str, float]
    workers: int
    commits: int
    waited: float

    @property
    def utilisation(self) -> float:
        """Of all workers, from the first question to the last answer."""
        return self.useful / (self.workers * max(self.seconds - self.first, 1e-12))

    @property
    def whole(self) -> float:
        """The same, what comes before the first question counted."""
        return self.useful / (self.workers * max(self.seconds, 1e-12))

    @property
    def ms(self) -> float:
        """Milliseconds of the driver's processor for each question, from the first on."""
        return 1000 * (self.driver - self.before) / max(self.questions, 1)


@dataclass(frozen=True)
class Run:
    """Both phases, and what came of it: the best recipe and its score, all scores, and how often each was asked."""

    members: Phase
    soups: Phase
    best: tuple[Recipe, float]
    scores: dict[Recipe, float]
    recorded: int
    engine: SimulatedEngine
    spent: float


def simulated(
    pool: SimulatedPool,
    workers: Workers,
    *,
    strategy: str = "adaptive",
    budget: int,
    outputs: bool = True,
    parts: bool = True,
    options: dict[str, Any] | None = None,
    real: bool = True,
    commit: float = 0.0,
    out: Path | None = None,
) -> Run:
    """Members' passes, then soups. ``outputs``: whether the members' outputs are at hand; ``real``: see ``Clock``."""
    metric = metrics.get("accuracy")
    count = len(pool.outputs)
    pool.gram, pool.listed  # noqa: B018 - made now, by the simulator and not by the driver
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as made:
        path = (out or Path(made)) / "run"
        with RunDirectory(path, {"members": dict.fromkeys(pool.listed.fingerprints, "")}) as directory:
            ledger = Ledger(directory.ledger, run="simulated", metric=metric)
            try:
                job = Job(pool.listed, metric, directory, ledger)
                with _watched() as seconds:
                    clock = Clock(real=real, commit=commit)
                    _count_commits(ledger, clock)
                    first, engine = _timed(pool, workers, clock, seconds, lambda e: asked_scores(job, e, None))
                    singles = np.array([job.single(k).score for k in range(count)])
                    given: dict[str, Any] = {
                        "metric": metric,
                        "strategy": strategy,
                        "budget": budget,
                        "options": options,
                        "keys": list(pool.listed.fingerprints),
                        "singles": singles,
                        "gram": pool.gram,
                        "parts": parts and outputs,
                    }
                    known = (pool.outputs, pool.targets) if outputs else (None, None)
                    sessions: list[Session] = []

                    def spend(engine: SimulatedEngine) -> None:
                        def search() -> Search:
                            rates = Rates(len(pool.targets))
                            account = Account(budget, rates, metric.score)
                            return Search(*known, account=account, slots=engine.slots, **given)

                        sessions.append(Session(job, engine, search, {}, best=float(singles.max())))
                        engine.begin()
                        sessions[-1].spend()

                    sequential = strategy in SEQUENTIAL
                    clock = Clock(real=real, commit=commit)
                    _count_commits(ledger, clock)
                    second, engine = _timed(pool, workers, clock, seconds, spend, sequential=sequential)
                session = sessions[0]
                told = [asked for asked in ledger.questions() if asked.answer is not None]
                scores = dict(session.search.evaluations)
                return Run(first, second, session.search.best, scores, len(told), engine, session.account.spent)
            finally:
                ledger.close()


def _timed(
    pool: SimulatedPool,
    workers: Workers,
    clock: Clock,
    parts: Counter[str],
    work: Callable[[SimulatedEngine], object],
    *,
    sequential: bool = False,
) -> tuple[Phase, SimulatedEngine]:
    engine = SimulatedEngine(metrics.get("accuracy"), pool.values, workers, clock)
    parts.clear()
    work(engine)
    seconds = clock.now()
    one = workers.start + workers.seconds
    ideal = engine.useful if sequential else engine.useful / workers.count
    if not sequential and engine.useful and engine.useful / len(engine.answered) > 0.999 * one:
        ideal = -(-len(engine.answered) // workers.count) * engine.useful / len(engine.answered)  # whole passes alike
    found = dict(parts)
    found["session"] = clock.driver - sum(found.values())
    phase = Phase(
        len(engine.answered),
        seconds,
        engine.first or 0.0,
        engine.before,
        engine.useful,
        engine.wasted,
        clock.driver,
        ideal,
        found,
        workers.count,
        clock.commits,
        clock.waited,
    )
    return phase, engine


def _count_commits(ledger: Ledger, clock: Clock) -> None:
    """Let the clock know of each commit of the ledger, by SQLite's own word."""
    ledger._db.set_trace_callback(lambda statement: clock.committed() if statement == "COMMIT" else None)


class _watched:
    """Seconds of the driver's parts while open, as a counter; what one calls of another is the other's."""

    def __enter__(self) -> Counter[str]:
        self._kept: list[tuple[type, str, Any]] = []
        self.seconds: Counter[str] = Counter()
        stack: list[float] = []
        for part, (kind, names) in _WATCHED.items():
            for name in names:
                method = getattr(kind, name)
                self._kept.append((kind, name, method))
                setattr(kind, name, self._timing(method, part, stack))
        return self.seconds

    def _timing(self, method: Callable[..., Any], part: str, stack: list[float]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            stack.append(0.0)
            started = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                took = time.process_time() - started
                self.seconds[part] += took - stack.pop()
                if stack:
                    stack[-1] += took

        return timed

    def __exit__(self, *_: object) -> None:
        for kind, name, method in self._kept:
            setattr(kind, name, method)
