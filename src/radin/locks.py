"""One process at a time in a folder: by the system's lock, or by a file that says who works there where that fails.

The file (``.lease``) is made by a step that only one of several machines can win, and renewed while its process runs.
One that was not renewed for long, or whose process is gone from this machine, is taken over.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from filelock import FileLock, Timeout

from radin import disks
from radin.errors import RadinError
from radin.files import runs_here, storage_error, sync_folder

LEASE = ".lease"
MODE = "RADIN_LEDGER"
"""The environment variable: "journal" trusts no lock anywhere, "sqlite" every one; else the disk decides."""
_RENEWED = 15.0  # seconds between renewals
_STALE = 120.0  # seconds without one after which a lease is nobody's; a network's disk may show times late by a minute
_BYTES = 4096
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


class InUseError(RadinError):
    """Another process holds the folder. The message says which, where that is known, and what to do."""


@dataclass(frozen=True)
class Holder:
    """Who a lease says works in its folder. age: seconds since it was renewed; gone: its process is no more."""

    host: str
    process: int | None
    token: str
    age: float
    gone: bool

    @property
    def is_stale(self) -> bool:
        """Whether it may be taken over."""
        return self.gone or self.age > _STALE


def distrusted(folder: Path) -> str | None:
    """Why locks in a folder are not relied on, as part of a sentence; None where they are. Raises RadinError."""
    asked = os.environ.get(MODE, "")
    if asked not in ("", "journal", "sqlite"):
        raise RadinError(f"{MODE} must be journal or sqlite, or not be set; got {asked!r}")
    if asked == "journal":
        return f"{MODE}=journal asks for that"
    if asked == "sqlite":
        return None
    try:
        return disks.locks_fail(folder)
    except OSError as error:
        raise storage_error(error, folder, doing="used") from None


class FolderLock:
    """Holds a folder for this process, not waiting for another. ``notes``: what was taken over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: FileLock | None = None
        self._lease: Lease | None = None
        self.notes: list[str] = []

    def acquire(self) -> None:
        """Raises InUseError while another process holds it, StorageError."""
        if distrusted(self._folder) is not None:
            self._lease = Lease(self._folder / LEASE)
            self.notes += self._lease.acquire()
            return
        found = holder(self._folder / LEASE)  # of a process that trusts no lock
        if found is not None and not found.is_stale:
            raise InUseError(_in_use(self._folder / LEASE, found))
        self._file = FileLock(self._folder / ".lock")
        try:
            self._file.acquire(timeout=0)
        except Timeout:
            raise InUseError(f"{self._folder} is in use by another radin process.") from None

    def release(self) -> None:
        """Let go of it."""
        if self._lease is not None:
            self._lease.release()
        if self._file is not None:
            self._file.release()


class Lease:
    """A file that says which process works in a folder, renewed by a thread until it is released."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = secrets.token_hex(16)
        self._ended = Event()
        self._thread: Thread | None = None

    def acquire(self) -> list[str]:
        """Take it; a sentence for each that was taken over. Raises InUseError, StorageError."""
        notes = []
        try:
            while not self._make():
                found = holder(self.path, now=self._now())
                if found is None:
                    continue
                if not found.is_stale:
                    raise InUseError(_in_use(self.path, found))
                if self._remove(found):
                    why = "is gone" if found.gone else f"had not said for {found.age:.0f} s that it works"
                    notes.append(
                        f"{self.path.parent} was taken over from process {found.process or '?'} of {found.host}, "
                        f"which {why}"
                    )
        except OSError as error:
            raise storage_error(error, self.path) from None
        self._thread = Thread(target=self._renew, daemon=True)
        self._thread.start()
        return notes

    def _make(self) -> bool:
        """Put the lease there unless one is."""
        said = {"host": _host(), "process": os.getpid(), "token": self._token, "since": time.time()}
        return put(self.path, json.dumps(said).encode())

    def _remove(self, found: Holder) -> bool:
        """Take a stale lease away; False where somebody else was faster."""
        aside = self.path.with_name(f"{LEASE}.{self._token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return False
        try:
            taken = holder(aside)
            if taken is not None and taken.token != found.token:  # made since: put it back
                with suppress(OSError):
                    os.link(aside, self.path)
                return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _now(self) -> float:
        """The time as the file system's own machine has it."""
        probe = self.path.with_name(f"{LEASE}.{self._token}.now")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    @property
    def is_held(self) -> bool:
        """Whether the lease that is there is this one."""
        found = holder(self.path)
        return found is not None and found.token == self._token

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED):
            with suppress(OSError):
                if not self.is_held:
                    return
                os.utime(self.path)

    def release(self) -> None:
        """Let go of it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):
            if self.is_held:
                self.path.unlink()


def holder(path: Path, now: float | None = None) -> Holder | None:
    """Who holds a lease; None where there is none. ``now``: the time as the disk has it. Raises OSError."""
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES)
            renewed = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    age = max((time.time() if now is None else now) - renewed, 0.0)
    try:
        said = json.loads(content)
        host, process, token = str(said["host"]), int(said["process"]), str(said["token"])
    except (ValueError, KeyError, TypeError):  # half written, or another program's: its time decides
        return Holder("an unknown machine", None, "", age, False)
    return Holder(host, process, token, age, host == _host() and not runs_here(process))


def put(path: Path, content: bytes) -> bool:
    """Write a file whole and synced, unless there is one of this name: then False. Raises OSError.

    A hard link is what only one of several machines can make; where there are none, the name is taken first.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            if not os.path.samefile(temporary, path):  # else made, and the answer was lost and asked for again
                return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                os.close(os.open(path.with_name(f".{path.name}.claim"), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            try:
                if path.exists():
                    return False
                os.replace(temporary, path)
            finally:
                path.with_name(f".{path.name}.claim").unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _in_use(path: Path, found: Holder) -> str:
    return (
        f"{path.parent} is in use by another radin process: {found.process or '?'} of {found.host}, which said so "
        f"{found.age:.0f} s ago. If it is no more, the folder is free {_STALE:.0f} s after that, or when {path} is "
        "removed."
    )


def _host() -> str:
    """This machine, and the space in which its processes have numbers."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return "-".join(parts)
