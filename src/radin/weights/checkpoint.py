"""A checkpoint as it is known once its headers were read: names, shapes, dtypes, and how its tensors are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.files import open_regular, told
from radin.weights import distributed, safetensors_file, torch_file
from radin.weights.kinds import SAFETENSORS, TORCH
from radin.weights.layout import Shape, count, short
from radin.weights.stored import Place, Stored

_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Distributed:
    """What a distributed checkpoint's metadata say, and the files that hold the chunks, as they were then."""

    stored: Stored
    chunks: distributed.Chunks
    files: tuple[tuple[Path, tuple[int, int]], ...]

    def tensors(self, folder: Path) -> AbstractContextManager[Callable[[str], Tensor]]:
        """A function from stored name to tensor. Raises CheckpointError when a file of the folder changed."""
        for path, state in self.files:
            if state_of(path) != state:
                raise _changed(path)
        return distributed.tensors(folder, self.stored, self.chunks)


@dataclass(frozen=True)
class File:
    """One file of a checkpoint, with the size and time it had when its header was read."""

    path: Path
    key: str | None
    state: tuple[int, int]
    kind: str  # as radin.weights.kinds tells it
    places: Mapping[str, Place] = field(default_factory=dict)  # see torch_file.tensors
    starts: Mapping[str, int] = field(default_factory=dict)  # see Stored
    chunks: Distributed | None = None

    def describe(self) -> Stored:
        """What its header says. Raises CheckpointError."""
        if self.kind == SAFETENSORS:
            if self.key is not None:
                raise CheckpointError(f"{self.path}: a safetensors file has no nested key {self.key!r}; leave key out")
            return safetensors_file.describe(self.path)
        return torch_file.describe(self.path, self.key)

    def tensors(self) -> AbstractContextManager[Callable[[str], Tensor]]:
        """A function from stored name to tensor. Raises CheckpointError when the file changed."""
        if state_of(self.path) != self.state:
            raise _changed(self.path)
        if self.chunks is not None:
            return self.chunks.tensors(self.path.parent)
        if self.kind == SAFETENSORS:
            return safetensors_file.tensors(self.path)
        return torch_file.tensors(self.path, self.places)


@dataclass(frozen=True)
class Stretch:
    """Where a tensor's elements lie in a file as they are, one after another: from byte ``start`` on."""

    path: Path
    start: int
    state: tuple[int, int]  # the file's size and time when its header was read

    def open(self) -> FileIO:
        """The file, unbuffered. Raises CheckpointError when it changed since its header was read, StorageError."""
        with told(self.path, doing="read"):
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115
            status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != self.state:
            file.close()
            raise _changed(self.path)
        return file


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint. ``key``: see open_checkpoint. ``stored``: {name: name as stored in this file}.

    ``kind``: what the file is by its content, see radin.weights.kinds.
    """

    path: Path
    key: str | None
    stored: Mapping[str, str]
    kind: str = TORCH


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Named tensors in a file or a folder of shards; only headers are read until ``open``.

    ``shapes`` and ``dtypes`` cover every name, sorted, after unwrapping. ``aliases`` maps each tied tensor to the name
    that holds its data. ``notes`` says what was unwrapped. ``mapped`` is False for torch's legacy format, which can
    only be read whole.
    """

    path: Path
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, torch.dtype]
    aliases: Mapping[str, str]
    notes: tuple[str, ...]
    mapped: bool
    _files: tuple[File, ...]
    _places: Mapping[str, tuple[int, str]]  # name -> (index into _files, name as stored of what holds its data)
    _listed: Mapping[str, tuple[int, str]]  # name -> (index into _files, its own name there), of those that files list

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted, tied ones included."""
        return tuple(self.shapes)

    @property
    def bytes(self) -> int:
        """Bytes of its tensors, tied ones counted once."""
        return sum(
            count(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items() if name not in self.aliases
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its files, each with the names of its tensors here and as they are stored."""
        stored: list[dict[str, str]] = [{} for _ in self._files]
        for name, (file, listed) in self._listed.items():
            stored[file][name] = listed
        return tuple(
            Part(file.path, file.key, names, file.kind) for file, names in zip(self._files, stored, strict=True)
        )

    @property
    def form(self) -> Checkpoint:
        """Whose names, files and companions a soup of such members takes: its own, or what it is merged into."""
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold its tensors, in a fixed order."""
        found = []
        for file in self._files:
            found += [file.path, *(path for path, _ in file.chunks.files)] if file.chunks else [file.path]
        return tuple(found)

    @property
    def key(self) -> str | None:
        """The nested name that its tensors were asked for by, if any."""
        return self._files[0].key

    def stretch(self, name: str) -> Stretch | None:
        """Where the tensor can be read straight from its file; None where only ``open`` knows how."""
        index, stored = self._places[name]
        file = self._files[index]
        return Stretch(file.path, file.starts[stored], file.state) if stored in file.starts else None

    def renamed(self, names: Mapping[str, str], note: str) -> Checkpoint:
        """The same with other names: {name: new name}, for all of them. ``note`` says so."""
        order = sorted(self.shapes, key=names.__getitem__)
        return replace(
            self,
            shapes={names[name]: self.shapes[name] for name in order},
            dtypes={names[name]: self.dtypes[name] for name in order},
            aliases={names[name]: names[self.aliases[name]] for name in order if name in self.aliases},
            notes=(*self.notes, note),
            _places={names[name]: self._places[name] for name in order},
            _listed={names[name]: self._listed[name] for name in order if name in self._listed},
        )

    def with_tied(self, name: str, partner: str, note: str) -> Checkpoint:
        """The same where ``name`` stands for the tensor that ``partner`` is, whether or not it is stored itself."""
        kept = self.aliases.get(partner, partner)
        own = self.aliases.get(name, name)
        if own == kept:
            return self
        # Whatever stood for the tensor under this name stands for the partner's too.
        moved = [other for other in (*self.shapes, name) if other == name or self.aliases.get(other, other) == own]
        shapes = {**self.shapes, name: self.shapes[kept]}
        dtypes = {**self.dtypes, name: self.dtypes[kept]}
        return replace(
            self,
            shapes={other: shapes[other] for other in sorted(shapes)},
            dtypes={other: dtypes[other] for other in sorted(dtypes)},
            aliases={**self.aliases, **dict.fromkeys(moved, kept)},
            notes=(*self.notes, note),
            _places={**self._places, **dict.fromkeys(moved, self._places[kept])},
        )

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """A mapping from name to tensor that reads lazily and lets go of the files when the context closes.

        Raises CheckpointError when a file changed since its header was read.
        """
        with ExitStack() as stack:
            reader = Reader(self, stack)
            try:
                yield reader
            finally:
                reader.close()


class Reader(Mapping[str, Tensor]):
    """Tensors of an open checkpoint by name. Each access may map anew; hold a tensor only as long as needed."""

    def __init__(self, checkpoint: Checkpoint, stack: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._stack: ExitStack | None = stack
        self._lookups: dict[int, Callable[[str], Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        if self._stack is None:
            raise ValueError(f"{self._checkpoint.path} is closed")
        index, stored = self._checkpoint._places[name]
        if index not in self._lookups:
            self._lookups[index] = self._stack.enter_context(self._checkpoint._files[index].tensors())
        tensor = self._lookups[index](stored)
        shape, dtype = self._checkpoint.shapes[name], self._checkpoint.dtypes[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise CheckpointError(
                f"{self._checkpoint.path}: tensor {name!r} was {shape} {short(dtype)} when the file was opened "
                f"and is now {tuple(tensor.shape)} {short(tensor.dtype)}"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.shapes)

    def __len__(self) -> int:
        return len(self._checkpoint.shapes)

    def close(self) -> None:
        """Let go of the files; nothing can be read any more."""
        self._lookups.clear()
        self._stack = None


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of a file that can be one of a checkpoint. Raises CheckpointError."""
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty")
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path}: this is a git-lfs pointer, not the weights. Run `git lfs pull`.")
    return status.st_size, status.st_mtime_ns


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: changed since it was opened. Wait until it is written; start again.")
