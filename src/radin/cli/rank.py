"""radin rank: recipes by estimate, from saved outputs."""

from __future__ import annotations

import click

from radin.cli.shared import JSON, LOG, console_progress, show, starting


@click.command()
@click.option(
    "--outputs",
    "outputs",
    multiple=True,
    required=True,
    help="A member's outputs (.npy or .safetensors), or the outputs folder of a run; a path or a URL; repeat.",
)
@click.argument("more", nargs=-1)
@click.option("--targets", help="Targets (.npy, .safetensors); a run has its own.")
@click.option("--metric", default="accuracy", show_default=True)
@click.option("--top", type=int, default=10, show_default=True, help="How many recipes to show.")
@click.option("--count", type=int, default=10_000, show_default=True, help="Recipes that each random source draws.")
@click.option("--source", "sources", multiple=True, help="Only these sources of candidates; repeat. Default all.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@LOG
@JSON
def rank(
    outputs: tuple[str, ...],
    more: tuple[str, ...],
    targets: str | None,
    metric: str,
    top: int,
    count: int,
    sources: tuple[str, ...],
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Recipes by estimate, from saved outputs alone: no model, no pass. More outputs files may follow the options."""
    with starting():
        from radin.report.tables import ranked_table
        from radin.run.commands import rank_files

    with console_progress() as progress:
        found = rank_files(
            [*outputs, *more],
            targets,
            metric,
            top=top,
            count=count,
            sources=sources,
            seed=seed,
            device=device,
            progress=progress,
        )
    show(found.to_json() if as_json else None, ranked_table(found))
