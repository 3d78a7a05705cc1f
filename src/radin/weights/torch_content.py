"""What a file of torch.save's says, and where its numbers are: an archive, or the format from before torch 1.6."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radin import disks
from radin.errors import CheckpointError
from radin.files import open_regular
from radin.weights import pickled, tar
from radin.weights.archive import Entry, open_archive
from radin.weights.described import Storage
from radin.weights.kinds import TAR, kind_of_bytes
from radin.weights.limits import PICKLE_BYTES, PICKLE_STEPS

ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C  # what torch's format before 1.6 begins with, pickled
_LEGACY_VERSION = 1001


@dataclass(frozen=True)
class Content:
    """What a file holds, and a function from storage to where it begins and, in a zip archive, its entry."""

    value: Any
    locate: Callable[[Storage], tuple[int, Entry | None]]
    is_zip: bool
    within: bool  # whether the bytes are only part of the file
    unsafe: tuple[str, ...]  # the names in it that are not data, for which stand-ins were put


def mapped(path: Path) -> Any:
    """The file's bytes, or of a tar archive those of its weights, read as they are needed, mapped where it is.

    Closed when no tensor refers to it any more.
    """
    with open_regular(path) as file:
        content: Any
        if disks.is_network(path):
            content = disks.Unmapped(path)
        else:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that it could write to
    if kind_of_bytes(content[:512], len(content)) != TAR:
        return content
    place = tar.weights_in(path)
    if place is None:
        raise ValueError(
            "a tar archive without model_weights.ckpt, as NeMo's have; if it is torch's format of 2016, load it with "
            "a torch of then and save it again"
        )
    if isinstance(content, disks.Unmapped):
        return disks.Unmapped(path, *place)
    return memoryview(content)[place[0] : place[0] + place[1]]


def _is_part(content: Any) -> bool:
    """Whether these bytes are only part of a file."""
    return content.is_part if isinstance(content, disks.Unmapped) else not isinstance(content, mmap.mmap)


def load(path: Path) -> Content:
    """What the file says, and where its numbers are. Raises ValueError, OSError, CheckpointError."""
    content = mapped(path)
    if content[: len(ZIP)] == ZIP:
        return from_zip(path, content)
    return _legacy(content if isinstance(content, mmap.mmap) else bytes(content[:]), _is_part(content))


def from_zip(path: Path, content: Any) -> Content:
    """torch's format since 1.6: an archive of a pickle and one entry per storage."""
    archive = open_archive(content)
    if any(name.endswith(b"/constants.pkl") for name in archive.entries):
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds code. If you trust it, save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), 'model.pt')."
        )
    root = next(iter(archive.entries), b"").partition(b"/")[0] + b"/"
    if root + b"data.pkl" not in archive.entries:
        raise ValueError("an archive without torch's data.pkl")
    order = archive.entries.get(root + b"byteorder")
    if order is not None and archive.read(order, 100) != b"little":
        raise ValueError("written on a machine of the other byte order; save it as safetensors there")
    loaded = pickled.load(archive.read(archive.entries[root + b"data.pkl"], PICKLE_BYTES))

    def locate(storage: Storage) -> tuple[int, Entry | None]:
        entry = archive.entries.get(root + b"data/" + storage.key.encode("utf-8", "replace"))
        if entry is None:
            raise ValueError(f"its numbers {storage.key[:20]!r} are missing")
        if entry.size != storage.nbytes:
            raise ValueError(f"{storage.nbytes:,} bytes of numbers were promised, and {entry.size:,} are there")
        return archive.start(entry), entry

    return Content(loaded.value, locate, True, _is_part(content), loaded.unsafe)


def _legacy(content: Any, is_part: bool) -> Content:
    """The format before 1.6: pickles one after another, then each storage's length and numbers."""
    at, left = 0, PICKLE_STEPS
    values: list[pickled.Loaded] = []
    for _ in range(5):
        loaded = pickled.load(content, at, left)
        values.append(loaded)
        at, left = loaded.end, left - loaded.steps
        if len(values) == 1 and loaded.value != _MAGIC:
            raise ValueError("it does not begin as torch's files do")
    version, about, main, keys = values[1].value, values[2].value, values[3], values[4].value
    if version != _LEGACY_VERSION or not isinstance(about, dict) or not isinstance(keys, list):
        raise ValueError("it does not begin as torch's files do")
    if about.get("little_endian") is not True:
        raise ValueError("written on a machine of the other byte order; save it as safetensors there")
    starts: dict[str, int] = {}
    for key in keys:
        storage = main.storages.get(str(key)) if isinstance(key, str | int) else None
        if storage is None or storage.key in starts:
            raise ValueError("its list of storages does not fit its tensors")
        numel = int.from_bytes(content[at : at + 8], "little", signed=True)
        starts[storage.key] = at + 8
        at += 8 + storage.nbytes
        if numel != storage.numel or at > len(content):
            raise ValueError(f"{storage.numel:,} numbers were promised, and {min(numel, len(content)):,} are there")

    def locate(storage: Storage) -> tuple[int, Entry | None]:
        root = main.storages[storage.key]
        if storage.key not in starts or storage.dtype != root.dtype or storage.numel != root.numel:
            raise ValueError(f"its numbers {storage.key[:20]!r} are missing")
        offset, length = storage.view or (0, root.numel)
        if offset + length > root.numel:
            raise ValueError("a view reaches beyond its storage")
        return starts[storage.key] + offset * root.dtype.itemsize, None

    return Content(main.value, locate, False, is_part, main.unsafe)
