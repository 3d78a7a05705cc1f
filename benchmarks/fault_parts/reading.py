"""What all readers under test share: a command in this process, and how it may end."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

Probe = Callable[[random.Random], str]
"""Makes one input and has it read; what was read, in a word. Raises what the reader raises."""


class Refused(Exception):
    """A command ended with exit code 2 and one message."""


class Broken(Exception):
    """A command ended in any other way than done, or refused in one message."""


def command(*arguments: object) -> None:
    """The command line in this process. Raises Refused, and Broken."""
    from radin.cli import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["radin", *map(str, arguments)]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            code = error.code
    said = err.getvalue()
    if code == 2 and "Traceback (most" not in said.replace(_users_traceback(said), ""):
        raise Refused(said[max(0, said.rfind("radin: ")) :].strip())
    if code or "Traceback (most" in said:
        lines = [line for line in said.splitlines() if line.strip()]
        places = [line.strip() for line in lines if "/radin/" in line and line.strip().startswith("File ")]
        errors = [line for line in lines if line[:1].isalpha() and "Error" in line.split(":")[0]] or lines[-1:]
        where = places[-1].rsplit("/radin/", 1)[-1] if places else ""
        raise Broken(f"exit code {code}: {' '.join(errors[-1:])[:160]} at {where}")
    if not out.getvalue():
        raise Broken("exit code 0, and nothing was said")


def _users_traceback(said: str) -> str:
    """The traceback of a user's own code, which is shown above the message."""
    at = said.find("Traceback (most")
    end = said.rfind("radin: ")
    return said[at:end] if 0 <= at < end and "/radin/" not in said[at:end] else ""


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
