"""radin status: how far a run is, from another terminal."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import JSON, show, starting


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@JSON
def status(directory: Path, as_json: bool) -> None:
    """How far a run is: in work, stopped, finished or damaged. Changes and locks nothing in DIRECTORY."""
    with starting():
        from radin.report.status import status_lines
        from radin.run.status import RunStatus

    found = RunStatus.read(directory)
    show(found.to_json() if as_json else None, *status_lines(found))
