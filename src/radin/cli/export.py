"""radin export: a soup's recipe for another program."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import FILES_FROM, JSON, console_progress, open_pool, show, starting
from radin.errors import RadinError


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1)
@click.option("--mergekit", "output", type=click.Path(path_type=Path), required=True, help="The YAML file to write.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@FILES_FROM
@JSON
def export(
    source: Path, paths: tuple[str, ...], output: Path, force: bool, files_from: str | None, as_json: bool
) -> None:
    """Write the recipe of SOURCE, a run, a recipe.json or a soup, as a linear merge for mergekit.

    PATHS: the members, by content; a run knows where they were.

    \b
    radin export run --mergekit linear.yml
    radin export soup models/* --mergekit linear.yml
    """
    if output.exists() and not force:
        raise RadinError(f"{output} exists; give another name, or --force to replace it")
    with starting():
        from radin.integrations import mergekit
        from radin.recipe import Recipe

    with console_progress() as progress:
        value, places = mergekit.members_of(source)
        given = paths or tuple(places)
        if not given:
            raise RadinError(
                f"{source} does not say where its members are: radin export {source} MEMBERS... --mergekit"
            )
        pool = open_pool(given, None, progress)
        recipe = Recipe.from_json(value, pool.fingerprints)
        mergekit.write_yaml(pool, recipe, output, files_from=files_from)
    names = [pool.member_names[k] for k in recipe.members]
    found = {"output": str(output), "members": names}
    show(found if as_json else None, f"wrote {output}: mergekit-yaml {output} FOLDER", f"members: {', '.join(names)}")
