"""Reading tensors straight from their files: large reads into memory that is used again, which every disk is fast at.

A memory map is read page by page: each costs the processor a fault, and on a network's disk a round trip.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.files import told
from radin.weights.formats import Stretch
from radin.weights.layout import LEAF

T = TypeVar("T")

_KEPT_OPEN = 64  # files; further ones are opened for each read, so that a pool of hundreds needs few descriptors
_AHEAD = 8 << 20  # bytes that the system is asked to read ahead, of each file
_LARGEST = 16  # bytes of one element, complex128
_THREADS = 8  # more would wait for memory


def threads_here() -> int:
    """How many threads are worth starting for work that reads, hashes and adds."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_THREADS, usable))


def on_threads(tasks: Iterator[T], start: Callable[[], Callable[[T], None]], threads: int) -> None:
    """Have every task done, in about their order; ``start`` makes what one thread does them with.

    What one of them raises ends the others after the task that they are at. Each computes alone: torch's own threads
    would wait for each other after each step. Their number is put back.
    """
    with kept_threads():
        _on_threads(tasks, start, threads)


@contextmanager
def kept_threads() -> Iterator[None]:
    """Put back torch's own number of threads, which those that compute alone set to one."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_threads(tasks: Iterator[T], start: Callable[[], Callable[[T], None]], threads: int) -> None:
    if threads <= 1:
        torch.set_num_threads(1)
        work = start()
        for task in tasks:
            work(task)
        return
    lock, stop = threading.Lock(), threading.Event()

    def loop() -> None:
        torch.set_num_threads(1)
        work = start()
        while not stop.is_set():
            with lock:
                task = next(tasks, None)
            if task is None:
                return
            work(task)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for ended in as_completed([pool.submit(loop) for _ in range(threads)]):
                ended.result()
        finally:
            stop.set()


class RawFiles:
    """The files that tensors are read from, opened when first needed and closed together; shared by threads."""

    def __init__(self) -> None:
        self._kept: dict[Path, _Kept] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> RawFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for kept in self._kept.values():
            kept.file.close()
        self._kept.clear()

    def read(self, stretch: Stretch, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes at ``offset`` of the stretch. Raises CheckpointError, StorageError."""
        kept = self._file(stretch) if hasattr(os, "preadv") else None
        at = stretch.start + offset
        with told(stretch.path, doing="read"):
            if kept is not None:
                kept.read_ahead(at + len(into))
                _read_at(kept.file, stretch.path, at, into)
                return
            with stretch.open() as file:
                file.seek(at)
                done = 0
                while done < len(into):
                    count = file.readinto(into[done:])
                    if not count:
                        raise _cut_short(stretch.path)
                    done += count

    def _file(self, stretch: Stretch) -> _Kept | None:
        """The open file; None where too many are open."""
        kept = self._kept.get(stretch.path)
        if kept is None and len(self._kept) < _KEPT_OPEN:
            with self._lock:
                kept = self._kept.get(stretch.path)
                if kept is None:
                    kept = self._kept[stretch.path] = _Kept(stretch.open())
        return kept


class _Kept:
    """An open file, and up to where the system was asked to read it ahead."""

    def __init__(self, file: FileIO) -> None:
        self.file = file
        self._asked = 0

    def read_ahead(self, stop: int) -> None:
        window = stop // _AHEAD + 1
        if window > self._asked and hasattr(os, "posix_fadvise"):
            self._asked = window
            os.posix_fadvise(self.file.fileno(), window * _AHEAD, _AHEAD, os.POSIX_FADV_WILLNEED)


def _read_at(file: FileIO, path: Path, at: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(file.fileno(), [into[done:]], at + done)
        if not count:
            raise _cut_short(path)
        done += count


def _cut_short(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: ended before its tensors did: it was cut short while it was read")


class Buffer:
    """Memory that one thread reads blocks of up to LEAF elements into, one after another."""

    def __init__(self, files: RawFiles) -> None:
        self._files = files
        self._bytes = torch.empty(LEAF * _LARGEST, dtype=torch.uint8)  # no memory is taken before it is written to
        self._view = self._bytes.numpy().data
        self._typed: dict[torch.dtype, Tensor] = {}

    def read(self, stretch: Stretch, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of the tensor there, flat; good until the next read."""
        size = dtype.itemsize
        self._files.read(stretch, start * size, self._view[: (stop - start) * size])
        return self.of(dtype, stop - start)

    def of(self, dtype: torch.dtype, count: int) -> Tensor:
        """This memory as a flat tensor of ``count`` elements."""
        if dtype not in self._typed:
            self._typed[dtype] = self._bytes[: LEAF * dtype.itemsize].view(dtype)
        return self._typed[dtype][:count]
