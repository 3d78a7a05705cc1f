"""radin report: show a run again, and write its page."""

from __future__ import annotations

import time
from pathlib import Path

import click

from radin.cli.shared import JSON, console_progress, show, starting
from radin.cli.streams import say
from radin.errors import RadinError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page's file; default DIRECTORY/report.html.")
@click.option("--no-page", is_flag=True, help="Show the table alone.")
@click.option(
    "--weights/--no-weights",
    default=True,
    show_default=True,
    help="Read the members' weights for the map of the pool, distances, and what doctor says.",
)
@click.option("--outputs", type=click.Path(path_type=Path), help="Folder of the members' outputs, if not in DIRECTORY.")
@click.option("--watch", is_flag=True, help="Write the page again while the run goes on; ends when it has finished.")
@click.option(
    "--every", type=click.IntRange(min=1), default=10, show_default=True, help="Seconds between, with --watch."
)
@JSON
def report(
    directory: Path,
    out: Path | None,
    no_page: bool,
    weights: bool,
    outputs: Path | None,
    watch: bool,
    every: int,
    as_json: bool,
) -> None:
    """Show a run again, and write its page: one HTML file that opens from disk, without a network.

    With --json a page is written only where --out is given.
    """
    if no_page and (out is not None or watch):
        raise RadinError("--no-page goes without --out and --watch")
    if watch and as_json:
        raise RadinError("--watch writes a page; it goes without --json")
    with starting():
        from radin.report.page import missing, write_page
        from radin.report.tables import closing_lines, closing_table
        from radin.run.result import Result

    finished = (directory / "result.json").is_file()
    if watch and not (directory / "run.json").is_file():
        raise RadinError(f"{directory} holds no run, or none yet: cook begins one once it has read the members")
    if as_json or no_page or not (directory / "run.json").is_file():
        result = Result.load(directory)
        if as_json and out is not None:
            write_page(directory, out, weights=weights, outputs=outputs)
        show(result.to_json() if as_json else None, closing_table(result), *closing_lines(result))
        return
    lacking = missing()
    if lacking is not None and finished and out is None and not watch:  # the table needs no library
        result = Result.load(directory)
        show(None, closing_table(result), *closing_lines(result), f"page: not written: {lacking}")
        return
    if watch:
        place = directory / "report.html" if out is None else out
        say(f"{place}: written every {every} s until the run has finished; Ctrl-C ends this and not the run")
    with console_progress() as progress:
        if watch:
            page = _watch(directory, out, weights, outputs, every)
        else:
            page = write_page(directory, out, weights=weights, outputs=outputs, progress=progress)
    if finished or (directory / "result.json").is_file():
        result = Result.load(directory)
        show(None, closing_table(result), *closing_lines(result), f"page: {page}")
    else:
        show(None, "the run has not finished", f"page: {page}")


def _watch(directory: Path, out: Path | None, weights: bool, outputs: Path | None, every: int) -> Path:
    """Write the page again and again until the run has finished; its path.

    A result that is older than the ledger is of a session before: the run has gone on since.
    """
    from radin.errors import RunError
    from radin.report.page import write_page
    from radin.report.page.content import weighed
    from radin.run.journal import last_written

    result = directory / "result.json"
    diagnosis = None
    while True:
        done = result.is_file() and result.stat().st_mtime >= last_written(directory)
        try:
            if weights and diagnosis is None:
                diagnosis = weighed(directory)
            page = write_page(
                directory, out, weights=False, diagnosis=diagnosis, outputs=outputs, refresh=None if done else every
            )
            if done:
                return page
        except RunError:
            if done:  # else the run was just writing: the next time will do
                raise
        time.sleep(every)
