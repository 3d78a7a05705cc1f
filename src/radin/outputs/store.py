"""The outputs cache: each member's outputs over the validation data, computed once, keyed by content.

One file per member, ``<fingerprint>.safetensors``, holding one (examples, classes) array, so that the batch size of a
reading leaves no trace. While a reading is under way the rows go to ``.partial`` files, and every few seconds a note
records how many are safe on disk and the fingerprint of the data that gave them: a killed reading continues from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from radin.data.batches import DataFingerprint
from radin.errors import OutputsError

_TENSOR = "outputs"
_HEADER_BYTES = 4096  # reserved at the head of a partial file, so that finishing it moves no data
_SAFE_EVERY = 5.0  # seconds of work a kill may cost while outputs are being made
_DTYPES = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class StoredOutputs:
    """One member's outputs on disk: where they are, whose, and over which data."""

    path: Path
    member: str
    data: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    precision: str
    offset: int

    def array(self) -> NDArray[Any]:
        """The outputs (examples, classes), memory-mapped: only what is used is read."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)

    @classmethod
    def open(cls, path: Path) -> StoredOutputs:
        """Raises OutputsError when the file is not a whole outputs file of radin's."""
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                part = file.get_slice(_TENSOR)
                shape = tuple(part.get_shape())
                kind = part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise OutputsError(
                f"{path} is not a whole outputs file ({error}). Delete it; it will be made again."
            ) from None
        dtype = {code: np.dtype(name) for name, code in _DTYPES.items()}.get(kind)
        if dtype is None or len(shape) != 2 or not {"member", "data", "precision"} <= set(metadata):
            raise OutputsError(f"{path} does not hold outputs as radin writes them. Move it away.")
        offset = path.stat().st_size - shape[0] * shape[1] * dtype.itemsize
        size = (shape[0], shape[1])
        return cls(path, metadata["member"], metadata["data"], size, dtype, metadata["precision"], offset)


class OutputStore:
    """The folder of cached outputs. ``dtype``: "float32", or "float16" for half the disk."""

    def __init__(self, folder: Path, *, precision: str = "float32", dtype: str = "float32") -> None:
        if dtype not in _DTYPES:
            raise OutputsError(f"outputs can be stored as {' or '.join(_DTYPES)}; got {dtype!r}")
        self.folder = folder
        self.precision = precision
        self.dtype = np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; runs may share it, but not write it at once. Raises OutputsError."""
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise OutputsError(f"{self.folder} is in use by another radin process. Wait for it.") from None

    def path(self, member: str) -> Path:
        return self.folder / f"{member[:32]}.safetensors"

    def get(self, member: str) -> StoredOutputs | None:
        """The stored outputs of this fingerprint, or None. Raises OutputsError if they are another's."""
        path = self.path(member)
        if not path.exists():
            return None
        stored = StoredOutputs.open(path)
        if stored.member != member:
            raise OutputsError(f"{path} holds the outputs of other weights ({stored.member[:12]}). Delete it.")
        for what, asked, found in (
            ("stored as", self.dtype.name, stored.dtype.name),
            ("computed in", self.precision, stored.precision),
        ):
            if asked != found:
                raise OutputsError(f"{path} was {what} {found}, now {asked} is asked. Use another folder for outputs.")
        return stored

    def save_targets(self, targets: NDArray[Any], data: str) -> None:
        """Write targets.safetensors beside the outputs, whole or not at all."""
        path = self.folder / "targets.safetensors"
        partial = path.with_suffix(".partial")
        save_file({"targets": targets}, partial, metadata={"data": data})
        _sync(partial)
        os.replace(partial, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class PendingOutputs:
    """The partial files of one reading by some members: rows appended batch by batch, resumable.

    ``examples``: rows that are on disk already when the reading starts (0 without ``resume``), made by the data whose
    fingerprint up to there is ``resume_data``.
    """

    def __init__(self, store: OutputStore, members: Sequence[str], *, resume: bool) -> None:
        self._store = store
        self._members = members
        self._note = store.folder / "reading.json"
        note = self._read_note() if resume else None
        self.examples: int = note["examples"] if note else 0
        self.resume_data: str = note["data"] if note else ""
        self._classes: int = note["classes"] if note else 0
        self._saved_at = time.monotonic()
        self._files: list[BinaryIO] = []
        for member in members:
            file = self._partial(member).open("r+b" if note else "wb")
            file.truncate(_HEADER_BYTES + self.examples * self._classes * store.dtype.itemsize)
            file.seek(0, os.SEEK_END)
            self._files.append(file)

    def _partial(self, member: str) -> Path:
        return self._store.path(member).with_suffix(".partial")

    def _read_note(self) -> dict[str, Any] | None:
        """The note of an unfinished reading by these members, if its rows are all there."""
        try:
            note: dict[str, Any] = json.loads(self._note.read_text())
            same = {**note, **self._settings()} == note
            needed = _HEADER_BYTES + note["examples"] * note["classes"] * self._store.dtype.itemsize
            whole = all(self._partial(m).stat().st_size >= needed for m in self._members)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return note if same and whole else None

    def _settings(self) -> dict[str, Any]:
        return {
            "members": list(self._members),
            "dtype": self._store.dtype.name,
            "precision": self._store.precision,
        }

    def append(self, outputs: Sequence[torch.Tensor], data: DataFingerprint) -> None:
        """Add each member's rows; now and then make them safe."""
        self._classes = outputs[0].shape[1]
        for member, file, rows in zip(self._members, self._files, outputs, strict=True):
            with np.errstate(over="ignore"):
                stored = rows.numpy().astype(self._store.dtype)
            if not np.isfinite(stored).all():
                raise OutputsError(
                    f"outputs of the member {member[:12]} reach {float(rows.abs().max()):.3g}, more than "
                    f"{self._store.dtype} holds: store them as float32"
                )
            file.write(stored.tobytes())
        self.examples += len(outputs[0])
        if time.monotonic() - self._saved_at > _SAFE_EVERY:
            self._save(data)
            self._saved_at = time.monotonic()

    def _save(self, data: DataFingerprint) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        note = self._settings() | {
            "classes": self._classes,
            "examples": self.examples,
            "data": data.hexdigest(),
        }
        partial = self._note.with_suffix(".partial")
        partial.write_text(json.dumps(note))
        os.replace(partial, self._note)

    def finish(self, data: str) -> None:
        """Write the headers and give the files their names."""
        for member, file in zip(self._members, self._files, strict=True):
            file.seek(0)
            file.write(self._header(member, data))
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._partial(member), self._store.path(member))
        self._files = []
        self._note.unlink(missing_ok=True)

    def _header(self, member: str, data: str) -> bytes:
        shape = [self.examples, self._classes]
        size = shape[0] * shape[1] * self._store.dtype.itemsize
        header = {
            "__metadata__": {
                "format": "pt",
                "member": member,
                "data": data,
                "precision": self._store.precision,
            },
            _TENSOR: {"dtype": _DTYPES[self._store.dtype.name], "shape": shape, "data_offsets": [0, size]},
        }
        text = json.dumps(header).encode().ljust(_HEADER_BYTES - 8)
        return len(text).to_bytes(8, "little") + text

    def close(self) -> None:
        for file in self._files:
            file.close()
