"""radin demo: a real pool, cooked and compared."""

from __future__ import annotations

from pathlib import Path

import click

from radin.checks import whole_number
from radin.cli.shared import JSON, LOG, console_progress, show, starting


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-run"), show_default=True)
@click.option(
    "--data", default="auto", show_default=True, help="mnist, fashion, a folder with Fashion-MNIST files, or auto."
)
@click.option("--budget", type=int, default=8, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@LOG
@JSON
def demo(out: Path, data: str, budget: int, seed: int, as_json: bool) -> None:
    """Train a real pool on real images, cook it, and compare with greedy at the same number of passes."""
    whole_number("the budget", budget, 1)
    whole_number("--seed", seed, 0, 2**32 - 1)
    with starting():
        from radin.demo.run import run_demo

    with console_progress() as progress:
        found, shown = run_demo(out, data=data, budget=budget, seed=seed, progress=progress)
    show(found if as_json else None, *shown)
