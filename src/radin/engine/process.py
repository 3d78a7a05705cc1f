"""Run one command in a process group of its own: its output bounded, its time bounded, nothing left running."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from radin import interrupts

# Seconds from SIGTERM to SIGKILL: of a program that took too long, and where all of radin is asked to end. Then those
# that what a finished program left behind may still write.
GRACE = 5.0
_STOP_GRACE = 0.5
_LINGER = 1.0
_POLL = 0.05  # seconds between looks at whether the program has ended
_READ = 1 << 16

# Bytes kept of the end of each stream. An answer with a value for each of a million examples is in the first.
STDOUT_BYTES = 32 << 20
STDERR_BYTES = 64 << 10


@dataclass(frozen=True)
class Finished:
    """What became of a command.

    ``code``: its exit code, or minus the signal that ended it. ``ended``: why it was ended from here, if it was.
    ``stdout``, ``stderr``: the end of each; ``whole``: whether that is all of stdout. ``seconds``: wall time.
    """

    code: int
    ended: Literal["", "timeout", "stopped"]
    stdout: str
    stderr: str
    whole: bool
    seconds: float


class _Tail:
    """The last bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytearray] = deque()
        self._held = 0
        self.whole = True

    def add(self, data: bytes) -> None:
        if self._chunks and len(self._chunks[-1]) < _READ:
            self._chunks[-1] += data
        else:
            self._chunks.append(bytearray(data))
        self._held += len(data)
        while self._held - len(self._chunks[0]) >= self._limit:
            self._held -= len(self._chunks.popleft())
            self.whole = False

    def text(self) -> str:
        return b"".join(self._chunks).decode(errors="replace")


def run_shell(
    command: str, environment: Mapping[str, str], *, timeout: float | None, stop: threading.Event
) -> Finished:
    """Run ``command`` through /bin/sh and wait for it; on ``timeout`` (seconds) or ``stop`` its whole group is ended.

    Whatever of its group is still running when the command itself has ended is ended too. Raises OSError when no
    process can be started.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = _Tail(STDOUT_BYTES), _Tail(STDERR_BYTES)
    killed = interrupts.at_once(lambda: _signal_group(process, signal.SIGKILL))
    with killed, process.stdout, process.stderr, selectors.DefaultSelector() as streams:
        streams.register(process.stdout, selectors.EVENT_READ, out)
        streams.register(process.stderr, selectors.EVENT_READ, err)
        try:
            ended = _attend(process, streams, None if timeout is None else started + timeout, stop)
        finally:
            # Before the command is reaped its number cannot be another's, so this can only hit its own group.
            _signal_group(process, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it goes when it can
                process.wait(GRACE)
        _drain(streams)
    code = 0 if process.returncode is None else process.returncode
    return Finished(code, ended, out.text(), err.text(), out.whole, time.monotonic() - started)


def _attend(
    process: subprocess.Popen[bytes],
    streams: selectors.BaseSelector,
    deadline: float | None,
    stop: threading.Event,
) -> Literal["", "timeout", "stopped"]:
    """Read the streams until the command has ended, by itself or not; it is not reaped yet."""
    ended: Literal["", "timeout", "stopped"] = ""
    last = float("inf")  # when waiting for what remains of its group ends
    delay = 0.001
    while True:
        delay = 0.001 if _read_ready(streams, delay) else min(2 * delay, _POLL)
        now = time.monotonic()
        if not ended and (stop.is_set() or (deadline is not None and now >= deadline)):
            ended = "stopped" if stop.is_set() else "timeout"
            _signal_group(process, signal.SIGTERM)
            last = now + (_STOP_GRACE if ended == "stopped" else GRACE)
        elif ended == "timeout" and stop.is_set():
            last = min(last, now + _STOP_GRACE)
        if _has_ended(process):
            last = min(last, now + (GRACE if ended == "timeout" else _LINGER))
            # A pipe is open for as long as any process of the group that inherited it is there.
            if not streams.get_map():
                return ended
        if now >= last:
            return ended


def _read_ready(streams: selectors.BaseSelector, timeout: float) -> bool:
    """Read once from each stream that has something; whether any had."""
    ready = streams.select(timeout)
    for key, _ in ready:
        data = os.read(key.fd, _READ)
        if data:
            key.data.add(data)
        else:
            streams.unregister(key.fileobj)
    return bool(ready)


def _drain(streams: selectors.BaseSelector) -> None:
    """Read what is left in the pipes, for a second at most: a process that left the group may go on writing."""
    until = time.monotonic() + _LINGER
    while streams.get_map() and _read_ready(streams, 0) and time.monotonic() < until:
        pass


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the command has ended, without reaping it where the system can tell."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # this process ignores SIGCHLD
        return process.poll() is not None


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left, or only what was ended already
        os.killpg(process.pid, number)


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
