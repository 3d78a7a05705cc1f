"""radin check: can these be averaged, and should they."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import (
    BASE,
    JSON,
    KEY,
    LOG,
    PATHS,
    check_ready,
    console_progress,
    engine_options,
    open_pool,
    ready_options,
    show,
    starting,
    task_for,
)


@click.command()
@PATHS
@click.option("--task", help="Also check the task: architecture, data, metric; estimate time and disk.")
@click.option("--distances/--no-distances", default=True, show_default=True, help="Distances between the members.")
@ready_options
@BASE
@KEY
@engine_options
@LOG
@JSON
def check(
    paths: tuple[str, ...],
    task: str | None,
    distances: bool,
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
    """Can these checkpoints be averaged? Headers, fingerprints, shapes, distances; nothing long."""
    check_ready(task, model, data, columns)
    with starting():
        from radin.diagnose.check import check_pool
        from radin.engine.device import Device
        from radin.report.check import check_parts

    engine = Device.create(device, precision, batch_size)
    with console_progress() as progress:
        pool = open_pool(paths, key, progress, base_model)
        used = task_for(pool, task, model, data, columns)
        found = check_pool(pool, used, engine, distances=distances, progress=progress)
    show(found.to_json() if as_json else None, *check_parts(found))
