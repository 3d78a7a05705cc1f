"""A crew of Ray actors: one for each worker, started anew when it dies, since the driver wants to know of it.

An actor says hello, loads the task, and then does one work after the other. Answers come through Ray's object store.
"""

from __future__ import annotations

import os
import pickle
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from radin.engine.command import Command
from radin.engine.crew import Crew, Plan, ProgramWorker, Reply, Roster, TaskWorker, Work, told_of
from radin.engine.hello import Hello, import_places
from radin.engine.ray_cluster import asked, nodes_there
from radin.engine.worker import MemberRows
from radin.errors import RadinError, TaskError, printable
from radin.question import Failure
from radin.recipe import Recipe

_LOOK = 0.5  # seconds between looks at who is late and who never came
_STARTS = 3  # workers that may end one after the other in the same place before they have loaded the task
_ENDING = 3.0  # seconds that programs have to end when a run is stopped


class Actor:
    """What runs on a node. Each method gives ("done", value) or ("error", RadinError), told with the node's name."""

    def __init__(self, threads: int, name: str | None = None) -> None:
        self._threads = threads
        self._node = name or _node()
        self._worker: TaskWorker | ProgramWorker | None = None

    def hello(self, expected: Hello) -> tuple[str, Any]:
        """This node's side of what must be alike."""
        return self._told(lambda: expected.answer(self._node))

    def load(self, plan: bytes) -> tuple[str, Any]:
        """Make the worker: its task is loaded here."""

        def loaded() -> None:
            self._worker = pickle.loads(plan).worker()

        return self._told(loaded)

    def do(self, work: bytes) -> tuple[str, Any]:
        """Do some work."""
        worker = self._worker
        assert worker is not None
        return self._told(lambda: worker.do(pickle.loads(work)))

    def close(self) -> tuple[str, Any]:
        """End the program that is running, if any: it would go on without this process."""
        return self._told(lambda: None if self._worker is None else self._worker.close())

    def _told(self, action: Callable[[], Any]) -> tuple[str, Any]:
        os.environ["OMP_NUM_THREADS"] = str(self._threads)
        torch.set_num_threads(self._threads)
        try:
            return "done", action()
        except Exception as error:
            return "error", told_of(error, self._node)


def _node() -> str:
    import ray

    return f"{platform.node()} (Ray node {ray.get_runtime_context().get_node_id()[:8]})"


@dataclass(eq=False)
class _Worker:
    """An actor. stage: "hello", "load", "free" or "work". pending: what it will answer. failed: those before it, in
    its place, that ended before they had loaded the task."""

    actor: Any
    stage: str
    pending: Any
    failed: int = 0
    node: str = "a node that was still starting it"
    work: Work | None = None
    built: Recipe | None = None


class RayCrew(Crew):
    """``size`` actors, each with ``cpus`` processors and ``gpus`` GPUs.

    patience: seconds without any worker that is ready, after which the run gives up. close: called at the end.
    Raises TaskError where the task cannot be sent.
    """

    def __init__(
        self,
        ray: Any,
        plan: Plan,
        size: int,
        cpus: float,
        gpus: float,
        patience: float,
        close: Callable[[], None],
    ) -> None:
        self.size = size
        self._ray, self._close = ray, close
        self._names = plan.pool.member_names
        self._asked = Hello.here(plan)
        self._needs, self._patience = asked(cpus, gpus), patience
        try:
            sent = ray.cloudpickle.dumps(plan)
        except Exception as error:
            raise TaskError(f"this task cannot be sent to workers ({error}): give it as a file or a module") from None
        self._plan = ray.put(sent)
        self._runs_program = isinstance(plan.source, Command)
        threads = max(1, int(cpus))
        self._threads = threads
        self._actor = ray.remote(Actor).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2 if self._runs_program else 1,  # so that it can be told to end the program
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(import_places()), "OMP_NUM_THREADS": str(threads)}},
        )
        self._roster = Roster()
        self._error: RadinError | None = None
        self._said: list[str] = []
        self._ready_at = time.monotonic()
        self._last_end = ""
        self._workers = [self._begin() for _ in range(size)]

    @property
    def notes(self) -> tuple[str, ...]:
        """Who died, what was done again, and what was done twice near the end."""
        repeated = self._roster.repeated
        late = f"{repeated} evaluations took long near the end and were given to a second worker too"
        return (*dict.fromkeys(self._said), *((late,) if repeated else ()))

    def _begin(self, failed: int = 0) -> _Worker:
        actor = self._actor.remote(self._threads)
        return _Worker(actor, "hello", actor.hello.remote(self._asked), failed)

    def submit(self, work: Work) -> None:
        """Take up some work; a worker that is free begins at once."""
        self._roster.add(work)
        self._assign()

    def _assign(self) -> None:
        """Give work to those that are free, rather to the one that has its soup."""
        for worker in self._workers:
            if worker.stage != "free":
                continue
            work = self._roster.take(worker, time.monotonic(), partial(_is_of, worker.built))
            if work is not None:
                worker.stage, worker.work = "work", work
                worker.pending = worker.actor.do.remote(pickle.dumps(work))

    def wait(self, timeout: float | None = None) -> list[tuple[Work, Reply]]:
        """What is done, at least one unless the time is over; [] when nothing is in work.

        An error is raised when nothing came with it, else by the next call.
        """
        until = None if timeout is None else time.monotonic() + timeout
        done: list[tuple[Work, Reply]] = []
        while not done and self._error is None and len(self._roster):
            self._assign()
            left = _LOOK if until is None else min(_LOOK, until - time.monotonic())
            if left < 0:
                return []
            self._look(max(left, 0.001), done)
            self._be_patient()
        if self._error is not None and not done:
            raise self._error
        return done

    def _look(self, seconds: float, done: list[tuple[Work, Reply]]) -> None:
        """Take what comes within so many seconds, and all that is there then."""
        pending = {worker.pending: worker for worker in self._workers if worker.pending is not None}
        if not self._ray.wait(list(pending), num_returns=1, timeout=seconds)[0]:
            return
        for ready in self._ray.wait(list(pending), num_returns=len(pending), timeout=0)[0]:
            self._take(pending[ready], ready, done)
        self._assign()

    def _take(self, worker: _Worker, ready: Any, done: list[tuple[Work, Reply]]) -> None:
        """What one worker gave back, or that it is gone."""
        worker.pending = None
        try:
            kind, value = self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:  # outside of what the actor tells by itself
            self._error = told_of(RadinError(f"a worker failed: {error}"), worker.node)
            return
        except self._ray.exceptions.RayError as error:
            self._died(worker, error, done)
            return
        if kind == "error":
            self._error = value
        elif worker.stage == "hello":
            worker.node = value.node
            try:
                self._asked.require(value)
            except RadinError as error:
                self._error = error
                return
            worker.stage, worker.pending = "load", worker.actor.load.remote(self._plan)
        elif worker.stage == "load":
            worker.stage, worker.failed = "free", 0
        else:
            work, worker.work, worker.stage = worker.work, None, "free"
            assert work is not None
            question = work.question
            worker.built = question.recipe if question is not None and question.gradient is None else None
            if self._roster.done(worker, work, time.monotonic()):
                done.append((work, _own(value)))

    def _died(self, worker: _Worker, error: Exception, done: list[tuple[Work, Reply]]) -> None:
        """Another takes its place and its work, unless three died over that."""
        self._kill(worker)
        self._workers.remove(worker)
        why = _why(error)
        self._last_end = f"{worker.node}: {why}"
        if worker.work is not None:
            called = worker.work.called(self._names)
            self._said.append(f"a worker on {worker.node} died ({why}) over {called}, which another took up")
        for work, reasons in self._roster.died(worker, self._last_end):
            what = work.called(self._names)
            done.append((work, Reply(Failure(f"workers died over {what} one after the other ({reasons})"))))
        failed = worker.failed + 1 if worker.stage in ("hello", "load") else 0
        if failed < _STARTS:
            self._workers.append(self._begin(failed))
            return
        self._said.append(f"{failed} workers in the same place died before they could begin ({self._last_end})")
        if not self._workers:
            self._error = RadinError(
                f"no worker is left: {failed} died one after the other before they could begin, the last one on "
                f"{self._last_end}. Ray's logs say more. Nothing finished is lost; the same command goes on from here."
            )

    def _be_patient(self) -> None:
        """Workers that wait for room do no harm as long as others work; with none that works it is said."""
        now = time.monotonic()
        if any(worker.stage != "hello" for worker in self._workers):
            self._ready_at = now
        elif self._error is None and now - self._ready_at > self._patience:
            last = f" The last one died on {self._last_end}." if self._last_end else ""
            self._error = RadinError(
                f"no worker could be started within {self._patience:g} seconds: each asks for {self._needs}; the "
                f"cluster has {nodes_there(self._ray)}.{last} Ask for less, or give the same command again when there "
                "is room: nothing finished is lost."
            )

    def _kill(self, worker: _Worker) -> None:
        try:
            self._ray.kill(worker.actor, no_restart=True)
        except Exception:  # it is gone, or Ray is
            return

    def close(self) -> None:
        """End all workers, and the Ray that was started for them."""
        workers, self._workers = self._workers, []
        if self._runs_program:
            busy = [worker.actor.close.remote() for worker in workers if worker.stage == "work"]
            if busy:
                self._ray.wait(busy, num_returns=len(busy), timeout=_ENDING)
        for worker in workers:
            self._kill(worker)
        self._close()


def _own(reply: Reply) -> Reply:
    """With rows that are this process's: Ray's are read-only, and keep its object store full."""
    if not isinstance(reply.found, MemberRows):
        return reply
    return replace(reply, found=replace(reply.found, rows=np.array(reply.found.rows)))


def _is_of(recipe: Recipe | None, work: Work) -> bool:
    return work.question is not None and work.question.recipe == recipe


def _why(error: Exception) -> str:
    """Why an actor is gone, in a few words of Ray's many."""
    text = " ".join(str(error).split())
    if "failed to import" in text or "ModuleNotFoundError" in text or "ImportError" in text:
        return f"it cannot import radin there: {printable(text)[-300:]}"
    for sign, words in (
        ("running low on memory", "out of memory"),
        ("runtime_env", f"its environment could not be set up: {printable(text)[-300:]}"),
        ("node was terminated", "its node is gone"),
        ("node died", "its node is gone"),
        ("node failure", "its node is gone"),
        ("raylet", "its node is gone"),
    ):
        if sign in text:
            return words
    return "its process ended"
