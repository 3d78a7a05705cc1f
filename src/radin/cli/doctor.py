"""radin doctor: explain a pool."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import BASE, JSON, KEY, PATHS, console_progress, engine_options, open_pool, show


@click.command()
@PATHS
@click.option("--task", help="Also look at a slice of validation(): scores, agreement, interpolation, expected gain.")
@click.option("--run", "directory", type=click.Path(path_type=Path), help="Also a run of cook over these checkpoints.")
@click.option("--examples", type=int, default=1000, show_default=True, help="How much of validation() to look at.")
@BASE
@KEY
@engine_options
@JSON
def doctor(
    paths: tuple[str, ...],
    task: str | None,
    directory: Path | None,
    examples: int,
    base_model: Path | None,
    key: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Explain a pool: what is the matter with it, with numbers, and what to do."""
    import radin
    from radin.report.doctor import doctor_parts

    examine = radin.doctor  # imported before anything is started
    with console_progress() as progress:
        pool = open_pool(paths, key, progress, base_model)
        found = examine(
            pool,
            task,
            directory,
            examples=examples,
            device=device,
            precision=precision,
            batch_size=batch_size,
            progress=progress,
        )
    show(found.to_json() if as_json else None, *doctor_parts(found))
