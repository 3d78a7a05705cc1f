"""Read outputs in blocks of examples, from arrays in memory or from files far larger than memory.

Axis names: members N, examples M, classes C.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from radin.errors import OutputsError

Array = NDArray[Any]
Floats = NDArray[np.float64]


@runtime_checkable
class ArrayLike2D(Protocol):
    """What the outputs of one member must offer: .shape, .dtype and [lo:hi] -> ndarray."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, C), or (M,)."""

    @property
    def dtype(self) -> Any:
        """A floating-point dtype of numpy's."""

    def __getitem__(self, rows: slice, /) -> Array: ...


Outputs = Sequence[ArrayLike2D] | Array


class _OpenFiles:
    """The files read last, kept open; not all of them: a process may have a few hundred, and a pool as many members."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, int] = OrderedDict()

    @contextmanager
    def file(self, owner: int, path: str) -> Iterator[int]:
        """A descriptor of its owner's file, this caller's alone while the context is open."""
        with self._lock:
            descriptor = self._idle.pop(owner, None)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            with self._lock:
                spare = [self._idle.pop(owner)] if owner in self._idle else []
                self._idle[owner] = descriptor
                while len(self._idle) > self._most:
                    spare.append(self._idle.popitem(last=False)[1])
            for old in spare:
                os.close(old)

    def drop(self, owner: int) -> None:
        """Close what an owner leaves open."""
        with self._lock:
            descriptor = self._idle.pop(owner, None)
        if descriptor is not None:
            os.close(descriptor)


_OPEN = _OpenFiles(64)
_OWNERS = count()


class FileArray:
    """An (M, C) array inside a file, read with positioned reads, so that no page of it stays resident.

    A memory-mapped array counts every page it has touched as resident memory; this one does not.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int, shape: tuple[int, int], dtype: Any) -> None:
        """Raises OutputsError when the file is shorter than offset and shape say."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._path, self._offset = os.fspath(path), offset
        self._owner = next(_OWNERS)
        self._row = shape[1] * self.dtype.itemsize
        needed, size = offset + shape[0] * self._row, os.stat(self._path).st_size
        if size < needed:
            raise OutputsError(f"{self._path} is cut short: {needed} bytes expected, {size} there. Make it again.")

    def __getitem__(self, rows: slice) -> Array:
        lo, hi, _ = rows.indices(self.shape[0])
        out = np.empty((hi - lo, self.shape[1]), self.dtype)
        self.read_into(lo, out)
        return out

    def read_into(self, lo: int, out: Array) -> None:
        """Read rows lo, lo + 1, ... into ``out`` (b, C), contiguous and of this dtype."""
        view = out.reshape(-1).view(np.uint8).data
        at = self._offset + lo * self._row
        with _OPEN.file(self._owner, self._path) as file:
            while view:
                got = os.preadv(file, [view], at)
                if got == 0:
                    raise OutputsError(f"{self._path} was cut short while it was read. Make it again.")
                view, at = view[got:], at + got

    def __del__(self) -> None:
        _OPEN.drop(self._owner)


def _as_source(outputs: ArrayLike2D) -> ArrayLike2D:
    """A memory-mapped file as FileArray where its layout allows, anything else as it is."""
    if isinstance(outputs, np.memmap) and outputs.filename is not None and outputs.ndim == 2:
        base = outputs
        while isinstance(base.base, np.memmap):
            base = base.base
        if outputs.flags.c_contiguous and outputs.size:
            shift = outputs.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            shape = (outputs.shape[0], outputs.shape[1])
            return FileArray(outputs.filename, base.offset + shift, shape, outputs.dtype)
    return outputs


class Reader:
    """The outputs of all members, checked for shape, read block by block.

    ``members`` N, ``examples`` M, ``classes`` C, ``dtype`` the widest of the members' dtypes (float16, float32 or
    float64).
    """

    def __init__(self, outputs: Outputs, names: Sequence[str] | None = None) -> None:
        """Raises OutputsError, naming the member, when shapes differ or a dtype is not floating point."""
        sources = list(outputs)
        if not sources:
            raise OutputsError("there are no outputs: the pool is empty")
        self.names = list(names) if names is not None else [f"member {k}" for k in range(len(sources))]
        if len(self.names) != len(sources):
            raise OutputsError(f"{len(sources)} members have outputs but {len(self.names)} names are given")
        for name, source in zip(self.names, sources, strict=True):
            self._check(name, source, sources[0])
        self.sources = [_as_source(source) for source in sources]
        self.members, self.examples = len(sources), int(sources[0].shape[0])
        self.classes = int(np.prod(sources[0].shape[1:]))
        self.dtype = np.result_type(*(source.dtype for source in sources))

    def _check(self, name: str, source: ArrayLike2D, first: ArrayLike2D) -> None:
        if len(source.shape) not in (1, 2):
            raise OutputsError(f"{name}: outputs must be (examples, classes); they have shape {source.shape}")
        if not np.issubdtype(source.dtype, np.floating):
            raise OutputsError(f"{name}: outputs must be floating point, they are {source.dtype}")
        if source.shape[0] != first.shape[0]:
            raise OutputsError(
                f"{name} has outputs for {source.shape[0]} examples, {self.names[0]} for {first.shape[0]}. "
                "Make its outputs again on the same data."
            )
        if source.shape[1:] != first.shape[1:]:
            raise OutputsError(
                f"{name} has {source.shape[1:]} outputs per example, {self.names[0]} has {first.shape[1:]}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all outputs as they are stored."""
        per_member = self.examples * self.classes
        return sum(per_member * np.dtype(source.dtype).itemsize for source in self.sources)

    def read(self, member: int, lo: int, hi: int, out: Array) -> None:
        """Copy rows lo..hi of one member into ``out`` (hi - lo, C), converting its dtype where they differ."""
        source = self.sources[member]
        if isinstance(source, FileArray) and source.dtype == out.dtype and out.flags.c_contiguous:
            source.read_into(lo, out)
        else:
            out[...] = np.asarray(source[lo:hi]).reshape(out.shape)

    def gather(self, member: int, examples: Array, classes: Array) -> Array:
        """One member's outputs at single (example, class) places, read row by row: examples (P,) ascending -> (P,)."""
        out = np.empty(len(examples), self.dtype)
        row = np.empty((1, self.classes), self.dtype)
        edges = np.append(np.flatnonzero(np.diff(examples, prepend=-1)), len(examples))
        for lo, hi in pairwise(edges):
            self.read(member, int(examples[lo]), int(examples[lo]) + 1, row)
            out[lo:hi] = row[0, classes[lo:hi]]
        return out

    def block(self, lo: int, hi: int) -> Floats:
        """Rows lo..hi of all members in float64, (N, hi - lo, C). Raises OutputsError, naming the member, at NaN or
        infinity."""
        out = np.empty((self.members, hi - lo, self.classes))
        for member in range(self.members):
            self.read(member, lo, hi, out[member])
            if not np.isfinite(out[member]).all():
                raise not_finite(self.names[member], out[member], lo)
        return out

    def blocks(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """Ranges (lo, hi) of examples such that a float64 block of all members is at most ``nbytes``."""
        step = max(1, nbytes // (8 * self.members * self.classes))
        for lo in range(0, self.examples, step):
            yield lo, min(lo + step, self.examples)


def not_finite(name: str, rows: Array, first: int) -> OutputsError:
    """The error for a block of one member's outputs (b, C), starting at example ``first``, with NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    return OutputsError(
        f"{name}: its outputs hold NaN or infinity, first at example {first + int(bad[0])}. "
        "Leave it out of the pool, or find out why training diverged."
    )
