"""A queue that is a folder of whole files, on a file system that the driver and all workers share.

    plan.pickle             what workers are made from; the user's own code, written by the driver alone
    session.json            where the driver works, how often who gives a sign of life
    driver                  touched by the driver while it lives
    workers/WORKER          a worker's hello, touched by it while it lives
    todo/NNNNNN-SOUP        work that any worker may take; todo/NNNNNN-SOUP@WORKER, that one alone
    taken/NNNNNN-SOUP@WORKER    work that a worker has taken, by renaming it: of several that try, one can
    done/NNNNNN-SOUP@WORKER     what came of it; done/@WORKER, why a worker cannot work at all
    STOP                    workers end

Files come into being under another name, are synced and renamed, so whoever finds one finds it whole. Network disks
remember listings and times for a while; they ask anew whenever something is opened, so all that is looked at here is
opened first. Times are compared only with times that the same file system has given.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radin.engine.packed import DamagedError, Tensors, read_packed, write_packed
from radin.errors import RadinError
from radin.files import read_json, replacing, write_json

_ENTRY = re.compile(r"(\d{6,12})-([0-9a-f]{8}|member|repeat)(?:@([A-Za-z0-9._-]{1,200}))?")
_WORKER = re.compile(r"[A-Za-z0-9._-]{1,200}")
_PLAN_BYTES = 2 * 2**30
_FOLDERS = ("workers", "todo", "taken", "done")


@dataclass(frozen=True)
class Timing:
    """Seconds. ``beat``: between signs of life. ``lease``: without one, a worker's work is given to another.

    ``orphaned``: without a sign of the driver's, a worker ends. ``shortest``, ``longest``: between looks into the
    folder; the wait grows while nothing happens.
    """

    beat: float = 5.0
    lease: float = 60.0
    orphaned: float = 300.0
    shortest: float = 0.02
    longest: float = 1.0

    def grown(self, wait: float) -> float:
        """The next wait after one in which nothing happened."""
        return min(wait * 1.5, self.longest)


@dataclass(frozen=True)
class Entry:
    """A file's name in todo, taken or done. ``worker``: who has it, or who alone may take it."""

    number: int
    soup: str
    worker: str | None = None

    @property
    def name(self) -> str:
        """As a file."""
        return f"{self.number:06d}-{self.soup}" + (f"@{self.worker}" if self.worker else "")

    @classmethod
    def parse(cls, name: str) -> Entry | None:
        """None for a file that is no entry."""
        found = _ENTRY.fullmatch(name)
        return None if found is None else cls(int(found.group(1)), found.group(2), found.group(3))


class Queue:
    """The folder, for both sides. ``timing`` is the driver's."""

    def __init__(self, folder: Path) -> None:
        """One that is there. Raises OSError or ValueError where it is not."""
        self.folder = folder
        self.settings: dict[str, Any] = read_json(folder / "session.json")
        self.timing = Timing(**self.settings["timing"])

    @classmethod
    def create(cls, folder: Path, plan: bytes, settings: dict[str, Any], timing: Timing) -> Queue:
        """A new one, which only this user can enter. Raises OSError."""
        folder.mkdir(parents=True, mode=0o700)
        for name in _FOLDERS:
            (folder / name).mkdir(mode=0o700)
        with replacing(folder / "plan.pickle") as temporary:
            temporary.write_bytes(plan)
        (folder / "plan.pickle").chmod(0o600)
        (folder / "driver").touch()
        write_json(folder / "session.json", {**settings, "timing": asdict(timing)})
        return cls(folder)

    def plan(self, digest: str) -> bytes:
        """The plan's bytes. Raises RadinError unless they are this user's alone, with this SHA-256."""
        path = self.folder / "plan.pickle"
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(min(status.st_size, _PLAN_BYTES))
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise RadinError(f"{path} can be written by others than the user who runs radin: it is not read")
        if hashlib.sha256(content).hexdigest() != digest:
            raise RadinError(f"{path} is not the file that this run wrote: give the same command again")
        return content

    def names(self, kind: str) -> list[str]:
        """The whole files in a folder of the queue, in order."""
        # A folder that is opened anew is asked for anew, from a network disk too.
        descriptor = os.open(self.folder / kind, os.O_RDONLY)
        try:
            return sorted(name for name in os.listdir(descriptor) if not name.startswith("."))
        finally:
            os.close(descriptor)

    def entries(self, kind: str) -> list[Entry]:
        """The entries in todo, taken or done, in the order of their numbers."""
        found = (Entry.parse(name) for name in self.names(kind))
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.number)

    def post(self, entry: Entry, value: dict[str, Any], tensors: Tensors) -> None:
        """Put work where workers find it."""
        write_packed(self.folder / "todo" / entry.name, value, tensors)

    def remove(self, kind: str, entry: Entry) -> None:
        """Remove a file of an entry; that it is gone already is as well."""
        (self.folder / kind / entry.name).unlink(missing_ok=True)

    def claim(self, worker: str, soup: str | None) -> Entry | None:
        """Take work, rather that of the soup that this worker has built; None: there is none for it."""
        free = [entry for entry in self.entries("todo") if entry.worker in (None, worker)]
        free.sort(key=lambda entry: (entry.worker is None, entry.soup != soup))
        for entry in free:
            mine = Entry(entry.number, entry.soup, worker)
            taken = self.folder / "taken" / mine.name
            try:
                os.rename(self.folder / "todo" / entry.name, taken)
            except FileNotFoundError:
                # A server may have done it and lost the reply; the client then asks again and is told that it is gone.
                if not taken.exists():
                    continue
            return mine
        return None

    def taken(self, entry: Entry) -> tuple[dict[str, Any], Tensors]:
        """What work was taken. Raises DamagedError, and OSError where the driver took it back."""
        return read_packed(self.folder / "taken" / entry.name)

    def hand_in(self, name: str, value: dict[str, Any], tensors: Tensors | None = None) -> None:
        """Give what came of an entry, or of a worker (@WORKER)."""
        write_packed(self.folder / "done" / name, value, tensors or {})

    def done(self, name: str) -> tuple[dict[str, Any], Tensors]:
        """What was handed in. Raises DamagedError, OSError."""
        return read_packed(self.folder / "done" / name)

    def quarantine(self, name: str) -> Path:
        """Put a damaged answer aside, beside the session's folder; where it is now."""
        aside = self.folder.parent / "damaged" / f"{self.folder.name}-{name}"
        aside.parent.mkdir(exist_ok=True)
        os.replace(self.folder / "done" / name, aside)
        return aside

    def hello(self, worker: str, value: dict[str, Any]) -> None:
        """Say that a worker is there; from then on it gives signs of life."""
        write_packed(self.folder / "workers" / worker, value, {})

    def said_hello(self, worker: str) -> dict[str, Any]:
        """A worker's hello. Raises DamagedError, OSError."""
        return read_packed(self.folder / "workers" / worker, limit=2**26)[0]

    def workers(self) -> list[str]:
        """All that have said hello."""
        return [name for name in self.names("workers") if _WORKER.fullmatch(name)]

    def sign(self, worker: str | None = None) -> float:
        """Give a sign of life, the driver's without a worker; the file system's time now."""
        path = self._life(worker)
        os.utime(path)  # without times: a server then puts its own
        return self._changed(path)

    def last_sign(self, worker: str | None = None) -> float:
        """The file system's time of the last one. Raises OSError."""
        return self._changed(self._life(worker))

    def stopped(self) -> bool:
        """Whether the session is over: STOP is there, or the folder is gone."""
        try:
            return "STOP" in self.names(".")
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # the disk is away; for how long is seen by the driver's signs
            return False

    def stop(self) -> None:
        """End the session: workers that are left end when they see it."""
        with suppress(OSError):
            (self.folder / "STOP").touch()

    def clear(self) -> None:
        """Remove the folder; what workers still put into it goes with a second or third try."""
        for _ in range(3):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.1)

    def _life(self, worker: str | None) -> Path:
        return self.folder / "driver" if worker is None else self.folder / "workers" / worker

    @staticmethod
    def _changed(path: Path) -> float:
        descriptor = os.open(path, os.O_RDONLY)  # opened, so that a network disk asks its server
        try:
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)


class Heart(threading.Thread):
    """Gives signs of life until it is told to end, and calls ``each`` after every one."""

    def __init__(self, queue: Queue, worker: str | None = None, each: Callable[[float], None] | None = None) -> None:
        super().__init__(daemon=True, name="radin-signs-of-life")
        self._queue, self._worker, self._each = queue, worker, each
        self._end = threading.Event()

    def run(self) -> None:
        """Until ``end``; a disk that is away for a moment ends nothing."""
        while not self._end.wait(self._queue.timing.beat):
            now = 0.0
            with suppress(OSError):
                now = self._queue.sign(self._worker)
            if self._each is not None:
                self._each(now)

    def end(self) -> None:
        """No more signs."""
        self._end.set()
        if self.is_alive():
            self.join(self._queue.timing.beat + 1)


def new_name(*parts: object) -> str:
    """A worker's or a session's name that no other has: a file's name, of what it is made from and chance."""
    text = "-".join(re.sub(r"[^A-Za-z0-9._-]", "_", str(part))[:60] for part in (*parts, secrets.token_hex(3)))
    return text.lstrip(".")


def stop_others(folder: Path, own: str) -> None:
    """End the sessions of drivers that are no more, in a run's folder that only this driver holds; remove them."""
    with suppress(OSError):
        for entry in sorted(folder.iterdir()):
            if entry.name != own and (entry / "session.json").is_file():
                with suppress(OSError):
                    (entry / "STOP").touch()
                shutil.rmtree(entry, ignore_errors=True)


__all__ = ["DamagedError", "Entry", "Heart", "Queue", "Timing", "new_name", "stop_others"]
