"""The command line: one file per command. Parse, call, print. What is imported here is little: see ``interrupts``."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NoReturn

from radin import interrupts
from radin.cli import log, streams
from radin.errors import RadinError, printable, printable_lines


def main() -> NoReturn:
    """Run the command line.

    Exit 0: done; 2: the user can mend it; 1: our fault; 129, 130, 143: hung up, interrupted, terminated; 141: nobody
    reads what is printed.
    """
    with interrupts.handled():
        streams.complete()
        with _log(), streams.only_the_answer() if "--json" in sys.argv else nullcontext():
            code = _run()
            log.finished(code)
        sys.exit(code)


@contextmanager
def _log() -> Iterator[None]:
    """The log of ``--log``. One that cannot be opened is refused when the command is parsed."""
    value = log.asked(sys.argv)
    with ExitStack() as stack:
        with suppress(RadinError):
            stack.enter_context(log.opened(value))
            stack.enter_context(interrupts.at_once(log.stopped_at_once))
        yield


def _run() -> int:
    """One command from start to end; its exit code. Whatever goes wrong is said in one message."""
    try:
        return _command()
    except interrupts.Stopped as stopped:
        return _ended("Stopped", interrupts.words(stopped.number, sys.argv), 128 + stopped.number)
    except KeyboardInterrupt:
        return _ended("KeyboardInterrupt", "radin: interrupted.", 130)


def _command() -> int:
    import click

    try:
        from radin.cli.group import cli

        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (streams.Unread, BrokenPipeError):
        streams.abandon(sys.stdout)
        return 141
    except click.ClickException as error:
        return _ended("UsageError", printable_lines(_shown(error)).rstrip(), 2)
    except RadinError as error:
        return _refused(error)
    except OSError as error:
        from radin.files import storage_error

        return _refused(storage_error(error, doing="used"))
    except SystemExit as error:
        if "_RADIN_COMPLETE" in os.environ:  # click's answer to a shell
            raise
        return _ended(
            "SystemExit", f"radin: code that is not radin's ended the command with sys.exit({error.code!r})", 2
        )
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):
            return _fault()
        raise KeyboardInterrupt from None
    except Exception as error:
        return _memory(error) or _fault()


def _ended(kind: str, text: str, code: int) -> int:
    """Say why a command failed, once: in the log where standard error is that; its exit code."""
    if not log.failed(kind, text.removeprefix("radin: "), code):
        streams.say(text)
    return code


def _refused(error: RadinError) -> int:
    shown = getattr(error, "traceback", None)
    if shown:
        streams.say(printable_lines(shown))
    # Further lines are set in: what a name says in one of them is no message of radin's.
    _ended(type(error).__name__, "radin: " + str(error).replace("\n", "\n  "), 2)
    if streams.answer is not None:
        with suppress(streams.Unread):
            value = {"error": {"kind": type(error).__name__, "message": str(error)}}
            streams.write(json.dumps(value) + "\n")
    return 2


def _memory(error: Exception) -> int:
    """Said of memory that ran out where nothing could be made smaller; 0 where it is something else."""
    forward = sys.modules.get("radin.engine.forward")
    lacks = isinstance(error, MemoryError) or (forward is not None and forward.lacks_memory(error))
    if not lacks and "can't start new thread" not in str(error):  # its stack is memory too
        return 0
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return _ended(
        "MemoryError",
        f"radin: memory ran out ({printable(reason)}). What is smaller: --members-at-once 1, --jobs 1, --batch-size, "
        "--device. Nothing finished is lost; the same command continues from here.",
        2,
    )


def _fault() -> int:
    import traceback

    streams.say(printable_lines(traceback.format_exc()).rstrip())
    return _ended("Fault", "radin: this is a fault of radin's own. Please report it with the lines above.", 1)


def _shown(error: Any) -> str:
    """What click says of a command line that it cannot read."""
    text = io.StringIO()
    error.show(file=text)
    return text.getvalue()


if __name__ == "__main__":
    main()
