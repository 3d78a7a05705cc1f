"""The blocks of code in a page of the documentation, and how each is run as a reader would."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *DOCS.rglob("*.md")])
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
_SHOWN = ("text", "json")  # what a program prints, reads or takes: nothing to run
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@dataclass(frozen=True)
class Block:
    """Code in a page. language: python, or sh: lines for a shell. reason: why it is not run, "" where it is."""

    page: str
    line: int
    language: str
    text: str
    reason: str


def blocks(page: str) -> list[Block]:
    """All code of a page, in order: fenced with a language, or indented, which are lines for a shell."""
    found, reason = [], ""
    for token in MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type == "html_block":
            marked = NOT_RUN.match(token.content)
            reason = marked[1] if marked else ""
        elif token.type in ("fence", "code_block"):
            language = token.info or "sh"
            if language not in _SHOWN and not language.startswith("{"):
                found.append(Block(page, token.map[0] + 1, language, token.content, reason))
            reason = ""
    return found


def run(found: Block, folder: Path, names: dict[str, Any], smaller: dict[str, str]) -> None:
    """Run a block in the working directory ``folder``.

    names: of the page's Python, which go on from block to block. smaller: text of the block -> what stands for it here.
    """
    text = found.text
    for long, short in smaller.items():
        text = text.replace(long, short)
    if found.language == "python":
        file = re.match(r"# ([\w-]+\.(?:py|sh))\n", text)
        if file:
            (folder / file[1]).write_text(text, encoding="utf-8")
        else:
            exec(compile(text, f"{found.page}:{found.line}", "exec"), names)
        return
    assert found.language == "sh", found
    for line in filter(None, text.splitlines()):
        _typed(line, folder)


def _typed(line: str, folder: Path) -> None:
    """One line for a shell. ``radin`` and ``python`` run in this process, since torch takes seconds to import."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["pip", "install"]:
        for extras in re.findall(r"radin\[(.*?)\]", line):
            assert set(extras.split(",")) <= set(_PROJECT["optional-dependencies"]), line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
    elif words[0] == "python":
        runpy.run_path(str(folder / words[1]), run_name="__main__")
    elif words[0] == "radin":
        from radin.cli.group import cli

        cli.main(_expanded(words[1:], folder), prog_name="radin", standalone_mode=False)
    else:
        raise AssertionError(f"no way to run {line!r}; words[0] is {words[0]!r}")


def _expanded(words: list[str], folder: Path) -> list[str]:
    """Patterns expanded as a shell does, where they match a file."""
    found: list[str] = []
    for word in words:
        matches = sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else []
        found += matches or [word]
    return found


def python(folder: Path) -> None:
    """``python`` and ``radin`` on the PATH of programs that a command starts: ``folder`` is put there by the caller."""
    folder.mkdir()
    for name, how in (("python", '"$@"'), ("radin", '-m radin "$@"')):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {how}\n')
        (folder / name).chmod(0o755)
    subprocess.run([folder / "python", "-c", ""], check=True)
