"""A checkpoint, whatever its format: a .safetensors or torch file, or a folder of shards."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.files import open_regular, parse_json, told
from radin.weights import distributed, safetensors_file, torch_file
from radin.weights.kinds import DISTRIBUTED, SAFETENSORS, SAFETENSORS_SUFFIXES, SUFFIXES, TORCH, kind_of
from radin.weights.layout import Shape, count, short
from radin.weights.limits import DIMENSIONS, INDEX_BYTES, NAME, SHARDS, TENSORS
from radin.weights.stored import WRAPPERS, Place, Stored, strip_wrappers

_INDEX_SUFFIX = ".index.json"
_LFS_POINTER = b"version https://git-lfs"

# What a folder must hold to be one checkpoint, in order of preference.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)

# Of these, an adapter's: see radin.weights.adapters.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class _Distributed:
    """What a distributed checkpoint's metadata say, and the files that hold the chunks, as they were then."""

    stored: Stored
    chunks: distributed.Chunks
    files: tuple[tuple[Path, tuple[int, int]], ...]

    def tensors(self, folder: Path) -> AbstractContextManager[Callable[[str], Tensor]]:
        for path, state in self.files:
            if _state(path) != state:
                raise _changed(path)
        return distributed.tensors(folder, self.stored, self.chunks)


@dataclass(frozen=True)
class _File:
    """One file of a checkpoint, with the size and time it had when its header was read."""

    path: Path
    key: str | None
    state: tuple[int, int]
    kind: str  # as radin.weights.kinds tells it
    places: Mapping[str, Place] = field(default_factory=dict)  # see torch_file.tensors
    starts: Mapping[str, int] = field(default_factory=dict)  # see Stored
    chunks: _Distributed | None = None

    def describe(self) -> Stored:
        if self.kind == SAFETENSORS:
            if self.key is not None:
                raise CheckpointError(f"{self.path}: a safetensors file has no nested key {self.key!r}; leave key out")
            return safetensors_file.describe(self.path)
        return torch_file.describe(self.path, self.key)

    def tensors(self) -> AbstractContextManager[Callable[[str], Tensor]]:
        if _state(self.path) != self.state:
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
    _files: tuple[_File, ...]
    _places: Mapping[str, tuple[int, str]]  # name -> (index into _files, name as stored of what holds its data)
    _listed: Mapping[str, str]  # name -> its own name as stored, of those that the files list

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
        for name, listed in self._listed.items():
            stored[self._places[name][0]][name] = listed
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


def open_checkpoint(path: str | Path, *, key: str | None = None) -> Checkpoint:
    """Read the headers of a checkpoint: a file, an index of shards, or a folder that holds one of FOLDER_FILES.

    ``key``: the entry of a torch file that holds the state dict, when it is not one of torch_entries.NESTED_KEYS.
    Raises CheckpointError when the file is missing, damaged, unsafe, of an unknown kind or without tensors.
    """
    try:
        return _open(Path(path), key)
    except OSError as error:
        raise CheckpointError(f"{_brief(path)}: cannot be read: {error.strerror}") from error


def _open(path: Path, key: str | None) -> Checkpoint:
    if path.is_dir():
        inside = folder_file(path)
        if inside is None and (path / distributed.METADATA).is_file():
            return _open_distributed(path, key)
        if inside is None:
            raise CheckpointError(f"{path}: not a checkpoint folder; expected one of {', '.join(FOLDER_FILES)}")
        return _open_index(path, inside, key) if is_index(inside) else _open_files(path, [inside], key)
    if is_index(path):
        return _open_index(path, path, key)
    if path.name == distributed.METADATA:
        return _open_distributed(path.parent, key)
    _refuse_part(path)
    shard = re.search(r"-\d{5}-of-(\d{5})$", path.stem)
    if shard and int(shard.group(1)) > 1:
        raise CheckpointError(f"{path}: one shard of a checkpoint. Give its folder or its {_INDEX_SUFFIX} file.")
    return _open_files(path, [path], key)


def _refuse_part(path: Path) -> None:
    """Refuse one process's part of a checkpoint of DeepSpeed's or torch's, by its name, and say what is whole."""
    if re.fullmatch(r".*zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt", path.name):
        raise CheckpointError(
            f"{path}: one process's part of a DeepSpeed ZeRO-3 checkpoint, whose weights are spread over all of them. "
            "Make it whole with DeepSpeed's script in the folder above, python zero_to_fp32.py . whole, and give that"
        )
    rank = re.fullmatch(r"mp_rank_(\d+)_model_states\.pt", path.name)
    if rank and (int(rank.group(1)) > 0 or path.with_name("mp_rank_01_model_states.pt").exists()):
        raise CheckpointError(
            f"{path}: one of the parts over which DeepSpeed spread the model (model parallel). Make it whole first, "
            "with the training framework's own conversion"
        )
    if path.suffix == ".distcp":
        raise CheckpointError(f"{path}: one part of a distributed checkpoint. Give its folder.")


def _open_distributed(folder: Path, key: str | None) -> Checkpoint:
    metadata = folder / distributed.METADATA
    state = _state(metadata)
    stored, chunks = distributed.describe(folder, key)
    names = sorted({chunk.file for parts in chunks.values() for chunk in parts})
    held = _Distributed(stored, chunks, tuple((folder / name, _state(folder / name)) for name in names))
    return _checkpoint(folder, (_File(metadata, key, state, DISTRIBUTED, chunks=held),), [stored])


def folder_file(folder: Path) -> Path | None:
    """The file that makes ``folder`` one checkpoint, or None."""
    return next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)


def is_index(path: Path) -> bool:
    """Whether the path is an index of shards, by its name."""
    return path.name.endswith(_INDEX_SUFFIX)


def _open_index(path: Path, index: Path, key: str | None) -> Checkpoint:
    weight_map = _weight_map(index)
    checkpoint = _open_files(path, _shards(index, weight_map), key)
    held = {stored: checkpoint._files[file].path.name for file, stored in checkpoint._places.values()}
    for name, shard in weight_map.items():
        if held.get(name) != shard and checkpoint.aliases.get(name) is None:
            raise CheckpointError(f"{index}: places tensor {name[:100]!r} in {shard}, which does not hold it")
    return checkpoint


def _open_files(path: Path, paths: list[Path], key: str | None) -> Checkpoint:
    files = tuple(_File(file, key, _state(file), _kind(file)) for file in paths)
    stored = [file.describe() for file in files]
    files = tuple(
        replace(file, places=part.places, starts=part.starts) for file, part in zip(files, stored, strict=True)
    )
    return _checkpoint(path, files, stored)


def _checkpoint(path: Path, files: tuple[_File, ...], stored: list[Stored]) -> Checkpoint:
    """One checkpoint of what its files hold."""
    _check_bounds(path, stored)
    places: dict[str, tuple[int, str]] = {}
    for index, part in enumerate(stored):
        for name in part.shapes:
            if name in places:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is in two shards, {files[places[name][0]].path.name} and "
                    f"{files[index].path.name}"
                )
            places[name] = (index, part.aliases.get(name, name))
    if not places:
        raise CheckpointError(f"{path}: holds no tensors")
    wrappers = stored[0].wrappers if len({part.wrappers for part in stored}) == 1 else WRAPPERS
    clean, stripped = strip_wrappers(places, wrappers)
    order = sorted(places, key=clean.__getitem__)
    where = {name: stored[places[name][0]] for name in order}
    return Checkpoint(
        path=path,
        shapes={clean[name]: where[name].shapes[name] for name in order},
        dtypes={clean[name]: where[name].dtypes[name] for name in order},
        aliases={clean[name]: clean[places[name][1]] for name in order if places[name][1] != name},
        notes=tuple(dict.fromkeys(note for part in stored for note in part.notes)) + stripped,
        mapped=all(part.mapped for part in stored),
        _files=files,
        _places={clean[name]: places[name] for name in order},
        _listed={clean[name]: name for name in order},
    )


def _check_bounds(path: Path, stored: list[Stored]) -> None:
    """Refuse more tensors than a checkpoint has, names that nothing could print, and shapes that nothing could have."""
    if sum(len(part.shapes) for part in stored) > TENSORS:
        raise CheckpointError(f"{path}: holds more than {TENSORS:,} tensors")
    for part in stored:
        for name, shape in part.shapes.items():
            if len(name) > NAME or not _is_text(name):
                raise CheckpointError(
                    f"{path}: a tensor's name ({name[:60]!r}...) is longer than {NAME:,} characters or no text"
                )
            if len(shape) > DIMENSIONS or math.prod(size for size in shape if size) >= 1 << 62:
                raise CheckpointError(f"{path}: tensor {name!r} has a shape that no tensor has")


def _is_text(name: str) -> bool:
    """Whether a name can be written: not half of a surrogate pair."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _brief(path: object) -> str:
    text = str(path)
    return text if len(text) <= NAME else f"{text[:60]}... ({len(text):,} characters)"


def _kind(path: Path) -> str:
    """What is in a file; where that cannot be told, what its name says, so that the reader says what is wrong."""
    try:
        found = kind_of(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if found is not None:
        return found
    if path.suffix in SUFFIXES:
        return SAFETENSORS if path.suffix in SAFETENSORS_SUFFIXES else TORCH
    raise CheckpointError(
        f"{path}: unknown kind of file. It is neither safetensors nor what torch.save writes, whatever its name; save "
        "the state dict with one of them"
    )


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: changed since it was opened. Wait until it is written; start again.")


def _state(path: Path) -> tuple[int, int]:
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


def _shards(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    """The shard files that an index names. They must lie beside it: an index is data, not a list of paths to open."""
    names = sorted(set(weight_map.values()))
    if len(names) > SHARDS:
        raise CheckpointError(f"{index}: names {len(names):,} shards; at most {SHARDS:,} are read")
    for name in names:
        if not name.endswith(SUFFIXES) or "/" in name or "\\" in name or Path(name).name != name:
            raise CheckpointError(
                f"{index}: shard {name[:100]!r} is not a plain file name ending in {', '.join(SUFFIXES)}; "
                "shards must lie in the folder of their index"
            )
        try:
            there = (index.parent / name).exists()
        except (OSError, ValueError):  # too long for a file's name, or with a zero byte in it
            there = False
        if not there:
            raise CheckpointError(f"{index}: names the shard {name[:100]}, which is not in its folder")
    return [index.parent / name for name in names]


def _parsed(index: Path) -> Any:
    """An index as JSON. Raises OSError, ValueError."""
    with open_regular(index) as file:
        data = file.read(INDEX_BYTES + 1)
    if len(data) > INDEX_BYTES:
        raise ValueError(f"larger than {INDEX_BYTES:,} bytes")
    # Three bytes make a list of sixty, and an index has hardly any.
    if data.count(b"[") + data.count(b"{") > TENSORS:
        raise ValueError("it is made of lists")
    return parse_json(data.decode("utf-8"))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = _parsed(index)
        weight_map = content["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise CheckpointError(
            f"{index}: not an index of shards; expected a JSON object with a weight_map{reason}"
        ) from error
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must give a file name for each tensor")
    if len(weight_map) > TENSORS:
        raise CheckpointError(f"{index}: places {len(weight_map):,} tensors; at most {TENSORS:,} are read")
    return weight_map
