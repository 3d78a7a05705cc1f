"""A process that has loaded all there is to load, and forks a run of the command line for every request.

A run so costs what it does and not what Python's and torch's imports take. Requests and replies are lines of JSON on
standard input and output. With calls.c loaded, a run can be killed at, or be failed, its n-th call on a folder's files.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

_SHOWN = 200_000  # bytes of a run's output that are handed back


class _Calls:
    """calls.c in this process; without it nothing is counted and nothing can be armed."""

    def __init__(self) -> None:
        loaded = "calls" in os.environ.get("LD_PRELOAD", "")
        self._library = ctypes.CDLL(None) if loaded else None
        if self._library is not None:
            self._library.faults_log.restype = ctypes.c_void_p
            self._library.faults_log_bytes.restype = ctypes.c_long

    def arm(self, fault: dict[str, Any] | None) -> None:
        """Count, kill or fail from now on; None: nothing."""
        if self._library is None:
            assert fault is None, "calls.c is not loaded"
            return
        self._library.faults_reset()
        if fault is not None:
            self._library.faults_arm(
                fault["folder"].encode(),
                fault.get("match", "").encode(),
                fault["mask"],
                ctypes.c_long(fault.get("nth", 0)),
                fault.get("action", 0),
                fault.get("error", 0),
                int(fault.get("lasting", False)),
            )

    def seen(self) -> list[str]:
        """The calls counted since arming: "write /ledger.sqlite"."""
        if self._library is None:
            return []
        text = ctypes.string_at(self._library.faults_log(), self._library.faults_log_bytes())
        return text.decode(errors="replace").splitlines()

    @property
    def fired(self) -> bool:
        return self._library is not None and bool(self._library.faults_fired())


def main() -> None:
    """Serve until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    calls = _Calls()
    print(json.dumps({"ready": os.getpid(), "seconds": _warm_up(sys.argv[1:])}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line), calls)), file=replies, flush=True)


def _warm_up(arguments: list[str]) -> float:
    """Run the command once in this process, so that all modules that it loads late are there."""
    started = time.monotonic()
    for name in ("radin.cli", "radin", "numpy", "safetensors", "sqlite3", "benchmarks.fault_parts.fuzz"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if arguments:
        _as_command(arguments)
    # What is forked must not hold the locks of other threads.
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()
    return time.monotonic() - started


def _as_command(arguments: list[str]) -> int:
    from radin.cli import main as command

    sys.argv = ["radin", *arguments]
    try:
        command()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)


def _serve(request: dict[str, Any], calls: _Calls) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        calls.arm(None)
        child = os.fork()
        if child == 0:
            _child(request, calls, out.fileno(), err.fileno())
        killed, status, usage = _attend(child, request)
        seconds = time.monotonic() - started
        reply = {
            "killed": killed,
            "timeout": killed == "timeout",
            "code": os.waitstatus_to_exitcode(status),
            "seconds": seconds,
            "kilobytes": usage.ru_maxrss,
            "fired": calls.fired,
            "calls": calls.seen() if request.get("log") else [],
        }
        for name, file in (("stdout", out), ("stderr", err)):
            file.seek(0)
            reply[name] = file.read(_SHOWN).decode(errors="replace")
    return reply


def _attend(child: int, request: dict[str, Any]) -> tuple[str, int, resource.struct_rusage]:
    """Wait for a run; end it when its time has come."""
    killed = ""
    for seconds, number, why in (
        (request.get("kill_after"), request.get("signal", signal.SIGKILL), "killed"),
        (request.get("timeout", 120.0), signal.SIGKILL, "timeout"),
    ):
        if seconds is None:
            continue
        descriptor = os.pidfd_open(child)
        try:
            ended = bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)
        if ended:
            break
        os.kill(child, number)
        killed = why
        if number == signal.SIGKILL:
            break
    _, status, usage = os.wait4(child, 0)
    return killed, status, usage


def _fork_workers() -> None:
    """Worker processes as forks: what is to be broken is how they and the run end, not how they start.

    A process that is started anew has only its own end of its pipe; a fork has to close the others.
    """
    context = multiprocessing.get_context("fork")
    ends: list[Any] = []
    pipe = type(context).Pipe

    def counted(self: Any, duplex: bool = True) -> Any:
        mine, theirs = pipe(self, duplex)
        ends.append(mine)
        return mine, theirs

    type(context).Pipe = counted  # type: ignore[method-assign]
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]

    def close() -> None:
        for end in ends:
            end.close()

    os.register_at_fork(after_in_child=close)


def _child(request: dict[str, Any], calls: _Calls, out: int, err: int) -> None:
    """The run: never returns."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update(request.get("env", {}))
        os.chdir(request.get("cwd", "/"))
        if request.get("context", "fork") == "fork":
            _fork_workers()
        for name, value in request.get("limits", {}).items():
            number = getattr(resource, f"RLIMIT_{name}")
            resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
        if "NOFILE" in request.get("limits", {}):
            os.closerange(3, 1024)
        if request.get("uid"):
            os.setgroups([])
            os.setgid(request["uid"])
            os.setuid(request["uid"])
        calls.arm(request.get("fault"))
        if "call" in request:
            place, _, name = request["call"].partition(":")
            code = int(getattr(importlib.import_module(place), name)(*request.get("arguments", [])) or 0)
        else:
            code = _as_command(request["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            for child in multiprocessing.active_children():
                child.kill()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
