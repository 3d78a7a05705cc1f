"""radin average: a soup without any data."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import (
    BASE,
    FILES_FROM,
    JSON,
    KEY,
    LOG,
    PATHS,
    PUSH,
    UPLOAD,
    console_progress,
    push,
    require_hub,
    require_upload,
    show,
    starting,
    typed,
    uploaded,
)
from radin.disks import url_of
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
    help="A .safetensors, .pt or .bin file; .ckpt, .pth.tar, .nemo: in the form of the members; a folder, where the "
    "checkpoints are folders.",
)
@click.option("--force", is_flag=True, help="Replace the file, or the folder that radin wrote, if it is there.")
@click.option(
    "--integers-from", help="Member whose integer tensors the soup takes; default the one of the largest ratio."
)
@FILES_FROM
@BASE
@click.option("--rank", type=int, help="Of an average of LoRA adapters: approximated by SVD; without, it is exact.")
@PUSH
@UPLOAD
@KEY
@LOG
@JSON
def average(
    paths: tuple[str, ...],
    ratios: tuple[str, ...],
    recipe: Path | None,
    output: Path,
    force: bool,
    integers_from: str | None,
    files_from: str | None,
    base_model: Path | None,
    rank: int | None,
    repository: str | None,
    upload: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Average checkpoints without any data: uniformly, by --ratios, or by a --recipe; or by a mergekit recipe.yml.

    \b
    radin average a.pt b.pt --ratios 3,1 -o soup.safetensors
    radin average runs/*/best.pt --ratios run-7/best=3 --ratios run-2/best=1 -o soup.safetensors
    radin average run1 run2 run3 -o soup              (Hugging Face folders, or LoRA adapters: a folder)
    radin average linear.yml -o soup
    """
    if (url := url_of(output)) is not None:
        raise RadinError(f"an average is written to a disk first: give -o {output.name} --upload {url}")
    if output.exists() and not force:
        raise RadinError(f"{output} exists; give another name, or --force to replace it")
    require_hub(repository)
    require_upload(upload, force=force)
    with starting():
        from radin.integrations import mergekit
        from radin.report.sentences import average_lines
        from radin.run.average import average_adapter_pool, average_files
        from radin.weights.adapter_pool import Adapters
        from radin.weights.adapters import is_adapter_path
        from radin.weights.paths import look_for

    with console_progress() as progress:
        linear = mergekit.recipe_at(paths)
        if linear is not None:
            if ratios or recipe is not None:
                raise RadinError(f"{paths[0]} has the ratios in it; leave --ratios and --recipe out")
            paths = linear.paths
        looked_for = look_for(paths, progress)
        if linear is None and base_model is None and all(map(is_adapter_path, looked_for)):
            members = Adapters.open(
                looked_for.paths,
                found=looked_for.notes,
                progress=lambda done, total: progress("reading adapters", done, total),
            )
            found = average_adapter_pool(
                members, ratios, recipe, output, rank=rank, files_from=files_from, command=typed()
            )
        elif rank is not None:
            raise RadinError("--rank is for an average of LoRA adapters, without --base")
        elif linear is not None:
            found = average_files(
                looked_for,
                key,
                linear.recipe,
                None,
                output,
                integers_from,
                progress,
                base=base_model,
                files_from=files_from or linear.files_from,
                command=typed(),
            )
        else:
            found = average_files(
                looked_for,
                key,
                ratios,
                recipe,
                output,
                integers_from,
                progress,
                base=base_model,
                files_from=files_from,
                command=typed(),
            )
    lines = push(found.output, repository) + uploaded(found.output, upload, force=force)
    show(found.to_json() if as_json else None, *average_lines(found), *lines)
