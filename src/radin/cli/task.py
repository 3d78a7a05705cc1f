"""radin task: the task file that --model and --data stand for."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import KEY, PATHS, console_progress, open_pool, ready_options, show, starting, task_for
from radin.errors import RadinError


@click.command()
@PATHS
@ready_options
@click.option("--metric", help="What soups are scored by, of 'radin metrics'; default the usual one of such models.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it there; default standard output.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@KEY
def task(
    paths: tuple[str, ...],
    model: str | None,
    data: str | None,
    columns: str | None,
    metric: str | None,
    output: Path | None,
    force: bool,
    key: str | None,
) -> None:
    """Print the task file that --model and --data stand for, to be edited and given as --task.

    \b
    radin task runs/* --model hf --data csv:validation.csv -o task.py
    radin cook runs/* --task task.py --budget 10 --out run

    PATHS are the checkpoints: the number of classes, and what else has to fit them, is read from these.
    """
    if model is None or data is None:
        raise RadinError("give --model and --data: they say which task file to write")
    if output is not None and output.exists() and not force:
        raise RadinError(f"{output} exists; give another name, or --force to replace it")
    with starting():
        from radin.cli import streams
        from radin.data.task import TaskText
        from radin.files import write_text

    with console_progress() as progress:
        pool = open_pool(paths, key, progress)
        found = task_for(pool, None, model, data, columns, metric)
    assert isinstance(found, TaskText)
    if output is None:
        streams.write(found.text)
    else:
        write_text(output, found.text)
        show(None, f"task file: {output}")
