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
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class Commands:
    """Starts such a process when the first command is run, and ends it with ``close``."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment, self._folder = environment, folder
        self._process: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
        """``radin`` with these arguments, in the environment as it is now."""
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
        out, err = self._folder / "stdout", self._folder / "stderr"
        request = {
            "arguments": arguments,
            "cwd": str(cwd or Path.cwd()),
            "environment": os.environ | self._environment,
            "streams": [str(out), str(err)],
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        code = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(["radin", *arguments], code, out.read_text(), err.read_text())

    def close(self) -> None:
        """No further commands."""
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
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(request["streams"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv = ["radin", *request["arguments"]]
    runpy.run_module("radin", run_name="__main__", alter_sys=True)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    _load()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            replies.close()
            _become(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=replies, flush=True)


if __name__ == "__main__":
    main()
