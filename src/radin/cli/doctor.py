"""radin doctor: explain a pool."""

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
@click.option("--task", help="Also look at a slice of validation(): scores, agreement, interpolation, expected gain.")
@click.option("--run", "directory", type=click.Path(path_type=Path), help="Also a run of cook over these checkpoints.")
@click.option("--examples", type=int, default=1000, show_default=True, help="How much of validation() to look at.")
@ready_options
@BASE
@KEY
@engine_options
@LOG
@JSON
def doctor(
    paths: tuple[str, ...],
    task: str | None,
    directory: Path | None,
    examples: int,
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
    """Explain a pool: what is the matter with it, with numbers, and what to do."""
    check_ready(task, model, data, columns)
    with starting():
        import radin
        from radin.report.doctor import doctor_parts

        examine = radin.doctor  # imported before anything is started
    with console_progress() as progress:
        pool = open_pool(paths, key, progress, base_model)
        used = task_for(pool, task, model, data, columns)
        found = examine(
            pool,
            used,
            directory,
            examples=examples,
            device=device,
            precision=precision,
            batch_size=batch_size,
            progress=progress,
        )
    show(found.to_json() if as_json else None, *doctor_parts(found))
