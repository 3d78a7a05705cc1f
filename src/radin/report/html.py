"""A result, a recipe and a pool as small HTML tables of their own, for notebooks. What was given is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from radin.errors import printable
from radin.recipe import Recipe
from radin.report.tables import chosen_row, closing_rows, closing_sentences, ratio_rows
from radin.run.result import Result
from radin.weights import Pool

_ROWS = 50  # members that a table of a pool shows
_CELL = "padding:2px 10px;text-align:{side};white-space:nowrap"


def result_html(result: Result) -> str:
    """The closing table with the lines under it."""
    title, columns, rows = closing_rows(result)
    bold = {chosen_row(result)}
    styles = {True: ' style="color:#a60"', False: ""}
    lines = [f"<div{styles[warns]}>{escape(printable(line))}</div>" for line, warns in closing_sentences(result)]
    best = result.best.recipe
    ratios = table_html(*ratio_rows(best, result.member_names)) if best.groups else ""
    return f"<div>{table_html(title, columns, rows, bold)}{ratios}{''.join(lines)}</div>"


def recipe_html(recipe: Recipe, names: Sequence[str] | None = None) -> str:
    """Each member with its ratio; by group of tensors where it has such."""
    title = f"recipe of {recipe.size} of {len(recipe.weights)} members"
    if recipe.groups:
        more, columns, rows = ratio_rows(recipe, names or [f"#{k}" for k in range(len(recipe.weights))])
        return table_html(f"{title}: {more}", columns, rows)
    rows = [[names[k] if names else f"#{k}", f"{recipe.weights[k]:.4g}"] for k in recipe.members]
    title += ", BatchNorm statistics re-estimated" if recipe.reestimated else ""
    return table_html(title, ["member", "ratio"], rows)


def pool_html(pool: Pool) -> str:
    """The members with their files, sizes and the beginnings of their fingerprints, and the pool's notes."""
    rows = [[m.name, str(m.path), f"{m.bytes / 1e6:,.1f} MB", m.fingerprint[:12]] for m in pool.members[:_ROWS]]
    if len(pool) > _ROWS:
        rows.append([f"and {len(pool) - _ROWS} more", "", "", ""])
    title = f"pool of {len(pool)} members, {pool.parameters:,} parameters each"
    notes = "".join(f"<div>{escape(printable(note))}</div>" for note in pool.notes)
    return f"<div>{table_html(title, ['member', 'file', 'size', 'fingerprint'], rows)}{notes}</div>"


def table_html(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], bold: set[int] | None = None) -> str:
    """A table with its first column left, the others right. bold: rows to stress."""
    head = "".join(_cell("th", text, index) for index, text in enumerate(columns))
    body = []
    for place, row in enumerate(rows):
        weight = ' style="font-weight:bold"' if bold and place in bold else ""
        body.append(f"<tr{weight}>{''.join(_cell('td', text, index) for index, text in enumerate(row))}</tr>")
    caption = f'<caption style="text-align:left">{escape(printable(title))}</caption>'
    return (
        f'<table style="border-collapse:collapse">{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _cell(tag: str, text: str, index: int) -> str:
    style = _CELL.format(side="left" if index == 0 else "right")
    return f'<{tag} style="{style}">{escape(printable(text))}</{tag}>'
