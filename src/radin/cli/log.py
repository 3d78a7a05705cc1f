"""``--log json``: one JSON object a line for each event, on standard error or in a file.

On standard error there is nothing else then: whatever is printed there, by anyone, becomes an event of kind "note".
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from radin.errors import RadinError, printable
from radin.events import FORMAT, Event, event

_OPTION = "--log"
_JOIN_SECONDS = 1.0  # to wait for what was printed last; a process left behind may hold the stream open


class Log:
    """Where events go. alone: it is standard error, and nothing else may be printed there."""

    def __init__(self, stream: TextIO, *, alone: bool) -> None:
        self._stream, self.alone = stream, alone
        self.told: set[str] = set()
        self._lock = threading.RLock()  # a signal may come in the middle of a line of the same thread
        self._stage: str | None = None

    def __call__(self, found: Event) -> None:
        """Write an event, at once. What ends a command is written by the command line, with its exit code."""
        if found.kind != "failed":
            self.write(found)

    def write(self, found: Event) -> None:
        """One line. A stream that nobody reads any more is no reason to end what is under way."""
        self.told.add(found.kind)
        with self._lock, suppress(OSError, ValueError):
            self._stream.write(json.dumps(found.to_json()) + "\n")
            self._stream.flush()

    def progress(self, what: str, done: float, total: float | None) -> None:
        """What is done now, when that changes."""
        if what != self._stage:
            self._stage = what
            self.write(event("stage", stage=printable(what), done=done, total=total))

    def start(self, command: str) -> None:
        """The first event of a command that has none of its own."""
        if "started" not in self.told:
            self.write(event("started", format=FORMAT, command=command))


current: Log | None = None
"""The log of the command that runs, where one was asked for."""


def asked(argv: Sequence[str]) -> str | None:
    """What was given as --log, before anything is parsed: until then there may be something to say."""
    for place, text in enumerate(argv):
        if text == _OPTION and place + 1 < len(argv):
            return argv[place + 1]
        if text.startswith(_OPTION + "="):
            return text.partition("=")[2]
    return None


def target(value: str) -> str | None:
    """The file that --log names; None: standard error. Raises RadinError for what it does not know."""
    form, colon, name = value.partition(":")
    if form != "json" or (colon and not name):
        raise RadinError(f"--log takes json (to standard error) or json:FILE; got {printable(value)!r}")
    return name or None


@contextmanager
def opened(value: str | None) -> Iterator[None]:
    """The log that was asked for, as long as the context is open. Raises RadinError where it cannot be."""
    global current
    if value is None:
        yield
        return
    name = target(value)
    if name is not None:
        from radin.files import told

        with told(doing="opened"):
            file = open(name, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        with file:
            current = Log(file, alone=False)
            try:
                yield
            finally:
                current = None
        return
    with _alone() as stream:
        current = Log(stream, alone=True)
        reader = threading.Thread(target=_notes, args=(current, _piped()), daemon=True)
        reader.start()
        try:
            yield
        finally:
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os.dup2(stream.fileno(), 2)
            reader.join(_JOIN_SECONDS)
            current = None


@contextmanager
def _alone() -> Iterator[TextIO]:
    """A stream of its own to where standard error went."""
    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream


def _piped() -> int:
    """Standard error of this process and all that it starts into a pipe; the end to read from."""
    sys.stderr.flush()
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    return reading


def _notes(log: Log, reading: int) -> None:
    """Each line that arrives is a note, until all who could write are gone."""
    with os.fdopen(reading, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            if text := line.strip():
                log.write(event("note", text=printable(text)))


def finished(code: int) -> None:
    """The last event of a command that went well and has told of none itself."""
    if current is not None and code == 0 and "finished" not in current.told:
        current.write(event("finished"))


def failed(kind: str, message: str, code: int) -> bool:
    """Tell that the command failed; whether that says it all, because standard error is the log's."""
    if current is None:
        return False
    current.write(event("failed", kind=kind, message=message, code=code))
    return current.alone


def stopped_at_once() -> None:
    """Tell of a signal that ends the process then and there."""
    failed("Stopped", "a signal ended the command at once", 1)
