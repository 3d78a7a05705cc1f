"""Worker processes on this machine: each has a model of its own and answers one question at a time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from radin import interrupts
from radin.data.task import Task, TaskText
from radin.engine.device import Device
from radin.engine.worker import Statistics, Worker
from radin.errors import RadinError, TaskError
from radin.question import Answer, Failure, Question
from radin.recipe import Recipe
from radin.weights import Pool

_TRIES = 2  # processes that may die over one question
_PATIENCE = 5.0  # seconds that a process has to end by itself
_CLOSING = 0.3  # the same for one that has nothing to do, once its pipe is closed

Done = tuple[Question, Answer | Failure, Statistics | None]


@dataclass
class _Process:
    """A worker process, the question it works on, and the recipe that it built last."""

    process: BaseProcess
    pipe: Connection
    device: Device
    question: Question | None = None
    sent: Any = None
    built: Recipe | None = None
    deaths: int = 0


class Workers:
    """``count`` worker processes, started when first needed. On several GPUs they share them out.

    Each loads the task anew from ``spec``; a Task made in Python is sent as it is. Raises TaskError when it cannot be.
    """

    def __init__(
        self,
        count: int,
        pool: Pool,
        task: Task,
        spec: str | Path | TaskText | None,
        device: Device,
        integers_from: str | None,
    ) -> None:
        self._context = multiprocessing.get_context("spawn")
        source: Task | TaskText | str = task if spec is None else str(spec) if isinstance(spec, Path) else spec
        try:
            pickle.dumps(source)
        except Exception as error:
            raise TaskError(
                f"this task cannot be sent to worker processes ({error}): give it as a file or a module, or use one "
                "worker"
            ) from None
        threads = max(1, torch.get_num_threads() // count)
        self._start = (pool, source, integers_from, threads)
        self._processes: list[_Process] = []
        self._error: Exception | None = None
        self._last = ExitStack()
        self._last.enter_context(interrupts.at_once(self._kill))
        try:
            for k in range(count):
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

    def submit(self, question: Question, kept: Statistics | None, data: Mapping[str, str]) -> None:
        """Give a question to a free process, rather to the one that has its soup."""
        free = [worker for worker in self._processes if worker.question is None]
        chosen = next((worker for worker in free if worker.built == question.recipe), free[0])
        self._send(chosen, question, (question, kept, dict(data)))

    def _send(self, worker: _Process, question: Question, message: Any) -> None:
        worker.question, worker.sent = question, message
        try:
            _send(worker.pipe, ("answer", message))
        except OSError:
            self._replace(worker)

    def wait(self, timeout: float | None) -> list[Done]:
        """Answers that are there, at least one unless the time is over; [] when nothing is in work.

        An error is raised when no answer came with it, else by the next call.
        """
        if self._error is not None:
            raise self._error
        busy = {worker.pipe: worker for worker in self._processes if worker.question is not None}
        if not busy:
            return []
        done: list[Done] = []
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
            question, worker.question, worker.sent = worker.question, None, None
            if kind == "error":
                self._error = value
                continue
            answer, estimated, said = value
            for key, note in said.items():
                worker.device.say(key, note)
            assert question is not None
            worker.built, worker.deaths = question.recipe if question.gradient is None else None, 0
            done.append((question, answer, estimated))
        if self._error is not None and not done:
            raise self._error
        return done if done or timeout is not None else self.wait(None)

    def _replace(self, worker: _Process) -> None:
        """A process died: another takes up its question, once."""
        worker.process.join(_PATIENCE)
        code = worker.process.exitcode
        question, message = worker.question, worker.sent
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
        if question is not None:
            self._send(worker, question, message)

    def write(self, recipe: Recipe, path: Path, kept: Statistics | None, files_from: str | None = None) -> bool:
        """Have the process that built this recipe last write it; False when none that is free did."""
        for worker in self._processes:
            if worker.question is None and worker.built == recipe:
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
            if worker.question is not None:
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


def _work(
    pipe: Connection, device: Device, pool: Pool, source: Task | TaskText | str, integers_from: str | None, threads: int
) -> None:
    """What a worker process does until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's interrupt is for the process that asks
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # It ends with the process that started it, yet the user's loaders may start processes of their own.
    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    worker: Worker | None = None
    while True:
        try:
            kind, message = _receive(pipe)
        except (EOFError, OSError):
            return
        try:
            if worker is None:
                worker = Worker.create(pool, Task.load(source), device, integers_from)
            if kind == "write":
                worker.write(*message)
                reply: Any = ("done", None)
            else:
                question, kept, data = message
                worker.data.update(data)
                reply = ("done", (*worker.answer(question, kept), device.said))
        except RadinError as error:
            reply = ("error", error)
        except Exception as error:
            import traceback

            reply = ("error", RadinError(f"a worker process failed: {error!r}\n{traceback.format_exc().rstrip()}"))
        try:
            _send(pipe, reply)
        except OSError:
            return
