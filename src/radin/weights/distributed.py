"""Folders of torch.distributed.checkpoint: read by their .metadata, without a model or unpickling; written by torch.

The metadata say of each tensor which chunks it has, and where in which .distcp file each of them is: a torch file of
one tensor, from a byte on. Tensors in several chunks, as sharded training writes them, are put together when read.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.disks import is_network, read_part
from radin.errors import CheckpointError, NoWeightsError
from radin.files import open_regular
from radin.weights import pickled, torch_entries, torch_file
from radin.weights.layout import DTYPES, count, short
from radin.weights.limits import PICKLE_BYTES, SHARDS
from radin.weights.named import Call, is_size
from radin.weights.stored import Stored

METADATA = ".metadata"
_CHUNKS = 4_096  # of one tensor: as many as processes
_CLASSES = {
    "metadata": ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
                 "BytesStorageMetadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    "filesystem": ("_StorageInfo",),
}  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """Part of a tensor: from ``offsets`` on, of these ``sizes``; ``length`` bytes of a file from ``start`` on."""

    file: str
    start: int
    length: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


Chunks = Mapping[str, tuple[Chunk, ...]]


def describe(folder: Path, key: str | None) -> tuple[Stored, Chunks]:
    """What the metadata say: names, shapes and dtypes of the weights, and where their chunks are.

    Raises CheckpointError for damaged metadata, or without weights. ``key``: see formats.open_checkpoint.
    """
    path = folder / METADATA
    try:
        return _describe(folder, _metadata(path), key)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, or not of torch.distributed.checkpoint ({error})") from error


@contextmanager
def tensors(folder: Path, stored: Stored, chunks: Chunks) -> Iterator[Callable[[str], Tensor]]:
    """A function from stored name to tensor, good inside the context. ``chunks``: as ``describe`` found them."""
    files: dict[str, mmap.mmap] = {}
    unmapped = is_network(folder)

    def window(chunk: Chunk) -> memoryview:
        if unmapped:
            return memoryview(read_part(folder / chunk.file, chunk.start, chunk.length))
        if chunk.file not in files:
            with open_regular(folder / chunk.file) as file:
                files[chunk.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return memoryview(files[chunk.file])[chunk.start : chunk.start + chunk.length]

    def piece(name: str, chunk: Chunk) -> Tensor:
        found = torch_file.single_tensor(folder / chunk.file, window(chunk))
        if tuple(found.shape) != chunk.sizes or found.dtype != stored.dtypes[name]:
            raise CheckpointError(
                f"{folder / chunk.file}: a part of {name[:100]!r} is {tuple(found.shape)} {short(found.dtype)}; "
                f"expected {chunk.sizes} {short(stored.dtypes[name])} by the metadata"
            )
        return found

    def read(name: str) -> Tensor:
        parts, shape = chunks[name], stored.shapes[name]
        if len(parts) == 1:
            return piece(name, parts[0])
        whole = torch.empty(shape, dtype=stored.dtypes[name])
        for chunk in parts:
            place = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[place] = piece(name, chunk)
        return whole

    yield read
    files.clear()


def write(folder: Path, like: Path, key: str | None, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as the library does, from one process, nested as the weights in the folder ``like`` are.

    Raises OSError, CheckpointError.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    metadata = _metadata(like / METADATA)
    place, _ = _chosen(like, _tensors_of(metadata), metadata.get("planner_data") or {}, key)
    content: dict[str, Any] = dict(tensors)
    for name in reversed(place):
        content = {name: content}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no process group is there is as it should be
            save(content, checkpoint_id=folder, no_dist=True)
    except CheckpointException as error:
        cause = next((found for found, _ in error.failures.values()), error)
        raise cause if isinstance(cause, OSError) else CheckpointError(f"{folder}: {cause}") from error


def _metadata(path: Path) -> pickled.Record:
    with open_regular(path) as file:
        data = file.read(PICKLE_BYTES + 1)
    if len(data) > PICKLE_BYTES:
        raise ValueError(f"larger than {PICKLE_BYTES:,} bytes")
    known = {
        f"torch.distributed.checkpoint.{module}.{name}": Call(_maker(name))
        for module, names in _CLASSES.items()
        for name in names
    }
    found = pickled.load(data, also=known).value
    if not isinstance(found, pickled.Record) or found.name != "Metadata":
        raise ValueError("it holds something else")
    return found


def _maker(name: str) -> Callable[[Any, tuple[Any, ...]], Any]:
    return lambda machine, arguments: pickled.Record(name, arguments)


def _describe(folder: Path, metadata: pickled.Record, key: str | None) -> tuple[Stored, Chunks]:
    tensors_of = _tensors_of(metadata)
    place, chosen = _chosen(folder, tensors_of, metadata.get("planner_data") or {}, key)
    left = _left(place, len(tensors_of) - len(chosen))
    places = _places(folder, metadata.get("storage_data"))
    shapes, dtypes, chunks = {}, {}, {}
    for name, full in chosen.items():
        entry = tensors_of[full]
        shapes[name] = _sizes(entry.get("size"))
        dtypes[name] = _dtype(folder, name, entry.get("properties"))
        chunks[name] = tuple(_chunk(full, part, places) for part in entry.get("chunks"))
        _check_cover(name, shapes[name], chunks[name])
    _check_files(folder, chunks)
    notes = ("a distributed checkpoint (torch.distributed.checkpoint)", *left)
    return Stored(shapes=shapes, dtypes=dtypes, aliases={}, notes=notes, mapped=False), chunks


def _tensors_of(metadata: pickled.Record) -> dict[str, Any]:
    """What the metadata say of each tensor, by its name in the checkpoint."""
    entries = metadata.get("state_dict_metadata")
    return {name: entry for name, entry in entries.items() if _is(entry, "TensorStorageMetadata")}


def _chosen(
    folder: Path, tensors_of: Mapping[str, Any], paths: Mapping[str, Any], key: str | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Where the weights are in the nested dict, and {name in the state dict: name in the checkpoint} of them."""
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for full in tensors_of:
        path = paths.get(full) or _guessed(full)
        if isinstance(path, tuple) and path and all(isinstance(part, str) for part in path):
            groups.setdefault(path[:-1], {})[path[-1]] = full
    keys = torch_entries.NESTED_KEYS if key is None else (key,)
    # {"model": ...}, {"app": {"model": ...}}: deeper is an optimizer's state
    ways = [place for name in keys for place in groups if len(place) in (1, 2) and place[-1] == name]
    ways += [()] if key is None and () in groups else []
    if not ways:
        held = ", ".join(sorted({".".join(place)[:60] for place in groups})[:8]) or "none"
        raise NoWeightsError(f"{folder}: holds no weights under {keys}; there are tensors under: {held}")
    return ways[0], groups[ways[0]]


def _left(place: tuple[str, ...], rest: int) -> tuple[str, ...]:
    """Notes on what was taken, and how much was left."""
    taken = (f"took {'.'.join(place)}",) if place else ()
    return (*taken, f"left out {rest} other tensors (an optimizer's state)") if rest else taken


def _guessed(full: str) -> tuple[str, ...]:
    """Where a tensor was in the nested dict, where the metadata do not say it."""
    head, _, rest = full.partition(".")
    return (head, rest) if rest and head in (*torch_entries.NESTED_KEYS, "optim", "optimizer") else (full,)


def _places(folder: Path, storage: Mapping[Any, Any]) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    """(tensor, offsets of the chunk) -> file, first byte, bytes."""
    found = {}
    for index, info in storage.items():
        if not (_is(index, "MetadataIndex") and _is(info, "_StorageInfo")):
            raise ValueError("its list of chunks holds something else")
        if index.get("offset") is None:
            continue  # not a tensor's
        file, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
        if not isinstance(file, str) or file != Path(file).name or not (is_size(start) and is_size(length)):
            raise ValueError(f"a chunk lies in no file of the folder: {str(file)[:60]!r}")
        if info.get("transform_descriptors"):
            raise CheckpointError(
                f"{folder}: its chunks are compressed or encrypted, which is not read; save it without extensions"
            )
        found[str(index.get("fqn")), _sizes(index.get("offset"))] = (file, start, length)
    return found


def _chunk(full: str, part: Any, places: Mapping[tuple[str, tuple[int, ...]], tuple[str, int, int]]) -> Chunk:
    offsets, sizes = _sizes(part.get("offsets")), _sizes(part.get("sizes"))
    if len(offsets) != len(sizes):
        raise ValueError("a chunk without a shape")
    return Chunk(*places[full, offsets], offsets, sizes)


def _check_cover(name: str, shape: tuple[int, ...], chunks: tuple[Chunk, ...]) -> None:
    """Raise ValueError unless the chunks are all of the tensor, each element once."""
    if len(chunks) > _CHUNKS:
        raise ValueError(f"{name[:100]!r} is in more than {_CHUNKS:,} chunks")
    inside = all(
        len(chunk.sizes) == len(shape)
        and all(start + size <= most for start, size, most in zip(chunk.offsets, chunk.sizes, shape, strict=True))
        for chunk in chunks
    )
    apart = all(
        any(
            start >= other_start + other_size or other_start >= start + size
            for start, size, other_start, other_size in zip(
                one.offsets, one.sizes, other.offsets, other.sizes, strict=True
            )
        )
        for place, one in enumerate(chunks)
        for other in chunks[:place]
        if inside and count(one.sizes) and count(other.sizes)
    )
    if not (inside and apart and sum(count(chunk.sizes) for chunk in chunks) == count(shape)):
        raise ValueError(f"the chunks of {name[:100]!r} are not all of it, each element once")


def _check_files(folder: Path, chunks: Chunks) -> None:
    ends: dict[str, int] = {}
    for parts in chunks.values():
        for chunk in parts:
            ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.start + chunk.length)
    if len(ends) > SHARDS:
        raise ValueError(f"more than {SHARDS:,} files")
    for file, end in ends.items():
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{folder}: its metadata name the file {file[:100]}, which is not in the folder")
        if path.stat().st_size < end:
            raise CheckpointError(
                f"{path}: truncated: it has {path.stat().st_size:,} bytes, the metadata expect {end:,}. Copy it again."
            )


def _dtype(folder: Path, name: str, properties: Any) -> torch.dtype:
    state = properties.state if isinstance(properties, pickled.Record) else None
    found = state[0] if isinstance(state, tuple) and state else properties.get("dtype")
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name[:100]!r} has no dtype")
    if found not in DTYPES.values():
        raise CheckpointError(f"{folder}: tensor {name[:100]!r} is {short(found)}, which cannot be averaged")
    return found


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(map(is_size, value)):
        raise ValueError("a shape that is not made of sizes")
    return tuple(value)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, pickled.Record) and value.name == name
