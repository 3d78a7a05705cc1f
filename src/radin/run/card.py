"""What a model card says of a soup that is a folder, as values; and putting it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from radin import __version__
from radin.files import write_text
from radin.recipe import Recipe
from radin.run.result import Result
from radin.weights import Pool
from radin.weights.beside import Origin, differences, files_source, folder_of, origin

if TYPE_CHECKING:
    from radin.weights.adapter_pool import Adapters

FILE = "README.md"


@dataclass(frozen=True)
class Card:
    """A soup's model card.

    members: (name, ratio, fingerprint) of those averaged. groups: (name, a ratio for each of these) of the groups of
    tensors that have ratios of their own. result: of the run that found it; None where nothing was
    evaluated. files_from: the member whose files beside the weights it has. command: what was typed, None where it was
    made in Python. notes: what else is to be known of it.
    """

    name: str
    members: tuple[tuple[str, float, str], ...]
    origin: Origin
    files_from: str
    version: str
    command: str | None
    result: Result | None = None
    notes: tuple[str, ...] = ()
    groups: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def __str__(self) -> str:
        """The card's text: YAML, as the Hugging Face hub reads it, and Markdown."""
        from radin.report.card import card_text

        return card_text(self)

    def write(self, folder: Path) -> None:
        """Put it into the soup's folder. Raises OSError."""
        write_text(folder / FILE, str(self))


def shares(recipe: Recipe, names: Sequence[str], fingerprints: Sequence[str]) -> tuple[tuple[str, float, str], ...]:
    """(name, ratio, fingerprint) of a recipe's members."""
    return tuple((names[k], recipe.weights[k], fingerprints[k]) for k in recipe.members)


def shares_by_group(recipe: Recipe) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """(name, ratios of the recipe's members) of each group."""
    used = recipe.members
    return tuple((group.name, tuple(group.weights[k] for k in used)) for group in recipe.groups)


def cooked_card(pool: Pool, result: Result, files_from: str | None, command: str | None) -> Card:
    """Of a run's soup. ``pool``: in the result's order."""
    recipe = result.best.recipe
    return Card(
        result.out.resolve().name,
        shares(recipe, result.member_names, result.fingerprints),
        origin([folder_of(pool[k].checkpoint) for k in recipe.members]),
        pool.member_names[files_source(pool, recipe, files_from)],
        __version__,
        command,
        result,
        tuple(result.notes),
        shares_by_group(recipe),
    )


def averaged_card(
    pool: Pool, recipe: Recipe, output: Path, files_from: str | None, command: str | None, notes: Sequence[str]
) -> Card:
    """Of a soup that nothing was evaluated for."""
    return Card(
        output.resolve().name,
        shares(recipe, pool.member_names, pool.fingerprints),
        origin([folder_of(pool[k].checkpoint) for k in recipe.members]),
        pool.member_names[files_source(pool, recipe, files_from)],
        __version__,
        command,
        notes=tuple(notes),
        groups=shares_by_group(recipe),
    )


def adapters_card(
    pool: Adapters, recipe: Recipe, output: Path, source: int, command: str | None, notes: Sequence[str]
) -> Card:
    """Of an average of adapters."""
    return Card(
        output.resolve().name,
        shares(recipe, pool.member_names, pool.fingerprints),
        origin([pool[k].adapter.folder for k in recipe.members]),
        pool.member_names[source],
        __version__,
        command,
        notes=tuple(notes),
        groups=shares_by_group(recipe),
    )


def of_folders(pool: Pool, recipe: Recipe, files_from: str | None) -> tuple[str, ...]:
    """Where the members' files beside the weights differ from those that the soup's folder has."""
    used = list(recipe.members)
    source = files_source(pool, recipe, files_from)
    used = used if source in used else [*used, source]
    folders, names = [folder_of(pool[k].checkpoint) for k in used], [pool.member_names[k] for k in used]
    return differences(folders, names, used.index(source))
