"""Figures as files: pictures without a browser, their specification as JSON, and Table 1 as Markdown and JSON."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from radin.errors import RadinError, printable
from radin.files import replacing, told, write_json, write_text
from radin.report.figures.budget import Budget, Table
from radin.report.figures.drawing import Values, altair, chart
from radin.report.figures.mixed import MixedFigure
from radin.report.figures.ranking import Estimates, Ranked
from radin.report.figures.size import Halves, Sizes
from radin.report.figures.values import plain

FORMATS = ("png", "svg", "html", "json")
"""png and svg: the picture; html: a page with it, its specification in it as data; json: that alone, for Vega-Lite."""

NAMES: dict[type, str] = {
    MixedFigure: "figure-1-averaged-outputs",
    Estimates: "figure-2-estimate-and-truth",
    Ranked: "figure-3-candidates",
    Budget: "figure-4-budget",
    Halves: "figure-5-large-and-small",
    Sizes: "figure-6-size",
}
_SCALE = 2  # pixels of a PNG for each of the picture's points


def write(values: Values, folder: str | Path, form: str) -> Path:
    """Draw a figure into ``folder``, as one of FORMATS; its path. Raises RadinError where the library is missing."""
    if form not in FORMATS:
        raise RadinError(f"figures are written as {', '.join(FORMATS)}; got {form!r}")
    altair()
    path = Path(folder) / f"{NAMES[type(values)]}.{form}"
    specification = chart(values)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "json":
            write_json(path, specification)
        elif form == "html":
            write_text(path, page(specification, NAMES[type(values)]))
        else:
            with replacing(path) as temporary:
                temporary.write_bytes(_picture(specification, form))
    return path


def write_table(table: Table, folder: str | Path) -> list[Path]:
    """Table 1 as table-1.md and table-1.json in ``folder``; their paths."""
    place = Path(folder)
    with told(place):
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / "table-1.md", table.markdown())
        write_json(place / "table-1.json", plain(table))
    return [place / "table-1.md", place / "table-1.json"]


def page(specification: dict[str, Any], title: str) -> str:
    """A page that holds the picture, and its specification as data: no script in it runs, nothing is fetched."""
    data = json.dumps(specification).replace("<", "\\u003c")  # so that no name ends the element that it is in
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(printable(title))}</title></head>\n<body>\n{_picture(specification, 'svg').decode()}\n"
        f'<script type="application/json" id="vega-lite">{data}</script>\n</body></html>\n'
    )


def _picture(specification: dict[str, Any], form: str) -> bytes:
    import vl_convert

    # No data is fetched: all of it is in the specification.
    if form == "png":
        return bytes(vl_convert.vegalite_to_png(specification, scale=_SCALE, allowed_base_urls=[]))
    return str(vl_convert.vegalite_to_svg(specification, allowed_base_urls=[])).encode()
