"""Average checkpoints without data, as `radin average` does: by ratios that a user typed, or a recipe's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from radin import __version__
from radin.checksums import opened
from radin.errors import RadinError, printable
from radin.files import read_json
from radin.progress import Progress
from radin.recipe import Recipe
from radin.run.card import adapters_card, averaged_card, of_folders
from radin.weights import Pool, Soup, batchnorm_layers, check_output, recipe_metadata, save
from radin.weights.adapter_pool import Adapters, AveragedAdapter, average_adapters, save_adapter
from radin.weights.alike import in_form_of, require_replaceable, save_alike
from radin.weights.beside import are_folders, files_source
from radin.weights.formats import Checkpoint
from radin.weights.paths import Lookup, require_utf8
from radin.weights.pool import Opened
from radin.weights.saving import ENDINGS, RECIPE_KEY
from radin.weights.unread import MistakenError, Unread

Ratios = Sequence[str] | Callable[[Pool], Recipe]
"""As ``recipe_of`` takes them, or what gives the recipe for a pool that is known."""

FilesFrom = str | Callable[[Pool], str | None] | None


@dataclass(frozen=True)
class Averaged:
    """A soup that was written to ``output``. ``paths``: the members' files, in the order of the recipe's ratios."""

    output: Path
    recipe: Recipe
    member_names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    paths: tuple[Path, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of 'radin average --json'."""
        return {
            "output": str(self.output),
            "size": self.recipe.size,
            "ratios": [
                {"name": name, "path": str(path), "ratio": ratio}
                for name, path, ratio in zip(self.member_names, self.paths, self.recipe.weights, strict=True)
            ],
            "recipe": self.recipe.to_json(self.member_names, self.fingerprints),
            "notes": list(self.notes),
        }


def average_files(
    paths: Iterable[str | Path],
    key: str | None,
    ratios: Ratios,
    recipe_file: Path | None,
    output: Path,
    integers_from: str | None,
    progress: Progress | None = None,
    *,
    base: str | Path | None = None,
    files_from: FilesFrom = None,
    command: str | None = None,
) -> Averaged:
    """As ``average_pool``, of checkpoints not opened yet: one reading both checks and averages them.

    A recipe file says by their content which members it is for: those whose content is not known yet are found by their
    names, and that is checked when all is read. Where it was wrong, and where two files turn out to hold the same
    weights, they are read a second time.
    """
    require_utf8(output)
    if output.suffix in ENDINGS:
        check_output(output, alike=True)
    headers = Opened.of(paths, key=key, base=base)
    into = partial(average_pool, files_from=files_from, command=command)
    unread = Unread(headers)
    given = None if recipe_file is None else _assumed(recipe_file, unread)
    if given is not None or (recipe_file is None and _is_plain(unread.pool, ratios)):
        try:
            return into(unread.pool, ratios, given, output, integers_from, progress, unread=unread)
        except MistakenError as error:
            pool = error.pool
    else:
        pool = Pool.read(headers, progress=_counted(progress, "reading checkpoints"))
    return into(pool, ratios, recipe_file, output, integers_from, progress)


def _assumed(file: Path, unread: Unread) -> Recipe | None:
    """The recipe of a file over members not read yet, if their names are those in it; None where that is not clear."""
    value = _recipe_value(file)
    pool = unread.pool
    known = {member.fingerprint: k for k, member in enumerate(pool) if k not in unread.digests}
    names = Lookup(pool.member_names, [member.path for member in pool])
    places: dict[int, str] = {}
    members = []
    try:
        for member in value["members"]:
            place = known.get(member["fingerprint"])
            if place is None:
                place = names.find(member["name"])
                if place is None or place not in unread.digests:
                    return None
            if place in places:
                return None
            places[place] = member["fingerprint"]
            members.append({**member, "fingerprint": pool[place].fingerprint})
        recipe = Recipe.from_json({**value, "members": members}, pool.fingerprints)
    except (RadinError, KeyError, TypeError, AttributeError):  # told by whoever reads it next
        return None
    unread.expect(places)
    return recipe


def _is_plain(pool: Pool, ratios: Ratios) -> bool:
    """Whether the ratios can be told before it is known which files hold the same weights."""
    if callable(ratios):
        return True
    try:
        recipe_of(pool, ratios)
    except RadinError:
        return False
    return True


def _counted(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return (lambda done, total: progress(what, done, total)) if progress else None


def average_pool(
    pool: Pool,
    ratios: Ratios,
    given: Path | Recipe | None,
    output: Path,
    integers_from: str | None,
    progress: Progress | None = None,
    *,
    unread: Unread | None = None,
    files_from: FilesFrom = None,
    command: str | None = None,
) -> Averaged:
    """Average by ratios given as text (see ``recipe_of``), by a recipe or its file, or uniformly, into ``output``.

    A file; or, where the members are folders and the name has no ending of a file, a folder with the files beside the
    weights that the member ``files_from`` has (by default the one with the largest ratio) and a model card. unread:
    what the pool is of, where its content was not read yet. Raises MistakenError then, when members turn out to hold
    the same weights, or others than expected; nothing is written.
    """
    require_utf8(output)
    files_from = files_from(pool) if callable(files_from) else files_from
    folder = output.suffix not in ENDINGS and are_folders(pool)
    require_replaceable(output) if folder else check_output(output, alike=True)
    if not callable(ratios):  # who names the members and their weights in a file may name one
        pool.require_several()
    if ratios and given is not None:
        raise RadinError("give --ratios or --recipe, not both")
    if isinstance(given, Recipe):
        recipe = given
    elif callable(ratios):
        recipe = ratios(pool)
    else:
        recipe = recipe_of(pool, ratios) if given is None else _recipe_in(given, pool)
    like: Checkpoint | None
    if folder:
        like = pool[files_source(pool, recipe, files_from)].checkpoint.form
    else:  # the largest ratio's form comes first, where several members are of the kind that is asked for
        weights = recipe.weights
        order = sorted(recipe.members, key=lambda k: -weights[k])
        like = in_form_of([pool[k].checkpoint for k in order], output)
    warnings = _of_statistics(pool, recipe, output)
    recipe = replace(recipe, reestimated=False)  # there is no data here to do it with
    what = "averaging" if unread is None or not unread.digests else "reading and averaging"
    soup = Soup(
        pool, recipe, integers_from=integers_from, progress=_counted(progress, what), unread=unread, finite=True
    )
    metadata = recipe_metadata(pool, recipe, integers_from=integers_from)
    if like is None:
        save(soup, output, metadata=metadata)
    else:
        save_alike(soup, like, output, metadata)
    pool = soup.pool
    if folder:
        differing = of_folders(pool, recipe, files_from)
        averaged_card(pool, recipe, output, files_from, command, [*warnings, *differing]).write(output)
        warnings += [f"note: {text}" for text in differing]
    notes = [*warnings, *(f"note: {note}" for note in pool.notes)]
    notes += [f"note: {dropped} has the same weights as {kept}; used once" for dropped, kept in pool.duplicates]
    paths = tuple(member.path for member in pool)
    return Averaged(output, recipe, pool.member_names, pool.fingerprints, paths, tuple(notes))


def _of_statistics(pool: Pool, recipe: Recipe, output: Path) -> list[str]:
    """A warning where BatchNorm statistics would have to be estimated again."""
    layers = batchnorm_layers(pool)
    if recipe.reestimated:
        name = pool.member_names[recipe.members[0]]
        return [
            f"warning: the recipe is {name} with its BatchNorm statistics re-estimated; {output} holds {name} with "
            "those it has, since averaging has no data. The run's own soup file has the others"
        ]
    if recipe.size < 2 or not layers:
        return []
    named = ".".join(filter(None, (layers[0], "running_mean")))
    count = f"{len(layers)} BatchNorm layer{'s' * (len(layers) > 1)}"
    how = "by the positive ratios alone" if recipe.affine else "like all else"
    return [
        f"warning: the running statistics of {count} ({named}, ...) were averaged {how}, and do not fit "
        f"averaged weights. Estimate them again over some training batches before {output} is used: "
        "torch.optim.swa_utils.update_bn(batches, model), or cook with a task that has calibration()"
    ]


def _recipe_in(file: Path, pool: Pool | Adapters) -> Recipe:
    value = _recipe_value(file)
    try:
        return Recipe.from_json(value, pool.fingerprints)
    except RadinError as error:
        raise RadinError(f"{file}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RadinError(f"{file} is not a recipe of radin's ({error})") from None


def _recipe_value(file: Path) -> Any:
    """The JSON form of the recipe in a file. Raises RadinError where it cannot be read, and seldom where it is none."""
    try:
        value = read_json(file)
        value = opened(value) if "checksum" in value else value  # one that was written by hand has none
        return value.get("recipe", value)
    except FileNotFoundError:
        raise RadinError(
            f"{file}: no such file; a finished run has a recipe.json, for --recipe RUN/recipe.json"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RadinError(f"{file} is not a recipe of radin's ({error})") from None


def average_adapter_pool(
    pool: Adapters,
    ratios: Sequence[str],
    recipe_file: Path | None,
    output: Path,
    *,
    rank: int | None = None,
    files_from: str | None = None,
    command: str | None = None,
) -> Averaged:
    """Average LoRA adapters as the products of their matrices, into one adapter's folder: see ``average_adapters``."""
    require_utf8(output)
    if output.suffix in ENDINGS:
        raise RadinError(
            f"{output}: an average of adapters is a folder; give a name without an ending, or --base FOLDER"
        )
    require_replaceable(output)
    if rank is not None and rank < 1:
        raise RadinError(f"--rank must be at least 1; got {rank}")
    if len(pool) < 2:
        raise RadinError("an average needs at least two different adapters")
    if ratios and recipe_file is not None:
        raise RadinError("give --ratios or --recipe, not both")
    recipe = recipe_of(pool, ratios) if recipe_file is None else _recipe_in(recipe_file, pool)
    source = recipe.weights.index(max(recipe.weights))
    if files_from is not None:
        if files_from not in pool.member_names:
            raise RadinError(
                f"--files-from: no member is named {files_from!r}; members: {', '.join(pool.member_names)}"
            )
        source = pool.member_names.index(files_from)
    like = pool[source].adapter
    found = average_adapters(pool, recipe, rank=rank, like=like)
    value = json.dumps(recipe.to_json(pool.member_names, pool.fingerprints))
    save_adapter(found, like, output, {RECIPE_KEY: value, "radin.version": __version__})
    notes = [_of_ranks(found)]
    adapters_card(pool, recipe, output, source, command, notes).write(output)
    told = [f"note: {note}" for note in (*notes, *pool.found)]
    told += [f"note: {dropped} is the same adapter as {kept}; used once" for dropped, kept in pool.duplicates]
    paths = tuple(member.path for member in pool)
    return Averaged(output, recipe, pool.member_names, pool.fingerprints, paths, tuple(told))


def _of_ranks(found: AveragedAdapter) -> str:
    most, least = found.ranks
    rank = f"rank {most}" if most == least else f"ranks {least} to {most}"
    if found.error is None:
        return f"the products of the adapters' matrices were averaged, exactly, into an adapter of {rank}"
    return (
        f"the average of the products of the adapters' matrices was brought to {rank} by SVD: it differs from the "
        f"exact one by {found.error:.3g} of its Frobenius norm"
    )


def recipe_of(pool: Pool | Adapters, ratios: Sequence[str]) -> Recipe:
    """Mixing ratios as a user types them, scaled to sum 1; uniform where there are none.

    Numbers in the order of the files ("3,1"), or NAME=NUMBER for some of the members ("m2=3,m0=1", or each in a text of
    its own), the others 0. NAME: a member's name, its path, or the end of its path. Raises RadinError.
    """
    if not ratios:
        return Recipe.uniform(range(len(pool)), len(pool))
    if any("=" in text for text in ratios):
        values = _named_ratios(pool, ratios)
    else:
        values = _ratios_in_order(pool, ",".join(ratios))
    try:
        return Recipe.normalized(values)
    except RadinError as error:
        raise RadinError(f"--ratios {' '.join(ratios)}: {error}") from None


def _ratios_in_order(pool: Pool | Adapters, text: str) -> list[float]:
    if pool.duplicates:
        dropped = ", ".join(printable(path) for path, _ in pool.duplicates)
        raise RadinError(
            f"--ratios needs one file per ratio, but {dropped} repeats another file: leave it out, or give ratios by "
            "name (--ratios NAME=NUMBER,...)"
        )
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise RadinError(f"--ratios must be numbers, or NAME=NUMBER, separated by commas; got {text!r}") from None
    if len(values) != len(pool):
        names = ", ".join(pool.member_names)
        raise RadinError(f"--ratios has {len(values)} numbers for {len(pool)} checkpoints, in this order: {names}")
    return values


def _named_ratios(pool: Pool | Adapters, ratios: Sequence[str]) -> list[float]:
    """A name may itself hold commas and equals signs: the shortest text before a number that names a member is one."""
    # A file dropped as a duplicate stands for the one that was kept.
    place = {pool[k].path: k for k in range(len(pool))}
    for dropped, kept in reversed(pool.duplicates):  # by content last; a link may lead to a file that was dropped so
        place[dropped] = place[kept]
    places = list(place.values())
    members = Lookup(pool.member_names, list(place))
    values = [0.0] * len(pool)
    given: dict[int, str] = {}
    for text in ratios:
        held = ""
        for part in text.split(","):
            held = f"{held},{part}" if held else part
            name, _, number = held.rpartition("=")
            found, value = members.find(name.strip()), _float(number)
            if found is None or value is None:
                continue
            at = places[found]
            if at in given:
                raise RadinError(f"--ratios gives {pool[at].name} two ratios, as {given[at]!r} and as {held!r}")
            given[at], values[at], held = held, value, ""
        if held:
            name, equals, number = held.rpartition("=")
            if equals and members.find(name.strip()) is not None:
                raise RadinError(f"--ratios: {number!r} is not a number, for {name!r}")
            raise RadinError(
                f"--ratios: no member, or more than one, is meant by {name if equals else held!r}; members: "
                f"{', '.join(pool.member_names)}"
            )
    return values


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
