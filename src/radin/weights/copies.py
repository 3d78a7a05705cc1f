"""Copies of remote files in radin's cache folder: whether one is still good, who uses them, and clearing them.

Beside each copy lies what the remote said of the file then (etag, time, size). A copy is put in place whole, its note
after it. Processes that use copies say so by a file of their own, so that none is taken away from under a run.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from radin.errors import RadinError, printable
from radin.files import mark_used, replacing, sweep, told, users
from radin.weights.remembered import cache_folder

# What a remote says of a file that is another where the file is: whichever of these it has. The size alone is no proof.
_VERSION = (
    "size", "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "md5", "crc32c", "generation", "VersionId", "lfs",
    "blob_id", "xet_hash", "mtime", "LastModified", "last_modified", "Last-Modified", "modified", "modify", "updated",
    "created",
)  # fmt: skip
_NOTE = ".json"
_SEEN_SECONDS = 0.25  # between looks at how large a copy has become
_marked: dict[Path, Path] = {}  # folders that this process said to use


class ChangedError(RadinError):
    """A file became another one while it was copied; what came is thrown away."""


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Keep other processes from copying to this place meanwhile: they wait, and find the copy there."""
    root = folder()
    assert root is not None
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:2]  # a few files for all: some wait that need not
    lock = FileLock(root / f".{name}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError):  # a disk without locks: two copies may be made, each of them whole
        yield
        return
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Copy:
    """A file to be copied to ``place``. size: in bytes, None where the remote does not say. version: what it says."""

    source: str
    place: Path
    size: int | None
    version: Mapping[str, str]

    @classmethod
    def of(cls, source: str, place: Path, info: Mapping[str, Any]) -> Copy:
        """``info``: as fsspec gives it."""
        size = None if info.get("size") is None else int(info["size"])
        return cls(source, place, size, {name: str(info[name]) for name in _VERSION if info.get(name) is not None})

    @property
    def _note(self) -> Path:
        return self.place.with_name(f".{self.place.name}{_NOTE}")

    def _noted(self) -> str:
        return f"{self.place.stat().st_size}\n{json.dumps(self.version)}"

    def is_there(self) -> bool:
        """Whether the copy that is there is what the remote has now."""
        with suppress(OSError, ValueError):
            if self._note.read_text(encoding="utf-8") == self._noted() and set(self.version) - {"size"}:
                os.utime(self._note)  # when it was last used
                return True
        return False

    def make(
        self,
        get: Callable[[str, str], None],
        report: Callable[[int], None],
        look: Callable[[str], Mapping[str, str]],
    ) -> None:
        """Copy it by ``get(source, file)``, whole or not at all. ``report`` is told the bytes that came so far.

        ``look(source)``: what the remote says of it now. Raises ChangedError where that is no longer what it was,
        RadinError where other than what was announced came, StorageError.
        """
        with told(self.place, needs=self.size or 0):
            self.place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            sweep(self.place.parent)
            with replacing(self.place) as temporary:
                with _watched(temporary, report):
                    get(self.source, str(temporary))
                if set(self.version) - {"size"} and dict(look(self.source)) != dict(self.version):
                    raise ChangedError(f"{printable(self.source)} has changed while it was copied")
                size = temporary.stat().st_size
                if self.size is not None and size != self.size:
                    raise RadinError(f"{size:,} bytes came of {self.size:,}; give the command again")
            with replacing(self._note, durable=False) as temporary:
                temporary.write_text(self._noted(), encoding="utf-8")


@contextmanager
def _watched(file: Path, report: Callable[[int], None]) -> Iterator[None]:
    """Report a file's size while it grows: every library writes it, and few of them say how far they are."""
    ended = Event()

    def look() -> None:
        while not ended.wait(_SEEN_SECONDS):
            with suppress(OSError):
                report(file.stat().st_size)

    watcher = Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def folder() -> Path | None:
    """Where copies are; None where RADIN_CACHE=off, or there is no home."""
    root = cache_folder()
    return None if root is None else root.parent / "remote"


def use(root: Path) -> None:
    """Say that this process uses copies in this folder, until it ends. Raises StorageError."""
    if root in _marked:
        return
    with told(root):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(root):
            _marked[root] = mark_used(root)
    atexit.register(_marked[root].unlink, missing_ok=True)


def _locked(root: Path) -> FileLock:
    return FileLock(root / ".lock")


@dataclass(frozen=True)
class Kept:
    """Copies from one place: ``files`` of them, of so many ``bytes``, last used at ``used`` (seconds since 1970)."""

    place: str
    files: int
    bytes: int
    used: float


def listing(root: Path) -> list[Kept]:
    """What there is, the largest first, by protocol and the first two folders (a bucket's, a repository)."""
    files, sizes, used = Counter[str](), Counter[str](), dict[str, float]()
    for file in root.rglob("*"):
        parts = file.relative_to(root).parts
        if len(parts) < 2 or not file.is_file():
            continue
        place = f"{parts[0]}://{unquote('/'.join(parts[1:3] if len(parts) > 3 else parts[1:-1]))}"
        with suppress(OSError):
            status = file.stat()
            sizes[place] += status.st_size
            if file.name.startswith(".") and file.name.endswith(_NOTE):
                used[place] = max(used.get(place, 0.0), status.st_mtime)
            else:
                files[place] += 1
    return [Kept(place, files[place], size, used.get(place, 0.0)) for place, size in sizes.most_common()]


def clear(root: Path) -> int:
    """Remove all copies; how many bytes that were. Raises RadinError while a process uses them, StorageError."""
    if not root.is_dir():
        return 0
    with told(root), _locked(root):
        sweep(root)
        in_use = [mark for mark in users(root) if mark != _marked.get(root)]
        if in_use:
            raise RadinError(
                f"{printable(root)}: copies are in use by another process of radin's ({in_use[0].name}); clear them "
                "when it has ended. If it ran on a machine that is no more, remove that file"
            )
        freed = sum(kept.bytes for kept in listing(root))
        for entry in root.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        return freed
