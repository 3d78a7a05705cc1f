"""Standard input, output and error as a command needs them, whatever it was started with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

answer: TextIO | None = None
"""Where the JSON of ``--json`` goes; None: standard output."""


def complete() -> None:
    """Open those of the three streams that are closed, to nowhere, and let no character be one that cannot be written.

    A file that is opened while descriptor 1 is closed would be written to by whatever prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


@contextmanager
def only_the_answer() -> Iterator[None]:
    """Standard output for ``answer`` alone: whatever else is printed there, by anyone, goes to standard error."""
    global answer
    kept = sys.stdout
    try:
        descriptor = os.dup(kept.fileno())
        stream = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError, AttributeError):  # not a file: of a program that captures what is printed
        answer, sys.stdout = kept, sys.stderr
        try:
            yield
        finally:
            answer, sys.stdout = None, kept
        return
    number = kept.fileno()
    kept.flush()
    os.dup2(2, number)
    answer = stream
    try:
        yield
    finally:
        answer = None
        with suppress(OSError, ValueError):
            kept.flush()
        os.dup2(descriptor, number)
        with suppress(OSError):
            stream.close()


class Unread(Exception):
    """Nobody reads what is printed: the other end of the pipe is closed."""


def write(text: str) -> None:
    """Write to where the answer goes, and flush. Raises Unread."""
    stream = answer or sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        abandon(stream)
        raise Unread from None


def say(text: str) -> None:
    """A line on standard error, if anyone can see it."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        abandon(sys.stderr)


def say_briefly(text: str) -> None:
    """The beginning of a line on standard error, a terminal, until ``unsay``."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def unsay() -> None:
    """Take away what ``say_briefly`` said."""
    say_briefly("\r\x1b[K")


def abandon(stream: TextIO) -> None:
    """Let what is left in a stream whose reader has gone fall away, at exit too."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
