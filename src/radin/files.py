"""Files, whole or not at all: written to a temporary name beside their own, synced, renamed; and JSON read with bounds.

A killed process may leave a temporary file: ``sweep`` removes what processes that are gone have left in a folder.
"""

from __future__ import annotations

import errno
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
from typing import Any, BinaryIO

from radin.errors import StorageError

JSON_BYTES = 64 * 2**20  # what a JSON file of radin's or a library's may have: far more than any has

# .NAME.HOST-PID-TOKEN.tmp while it is written; .old is a folder on its way out. safetensors makes a .tmp of its own.
_LEFT = re.compile(r"\..+\.([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{8}\.(tmp|old)")
_SAFETENSORS_LEFT = re.compile(r"\.tmp[0-9A-Za-z]{6}")


def storage_error(error: OSError, path: Path | None = None, *, doing: str = "written", needs: int = 0) -> StorageError:
    """An error of the operating system's as a message: which file, what is the matter, what to do.

    path: where the error itself names none. doing: what was done with it: "read", "written". needs: bytes, if known.
    """
    name = error.filename if isinstance(error.filename, str) else path
    where = Path(name) if name is not None else None
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and where is not None:
        with suppress(OSError):
            folder = next(parent for parent in where.absolute().parents if parent.is_dir())
            room = f" ({shutil.disk_usage(folder).free:,} bytes are free" + (f", {needs:,} needed)" if needs else ")")
    kind, todo = _CAUSES.get(error.errno or 0, (error.strerror or str(error), "Mend the cause"))
    if error.errno in (errno.EMFILE, errno.ENFILE):
        kind += _open_files_limit()
    return StorageError(
        f"{where if where is not None else 'a file'} cannot be {doing}: {kind}{room}. {todo}, and give the same "
        "command again: nothing that was finished is lost."
    )


# How safetensors and torch say it.
_HIDDEN = re.compile(r"\(os error (\d+)\)|unable to (?:mmap|open) .*\((\d+)\)", re.DOTALL)
_CAUSES = {
    errno.ENOSPC: ("no space is left on the disk", "Make room"),
    errno.EDQUOT: ("the disk quota is used up", "Make room"),
    errno.EACCES: ("no permission", "Change the permissions of the file and its folder"),
    errno.EPERM: ("the system does not permit it", "Change the permissions of the file and its folder"),
    errno.EROFS: ("the file system is read-only", "Give a folder on another one, or mount it to be written to"),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this machine", "Close other programs"),
    errno.EIO: ("the disk gave an input/output error", "Check the disk"),
    errno.EFBIG: ("files may not become so large here", "Raise the limit (ulimit -f), or use another disk"),
    errno.ENOENT: ("it is not there, or its folder is gone", "Put it back"),
    errno.ENOMEM: ("the system has no memory left", "Close other programs"),
    errno.ESTALE: ("the network disk has lost it", "Mount it again"),
}


def _open_files_limit() -> str:
    try:
        import resource
    except ImportError:  # not on Windows
        return ""
    return f"; this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}"


@contextmanager
def told(path: Path | None = None, *, doing: str = "written", needs: int = 0) -> Iterator[None]:
    """Turn the operating system's errors into StorageErrors, see ``storage_error``; also those that a library hides."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, doing=doing, needs=needs) from error
    except Exception as error:
        if (hidden := hidden_error(error)) is not None:
            raise storage_error(hidden, path, doing=doing, needs=needs) from error
        raise


def hidden_error(error: Exception) -> OSError | None:
    """The operating system's error that a library tells of in words; None where it is something else."""
    found = _HIDDEN.search(str(error))
    if found is None:
        return None
    number = int(found.group(1) or found.group(2))
    return OSError(number, os.strerror(number))


@contextmanager
def attributed(path: Path) -> Iterator[None]:
    """Give an OSError that names no file, such as a full disk's, the one that was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


class Writer:
    """A file open for writing, for a library that hides why a write failed: ``error`` is the system's own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """As a file's."""
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """As a file's."""
        self._file.flush()


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the context ends well, and is removed if not.

    durable: have it on disk before; without, a power cut may leave an empty file.
    """
    temporary = _beside(path, "tmp")
    try:
        with attributed(path):
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors puts a file of its own there, which only the owner may read
            if durable:
                sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
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


def open_regular(path: Path) -> BinaryIO:
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
            ours = left is not None and left.group(1) == _host() and not runs_here(int(left.group(2)))
            if ours or (held and (left or _SAFETENSORS_LEFT.fullmatch(entry.name))):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
                removed.append(entry)
    return removed


def is_left(name: str) -> bool:
    """Whether a file is called as what is half written is."""
    return bool(_LEFT.fullmatch(name) or _SAFETENSORS_LEFT.fullmatch(name))


def mark_used(folder: Path) -> Path:
    """A new file in a folder that says that this process uses it; ``sweep`` removes it when the process is no more."""
    mark = _beside(folder / "used", "tmp")
    mark.touch(exist_ok=False)
    return mark


def users(folder: Path) -> list[Path]:
    """What processes have put into a folder by ``mark_used``."""
    return sorted(
        entry for entry in folder.iterdir() if entry.name.startswith(".used.") and _LEFT.fullmatch(entry.name)
    )


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


def runs_here(pid: int) -> bool:
    """Whether a process of this number may be there, on this machine."""
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
