"""Tables for people, from the JSON forms of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]


def number(value: float | None, stderr: float | None = None) -> str:
    """A score with its standard error, four decimals; a dash when there is none."""
    if value is None:
        return "–"
    text = f"{value:.4f}"
    return text if stderr is None else f"{text} ± {stderr:.4f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)


def closing_table(result: Json) -> Table:
    """The table that ends a run, from result.json: who, validation, test, shifts."""
    metric = result["metric"]
    direction = "higher is better" if metric["higher_is_better"] else "lower is better"
    title = f"{metric['name']} ({direction}), {result['examples']} validation examples"
    table = _table(title)
    table.add_column("", no_wrap=True)
    table.add_column("members", justify="right")
    table.add_column("validation", justify="right", no_wrap=True)
    looks = {"test": result["test"] or {}, **{name: found or {} for name, found in result["shifts"].items()}}
    looks = {name: found for name, found in looks.items() if found}
    for name in looks:
        table.add_column(name, justify="right", no_wrap=True)
    rows = [("best_single", "best single"), ("uniform", "uniform soup"), ("best", "chosen soup")]
    chosen_is_single = result["best"]["size"] == 1
    chosen_is_uniform = result["best"]["recipe"] == result["uniform"]["recipe"]
    for key, label in rows:
        if key == "best" and chosen_is_single:
            label = "chosen: the best single"
        elif key == "best" and chosen_is_uniform:
            label = "chosen: the uniform soup"
        found = result[key]
        validation = number(found["score"], found["stderr"])
        if found["score"] is None and found["estimate"] is not None:
            validation = f"({found['estimate']:.4f})"
        cells = [number(look[key]["score"], look[key]["stderr"]) if key in look else "–" for look in looks.values()]
        table.add_row(label, str(found["size"]), validation, *cells, style="bold" if key == "best" else None)
    ensemble = result["ensemble"]
    table.add_row(
        "logit ensemble",
        str(ensemble["size"]),
        number(ensemble["score"], ensemble["stderr"]),
        *["–"] * len(looks),
        style="dim",
    )
    return table


def closing_lines(result: Json) -> list[RenderableType]:
    """What the table cannot say: how sure the gain is, the passes, the time, the members chosen, notes and reasons."""
    seconds = result["seconds"]
    lines: list[RenderableType] = []
    if result["uniform"]["score"] is None:
        lines.append("(in brackets: estimated from averaged outputs; this soup was not evaluated in full)")
    if result["best"]["size"] > 1:
        for sentence in result["confidence"]:
            noise = sentence.startswith("inside the noise")
            lines.append(Text(f"warning: {sentence}", style="bold yellow") if noise else sentence)
        members = result["best"]["recipe"]["members"]
        lines.append("members: " + ", ".join(f"{m['name']} {m['weight']:.3g}" for m in members))
    else:
        lines.append("no soup beat the best single member: the result is that member")
        lines += [f"likely reason: {reason}" for reason in result["reasons"]]
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if name != "total")
    lines.append(_passes(result))
    lines.append(f"time: {seconds['total']:.1f} s ({spent})")
    lines += [f"note: {note}" for note in result["notes"]]
    lines.append(f"soup: {result['soup']}")
    return lines


def _passes(result: Json) -> str:
    passes, full = result["passes"], len(result["evaluations"])
    text = (
        f"passes over validation: {share(passes['total'])} ({passes['outputs']} for the members' outputs, "
        f"{share(passes['soups'])} of {passes['budget']} for soups"
    )
    return text + (")" if passes["begun"] == full else f": {passes['begun']} begun, {full} evaluated in full)")


def share(passes: float) -> str:
    """Passes, with one decimal where they are not whole."""
    return f"{passes:.0f}" if abs(passes - round(passes)) < 1e-6 else f"{passes:.1f}"


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table with its first column left, the others right."""
    table = _table(title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
