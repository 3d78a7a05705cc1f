"""radin evaluate: true scores of checkpoints as they are."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import BASE, JSON, KEY, PATHS, TASK, console_progress, engine_options, open_pool, show


@click.command()
@PATHS
@TASK
@click.option("--split", default="validation", show_default=True, help="validation, test or shifts/NAME.")
@BASE
@KEY
@engine_options
@JSON
def evaluate(
    paths: tuple[str, ...],
    task: str,
    split: str,
    base_model: Path | None,
    key: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """True scores of checkpoints as they are, one full pass each."""
    from radin.engine.device import Device
    from radin.report.tables import evaluated_table
    from radin.run.commands import evaluate_pool

    engine = Device.create(device, precision, batch_size)
    with console_progress() as progress:
        pool = open_pool(paths, key, progress, base_model)
        found = evaluate_pool(pool, task, split, engine, progress=progress)
    show(found.to_json() if as_json else None, evaluated_table(found))
