"""Worker processes on this machine: each has a model of its own and answers one question at a time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from radin import interrupts
from radin.engine.crew import Crew, Plan, ProgramWorker, Reply, TaskWorker, Work
from radin.engine.device import Device
from radin.engine.worker import Statistics
from radin.errors import RadinError, TaskError
from radin.recipe import Recipe

_TRIES = 2  # processes that may die over one question
_PATIENCE = 5.0  # seconds that a process has to end by itself
_CLOSING = 0.3  # the same for one that has nothing to do, once its pipe is closed


@dataclass
class _Process:
    """A worker process, what it works on, and the recipe that it built last."""

    process: BaseProcess
    pipe: Connection
    device: Device
    work: Work | None = None
    built: Recipe | None = None
    deaths: int = 0


class Processes(Crew):
    """``size`` worker processes. On several GPUs they share them out.

    Each loads the task anew from the plan; a Task made in Python is sent as it is. Raises TaskError when it cannot be.
    """

    def __init__(self, size: int, plan: Plan, device: Device) -> None:
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        try:
            pickle.dumps(plan.source)
        except Exception as error:
            raise TaskError(
                f"this task cannot be sent to worker processes ({error}): give it as a file or a module, or use one "
                "worker"
            ) from None
        self._start = (plan, max(1, torch.get_num_threads() // size))
        self._processes: list[_Process] = []
        self._waiting: list[Work] = []
        self._error: Exception | None = None
        self._last = ExitStack()
        self._last.enter_context(interrupts.at_once(self._kill))
        try:
            for k in range(size):
                self._processes.append(self._begin(_share(device, k)))
        except BaseException:
            self.close()
            raise

    def _begin(self, device: Device) -> _Process:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, device, *self._start), daemon=True)
        with _terminal_held_off():
            process.start()
        theirs.close()
        return _Process(process, mine, device)

    def submit(self, work: Work) -> None:
        """Give work to a free process, rather to the one that has its soup; without one it waits."""
        free = [worker for worker in self._processes if worker.work is None]
        if not free:
            self._waiting.append(work)
            return
        recipe = None if work.question is None else work.question.recipe
        self._send(next((worker for worker in free if worker.built == recipe), free[0]), work)

    def _send(self, worker: _Process, work: Work) -> None:
        worker.work = work
        try:
            _send(worker.pipe, ("do", work))
        except OSError:
            self._replace(worker)

    def wait(self, timeout: float | None = None) -> list[tuple[Work, Reply]]:
        """What is done, at least one unless the time is over; [] when nothing is in work.

        An error is raised when nothing came with it, else by the next call.
        """
        if self._error is not None:
            raise self._error
        busy = {worker.pipe: worker for worker in self._processes if worker.work is not None}
        if not busy:
            return []
        done: list[tuple[Work, Reply]] = []
        for pipe in wait(list(busy), timeout):
            assert isinstance(pipe, Connection)
            worker = busy[pipe]
            try:
                kind, value = _receive(pipe)
            except (EOFError, OSError):
                try:
                    self._replace(worker)
                except RadinError as error:
                    self._error = error
                continue
            work, worker.work = worker.work, None
            if kind == "error":
                self._error = value
                continue
            assert work is not None
            question, worker.deaths = work.question, 0
            worker.built = question.recipe if question is not None and question.gradient is None else None
            done.append((work, value))
            if self._waiting:
                self._send(worker, self._waiting.pop(0))
        if self._error is not None and not done:
            raise self._error
        return done if done or timeout is not None else self.wait(None)

    def _replace(self, worker: _Process) -> None:
        """A process died: another takes up its question, once."""
        worker.process.join(_PATIENCE)
        code = worker.process.exitcode
        work = worker.work
        worker.deaths += 1
        if worker.deaths >= _TRIES:
            how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            raise RadinError(
                f"a worker process ended twice over the same soup ({how}). Out of memory? Fewer --jobs need less. "
                "A script of your own must call cook under if __name__ == '__main__'. "
                "Nothing finished is lost; the same command continues from here."
            )
        worker.pipe.close()
        new = self._begin(worker.device)
        worker.process, worker.pipe, worker.built = new.process, new.pipe, None
        if work is not None:
            self._send(worker, work)

    def write(self, recipe: Recipe, path: Path, kept: Statistics | None, files_from: str | None) -> bool:
        """Have the process that built this recipe last write it; False when none that is free did."""
        for worker in self._processes:
            if worker.work is None and worker.built == recipe:
                try:
                    _send(worker.pipe, ("write", (recipe, path, kept, files_from)))
                    kind, value = _receive(worker.pipe)
                except (EOFError, OSError):
                    return False
                if kind == "error":
                    raise value
                return True
        return False

    def close(self) -> None:
        """End all processes, whatever they are at."""
        self._last.close()
        for worker in self._processes:
            worker.pipe.close()
            if worker.work is not None:
                worker.process.terminate()
        until = time.monotonic() + _CLOSING
        for worker in self._processes:
            worker.process.join(max(until - time.monotonic(), 0))
            worker.process.terminate()  # one that is still loading, if it is there
        for worker in self._processes:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _kill(self) -> None:
        for worker in self._processes:
            worker.process.kill()


def _send(pipe: Connection, message: Any) -> None:
    """Tensors go as bytes: multiprocessing's own way keeps a file descriptor open for each that is kept."""
    pipe.send_bytes(pickle.dumps(message))


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())


def _share(device: Device, index: int) -> Device:
    """The device of worker number ``index``: the GPUs in turn."""
    if device.device.type != "cuda" or device.device.index is not None or torch.cuda.device_count() < 2:
        return device
    return replace(device, device=torch.device("cuda", index % torch.cuda.device_count()))


@contextmanager
def _terminal_held_off() -> Iterator[None]:
    """A process started here is not reached by the terminal's interrupt, not even while it loads; this one is later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets the interrupt through again when it is started with the first one
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, device: Device, plan: Plan, threads: int) -> None:
    """What a worker process does until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's interrupt is for the process that asks
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # It ends with the process that started it, yet the user's loaders may start processes of their own.
    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    worker: TaskWorker | ProgramWorker | None = None
    while True:
        try:
            kind, message = _receive(pipe)
        except (EOFError, OSError):
            return
        try:
            if worker is None:
                worker = plan.worker(device)
            if kind == "write":
                assert isinstance(worker, TaskWorker)
                worker.write(*message)
                reply: Any = ("done", None)
            else:
                reply = ("done", worker.do(message))
        except RadinError as error:
            reply = ("error", error)
        except Exception as error:
            import traceback

            reply = ("error", RadinError(f"a worker process failed: {error!r}\n{traceback.format_exc().rstrip()}"))
        try:
            _send(pipe, reply)
        except OSError:
            return
