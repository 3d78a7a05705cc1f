"""Independent tasks on several threads, each computing on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute small things alone: threads that share them wait for each other, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_on_threads(run: Callable[[T], R], tasks: Iterable[T], threads: int) -> Iterator[R]:
    """The results of ``run`` on each task, in order.

    Threads that share a small operation wait for each other at its end, which costs more than the operation; threads
    with tasks of their own need not. So each thread computes alone, and torch's own number of threads is put back.
    """
    with one_thread():
        if threads <= 1:
            yield from map(run, tasks)
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(run, tasks)
