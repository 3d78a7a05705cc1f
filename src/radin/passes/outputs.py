"""The outputs cache: each member's outputs over the validation data, computed once, keyed by content.

One file per member, ``<fingerprint>.safetensors``, holding one (examples, classes) array, so that the batch size of a
reading leaves no trace. While a reading is under way the rows go to ``.partial`` files, and every few seconds a note
records how many are safe on disk and the fingerprint of the data that gave them: a killed reading goes on from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from radin.errors import OutputsError, TaskError
from radin.metrics import Metric
from radin.passes.batches import DataFingerprint, read, rebatched
from radin.passes.engine.local import LocalEngine
from radin.passes.load import load_weights
from radin.passes.task import Task

Progress = Callable[[str, float, float | None], None]

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
        if dtype is None or len(shape) != 2 or not {"member", "data"} <= set(metadata):
            raise OutputsError(f"{path} does not hold outputs as radin writes them. Move it away.")
        offset = path.stat().st_size - shape[0] * shape[1] * dtype.itemsize
        return cls(path, metadata["member"], metadata["data"], (shape[0], shape[1]), dtype, offset)


@dataclass(frozen=True)
class MemberOutputs:
    """All members' outputs (examples, classes), in the pool's order and memory-mapped.

    ``targets`` (examples, ...); ``data``: the data's fingerprint; ``passes``: members whose outputs were not cached.
    """

    outputs: tuple[NDArray[Any], ...]
    targets: NDArray[Any]
    data: str
    passes: int
    seconds: float


class OutputStore:
    """The folder of cached outputs. ``dtype``: "float32", or "float16" for half the disk."""

    def __init__(self, folder: Path, *, precision: str = "float32", dtype: str = "float32") -> None:
        if dtype not in _DTYPES:
            raise OutputsError(f"outputs can be stored as {' or '.join(_DTYPES)}; got {dtype!r}")
        self.folder = folder
        self.precision = precision
        self.dtype = np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)

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


class _Reading:
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
        for file, rows in zip(self._files, outputs, strict=True):
            file.write(rows.numpy().astype(self._store.dtype).tobytes())
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


def collect_outputs(
    task: Task,
    fingerprints: Sequence[str],
    names: Sequence[str],
    load: Callable[[int], dict[str, torch.Tensor]],
    bytes_per_member: int,
    store: OutputStore,
    engine: LocalEngine,
    metric: Metric,
    *,
    expected_data: str | None = None,
    progress: Progress | None = None,
) -> MemberOutputs:
    """Every member's outputs over validation(), from the cache where they are, else computed.

    ``load(k)`` gives member k's tensors. Members that fit in memory together share one reading of the data. When all
    outputs are cached the data is still read once, without any model, to make sure that it is the same data.
    ``expected_data``: a data fingerprint recorded earlier. Raises TaskError when the data differs from it or between
    two readings, and OutputsError when outputs are not finite, naming the member.
    """
    started = time.monotonic()
    stored = {k: found for k, f in enumerate(fingerprints) if (found := store.get(f)) is not None}
    if expected_data is None and stored:
        expected_data = next(iter(stored.values())).data
    missing = [k for k in range(len(fingerprints)) if k not in stored]
    group = engine.capacity(bytes_per_member, len(missing)) if missing else 1
    groups = [missing[i : i + group] for i in range(0, len(missing), group)] or [[]]
    targets: NDArray[Any] | None = None
    for index, members in enumerate(groups):
        what = f"outputs of {len(members)} members" if members else "checking the data"
        if len(groups) > 1:
            what += f", reading {index + 1} of {len(groups)}"
        models = []
        for k in members:
            model = task.build_model()
            load_weights(model, load(k), names[k])
            models.append(engine.place(model))
        data, targets = _read_once(
            task, [fingerprints[k] for k in members], [names[k] for k in members], models,
            store, engine, metric, expected_data, what, progress,
        )  # fmt: skip
        expected_data = data
    assert expected_data is not None
    assert targets is not None
    for k, fingerprint in enumerate(fingerprints):
        found = store.get(fingerprint)
        assert found is not None
        if found.data != expected_data:
            raise OutputsError(
                f"{found.path} holds outputs of {names[k]} over other data "
                f"({found.data[:12]}, now {expected_data[:12]}). "
                "Use another run directory for other data."
            )
        if found.shape[0] != len(targets):
            raise OutputsError(f"{found.path}: {found.shape[0]} examples, the data has {len(targets)}")
        stored[k] = found
    store.save_targets(targets, expected_data)
    in_order = tuple(stored[k].array() for k in range(len(fingerprints)))
    return MemberOutputs(in_order, targets, expected_data, len(missing), time.monotonic() - started)


class _CannotResume(Exception):
    """The rows kept from a killed reading do not belong to the data as it is read now."""


def _read_once(
    task: Task,
    fingerprints: Sequence[str],
    names: Sequence[str],
    models: Sequence[torch.nn.Module],
    store: OutputStore,
    engine: LocalEngine,
    metric: Metric,
    expected_data: str | None,
    what: str,
    progress: Progress | None,
) -> tuple[str, NDArray[Any]]:
    """One reading of validation() by ``models`` (none: only the fingerprint); returns (data fingerprint, targets)."""

    def attempt(reading: _Reading | None) -> tuple[str, NDArray[Any]]:
        data = DataFingerprint()
        targets: list[NDArray[Any]] = []
        skip = reading.examples if reading else 0
        source = task.batches("validation")
        total = length(source)
        batches = read(source, "validation()")
        for index, whole in enumerate(batches):
            for batch in rebatched([whole], engine.batch_size):
                if batch.targets is None:
                    raise TaskError("validation() gives inputs without targets: yield (inputs, targets)")
                first = data.examples
                data.update(batch)
                targets.append(batch.targets.cpu().numpy())
                if reading is None:
                    continue
                if data.examples <= skip:
                    if data.examples == skip and data.hexdigest() != reading.resume_data:
                        raise _CannotResume
                    continue
                if first < skip:  # the batches are cut differently now
                    raise _CannotResume
                outputs = engine.outputs(models, batch)
                for name, rows in zip(names, outputs, strict=True):
                    check_finite(name, rows, first)
                metric.check(targets[-1], outputs[0].shape[1])
                reading.append(outputs, data)
            if progress:
                progress(what, index + 1, total)
        if not targets:
            raise TaskError("validation() gave no batches")
        if data.examples < skip:
            raise _CannotResume
        if expected_data is not None and data.hexdigest() != expected_data:
            raise TaskError(
                f"validation() gave other data than before: {data.examples} examples with fingerprint "
                f"{data.hexdigest()[:12]}, expected {expected_data[:12]}. It must give the same examples in the same "
                "order every time: no shuffling, no random augmentation. For new data use a new run directory."
            )
        if reading:
            reading.finish(data.hexdigest())
        return data.hexdigest(), np.concatenate(targets)

    if not models:
        return attempt(None)
    for resume in (True, False):
        reading = _Reading(store, fingerprints, resume=resume)
        try:
            return attempt(reading)
        except _CannotResume:
            continue
        finally:
            reading.close()
    raise AssertionError("a reading from the start needs nothing to resume")


def length(source: Any) -> int | None:
    """How many batches a reading has, if it says so."""
    try:
        return len(source)
    except TypeError:
        return None


def check_finite(name: str, rows: torch.Tensor, first: int) -> None:
    """Raise OutputsError, naming the model and the example, when outputs hold NaN or infinity."""
    if not torch.isfinite(rows).all():
        example = first + int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
        raise OutputsError(
            f"{name}: its outputs hold NaN or infinity, first for example {example} of validation(). "
            "Its training diverged or the precision is too low: leave it out, or compute in float32."
        )
