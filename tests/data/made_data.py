"""Datasets over the toy pool's digits, for tests of how they are read."""

from __future__ import annotations

import multiprocessing

import torch
from torch.utils.data import Dataset, IterableDataset

import toy


def digits(rows=toy.VALIDATION):
    return tuple(torch.cat(parts) for parts in zip(*toy.batches(rows), strict=True))


class Digits(Dataset):
    """Counts how often each example is asked for, by workers in other processes too."""

    def __init__(self, rows=toy.VALIDATION):
        self.inputs, self.targets = digits(rows)
        self.asked = multiprocessing.Array("i", len(self.targets))

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.asked[index] += 1
        return self.inputs[index], self.targets[index]

    def counts(self):
        """How often each was asked for since the last call."""
        found = list(self.asked)
        self.asked[:] = [0] * len(self)
        return found


class Stream(IterableDataset):
    """The same examples, in order only; counts its readings."""

    def __init__(self, rows=toy.VALIDATION):
        self.inputs, self.targets = digits(rows)
        self.readings = 0

    def __iter__(self):
        self.readings += 1
        yield from zip(self.inputs, self.targets, strict=True)


class Sentences(Dataset):
    """Token ids of different lengths: (ids, label)."""

    def __init__(self, count=60, seed=0):
        draw = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 12, (count,), generator=draw).tolist()
        self.ids = [torch.randint(1, 20, (length,), generator=draw) for length in lengths]
        self.labels = torch.randint(0, 3, (count,), generator=draw).tolist()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return self.ids[index], self.labels[index]


def padded(examples):
    """Collate sentences to the longest of the batch."""
    ids, labels = zip(*examples, strict=True)
    filled = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {"ids": filled, "mask": (filled > 0).float(), "labels": torch.tensor(labels)}
