"""The files that a command names: its scripts and settings, known by their content, so that a change is noticed."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

# Files above this many bytes are known by their size and time: a data set would take longer to read than to score.
_HASHED_BYTES = 64 << 20
_INTERPRETERS = re.compile(
    r"(python|pypy|bash|sh|zsh|dash|env|node|perl|ruby|Rscript|julia|nice|timeout|time|xargs)[\d.]*"
)
# An option of this name tells where the program writes: what lies there changes with every evaluation.
_WRITES = re.compile(
    r"--?(\S*[-_])?(o|(out|output|log|save|cache|result|write)s?(dir|path|file)?)([-_]\S*)?", re.IGNORECASE
)


def named_files(command: str, folder: Path) -> dict[str, str]:
    """{file as the command names it: SHA-256, or size and time of a large one}, seen from ``folder``.

    Files that a shell redirects to, or that an option such as --log or --output names, are not among them, nor are
    interpreters. What a script imports or reads by itself is not seen.
    """
    return {name: _content(path) for name, path in _files(command, folder)}


def _files(command: str, folder: Path) -> Iterator[tuple[str, Path]]:
    before = ""
    for token in _tokens(command):
        if before == "cd":
            folder = folder / Path(token).expanduser()
        elif before == "-m":
            module = Path(*token.split(".")) if token.strip(".") else Path()
            yield from _existing(
                [str(module.with_suffix(".py")) if module.name else "", str(module / "__main__.py")], folder
            )
        elif any(c.isspace() for c in token):
            yield from _files(token, folder)  # sh -c "python score.py {soup}"
        elif ">" not in before and before not in ("tee", "-a") and not _WRITES.fullmatch(before):
            option, _, value = token.rpartition("=")
            if not (option and _WRITES.fullmatch(option)):
                yield from _existing([token, value if option else ""], folder)
        before = token


def _tokens(command: str) -> list[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError:  # a quote in a comment or a here-document; the shell has its own opinion of it
        return command.split()


def _existing(names: list[str], folder: Path) -> Iterator[tuple[str, Path]]:
    for name in names:
        if not name or _INTERPRETERS.fullmatch(Path(name).name):
            continue
        path = folder / Path(os.path.expandvars(name)).expanduser()
        try:
            if path.is_file():
                yield name, path
                return
        except (OSError, ValueError):  # too long for a file's name, or with a character that none may have
            continue


def _content(path: Path) -> str:
    status = path.stat()
    if status.st_size > _HASHED_BYTES:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
