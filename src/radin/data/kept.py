"""A dataset whose examples are made once: decoded by a few threads, and kept in memory while there is room."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import Dataset

from radin.data.batches import leaves
from radin.memory import free_memory

# Of the memory that is really free, how much all kept examples of a process may take together.
KEPT_SHARE = 0.25
# Decoding on more gains little beside a model that computes, and jobs on one machine each have theirs.
_THREADS = 4

_ALL: WeakSet[Kept] = WeakSet()
_LOCK = Lock()


class Kept(Dataset[Any]):
    """A map-style dataset read through memory, for one whose examples take time to make, as pictures do.

    What ``data[i]`` has given is kept while all kept examples of the process stay below ``share`` of the free memory;
    beyond that they are made again each time. Several that are asked for together are made by ``threads`` threads, by
    default one for each core, at most 4: 1 where ``data`` cannot be read by several. ``data[i]`` must be the same
    example every time, a tensor or tuples and mappings of them, and what it gives must not be changed in place.
    """

    def __init__(self, data: Any, *, threads: int | None = None, share: float = KEPT_SHARE) -> None:
        self.data = data
        self._threads = min(_THREADS, _cores()) if threads is None else threads
        self._share = share
        self._items: dict[int, Any] = {}
        self._bytes, self._full = 0, False
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> Any:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """Several examples, in the order of ``places``; torch's DataLoader asks for a batch so."""
        wanted = [place if place >= 0 else place + len(self) for place in map(int, places)]
        missing = [place for place in dict.fromkeys(wanted) if place not in self._items]
        made = dict(zip(missing, self._made(missing), strict=True))
        found = [made[place] if place in made else self._items[place] for place in wanted]
        if made and not self._full:
            self._keep(made)
        return found

    def _made(self, places: list[int]) -> list[Any]:
        threads = min(self._threads, len(places))
        if threads < 2:
            return [self.data[place] for place in places]
        before = torch.get_num_threads()
        try:  # each thread computes alone: several that share small operations wait for each other
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(self.data.__getitem__, places))
        finally:
            torch.set_num_threads(before)

    def _keep(self, made: dict[int, Any]) -> None:
        """Keep these too, or from now on no more."""
        size = sum(tensor.nbytes for item in made.values() for _, tensor in leaves(item))
        with _LOCK:
            taken = sum(kept._bytes for kept in _ALL)
            if taken + size > self._share * (free_memory() + taken):
                self._full = True
                return
            self._items.update(made)
            self._bytes += size

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which makes its own examples."""
        return self.__dict__ | {"_items": {}, "_bytes": 0, "_full": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _ALL.add(self)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
