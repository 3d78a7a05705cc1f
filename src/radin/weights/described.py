"""What a torch file's pickle says of its tensors, as values: which numbers they have, or what else they are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any

import torch

from radin.weights.limits import PICKLE_STEPS


@dataclass(frozen=True, slots=True)
class Storage:
    """A stretch of ``numel`` numbers that the file holds under ``key``."""

    key: str
    dtype: torch.dtype
    numel: int
    location: str
    view: tuple[int, int] | None = None  # offset and length in the stretch that the key names: torch's oldest files

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """A dense tensor: which elements of a storage it has. ``conj``, ``neg``: to be conjugated, negated when read."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    conj: bool = False
    neg: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Odd:
    """A tensor that is not dense, or none: ``what`` it is, for a message."""

    what: str


class Quantized(Odd):
    """A tensor of integers with a scale."""

    __slots__ = ()


class Unknown(Odd):
    """What stands for a class or function that is not known here, and for all that the file makes of it."""

    __slots__ = ()


def holders(entries: Mapping[Any, Any], kinds: type | UnionType) -> set[Any]:
    """The keys of those entries that are, or hold anywhere in them, a value or key of these kinds. Raises ValueError.

    An entry may hold itself, and the same large one may be held a thousand times: the steps are counted.
    """
    known: dict[int, bool] = {}
    left = 4 * PICKLE_STEPS
    for value in entries.values():
        if id(value) in known:
            continue
        known[id(value)] = False
        seen: set[int] = set()
        waiting = [value]
        while waiting:
            found = waiting.pop()
            left -= 1
            if left < 0:
                raise ValueError("its entries hold each other too often")
            if isinstance(found, kinds):
                known[id(value)] = True
                break
            if isinstance(found, argparse.Namespace):
                found = vars(found)
            if isinstance(found, Mapping | list | tuple | set) and id(found) not in seen:
                seen.add(id(found))
                waiting.extend(found.values() if isinstance(found, Mapping) else found)
                if isinstance(found, Mapping):
                    waiting.extend(key for key in found if not isinstance(key, str))
    return {key for key, value in entries.items() if known[id(value)] or isinstance(key, kinds)}
