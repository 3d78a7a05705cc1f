"""Files, whole or not at all: written to a temporary name beside their own, synced, renamed; and JSON read with bounds.

A killed process may leave a temporary file: ``sweep`` removes what processes that are gone have left in a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

JSON_BYTES = 64 * 2**20  # what a JSON file of radin's or a library's may have: far more than any has

# .NAME.HOST-PID-TOKEN.tmp while it is written; .old is a folder on its way out.
_LEFT = re.compile(r"\..+\.([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{8}\.(tmp|old)")


@contextmanager
def attributed(path: Path) -> Iterator[None]:
    """Give an OSError that names no file, such as a full disk's, the one that was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the context ends well, and is removed if not."""
    temporary = _beside(path, "tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which only the owner may read
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.absolute().parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: a temporary one that takes the place of ``path``, files in it or not."""
    temporary, before = _beside(path, "tmp"), _beside(path, "old")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        if path.exists():  # a folder that is not empty cannot be replaced in one step
            os.replace(path, before)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists() and not path.exists():
            os.replace(before, path)
        raise
    shutil.rmtree(before, ignore_errors=True)
    sync_folder(path.absolute().parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, whole or not at all. Raises OSError."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """What a JSON file holds; nothing is known about its shape.

    Raises OSError, and ValueError for what is not JSON, nested too deeply for Python, larger than ``limit`` bytes, or
    no regular file (a pipe or a device could be read for ever).
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than {limit:,} bytes")
    return parse_json(content.decode("utf-8"))


def parse_json(text: str) -> Any:
    """What a text that nobody vouches for holds. Raises ValueError for what is not JSON or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def open_regular(path: Path) -> Any:
    """Open a regular file for reading bytes. Raises OSError, and ValueError for a pipe, a device or a folder."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return os.fdopen(descriptor, "rb")


def sweep(folder: Path, *, held: bool = False) -> list[Path]:
    """Remove what killed processes left half written in a folder; what was removed.

    What a process that still runs is writing stays, and so does what another machine may be writing. ``held``: the
    folder is this process's alone, so nobody else is writing there.
    """
    removed = []
    with suppress(OSError):
        for entry in sorted(folder.iterdir()):
            left = _LEFT.fullmatch(entry.name)
            if left and (held or (left.group(1) == _host() and not _runs(int(left.group(2))))):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
                removed.append(entry)
    return removed


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk: a rename in it then survives a power cut. Raises OSError."""
    if os.name == "posix":  # Windows cannot open a folder; there the rename is already durable enough
        sync(folder)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.{end}")


def _host() -> str:
    """This machine or container, as eight hexadecimal digits: its processes are known here by their numbers."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _runs(pid: int) -> bool:
    """Whether a process of this number may be there."""
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
