"""radin's docstrings as Sphinx takes them.

They name each argument in running text, "budget: passes spent on soups. out: the run directory", with shapes in
brackets, then what is raised. Here each of those becomes an entry of its own, by the names in the signature or the
class.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Hook into autodoc."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = entries("\n".join(lines), known(thing)).splitlines()


def known(thing: Any) -> list[str]:
    """The names of what a function takes, or of a class's fields or what makes one."""
    names: list[str] = []
    if inspect.isclass(thing):
        names += [field.name for field in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
        names += [name for name in vars(thing) if not name.startswith("_")]
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return names
    return [*names, *signature.parameters]


def entries(text: str, names: list[str]) -> str:
    """reStructuredText of a docstring: a list entry for each argument that it explains, and for what is raised.

    names: of the arguments.
    """
    if not names:
        return text
    one = "``(?:%s)[^`]*``|(?:%s)(?: \\([^)]*\\))?" % (("|".join(map(re.escape, names)),) * 2)
    begins = re.compile(rf"(?:^|(?<=[.;)]\s)|(?<=\n\n))(?P<names>(?:{one})(?:, (?:{one}))*(?:=\w+)?)(?::| says| has)\s")
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith(" "):  # code
            found += ["::", paragraph]
            continue
        paragraph = " ".join(paragraph.split())
        starts = [match.start() for match in begins.finditer(paragraph)]
        raises = paragraph.find("Raises ")
        if raises > max(starts, default=0):
            starts.append(raises)
        if starts[:1] != [0]:
            starts.insert(0, 0)
        ends = [*starts[1:], len(paragraph)]
        for start, end in zip(starts, ends, strict=True):
            part = paragraph[start:end].strip().rstrip(";")
            match = begins.match(part)
            if match is None:
                found.append(_plain(part))
                continue
            head = match["names"].replace("``", "")
            tail = part[match.end("names") :].removeprefix(":").strip()
            found.append(f"* ``{head}``: {_plain(tail)}" if part[match.end("names")] == ":" else f"* ``{head}`` {tail}")
    return "\n\n".join(found)


def _plain(text: str) -> str:
    """What is no markup in a docstring, and would be taken for such."""
    codes = re.split(r"(``[^`]+``)", text.strip())
    return "".join(
        part if place % 2 else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for place, part in enumerate(codes)
    )
