"""Writing one .safetensors file: its head first, then each tensor where it belongs, in any order."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.files import attributed, parse_json
from radin.weights.layout import DTYPES, Piece, Shape, count

# As the safetensors library orders tensors in a file: the dtypes in this order, and each dtype's by name.
_ORDER = (
    "U64",
    "I64",
    "F64",
    "C64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
)
_CALLED = {dtype: name for name, dtype in DTYPES.items() if name in (*_ORDER, "BOOL")}
_LENGTH_BYTES = 8
_AT_ONCE = 32 << 20  # bytes written before the disk is set to work on them


@runtime_checkable
class Streamed(Protocol):
    """A mapping of tensors that are computed as they are written: see ``averaging.Soup``."""

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, torch.dtype]
    aliases: Mapping[str, str]

    def stream(self, names: Iterable[str], sink: Callable[[Piece, Tensor], None]) -> None:
        """Hand these tensors on, none of them an alias, block by block."""

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Some or all of them, in memory."""

    def final_metadata(self, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """The metadata as they are to stay, of the same length: to be asked when all is written."""


def _head(entries: Mapping[str, Any]) -> bytes:
    """Length and header, the data's start at a multiple of eight as the library has it.

    The metadata are in order, which the library's are not: the same tensors give the same bytes in every process, for
    programs that know a file by its hash.
    """
    ordered = {**entries, "__metadata__": dict(sorted(entries["__metadata__"].items()))}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def put_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Put other texts, of the same length in all, in the place of some metadata in a file that TensorWriter wrote."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        entries = parse_json(file.read(length).decode())
        entries["__metadata__"].update(metadata)
        head = _head(entries)
        assert len(head) == _LENGTH_BYTES + length, "the header has room for what it had"
        file.seek(0)
        file.write(head)


class TensorWriter:
    """A file with room for these tensors. ``shapes``, ``dtypes``: of each, tied ones once. Use as a context manager.

    What was written goes to the disk while more is computed. Raises OSError; CheckpointError for a dtype that the
    format does not know.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, Shape], dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]
    ) -> None:
        self._path, self._dtypes = path, dtypes
        for dtype in dtypes.values():
            if dtype not in _CALLED:
                raise CheckpointError(f"safetensors cannot store {dtype}; write a .pt file instead")
        order = [*_ORDER, "BOOL"]
        names = sorted(shapes, key=lambda name: (order.index(_CALLED[dtypes[name]]), name))
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        self._starts: dict[str, int] = {}
        at = 0
        for name in names:
            stop = at + count(shapes[name]) * dtypes[name].itemsize
            self._starts[name] = at
            entries[name] = {
                "dtype": _CALLED[dtypes[name]],
                "shape": list(shapes[name]),
                "data_offsets": [at, stop],
            }
            at = stop
        self._head = _head(entries)
        self._size = len(self._head) + at
        self._written, self._given = 0, 0
        self._more = threading.Condition()
        self._ended = False
        self._error: OSError | None = None

    def __enter__(self) -> TensorWriter:
        with attributed(self._path):
            self._file = open(self._path, "w+b", buffering=0)
            self._put(self._head, 0)
            self._file.truncate(self._size)
        self._flusher = threading.Thread(target=self._flush, daemon=True)
        if self._size > _AT_ONCE and hasattr(os, "fdatasync"):
            self._flusher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._more:
            self._ended = True
            self._more.notify_all()
        if self._flusher.ident is not None:
            self._flusher.join()
        self._file.close()
        if self._error is not None and error is None:
            raise self._error

    def write(self, piece: Piece, values: Tensor) -> None:
        """Part of a tensor, flat and contiguous. Several threads may call."""
        size = values.dtype.itemsize
        at = len(self._head) + self._starts[piece.name] + piece.start * size
        content = values.view(torch.uint8).numpy().data
        with attributed(self._path):
            self._put(content, at)
        with self._more:
            self._written += len(content)
            if self._written - self._given >= _AT_ONCE:
                self._more.notify_all()

    def _put(self, content: bytes | memoryview, at: int) -> None:
        view = memoryview(content)
        while view:
            if hasattr(os, "pwrite"):
                done = os.pwrite(self._file.fileno(), view, at)
            else:  # on Windows
                with self._more:
                    self._file.seek(at)
                    done = self._file.write(view)
            view, at = view[done:], at + done

    def _flush(self) -> None:
        """Have the disk write while others compute. What it refuses is told once, to whoever asks first: here."""
        while True:
            with self._more:
                self._more.wait_for(lambda: self._ended or self._written - self._given >= _AT_ONCE)
                if self._ended:
                    return
                self._given = self._written
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:
                error.filename = str(self._path)
                self._error = error
                return
