"""Kept: each example made once, by threads, within a share of the free memory, and the same as without."""

from __future__ import annotations

import gc
import pickle
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from radin import Kept, Task
from radin.data import kept
from radin.data.readings import Readings


class Slow(Dataset):
    """40 examples of 4,000 bytes and a target; counts how often each is made, and by which threads."""

    def __init__(self):
        self.made, self.threads = [0] * 40, set()

    def __len__(self):
        return 40

    def __getitem__(self, place):
        if place >= 40:
            raise IndexError(place)
        self.made[place] += 1
        self.threads.add((threading.get_ident(), torch.get_num_threads()))
        return torch.full((1000,), float(place)), place % 3


def read(data):
    return [(x.clone(), y.clone()) for x, y in DataLoader(data, batch_size=7)]


def test_examples_are_made_once_whichever_way_they_are_read():
    slow = Slow()
    data = Kept(slow)
    expected = read(Slow())
    for again in (read(data), read(data)):
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(expected, again, strict=True))
    part = next(iter(DataLoader(Subset(data, [39, 3, 3]), batch_size=3)))
    assert part[0][:, 0].tolist() == [39, 3, 3]
    assert data[-1][0][0] == 39
    assert len(list(data)) == 40  # an index beyond the end still ends an iteration
    assert slow.made == [1] * 40


def test_threads_share_a_batch_each_computing_alone_and_one_thread_is_the_readers_own():
    before = torch.get_num_threads()
    slow = Slow()
    barrier = threading.Barrier(2, timeout=30)
    plain = slow.__getitem__
    slow.__class__ = type("Both", (Slow,), {"__getitem__": lambda self, place: barrier.wait() is None or plain(place)})
    Kept(slow, threads=2).__getitems__([0, 1])  # comes to an end only if both are made at once
    assert {count for _, count in slow.threads} == {1}
    assert torch.get_num_threads() == before
    alone = Slow()
    read(Kept(alone, threads=1))
    assert {ident for ident, _ in alone.threads} == {threading.get_ident()}


def test_what_is_kept_stays_within_the_share_of_free_memory_over_all(monkeypatch):
    gc.collect()
    mine = sum(one._bytes for one in kept._ALL)
    monkeypatch.setattr(kept, "free_memory", lambda: 400_000 - sum(one._bytes for one in kept._ALL))
    first, second = Slow(), Slow()
    a, b = Kept(first, share=0.5 + mine / 400_000), Kept(second, share=0.5 + mine / 400_000)
    for _ in range(2):
        read(a)
        read(b)
    assert first.made == [1] * 40  # 160,000 bytes of 200,000
    assert second.made == [1] * 7 + [2] * 33  # room for one batch of 28,000 and no more
    assert a._bytes + b._bytes <= 200_000


def test_errors_are_those_of_the_data_and_another_process_makes_its_own():
    slow = Slow()
    data = Kept(slow)
    with pytest.raises(IndexError):
        data.__getitems__([3, 41])
    read(data)
    assert len(pickle.dumps(data)) < 4000
    copy = pickle.loads(pickle.dumps(data))
    assert copy[5][0][0] == 5


def test_slices_come_from_memory_too():
    slow = Slow()
    readings = Readings(Task(torch.nn.Identity(), Kept(slow)))
    list(readings.whole("validation"))
    assert readings.way("validation") == "index"
    examples = np.array([1, 8, 30])
    (batch,) = readings.some("validation", examples, readings.fingerprint("validation"))
    assert batch.inputs[:, 0].tolist() == [1, 8, 30]
    assert slow.made == [1] * 40
