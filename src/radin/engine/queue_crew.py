"""The driver's side of a queue in a folder: posts work, gathers answers, and finds out who died.

    jobs.submit(2)      processes that run ``radin.engine.queue_worker.serve``, somewhere
    crew = QueueCrew(...)

Nothing is sent to workers and nothing is asked of them: all that is known of them is in the folder, and of their jobs
in the queue that started them.
"""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path

from radin.engine.crew import Crew, Plan, Reply, Roster, Work
from radin.engine.hello import Hello
from radin.engine.packed import DamagedError, error_of, hello_of, reply_of, work_parts
from radin.engine.queue_folder import Entry, Heart, Queue, Timing, new_name, stop_others
from radin.errors import RadinError
from radin.files import storage_error, told
from radin.question import Failure

_NOTES = 20  # sentences about workers that died, at most
_FRUITLESS = 3  # jobs for each worker that may end in a row without anything having been done


class Jobs(ABC):
    """Jobs of some queue, each of which is one worker. ``pace``: seconds between looks at it."""

    pace: float = 5.0

    @abstractmethod
    def submit(self, queue: Path, digest: str, count: int) -> list[str]:
        """Start so many; what they are called. Raises RadinError where they are refused."""

    @abstractmethod
    def ended(self) -> dict[str, str]:
        """Those that have ended since the last call, and how, as far as is known."""

    @abstractmethod
    def about(self) -> str:
        """How the others are: a few words for a message, such as why they wait."""

    def log(self, job: str) -> str:
        """The last lines that a job printed, where they can be had."""
        return ""

    @abstractmethod
    def cancel(self) -> None:
        """End all that are left; returns soon, and raises nothing."""


@dataclass
class _Seen:
    """A worker that has said hello. ``lost``: why nothing more is expected of it; ``gone``: nor ever will be."""

    node: str
    job: str | None
    lost: str | None = None
    gone: bool = False
    did: int = 0


class QueueCrew(Crew):
    """Workers that pull work from a folder in ``folder``, a session of its own."""

    def __init__(
        self,
        size: int,
        plan: Plan,
        pickled: bytes,
        folder: Path,
        jobs: Jobs,
        *,
        threads: int = 1,
        patience: float = 3600.0,
        timing: Timing | None = None,
    ) -> None:
        """``pickled``: the plan. patience: seconds without any worker. Raises RadinError where jobs are refused."""
        self.size = size
        self._plan, self._jobs, self._patience = plan, jobs, patience
        self._digest = hashlib.sha256(pickled).hexdigest()
        self._hello = Hello.here(plan)
        settings = {"hello": asdict(self._hello), "threads": threads}
        session = new_name("session")
        with told(folder, doing="used"):
            folder.mkdir(parents=True, exist_ok=True)
            stop_others(folder, session)
            self._queue = Queue.create(folder.absolute() / session, pickled, settings, timing or Timing())
        self._roster = Roster()  # its workers are claims, by the names of their files
        self._posted: dict[int, Work] = {}  # by number, until the work is done
        self._unclaimed: dict[int, Work] = {}  # those that nobody has taken yet
        self._to_post: list[Work] = []
        self._number = 0
        self._claims: dict[Entry, Work] = {}
        self._lost: dict[Entry, Work] = {}  # claims of workers thought dead, which may answer yet
        self._workers: dict[str, _Seen] = {}
        self._running: set[str] = set()  # jobs that have not ended
        self._fruitless = 0  # jobs that ended since anything was done
        self._left = ""  # what the last worker that gave something back was at, and why it did
        self._ready: list[tuple[Work, Reply]] = []
        self._errors: list[RadinError] = []
        self._notes: list[str] = []
        self._unsaid = 0
        self._lived = self._looked = self._asked = time.monotonic()
        self._heart = Heart(self._queue)
        self._heart.start()
        try:
            self._running.update(jobs.submit(self._queue.folder, self._digest, size))
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """Who died, what was done again, and what was started twice."""
        notes = list(self._notes)
        if self._unsaid:
            notes.append(f"and so {self._unsaid} times more")
        if self._roster.repeated:
            notes.append(
                f"{self._roster.repeated} passes were started a second time near the end, by workers that were free, "
                "as those that had them were slow"
            )
        return tuple(notes)

    def submit(self, work: Work) -> None:
        """Post work; a worker that is free takes it."""
        if not len(self._roster):
            self._lived = time.monotonic()
        self._roster.add(work)
        self._to_post.append(work)
        with told(self._queue.folder):
            self._post()

    def wait(self, timeout: float | None = None) -> list[tuple[Work, Reply]]:
        """What was done; an error of the user's code is raised once what was done before has been given back."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        timing = self._queue.timing
        pause, away = timing.shortest, 0.0
        while True:
            moved = False
            try:
                moved = self._look()
                away = 0.0
            except OSError as error:  # a network disk may be away for a moment
                away = away or time.monotonic()
                if time.monotonic() - away > timing.lease:
                    raise storage_error(error, self._queue.folder, doing="used") from error
            if self._ready:
                ready, self._ready = self._ready, []
                return ready
            if self._errors:
                raise self._errors[0]
            if not len(self._roster):
                return []
            if (left := until - time.monotonic()) <= 0:
                return []
            pause = timing.shortest if moved else timing.grown(pause)
            time.sleep(min(pause, left))

    def close(self) -> None:
        """End the session, and its jobs."""
        self._queue.stop()
        self._heart.end()
        self._jobs.cancel()
        self._queue.clear()

    def _look(self) -> bool:
        """One look at everything; whether anything moved."""
        now = time.monotonic()
        moved = self._greet()
        moved |= self._gather(now)
        if now - self._looked > self._queue.timing.beat:
            self._looked = now
            self._find_silent()
        if now - self._asked > self._jobs.pace:
            self._asked = now
            self._find_ended(now)
        for entry in list(self._claims):
            seen = self._workers.get(entry.worker or "")
            if seen is not None and seen.lost:
                self._give_back(entry, seen.lost)
        if any(seen.lost is None for seen in self._workers.values()):
            self._lived = now
        elif now - self._lived > self._patience and len(self._roster):
            self._errors.append(self._nobody(f"for {self._patience / 60:.3g} minutes"))
        self._repeat(now)
        self._post()
        return moved

    def _greet(self) -> bool:
        """Take in workers that have said hello since."""
        new = [name for name in self._queue.workers() if name not in self._workers]
        for name in new:
            try:
                value = self._queue.said_hello(name)
                hello = hello_of(value.get("hello"))
            except DamagedError as damage:
                self._workers[name] = _Seen("a node", None, f"its hello was damaged: {damage}", True)
                continue
            job = None if value.get("job") is None else str(value["job"])
            for other in self._workers.values():
                if job is not None and other.job == job:
                    other.lost, other.gone = "its job was started anew", True
            self._workers[name] = _Seen(hello.node, job)
            try:
                self._hello.require(hello)
            except RadinError as error:
                self._errors.insert(0, error)  # rather than what follows from it
        return bool(new)

    def _gather(self, now: float) -> bool:
        """Take in what workers have taken and handed in."""
        names = self._queue.names("done")
        for entry in self._queue.entries("taken"):
            self._claimed(entry, now)
        for name in names:
            found = Entry.parse(name)
            if found is not None:
                self._claimed(found, now)
            try:
                value, tensors = self._queue.done(name)
                error = error_of(value)
                reply = None if error is not None or "given back" in value else reply_of(value, tensors)
            except DamagedError as damage:
                aside = self._queue.quarantine(name)
                if found is not None:
                    self._give_back(found, f"its answer was damaged on disk: {damage}; it is kept as {aside}")
                continue
            if error is not None:
                self._errors.append(error)
            elif found is not None and reply is not None:
                self._done(found, reply, now)
            elif found is not None:
                seen = self._workers.get(found.worker or "")
                self._give_back(found, str(value["given back"]), counts=seen is None or not seen.did)
            (self._queue.folder / "done" / name).unlink(missing_ok=True)
        return bool(names)

    def _claimed(self, entry: Entry, now: float) -> None:
        """A worker has taken what was posted."""
        if entry in self._claims or entry in self._lost or entry.number not in self._posted:
            return
        work = self._claims[entry] = self._posted[entry.number]
        if self._unclaimed.pop(entry.number, None) is not None:
            self._roster.take(entry, now, lambda waiting: waiting is work)

    def _done(self, entry: Entry, reply: Reply, now: float) -> None:
        """A worker's answer: the first counts."""
        seen = self._workers.get(entry.worker or "")
        if seen is not None:
            seen.did += 1
        work = self._claims.get(entry) or self._lost.get(entry)
        if work is not None and self._roster.done(entry, work, now):
            self._finish(work, reply)
        self._queue.remove("taken", entry)

    def _finish(self, work: Work, reply: Reply) -> None:
        """Work is done, or given up: nobody needs to take it any more."""
        self._ready.append((work, reply))
        self._fruitless = 0
        if work in self._to_post:
            self._to_post.remove(work)
        numbers = {number for number, posted in self._posted.items() if posted is work}
        for number in numbers:
            del self._posted[number]
        for number in numbers & self._unclaimed.keys():
            self._queue.remove("todo", Entry(number, _soup(work)))
            del self._unclaimed[number]
        for claims in (self._claims, self._lost):
            for entry in [entry for entry, claimed in claims.items() if claimed is work]:
                self._queue.remove("todo", entry)  # one that was posted for a single worker
                del claims[entry]

    def _give_back(self, entry: Entry, why: str, *, counts: bool = True) -> None:
        """What a worker had taken goes to another. counts: as for Roster.died."""
        self._queue.remove("taken", entry)
        self._queue.remove("todo", entry)
        work = self._claims.pop(entry, None)
        if work is None:
            return
        self._lost[entry] = work
        seen = self._workers.get(entry.worker or "")
        node = "a node" if seen is None else seen.node
        shared = self._roster.others(work, entry)
        given_up = self._roster.died(entry, f"on {node}: {why}", counts=counts)
        what = work.called(self._plan.pool.member_names)
        self._left = f"{what} ({why})"
        self._note(f"on {node} {what} was not finished ({why}), and {'given up' if given_up else 'left to another'}")
        for lost, reasons in given_up:
            message = f"{lost.called(self._plan.pool.member_names)} could not be finished by any worker: {reasons}"
            self._finish(lost, Reply(Failure(message)))
        if not given_up and not shared:
            self._to_post.insert(0, work)

    def _find_silent(self) -> None:
        """Lose workers that give no sign of life; take up again those that do."""
        lease = self._queue.timing.lease
        now = self._queue.sign()
        for name, seen in self._workers.items():
            if seen.gone:
                continue
            try:
                silent = now - self._queue.last_sign(name) > lease
            except FileNotFoundError:
                silent = True
            seen.lost = f"no sign of life for {lease:.3g} seconds" if silent else None

    def _find_ended(self, now: float) -> None:
        """Lose the workers of jobs that have ended, and start others where there is work for them."""
        ended = self._jobs.ended()
        if ended:
            self._greet()
            self._gather(now)  # what they handed in before
        for job, how in ended.items():
            self._running.discard(job)
            workers = [seen for seen in self._workers.values() if seen.job == job]
            for seen in workers:
                seen.lost, seen.gone = f"its job {job} ended: {how}", True
            if not any(seen.did for seen in workers):
                self._fruitless += 1
        wanted = min(self.size, len(self._roster)) - len(self._running)
        if wanted <= 0 or self._errors:
            return
        last = next((job for job in reversed(ended) if self._jobs.log(job)), None)
        if self._fruitless >= (_FRUITLESS * self.size if self._workers else _FRUITLESS):
            if not self._running:
                what = f"and the last {self._fruitless} jobs ended without having done anything"
                what += f"; the last one left {self._left}" if self._left else ""
                self._errors.append(self._nobody(what, "" if last is None else self._jobs.log(last)))
            return
        try:
            self._running.update(self._jobs.submit(self._queue.folder, self._digest, wanted))
        except RadinError as error:
            self._note(f"a job that ended could not be replaced: {error}")
            if not self._running:
                self._errors.append(error)

    def _nobody(self, what: str, log: str = "") -> RadinError:
        started = "is left" if self._workers else "has started"
        return RadinError(
            f"no worker {started} {what}: {self._jobs.about()}. See whether the queue takes such jobs (partition, "
            "time, memory, GPUs) and what they printed. Nothing finished is lost: the same command goes on, on this "
            f"engine or another.{f' The last lines of one:{chr(10)}{log}' if log else ''}"
        )

    def _repeat(self, now: float) -> None:
        """Near the end, give late work to workers that are free as well."""
        if self._to_post or self._unclaimed or not len(self._roster):
            return
        busy = {entry.worker for entry in self._claims}
        for name in [name for name, seen in self._workers.items() if seen.lost is None and name not in busy]:
            self._number += 1
            entry = Entry(self._number, "repeat", name)
            late = self._roster.take(entry, now)
            if late is None:
                return
            self._claims[entry] = self._posted[entry.number] = late
            self._queue.post(entry, *work_parts(late))

    def _post(self) -> None:
        """Put out work, a little more than there are workers."""
        while self._to_post and len(self._unclaimed) < 2 * self.size + 4:
            work = self._to_post[0]
            self._number += 1
            entry = Entry(self._number, _soup(work))
            self._queue.post(entry, *work_parts(work))
            self._posted[entry.number] = self._unclaimed[entry.number] = self._to_post.pop(0)

    def _note(self, sentence: str) -> None:
        if len(self._notes) < _NOTES:
            self._notes.append(sentence)
        else:
            self._unsaid += 1


def _soup(work: Work) -> str:
    """What work over the same soup has in its name, eight hexadecimal digits; "member" where outputs are made."""
    if work.question is None:
        return "member"
    return hashlib.sha256(repr(work.question.recipe).encode()).hexdigest()[:8]
