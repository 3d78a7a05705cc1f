"""Before a worker elsewhere is given work: is it the same code over there, and can it see the files?

    asked = Hello.here(plan)                       the driver's own, once
    found = asked.answer(node)                     on the worker: its folder and import path are set, copies are fetched
    asked.require(found)                           the driver again; raises RadinError, naming the node

Only texts and numbers, so that workers of another version of radin can read it too: it comes before anything else.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import torch
from filelock import FileLock

import radin
from radin.engine.command import Command
from radin.engine.crew import Plan
from radin.engine.sources import named_files
from radin.errors import RadinError
from radin.weights import Pool, copies
from radin.weights.remote import fetch

State = tuple[int, int]
"""Of a file: bytes, and the time of its last change in nanoseconds."""

_CUT = 200  # characters of a part of a copy's path, from which its address can no longer be told


@dataclass(frozen=True)
class Hello:
    """What driver and workers must have alike.

    node: whose. versions: of radin, Python and torch. folder: the driver's working directory. imports: where the
    driver looks for modules. code: file of the task, or named by the program -> hash of its content. files:
    the members' -> their states; in a worker's, those alone that are not the same there, None where there is none.
    urls: file -> where it was copied from; such a copy is made anew on a node that lacks it. said: why that failed.
    """

    node: str
    versions: Mapping[str, str]
    folder: str | None
    imports: tuple[str, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, State | None] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)
    cache: str | None = None
    said: tuple[str, ...] = ()

    @classmethod
    def here(cls, plan: Plan, node: str = "this machine") -> Hello:
        """The driver's, of which it asks every worker."""
        folder = os.getcwd()
        names = [file for member in plan.pool for file in member.checkpoint.files]
        files = {str(file): _state(str(file)) for file in dict.fromkeys(names)}
        root = copies.folder()
        return cls(
            node,
            _versions(),
            folder,
            import_places(),
            _code(plan, folder),
            files,
            _urls(plan.pool, root),
            None if root is None else str(root.parent),
        )

    def answer(self, node: str) -> Hello:
        """A worker's answer. Goes to the driver's working directory, imports from where it does, fetches copies."""
        try:
            os.chdir(str(self.folder))
        except OSError:
            return Hello(node, _versions(), None)
        sys.path += [place for place in self.imports if place not in sys.path and os.path.isdir(place)]
        said = self._fetched()
        code = {name: _hash(name) or "" for name in self.code}
        files = {name: found for name, state in self.files.items() if (found := _state(name)) != state}
        return Hello(node, _versions(), self.folder, code=code, files=files, said=said)

    def _fetched(self) -> tuple[str, ...]:
        """Copy what is behind a URL and not here yet, into the folder where the driver has it; once on each node."""
        lacking = [name for name in self.urls if _state(name) != self.files[name]]
        if not lacking or self.cache is None:
            return ()
        os.environ["RADIN_CACHE"] = self.cache
        said = []
        try:
            os.makedirs(self.cache, exist_ok=True)
        except OSError as error:
            return (f"{self.cache}: {error.strerror}",)
        with FileLock(os.path.join(self.cache, ".node.lock")):
            for name in lacking:
                if _state(name) == self.files[name]:  # another worker of this node was first
                    continue
                try:
                    fetch(self.urls[name])
                except RadinError as error:
                    said.append(str(error))
                    continue
                if (state := self.files[name]) is not None:
                    with suppress(OSError):
                        os.utime(name, ns=(state[1], state[1]))  # the pool knows it by that; its content is hashed
        return tuple(said)

    def require(self, found: Hello) -> None:
        """Raise RadinError, naming the node, unless ``found`` is as it must be."""
        node = found.node
        for name, version in self.versions.items():
            there = found.versions.get(name, "none")
            if _compared(name, there) != _compared(name, version):
                raise RadinError(
                    f"{node} has {name} {there}, this machine has {version}: workers must run the same. "
                    "Install the same version in the environment of both"
                )
        if found.folder is None:
            raise RadinError(
                f"{node} cannot see the folder {self.folder}, from which this command runs. "
                "Give the command in a folder on storage that all nodes share"
            )
        for name, content in self.code.items():
            there = found.code.get(name, "")
            if not there:
                raise RadinError(f"{node} cannot see {name}: put it on storage that all nodes share")
            if there != content:
                raise RadinError(
                    f"{name} is another file on {node} than on this machine: put it on storage that all nodes share"
                )
        for name, state in found.files.items():
            more = f" (and {len(found.files) - 1} more files)" if len(found.files) > 1 else ""
            how = f"cannot see {name}{more}" if state is None else f"has another file as {name}{more}"
            why = f" It could not be copied there: {found.said[0]}" if found.said else ""
            raise RadinError(
                f"{node} {how}: members must be on storage that all nodes share, at the same path, or be given as URLs "
                f"(s3://, gs://, hf://).{why}"
            )


def import_places() -> tuple[str, ...]:
    """Where modules are looked for here beside what Python itself has, first what PYTHONPATH says."""
    given = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    own = tuple({os.path.realpath(place) + os.sep for place in (sys.prefix, sys.base_prefix)})
    places = (*given, *(os.path.abspath(place) for place in sys.path))
    kept = [place for place in places if place in given or not (os.path.realpath(place) + os.sep).startswith(own)]
    return tuple(dict.fromkeys(place for place in kept if os.path.isdir(place)))


def _versions() -> dict[str, str]:
    return {"radin": radin.__version__, "Python": platform.python_version(), "torch": torch.__version__}


def _compared(name: str, version: str) -> str:
    """What must be equal: Python's first two numbers; torch's version, whatever device it was built for."""
    if name == "Python":
        return ".".join(version.split(".")[:2])
    return version.split("+")[0] if name == "torch" else version


def _state(name: str) -> State | None:
    try:
        with open(name, "rb") as file:  # opening makes a network file system ask anew
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _hash(name: str) -> str | None:
    try:
        with open(name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _code(plan: Plan, folder: str) -> dict[str, str]:
    """The files that say what workers do, by absolute path. A task's text, or a Task made in Python, travels itself."""
    source = plan.source
    if isinstance(source, Command):
        names: Iterable[str] = named_files(source.command, Path(folder))
    elif isinstance(source, str):
        names = [_file_of(source.partition(":")[0])]
    else:
        names = []
    paths = [os.path.join(folder, os.path.expanduser(os.path.expandvars(name))) for name in names if name]
    return {path: found for path in paths if (found := _hash(path)) is not None}


def _file_of(place: str) -> str:
    """The file of a task: the path itself, or that of a module; "" where it has none."""
    if place.endswith(".py") or os.path.exists(place):
        return place
    with suppress(ImportError, ValueError, AttributeError):
        found = sys.modules.get(place) or find_spec(place)
        return str(getattr(found, "__file__", None) or getattr(found, "origin", None) or "")
    return ""


def _urls(pool: Pool, root: Path | None) -> dict[str, str]:
    """Each file that is a copy -> where it was copied from, which its path tells."""
    found = {}
    for member in pool:
        for file in member.checkpoint.files:
            if root is None or not Path(os.path.abspath(file)).is_relative_to(root.absolute()):
                continue
            protocol, *parts = Path(os.path.abspath(file)).relative_to(root.absolute()).parts
            # A long name was cut; one with a question mark is in a folder named by a hash.
            if parts and not any(len(part) >= _CUT for part in parts) and not re.fullmatch("[0-9a-f]{12}", parts[0]):
                found[str(file)] = f"{protocol}://{'/'.join(unquote(part) for part in parts)}"
    return found
