"""Runs of radin's command line in forked processes, some of them killed or made to fail: the harness's side."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

OPERATIONS = ("open", "create", "write", "sync", "rename", "unlink", "mkdir", "truncate", "map", "read", "copy")
COUNT, KILL_BEFORE, KILL_AFTER, FAIL, SHORT = range(5)
CHANGING = ("create", "write", "sync", "rename", "unlink", "mkdir", "truncate", "copy")

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Fault:
    """The n-th call of these operations on files below ``folder`` whose path contains ``match``; 0: only counted."""

    folder: Path
    operations: Sequence[str] = CHANGING
    nth: int = 0
    action: int = COUNT
    error: int = 0
    lasting: bool = False
    match: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "match": self.match,
            "mask": sum(1 << OPERATIONS.index(name) for name in self.operations),
            "nth": self.nth,
            "action": self.action,
            "error": self.error,
            "lasting": self.lasting,
        }


@dataclass(frozen=True)
class Ended:
    """How a run ended. code: exit code, or minus the signal. fired: whether the armed call was made."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    timeout: bool
    fired: bool
    kilobytes: int
    calls: list[str] = field(default_factory=list, repr=False)

    @property
    def message(self) -> str:
        """What the command said, from "radin: " on."""
        at = self.stderr.find("radin: ")
        return self.stderr[at:].strip() if at >= 0 else ""

    @property
    def verdict(self) -> str:
        """ "ok", "refused" (exit code 2 and one message), "killed", or "crash"."""
        if self.timeout:
            return "crash"
        if self.code == -9:
            return "killed"
        traced = "Traceback (most recent call last)" in self.stderr or "fault of radin's own" in self.stderr
        if self.code == 0:
            return "crash" if traced else "ok"
        if self.code == 2 and not traced and self.stderr.count("radin: ") == 1:
            return "refused"
        return "crash"

    @property
    def head(self) -> str:
        """The line that tells a crash from others: the exception, or the message."""
        if self.timeout:
            return "no end within its time"
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line[:1].isalpha() and "Error" in line.split(":")[0]]
        if self.verdict == "crash" and errors:
            return errors[-1][:300]
        return (self.message or (lines[-1] if lines else f"exit code {self.code}"))[:300]


class Server:
    """One process that forks runs, one at a time."""

    def __init__(self, library: Path | None, warm_up: Sequence[str], cwd: Path) -> None:
        root = Path(__file__).resolve().parents[2]
        import radin

        places = [str(root), str(Path(radin.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "RADIN_CACHE": "off",
            "COLUMNS": "400",
        }
        if library is not None:
            environment["LD_PRELOAD"] = str(library)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fault_parts.server", *warm_up],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cwd,
        )
        self._errors: list[str] = []
        threading.Thread(target=self._read_errors, daemon=True).start()
        self._receive()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-50:], line]

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks runs ended:\n" + "".join(self._errors))
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, request: dict[str, Any]) -> Ended:
        """Fork a run and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._receive()
        names = ("code", "stdout", "stderr", "seconds", "timeout", "fired", "kilobytes", "calls")
        return Ended(**{name: reply[name] for name in names})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Servers:
    """As many of them as there are cores to use; any thread may ask."""

    def __init__(self, count: int, folder: Path, warm_up: Sequence[str]) -> None:
        self.folder = folder
        self.calls = compiled(folder)
        with ThreadPoolExecutor(count) as threads:
            begun = [
                threads.submit(
                    Server, self.calls, [str(part).replace("warm-up", f"warm-up-{k}") for part in warm_up], folder
                )
                for k in range(count)
            ]
        self._all = [one.result() for one in begun]
        self._free: queue.SimpleQueue[Server] = queue.SimpleQueue()
        for server in self._all:
            self._free.put(server)

    def run(
        self,
        argv: Sequence[object] = (),
        *,
        fault: Fault | None = None,
        kill_after: float | None = None,
        log_calls: bool = False,
        **more: Any,
    ) -> Ended:
        """Run the command line with these arguments; ``more``: env, limits, uid, timeout, context, call, arguments."""
        request = {
            "argv": [str(part) for part in argv],
            "cwd": str(self.folder),
            "fault": None if fault is None else fault.to_json(),
            "kill_after": kill_after,
            "log": log_calls,
            **more,
        }
        server = self._free.get()
        try:
            return server.run(request)
        finally:
            self._free.put(server)

    def each(self, act: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """``act`` of every item, as many at once as there are processes, in order."""
        with ThreadPoolExecutor(len(self._all)) as threads:
            yield from threads.map(act, items)

    def close(self) -> None:
        for server in self._all:
            server.close()


def compiled(folder: Path) -> Path | None:
    """calls.c as a library in ``folder``; None where there is no compiler, or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "libcalls.so"
    source = Path(__file__).with_name("calls.c")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    return library if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for runs, in memory where that is to be had: what is synced there costs no disk."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 4 << 30
    folder = Path(tempfile.mkdtemp(prefix="radin-faults-", dir=shared if roomy else None))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
