"""radin evaluate: true scores of checkpoints as they are."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import (
    BASE,
    JSON,
    KEY,
    LOG,
    PATHS,
    TASK,
    check_ready,
    console_progress,
    engine_options,
    open_pool,
    ready_options,
    require_task,
    show,
    starting,
    task_for,
)


@click.command()
@PATHS
@TASK
@click.option("--split", default="validation", show_default=True, help="validation, test or shifts/NAME.")
@ready_options
@BASE
@KEY
@engine_options
@LOG
@JSON
def evaluate(
    paths: tuple[str, ...],
    task: str | None,
    split: str,
    model: str | None,
    data: str | None,
    columns: str | None,
    base_model: Path | None,
    key: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """True scores of checkpoints as they are, one full pass each."""
    require_task(task, model)
    check_ready(task, model, data, columns)
    with starting():
        from radin.engine.device import Device
        from radin.report.tables import evaluated_table
        from radin.run.commands import evaluate_pool

    engine = Device.create(device, precision, batch_size)
    with console_progress() as progress:
        pool = open_pool(paths, key, progress, base_model)
        used = task_for(pool, task, model, data, columns)
        assert used is not None
        found = evaluate_pool(pool, used, split, engine, progress=progress)
    show(found.to_json() if as_json else None, evaluated_table(found))
