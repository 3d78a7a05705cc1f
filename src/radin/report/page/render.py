"""The page as one file: template, style, script and Vega's libraries put together. Nothing in it is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radin.errors import RadinError, printable
from radin.files import told, write_text
from radin.progress import Progress
from radin.report.page.content import Content, content, weighed

if TYPE_CHECKING:
    from radin.diagnose.doctor import Diagnosis

REPORT = "report.html"
INSTALL = "pip install 'radin[figures]'"


def write_page(
    directory: str | Path,
    out: str | Path | None = None,
    *,
    weights: bool = True,
    diagnosis: Diagnosis | None = None,
    outputs: str | Path | None = None,
    refresh: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the page of a run, finished or not; its path.

    out: the file; default REPORT in the directory. weights: read the members' weights, once, for the map of the pool
    and what doctor says. diagnosis: in place of that, what was found before. outputs: the folder of the members'
    outputs, where it is not in the directory. refresh: seconds after which an unfinished run's page loads itself again.

    Raises RunError where there is no run, RadinError where a library is missing.
    """
    _libraries()
    if diagnosis is None and weights:
        diagnosis = weighed(directory, progress)
    found = content(directory, diagnosis, outputs)
    path = Path(directory) / REPORT if out is None else Path(out)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, render(found, refresh=None if found.finished else refresh))
    return path


def render(found: Content, *, refresh: int | None = None) -> str:
    """The page's HTML. Everything that was given is escaped, or data that no browser runs."""
    jinja2, _ = _libraries()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.undefined = jinja2.StrictUndefined
    script, libraries = _read("page.js"), _bundle()
    figures = [{"key": f.key, "spec": f.spec, "labels": dict(f.labels), "title": f.title} for f in found.figures]
    return str(
        environment.from_string(_read("page.html")).render(
            page=found,
            style=_Trusted(_read("page.css")),
            script=_Trusted(script),
            libraries=_Trusted(libraries),
            hashes=_Trusted(" ".join(f"'sha256-{_hash(text)}'" for text in (script, libraries))),
            data=_Trusted(_json({"names": list(found.names), "figures": figures})),
            refresh=refresh,
        )
    )


class _Trusted(str):
    """Text of radin's own, which is put into the page as it is."""

    def __html__(self) -> str:
        return str(self)


def _shown(value: Any) -> Any:
    """Characters that move a cursor or turn text around are shown, not sent; the lines of a command stay lines."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return "\n".join(printable(line) for line in value.split("\n"))
    return value


def _json(value: Any) -> str:
    """JSON that no name can end the element of."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return files("radin.report.page").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from vl-convert."""
    _, vl_convert = _libraries()
    # Nothing in a script element may look like its end.
    text = re.sub("<(?=/script|!--)", r"\\x3c", str(vl_convert.javascript_bundle()), flags=re.IGNORECASE)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def missing() -> str | None:
    """Which library the page lacks, and how to install it; None where all are there."""
    try:
        _libraries()
    except RadinError as error:
        return str(error)
    return None


def _libraries() -> tuple[Any, Any]:
    try:
        import jinja2
        import vl_convert
    except ImportError as error:
        raise RadinError(
            f"the page is made with jinja2 and vl-convert-python ({error.name} is missing): {INSTALL}"
        ) from None
    return jinja2, vl_convert
