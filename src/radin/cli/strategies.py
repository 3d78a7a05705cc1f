"""radin strategies: the ways to spend a budget."""

from __future__ import annotations

import click

from radin.cli.shared import JSON, show, starting


@click.command()
@JSON
def strategies(as_json: bool) -> None:
    """The ways to spend a budget, and their options."""
    with starting():
        from rich.text import Text

        from radin.report.tables import plain_table
        from radin.search.strategies import base

    found = [base.get(name) for name in base.names()]
    value = {
        s.name: {"summary": s.summary, "options": {o.name: {"default": o.default, "help": o.help} for o in s.options}}
        for s in found
    }
    rows: list[list[str | Text]] = [
        [s.name, s.summary, Text("\n".join(f"{o.name}={o.default}: {o.help}" for o in s.options))] for s in found
    ]
    show(
        value if as_json else None, plain_table("strategies", ["name", "what it does", "options (-O name=value)"], rows)
    )
