"""radin average: a soup without any data."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import JSON, KEY, PATHS, console_progress, show, starting
from radin.errors import RadinError


@click.command()
@PATHS
@click.option(
    "--ratios",
    "--weights",
    "ratios",
    multiple=True,
    help="Mixing ratios, scaled to sum 1: numbers separated by commas, in the order of the files; or NAME=NUMBER, "
    "separated by commas or repeated, the other members 0.",
)
@click.option("--recipe", type=click.Path(path_type=Path), help="recipe.json of a run.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="A .safetensors, .pt or .bin file; .ckpt, .pth.tar, .nemo: in the form of the members.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option(
    "--integers-from", help="Member whose integer tensors the soup takes; default the one of the largest ratio."
)
@KEY
@JSON
def average(
    paths: tuple[str, ...],
    ratios: tuple[str, ...],
    recipe: Path | None,
    output: Path,
    force: bool,
    integers_from: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Average checkpoints without any data: uniformly, by --ratios, or by a --recipe.

    \b
    radin average a.pt b.pt --ratios 3,1 -o soup.safetensors
    radin average runs/*/best.pt --ratios run-7/best=3 --ratios run-2/best=1 -o soup.safetensors
    """
    if output.exists() and not force:
        raise RadinError(f"{output} exists; give another name, or --force to replace it")
    with starting():
        from radin.report.sentences import average_lines
        from radin.run.commands import average_files

    with console_progress() as progress:
        found = average_files(paths, key, ratios, recipe, output, integers_from, progress)
    show(found.to_json() if as_json else None, *average_lines(found))
