"""A process that has loaded radin and torch and forks one for each command, which so does all that it does but import.

Each request is a line of JSON on standard input, each reply one on standard output. A fork is a process of its own,
with its own exit code, streams, signals, working directory and environment.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def heard() -> None:
    """In a new process: signals that whoever runs the tests ignores, as nohup and a shell's & do, end it as usual."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Forked:
    """A command that runs, used as one of subprocess.Popen is; what it prints goes to files."""

    def __init__(self, pid: int, ended: Callable[[], int | None], out: Path, err: Path) -> None:
        self.pid, self._ended, self._out, self._err = pid, ended, out, err
        self.returncode: int | None = None

    @property
    def out(self) -> str:
        """What it has printed."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has printed to standard error."""
        return self._err.read_text()

    def poll(self) -> int | None:
        """The exit code; None: it runs."""
        if self.returncode is None:
            self.returncode = self._ended()
        return self.returncode

    def wait(self, seconds: float = 240) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired after so many seconds."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("radin", seconds)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Commands:
    """Starts such a process when the first command is run, and ends it with ``close``.

    forks: False where a process that holds torch cannot be forked; each command is then started on its own.
    """

    def __init__(self, environment: dict[str, str], folder: Path, forks: bool = sys.platform == "linux") -> None:
        self._environment, self._folder, self._forks = environment, folder, forks
        self._process: subprocess.Popen[str] | None = None
        self._begun: list[Forked] = []

    def start(self, arguments: Sequence[object], cwd: Path | None = None, before: str = "") -> Forked:
        """``radin`` with these arguments, in the environment as it is now. before: Python that it runs first."""
        out, err = (self._folder / f"{len(self._begun)}.{name}" for name in ("out", "err"))
        request = {
            "arguments": [*map(str, arguments)],
            "cwd": str(cwd or Path.cwd()),
            "environment": os.environ | self._environment,
            "streams": [str(out), str(err)],
            "before": before,
        }
        if self._forks:
            for path in (out, err):
                path.touch()
            pid = self._ask(request)
            self._begun.append(Forked(pid, lambda: self._ask({"ended": pid}), out, err))
        else:
            code = f"{before}\nimport runpy, sys\nsys.argv = {['radin', *request['arguments']]!r}\n"
            code += "runpy.run_module('radin', run_name='__main__', alter_sys=True)"
            with out.open("w") as stdout, err.open("w") as stderr:
                run = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdout=stdout,
                    stderr=stderr,
                    env=request["environment"],
                    cwd=request["cwd"],
                    preexec_fn=heard,
                )
            self._begun.append(Forked(run.pid, run.poll, out, err))
        return self._begun[-1]

    def run(
        self, arguments: Sequence[object], cwd: Path | None = None, before: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        forked = self.start(arguments, cwd, before)
        code = forked.returncode = self._ask({"end of": forked.pid}) if self._forks else forked.wait()
        done = subprocess.CompletedProcess(["radin", *map(str, arguments)], code, forked.out, forked.err)
        for path in (forked._out, forked._err):
            path.unlink()
        return done

    def _ask(self, request: dict[str, Any]) -> Any:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | self._environment,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """No further commands; those that still run, of tests that failed, are killed."""
        for forked in self._begun:
            if forked.returncode is None:
                forked.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.communicate()


def _load() -> None:
    """All that the commands import late, but the libraries that few of them need."""
    import radin

    for module in pkgutil.walk_packages(radin.__path__, "radin."):
        if not module.name.startswith(("radin.__main__", "radin.integrations", "radin.demo", "radin.testing")):
            importlib.import_module(module.name)
    for name in ("toy", "sklearn.datasets", "scipy.stats", "torch.utils.data", "multiprocessing.connection"):
        importlib.import_module(name)
    assert threading.active_count() == 1, "what is forked must not hold the locks of other threads"
    gc.collect()
    gc.freeze()


def _become(request: dict[str, Any]) -> None:
    """What ``python -m radin`` is, in this fork; ends as that ends."""
    heard()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(request["streams"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv = ["radin", *request["arguments"]]
    exec(request["before"], {})
    runpy.run_module("radin", run_name="__main__", alter_sys=True)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    _load()
    for line in sys.stdin:
        request = json.loads(line)
        if "arguments" in request:
            found: int | None = os.fork()
            if found == 0:
                replies.close()
                _become(request)
                return
        else:
            at_once = "ended" in request
            pid, status = os.waitpid(request["ended" if at_once else "end of"], os.WNOHANG if at_once else 0)
            found = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(found), file=replies, flush=True)


if __name__ == "__main__":
    main()
