"""Tables for people, from typed values."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from radin.errors import printable
from radin.recipe import Recipe
from radin.report import sentences
from radin.report.groups import group_rows
from radin.report.sentences import number
from radin.run.result import Result, Scored

if TYPE_CHECKING:
    from radin.run.commands import Evaluated, RankedFiles

_SHIFTS = "shifts/"


def closing_rows(result: Result) -> tuple[str, list[str], list[list[str]]]:
    """Title, column names and rows of the table that ends a run: who, members, validation, test, shifts, further.

    The row of what was chosen is number ``chosen_row``.
    """
    direction = "higher is better" if result.higher_is_better else "lower is better"
    title = f"{result.metric} ({direction}), {result.examples} validation examples"
    splits, further = list(result.best.splits), list(result.best.further)
    columns = ["", "members", "validation", *(name.removeprefix(_SHIFTS) for name in splits), *further]
    chosen = "chosen soup"
    if result.best.recipe.is_single:
        chosen = "chosen: the best single"
    elif result.best.recipe.reestimated:
        chosen = "chosen: the single re-estimated"
    elif result.best.recipe == result.uniform.recipe:
        chosen = "chosen: the uniform soup"
    rows = []
    for label, scored in (
        ("best single", result.best_single),
        ("best single re-estimated", result.reestimated),
        ("uniform soup", result.uniform),
        (chosen, result.best),
        (result.ensemble.name if result.ensemble else "logit ensemble", result.ensemble),
    ):
        if scored is not None:
            cells = [number(*scored.splits.get(name, (None, None))) for name in splits]
            cells += [number(*scored.further.get(name, (None, None))) for name in further]
            rows.append([label, str(scored.recipe.size), _validation(scored), *cells])
    return title, columns, rows


def chosen_row(result: Result) -> int:
    """The row of ``closing_rows`` that says what was chosen: after the members and the uniform soup."""
    return 2 if result.reestimated is None else 3


def _validation(scored: Scored) -> str:
    if scored.score is None and scored.estimate is not None:
        return f"({scored.estimate:.4f})"
    return number(scored.score, scored.stderr)


def closing_table(result: Result) -> Table:
    """The table that ends a run."""
    title, columns, rows = closing_rows(result)
    table = _table(title)
    for index, column in enumerate(columns):
        table.add_column(plain(column), justify="left" if index == 0 else "right", no_wrap=index != 1)
    for place, row in enumerate(rows):
        after = place - chosen_row(result)
        table.add_row(*map(plain, row), style="bold" if after == 0 else "dim" if after > 0 else None)
    return table


def closing_text(result: Result, width: int = 120) -> str:
    """The table and the lines under it as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, soft_wrap=True)
    for part in (closing_table(result), *closing_lines(result)):
        console.print(printable(part), markup=False) if isinstance(part, str) else console.print(part)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().split("\n"))


def closing_lines(result: Result) -> list[RenderableType]:
    """What the table cannot say: how sure the gain is, the passes, the time, the members chosen, notes and reasons."""
    lines: list[RenderableType] = []
    if result.best.recipe.groups:
        title, columns, rows = ratio_rows(result.best.recipe, result.member_names)
        lines.append(plain_table(title, columns, rows))
    return lines + [plain(line, "bold yellow") if warns else line for line, warns in closing_sentences(result)]


def ratio_rows(recipe: Recipe, names: Sequence[str]) -> tuple[str, list[str], list[list[str]]]:
    """Title, column names and rows: a recipe's ratios by group of tensors."""
    used = recipe.members
    groups = [(group.name, [group.weights[k] for k in used]) for group in recipe.groups]
    columns, rows, more = group_rows([names[k] for k in used], [recipe.weights[k] for k in used], groups)
    return f"mixing ratios by group of tensors{f', {more}' if more else ''}", columns, rows


def closing_sentences(result: Result) -> list[tuple[str, bool]]:
    """The same as plain text, each with whether it is a warning."""
    lines: list[tuple[str, bool]] = []
    if result.uniform.score is None and result.uniform.estimate is not None:
        lines.append(("(in brackets: estimated from averaged outputs; this soup was not fully evaluated)", False))
    if result.best.recipe.size == 1:
        lines.append((sentences.no_soup(result), False))
        lines += _confidence(result)
        if result.reasons is not None:
            lines += [(f"likely reason: {reason}", False) for reason in sentences.reasons(result.reasons)]
    else:
        lines += _confidence(result)
        lines.append((f"members: {result.best.recipe.describe(result.member_names)}", False))
    lines.append((sentences.passes(result.passes, len(result.evaluations)), False))
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items() if name != "total")
    lines.append((f"time: {result.seconds['total']:.1f} s ({spent})", False))
    lines += [(f"note: {note}", False) for note in result.notes]
    lines.append((f"soup: {result.soup}", False))
    return lines


def _confidence(result: Result) -> list[tuple[str, bool]]:
    noise = [(sentence, sentence.startswith("inside the noise")) for sentence in result.confidence]
    return [(f"warning: {sentence}" if warns else sentence, warns) for sentence, warns in noise]


def evaluated_table(found: Evaluated) -> Table:
    """What 'radin evaluate' shows."""
    rows = [[m.name, number(m.score, m.stderr), f"{m.seconds:.1f}"] for m in found.members]
    title = f"{found.metric} on {found.split}, {found.examples} examples"
    return plain_table(title, ["checkpoint", "score", "seconds"], rows)


def ranked_table(found: RankedFiles) -> Table:
    """What 'radin rank' shows."""
    rows = [
        [f"{place}", f"{r.estimate:.5f}", str(r.size), r.source, r.recipe.describe(found.names)]
        for place, r in enumerate(found.recipes, start=1)
    ]
    title = f"estimated {found.metric} of averaged outputs; the best member alone has {found.best_single[1]:.5f}"
    return plain_table(title, ["", "estimate", "size", "source", "members"], rows)


def plain(text: str | Text, style: str = "") -> Text:
    """Text in which nothing is taken for markup, and no character moves the cursor; one that is made so is as it is."""
    return text if isinstance(text, Text) else Text(printable(text), style)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table with its first column left, the others right."""
    table = _table(title)
    for index, column in enumerate(columns):
        table.add_column(plain(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def _table(title: str) -> Table:
    return Table(title=plain(title), title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
