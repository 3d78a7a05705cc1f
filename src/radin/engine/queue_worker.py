"""A worker that pulls its work from a queue in a folder: ``python -m radin.engine.queue_worker FOLDER SHA256``.

It is started by a job, on any machine that sees the folder. It ends when the session does, when the driver has given no
sign of life for long, or when its job's time is over.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from radin.engine.crew import Plan, ProgramWorker, TaskWorker, told_of
from radin.engine.packed import DamagedError, error_parts, hello_of, reply_parts, work_of
from radin.engine.queue_folder import Entry, Heart, Queue, new_name
from radin.errors import RadinError

_ENDED = 3  # exit code where a pass was left behind


class _Leaving(BaseException):
    """The job's time is over, or it is ended from outside; no code of the user's takes it for an error of its own."""


def serve(folder: str | Path, digest: str, job: str | None = None) -> None:
    """Do the work of a session until it ends. ``digest``: SHA-256 of its plan; ``job``: what the driver calls this job.

    What goes wrong here is handed in, for the driver to tell.
    """
    try:
        queue = Queue(Path(folder))
    except FileNotFoundError:
        return  # the session ended before this job was started
    node = os.uname().nodename
    name = new_name(job or "worker", node, os.getpid())
    _use_threads(int(queue.settings["threads"]))
    held = _Held(queue, name)
    heart = Heart(queue, name, held.look)
    with _leaving_on_signals():
        try:
            found = hello_of(queue.settings["hello"]).answer(node)
            queue.hello(name, {"hello": asdict(found), "job": job, "pid": os.getpid()})
            heart.start()
            held.work(_plan(queue, digest))
        except (_Leaving, KeyboardInterrupt):
            held.give_back("its job was ended from outside, or its time was over")
        except RadinError as error:
            with suppress(FileNotFoundError):
                queue.hand_in(f"@{name}", error_parts(told_of(error, node)))
        except OSError as error:
            if queue.stopped():  # what is missing is the session
                return
            held.give_back(f"on {node}: {error}")
            raise
        except Exception as error:
            queue.hand_in(f"@{name}", error_parts(told_of(error, node)))
        finally:
            heart.end()
            held.close()


def _plan(queue: Queue, digest: str) -> Plan:
    """What workers are made from. Raises RadinError where it cannot be had here."""
    content = queue.plan(digest)
    try:
        plan = pickle.loads(content)
    except Exception as error:  # a module of the user's that is not here, or fails
        raise RadinError(f"what workers are made from cannot be loaded: {error!r}") from None
    assert isinstance(plan, Plan)
    return plan


class _Held:
    """The worker, made when there is work, what it is at, and whether anybody still waits for that."""

    def __init__(self, queue: Queue, name: str) -> None:
        self._queue, self._name = queue, name
        self._worker: TaskWorker | ProgramWorker | None = None
        self._entry: Entry | None = None
        self._lock = threading.Lock()

    def work(self, plan: Plan) -> None:
        """Until the session is over. Raises RadinError where no further work can be done here."""
        soup, wait = None, self._queue.timing.shortest
        while not self._queue.stopped():
            self._entry = entry = self._queue.claim(self._name, soup)
            if entry is None:
                time.sleep(wait)
                wait = self._queue.timing.grown(wait)
                continue
            wait = self._queue.timing.shortest
            try:
                work = work_of(*self._queue.taken(entry))
            except DamagedError as error:
                self.give_back(f"its question was damaged on the way: {error}")
                continue
            except FileNotFoundError:  # the driver took it back meanwhile
                continue
            if self._worker is None:
                self._worker = plan.worker()
            reply = self._worker.do(work)
            self._queue.hand_in(entry.name, *reply_parts(reply))
            self._entry = None
            soup = None if work.question is None or work.question.gradient is not None else entry.soup

    def give_back(self, why: str) -> None:
        """Let another do what this worker is at."""
        entry, self._entry = self._entry, None
        if entry is not None:
            with suppress(OSError):
                self._queue.hand_in(entry.name, {"given back": why})

    def look(self, now: float) -> None:
        """End this process, whatever it is at, where nobody waits for it any more. Called beside the work."""
        silent = 0.0
        with suppress(OSError):
            silent = now - self._queue.last_sign()
        if self._queue.stopped() or silent > self._queue.timing.orphaned:
            self.close()
            self._end()

    def _end(self) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_ENDED if self._entry is not None else 0)

    def close(self) -> None:
        """End a program that runs, and remove its soup."""
        with self._lock:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.close()


def _use_threads(count: int) -> None:
    """As many as the job has cores."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)


@contextmanager
def _leaving_on_signals() -> Iterator[None]:
    """SIGTERM, and the signals that tell of a job's last minutes, raise _Leaving in the main thread, once."""
    signals = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: Any) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise _Leaving

    before = [signal.signal(number, leave) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    serve(*sys.argv[1:4])
