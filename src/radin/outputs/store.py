"""The outputs cache: each member's outputs over the validation data, computed once, keyed by content.

One file per member, ``<fingerprint>.safetensors``, holding one (examples, classes) array, so that the batch size of a
reading leaves no trace. While a reading is under way the rows go to ``.partial`` files, and every few seconds a note
records how many are safe on disk, their checksums, and the fingerprint of the data that gave them: a killed reading
continues from there. Whole files carry a checksum of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from radin.checksums import BLANK, KEY, damage, opened, seal, sealed, sealed_header
from radin.data.batches import DataFingerprint
from radin.disks import is_network, read_part
from radin.errors import OutputsError, RadinError
from radin.files import (
    attributed,
    hidden_error,
    open_regular,
    read_json,
    replacing,
    sweep,
    sync,
    sync_folder,
    told,
    write_json,
)
from radin.locks import FolderLock, InUseError
from radin.memory import free_memory
from radin.progress import Progress
from radin.weights.shared_folder import SharedFolder

_TENSOR = "outputs"
_TARGETS = "targets.safetensors"
_HEADER_BYTES = 4096  # reserved at the head of a partial file, so that finishing it moves no data
_SAFE_EVERY = 5.0  # seconds of work a kill may cost while outputs are being made
_DTYPES = {"float32": "F32", "float16": "F16"}
_CHUNK = 1 << 20

Widen = Callable[[NDArray[Any], int], NDArray[Any]]


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
        return map_array(self.path, self.dtype, self.shape, self.offset)

    @classmethod
    def open(cls, path: Path) -> StoredOutputs:
        """Raises OutputsError when the file is not a whole outputs file of radin's: all of it is read for that.

        Raises OSError where it cannot be read.
        """
        try:
            wrong = damage(path)
            if wrong is None:
                with safe_open(path, "np") as file:
                    metadata = file.metadata() or {}
                    part = file.get_slice(_TENSOR)
                    shape = tuple(part.get_shape())
                    kind = part.get_dtype()
        except SafetensorError as error:
            if (hidden := hidden_error(error)) is not None:  # the disk's fault, or the system's: not the file's
                raise hidden from None
            wrong = str(error)
        if wrong is not None:
            raise OutputsError(f"{path} is not a whole outputs file ({wrong}). Delete it; it will be made again.")
        dtype = {code: np.dtype(name) for name, code in _DTYPES.items()}.get(kind)
        if dtype is None or len(shape) != 2 or not {"member", "data", "precision"} <= set(metadata):
            raise OutputsError(f"{path} does not hold outputs as radin writes them. Move it away.")
        offset = path.stat().st_size - shape[0] * shape[1] * dtype.itemsize
        size = (shape[0], shape[1])
        return cls(path, metadata["member"], metadata["data"], size, dtype, metadata["precision"], offset)


def map_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> NDArray[Any]:
    """An array in a file, memory-mapped, read-only. Unlike numpy's own it keeps no file open: there may be hundreds.

    On a network's disk it is read into memory, in order, where that takes no more than a quarter of what is free.

    Raises OSError, and ValueError when the file is shorter than that or no regular file.
    """
    end = offset + math.prod(shape) * dtype.itemsize
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size < end:
            raise ValueError(f"truncated: {end:,} bytes expected")
    if end > offset and is_read(path, end - offset):
        read = np.frombuffer(read_part(path, offset, end - offset), dtype).reshape(shape)
        read.flags.writeable = False
        return read
    storage: Any = torch.UntypedStorage.from_file(str(path), False, end)
    content: NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    content.flags.writeable = False
    found = content[offset:].view(dtype).reshape(shape).view(np.memmap)
    found.filename, found.offset, found.mode = str(path), offset, "r"
    return found


def is_read(path: Path, size: int) -> bool:
    """Whether so many bytes of a file are read into memory and not mapped: they are on a network's disk, and fit."""
    return is_network(path) and size <= free_memory() // 4


class OutputStore:
    """The folder of cached outputs. ``dtype``: "float32", or "float16" for half the disk.

    Each file is read whole once, to see that it is as it was written; one that is not is made again, as ``notes`` say.
    ``shared``: a folder behind a URL; what it has is copied to ``folder``, what is made is sent there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        precision: str = "float32",
        dtype: str = "float32",
        shared: SharedFolder | None = None,
    ) -> None:
        if dtype not in _DTYPES:
            raise OutputsError(f"outputs can be stored as {' or '.join(_DTYPES)}; got {dtype!r}")
        self.folder = folder
        self.precision = precision
        self.dtype = np.dtype(dtype)
        self.notes: list[str] = []
        self._whole: dict[str, StoredOutputs] = {}
        self._shared = shared
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; runs may share it, but not write it at once. Raises OutputsError."""
        lock = FolderLock(self.folder)
        try:
            lock.acquire()
        except InUseError as error:
            raise OutputsError(f"{error} Wait for it.") from None
        try:
            yield
        finally:
            lock.release()

    def receive(self, members: Sequence[str], progress: Progress | None = None) -> None:
        """Copy what the shared folder has of these members and is not here. Raises PoolError, StorageError."""
        if self._shared is not None:
            sweep(self.folder)
            lacking = [path for path in map(self.path, dict.fromkeys(members)) if not path.exists()]
            self._shared.fetch(lacking, progress)

    def share(self, members: Sequence[str]) -> None:
        """Send these members' outputs, and the targets, to the shared folder where it lacks them.

        One that cannot be sent is here nonetheless: ``notes`` say so, and the next session tries again.
        """
        if self._shared is None:
            return
        for path in (*map(self.path, members), self.folder / _TARGETS):
            if path.name in self._shared.names or not path.exists():
                continue
            try:
                self._shared.send(path)
            except RadinError as error:
                self.notes.append(f"not uploaded, but in {path}: {error}")
                return

    def path(self, member: str) -> Path:
        """Where the outputs of a member lie, by its fingerprint."""
        return self.folder / f"{member[:32]}.safetensors"

    def get(self, member: str) -> StoredOutputs | None:
        """The stored outputs of this fingerprint, or None, also where they are damaged.

        Raises OutputsError if they are another's.
        """
        if member in self._whole:
            return self._whole[member]
        path = self.path(member)
        if not path.exists():
            return None
        try:
            stored = StoredOutputs.open(path)
        except OutputsError as error:
            self.notes.append(f"made again: {error}")
            if self._shared is not None:
                self._shared.forget(path.name)
            return None
        if stored.member != member:
            raise OutputsError(f"{path} holds the outputs of other weights ({stored.member[:12]}). Delete it.")
        for what, asked, found in (
            ("stored as", self.dtype.name, stored.dtype.name),
            ("computed in", self.precision, stored.precision),
        ):
            if asked != found:
                raise OutputsError(f"{path} was {what} {found}, now {asked} is asked. Use another folder for outputs.")
        self._whole[member] = stored
        return stored

    def put(self, member: str, rows: NDArray[np.float32], data: str) -> None:
        """Store outputs (R, C) that were made elsewhere, over data of this fingerprint; whole or not at all."""
        pending = PendingOutputs(self, [member], resume=False)
        with told(self.folder, needs=rows.size * self.dtype.itemsize):
            pending.write([torch.from_numpy(rows)])
            pending.finish(data)

    def save_targets(self, targets: NDArray[Any], data: str) -> None:
        """Write targets.safetensors beside the outputs, whole or not at all."""
        with replacing(self.folder / _TARGETS) as temporary:
            temporary.write_bytes(save({"targets": targets}, metadata={"data": data, KEY: BLANK}))
            seal(temporary)


class PendingOutputs:
    """The partial files of one reading by some members: rows appended batch by batch, resumable.

    ``examples``: rows that are on disk already when the reading starts (0 without ``resume``), made by the data whose
    fingerprint up to there is ``resume_data``. ``widen(rows, columns)``: where rows may have more or fewer columns than
    those before. No file is kept open: there may be hundreds of members.
    """

    def __init__(self, store: OutputStore, members: Sequence[str], *, resume: bool, widen: Widen | None = None) -> None:
        self._store = store
        self._members = members
        self._widen = widen
        self._note = store.folder / "reading.json"
        self._digests = [hashlib.sha256() for _ in members]
        note = self._read_note() if resume else None
        self.examples: int = note["examples"] if note else 0
        self.resume_data: str = note["data"] if note else ""
        self._classes: int = note["classes"] if note else 0
        self._rows: int = note["rows"] if note else 0
        self._saved_at = time.monotonic()
        if note is None:
            self._digests = [hashlib.sha256() for _ in members]
        for member in members:
            with attributed(self._partial(member)), self._partial(member).open("r+b" if note else "wb") as file:
                file.truncate(self._size(self._rows, self._classes))

    @property
    def folder(self) -> Path:
        """Where they are written."""
        return self._store.folder

    @property
    def itemsize(self) -> int:
        """Bytes of one number as it is stored."""
        return self._store.dtype.itemsize

    def _partial(self, member: str) -> Path:
        return self._store.path(member).with_suffix(".partial")

    def _size(self, examples: int, classes: int) -> int:
        return _HEADER_BYTES + examples * classes * self._store.dtype.itemsize

    def _read_note(self) -> dict[str, Any] | None:
        """The note of an unfinished reading by these members, if its rows are all there and as they were written."""
        try:
            note = opened(read_json(self._note))
            if {**note, **self._settings()} != note:
                return None
            size = self._size(note["rows"], note["classes"])
            for member, digest, expected in zip(self._members, self._digests, note["checksums"], strict=True):
                if not _feed(digest, self._partial(member), size) or digest.hexdigest() != expected:
                    self._store.notes.append(f"made again: {self._partial(member)} is not as it was written")
                    return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return note

    def _settings(self) -> dict[str, Any]:
        return {
            "members": list(self._members),
            "dtype": self._store.dtype.name,
            "precision": self._store.precision,
        }

    def append(self, outputs: Sequence[torch.Tensor], data: DataFingerprint) -> None:
        """Add each member's rows of the examples up to here in ``data``; now and then make them safe."""
        self.write(outputs)
        self.examples = data.examples
        if time.monotonic() - self._saved_at > _SAFE_EVERY:
            self._save(data)
            self._saved_at = time.monotonic()

    def write(self, outputs: Sequence[torch.Tensor]) -> None:
        """Add each member's rows. Raises OutputsError for numbers that the files' dtype cannot hold."""
        widen = self._widen
        columns = outputs[0].shape[1]
        if widen is not None and self._rows:
            if columns > self._classes:
                self._rewrite(columns, widen)
            columns = self._classes
        self._classes = columns
        for member, digest, rows in zip(self._members, self._digests, outputs, strict=True):
            with np.errstate(over="ignore"):
                given = rows.numpy() if widen is None else widen(rows.numpy(), columns)
                stored = given.astype(self._store.dtype)
            if not np.isfinite(stored).all():
                raise OutputsError(
                    f"outputs of the member {member[:12]} reach {float(rows.abs().max()):.3g}, more than "
                    f"{self._store.dtype} holds: store them as float32"
                )
            written = stored.tobytes()
            with attributed(self._partial(member)), self._partial(member).open("ab") as file:
                file.write(written)
            digest.update(written)
        self._rows += len(outputs[0])

    def _rewrite(self, columns: int, widen: Widen) -> None:
        """Give the rows written so far more columns. A kill in between leaves a note that does not fit: no resuming."""
        self._note.unlink(missing_ok=True)
        for k, member in enumerate(self._members):
            partial = self._partial(member)
            rows = np.fromfile(partial, self._store.dtype, offset=_HEADER_BYTES).reshape(-1, self._classes)
            written = widen(rows, columns).astype(self._store.dtype).tobytes()
            with attributed(partial), partial.open("r+b") as file:
                file.seek(_HEADER_BYTES)
                file.write(written)
            self._digests[k] = hashlib.sha256(written)
        self._classes = columns

    def _save(self, data: DataFingerprint) -> None:
        for member in self._members:
            sync(self._partial(member))
        note = self._settings() | {
            "classes": self._classes,
            "examples": self.examples,
            "rows": self._rows,
            "data": data.hexdigest(),
            "checksums": [digest.hexdigest() for digest in self._digests],
        }
        write_json(self._note, sealed(note))

    def finish(self, data: str) -> None:
        """Write the headers and give the files their names."""
        for member, digest in zip(self._members, self._digests, strict=True):
            partial = self._partial(member)
            with attributed(partial), partial.open("r+b") as file:
                file.write(sealed_header(self._header(member, data), digest))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._store.path(member))
        sync_folder(self._store.folder)
        self._note.unlink(missing_ok=True)
        self._store.share(self._members)

    def _header(self, member: str, data: str) -> bytes:
        shape = [self._rows, self._classes]
        size = shape[0] * shape[1] * self._store.dtype.itemsize
        header = {
            "__metadata__": {
                "format": "pt",
                "member": member,
                "data": data,
                "precision": self._store.precision,
                KEY: BLANK,
            },
            _TENSOR: {"dtype": _DTYPES[self._store.dtype.name], "shape": shape, "data_offsets": [0, size]},
        }
        text = json.dumps(header).encode().ljust(_HEADER_BYTES - 8)
        return len(text).to_bytes(8, "little") + text


def _feed(digest: hashlib._Hash, path: Path, size: int) -> bool:
    """Feed the rows of a partial file of which ``size`` bytes are safe; whether they are all there."""
    left = size - _HEADER_BYTES
    with path.open("rb") as file:
        file.seek(_HEADER_BYTES)
        while left > 0:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                return False
            digest.update(chunk)
            left -= len(chunk)
    return True
