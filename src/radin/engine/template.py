"""The command that a user gives: text for the shell with placeholders, filled in for each evaluation."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from radin.errors import RadinError

Quote = Literal["", "'", '"']

PLACEHOLDERS: Mapping[str, str] = {
    "soup": "the soup, in the members' own format: a file, or a folder where the members are folders",
    "slot": "the number of the worker, 0 up to the jobs less 1: for CUDA_VISIBLE_DEVICES",
    "examples": "a file with the indices of the examples to score, one in each line; empty text for all of them",
    "out": "an empty folder to write in, removed after the answer",
}


@dataclass(frozen=True)
class Template:
    """A command taken apart: literal text, then the placeholder that follows it and the quotes that stand around it."""

    parts: tuple[tuple[str, str, Quote], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises RadinError for an unknown placeholder, a brace that is not doubled, and when {soup} is missing."""
        try:
            found = list(string.Formatter().parse(text))
        except ValueError as error:
            raise RadinError(f"the command {text!r} has a brace that belongs to nothing ({error}). {_help()}") from None
        parts: list[tuple[str, str, Quote]] = []
        quote: Quote = ""
        for literal, field, spec, conversion in found:
            quote = _quote_after(literal, quote)
            if field is not None and (field not in PLACEHOLDERS or spec or conversion):
                shown = "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
                raise RadinError(f"the command {text!r} has an unknown placeholder {shown}. {_help()}")
            parts.append((literal, field or "", quote))
        if "soup" not in {field for _, field, _ in parts}:
            raise RadinError(f"the command {text!r} must say where the soup goes: add {{soup}}. {_help()}")
        return cls(tuple(parts))

    @property
    def placeholders(self) -> frozenset[str]:
        """Those that occur, by name."""
        return frozenset(field for _, field, _ in self.parts if field)

    def fill(self, values: Mapping[str, str]) -> str:
        """The command for /bin/sh: every value stands for itself, whatever characters it holds."""
        return "".join(
            literal + (_quoted(values[field], quote) if field else "") for literal, field, quote in self.parts
        )


def _help() -> str:
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    return f"Known: {known}. Double the braces that are meant for the shell or the program: {{{{ and }}}}."


def _quote_after(text: str, quote: Quote) -> Quote:
    """The shell's open quote after ``text``, given the one before it."""
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character == "'":
            quote = "'"
        elif character == '"':
            quote = '"'
    return quote


def _quoted(value: str, quote: Quote) -> str:
    if quote == "'":
        return value.replace("'", "'\\''")
    if quote == '"':
        return "".join("\\" + c if c in '\\"$`' else c for c in value)
    return shlex.quote(value)
