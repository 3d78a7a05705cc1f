"""A run directory: what was asked, under a lock, refused when anything changed that could change an answer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from radin.checks import fits
from radin.checksums import opened, sealed
from radin.disks import url_of
from radin.errors import RunError
from radin.files import is_left, read_json, sweep, write_json
from radin.locks import LEASE, FolderLock, InUseError
from radin.run.journal import is_empty

FORMAT = 4  # checkpoints are known by BLAKE3
_SHA_256 = 3  # the format whose fingerprints were SHA-256
_SEALED = 3  # the first format that carries a checksum


class RunDirectory:
    """One run's folder, held by one process at a time.

    ``identity``: what may never change between the sessions of a run, named in words for messages. "members"
    (fingerprint -> name) is compared by fingerprint; every other entry by value. None: not known, or not used, in this
    session; what was recorded stays. Use as a context manager.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        self._lock = FolderLock(path)
        self._run = secrets.token_hex(16)

    @property
    def outputs(self) -> Path:
        """The folder of the members' outputs, unless runs share one."""
        return self.path / "outputs"

    @property
    def ledger(self) -> Path:
        """Where asks and tells are recorded."""
        return self.path / "ledger.sqlite"

    @property
    def searched_half(self) -> Path:
        """The outputs on the half that is searched on, while they are needed."""
        return self.path / "searched-half"

    @staticmethod
    def require_folder(path: Path) -> None:
        """Raise RunError for a URL."""
        if (url := url_of(path)) is not None:
            raise RunError(
                f"{url} is a URL; a run lives in a folder, on a disk of this machine or one that machines share. Give "
                "such a folder with --out; --upload copies the soup to a URL when it has finished."
            )

    def __enter__(self) -> RunDirectory:
        """Raises RunError when another process holds it, or when it belongs to something else."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; give a directory for the run")
        if self.path.is_dir() and self.is_new:
            unexpected = [
                p.name for p in self.path.iterdir() if not p.name.startswith((".lock", LEASE)) and not is_left(p.name)
            ]
            if unexpected:
                raise RunError(
                    f"{self.path} is not empty and not a radin run (found {', '.join(sorted(unexpected)[:3])}). "
                    "Give a new directory; nothing was written."
                )
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except InUseError as error:
            raise RunError(f"{error} Wait for it, or give another directory.") from None
        try:
            sweep(self.path, held=True)
            sweep(self.outputs)
            self._check_identity()
            self._run = str(self.read().get("run", self._run))
            # What was bound stays bound; a new session learns of its own data only by reading them.
            for name, value in self.read().get("identity", {}).items():
                if self.identity.get(name) is None:
                    self.identity[name] = value
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sweep(self.path, held=True)  # what a worker process left that was killed
        self._lock.release()

    @property
    def notes(self) -> list[str]:
        """Whom the folder was taken over from."""
        return self._lock.notes

    @property
    def is_new(self) -> bool:
        """Whether no run was started here yet."""
        return not (self.path / "run.json").exists()

    def read(self) -> dict[str, Any]:
        """run.json, or an empty mapping. Raises RunError when it is damaged."""
        path = self.path / "run.json"
        if not path.exists():
            return {}
        try:
            found = read_json(path)
            if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] < _SEALED:
                raise RunError(f"{path} was written by an older version of radin (format {found['format']})")
            found = opened(found)
            if found["format"] == _SHA_256:
                raise RunError(
                    f"{path} was written by an older version of radin (format {_SHA_256}), which knew checkpoints by "
                    "another hash: it cannot go on. Its best soup stays as it is; give a new directory with --out."
                )
            if found["format"] != FORMAT:
                raise RunError(f"{path} was written by another version of radin (format {found['format']!r})")
            if not all(isinstance(found[part], dict) for part in ("identity", "settings")) or "run" not in found:
                raise ValueError("it is no run's")
            if not fits(found["identity"].get("members", {}), Mapping[str, str]):
                raise ValueError("its members are no names by fingerprint")
        except (ValueError, KeyError) as error:
            raise RunError(f"{path} is damaged ({error}). {way_on(self.path)}") from None
        return found

    @property
    def run(self) -> str:
        """What the run's files know each other by: drawn when it began."""
        return self._run

    @property
    def ledger_is_gone(self) -> bool:
        """Whether this run had a ledger and has none, or an empty one."""
        began = "cached_members" in self.read().get("settings", {})
        return began and is_empty(self.ledger)

    def _check_identity(self) -> None:
        recorded = self.read().get("identity")
        if not recorded:
            return
        changes = []
        for name, now in self.identity.items():
            before = recorded.get(name)
            if before == now or before is None or now is None:
                continue
            if name == "members":
                if set(before) == set(now):
                    continue
                gone = [before[f] for f in before if f not in now]
                new = [now[f] for f in now if f not in before]
                changes.append(f"the pool (gone or changed: {_some(gone)}; new: {_some(new)})")
            else:
                changes.append(f"{name} (was {_shown(before)}, now {_shown(now)})")
        if changes:
            raise RunError(
                f"{self.path} belongs to another run: {'; '.join(changes)}. Give a new directory with --out, "
                "or restore what changed; nothing was written."
            )

    def record(self, settings: Mapping[str, Any]) -> None:
        """Write run.json: the identity and the settings of this session (budget, strategy, seed, versions)."""
        value = {"format": FORMAT, "run": self._run, "identity": self.identity, "settings": dict(settings)}
        write_json(self.path / "run.json", sealed(value))

    def bind(self, name: str, value: Any, settings: Mapping[str, Any]) -> None:
        """Bind the run to something that has just become known. Raises RunError when it was bound to another before."""
        if self.read().get("identity", {}).get(name) == value:
            return
        self.identity[name] = value
        self._check_identity()
        self.record(settings)


def way_on(folder: Path) -> str:
    """What to do when one of the two files of a run that nothing can be made again from is damaged or gone."""
    return (
        "Put a copy of it back if you have one. Otherwise start anew with another --out; with --outputs "
        f"{folder / 'outputs'} the members need no passes again."
    )


def _shown(value: Any) -> str:
    """A value of the identity as a message shows it: hashes short."""
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) or "none"
    return repr(value)


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
