"""radin report: show a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import JSON, show, starting


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@JSON
def report(directory: Path, as_json: bool) -> None:
    """Show a finished run again."""
    with starting():
        from radin.report.tables import closing_lines, closing_table
        from radin.run.result import Result

    result = Result.load(directory)
    show(result.to_json() if as_json else None, closing_table(result), *closing_lines(result))
