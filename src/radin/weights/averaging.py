"""From a recipe and a pool to averaged tensors, streamed, and the record of how they were made."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from radin import __version__
from radin.errors import PoolError, printable
from radin.recipe import Recipe
from radin.weights.fitting import common_aliases, common_dtypes
from radin.weights.geometry import STATISTICS
from radin.weights.layout import Piece, count, is_averaged, leaves
from radin.weights.pool import Opened, Pool, Progress
from radin.weights.raw import RawFiles, on_threads, threads_here
from radin.weights.saving import RECIPE_KEY, check_output, read_metadata, read_recipe, save
from radin.weights.sums import Adder, Sink, Sum
from radin.weights.unread import MistakenError, Unread

_SMALL = 8 << 20  # bytes to be read that are not worth starting threads for

__all__ = [
    "Soup",
    "average",
    "check_output",
    "integer_source",
    "read_metadata",
    "read_recipe",
    "recipe_metadata",
    "save",
]


def average(
    pool: Pool | str | Path | Iterable[str | Path],
    recipe: Recipe | None = None,
    *,
    integers_from: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The soup: sum_k p_k theta_k for each float tensor, summed in float64 and rounded once to its own dtype.

    p: where a group of the recipe's names the tensor, that group's ratios; of a tied one, by the name that comes first.
    Of an affine recipe, BatchNorm statistics (``running_mean``, ``running_var``) are averaged by its positive ratios
    alone, scaled to sum 1: a variance beyond the members' may be below zero.

    ``pool``: one that was opened; or what ``Pool.open`` takes, to be checked in the same reading as it is averaged.
    ``recipe``: without one, uniform. Members are read in blocks, so peak memory is the result and a few megabytes,
    whatever N. Where members' float dtypes differ, the result has the one that holds all. Integer and bool tensors are
    copied from the member named ``integers_from``, by default the one with the largest ratio outside of groups (the
    first of equals). Tensors tied in every member used are one tensor under all their names. ``progress(done, total)``:
    bytes read; it may be called from other threads, one call at a time. Raises PoolError when the recipe is not over
    this pool, a group of it names no tensor or ``integers_from`` is not in the pool, and for paths what ``Pool.open``
    raises.
    """
    unread = None
    if not isinstance(pool, Pool):
        unread = Unread(Opened.of(pool))
        pool = unread.pool
    try:
        return _tensors(pool, recipe, integers_from, progress, unread)
    except MistakenError as error:  # files that hold the same weights count once
        return _tensors(error.pool, recipe, integers_from, progress, None)


def _tensors(
    pool: Pool, recipe: Recipe | None, integers_from: str | None, progress: Progress | None, unread: Unread | None
) -> dict[str, Tensor]:
    recipe = recipe or Recipe.uniform(range(len(pool)), len(pool))
    soup = Soup(pool, recipe, integers_from=integers_from, progress=progress, unread=unread)
    result = soup.tensors()
    soup.final_metadata({})
    return result


class Soup(Mapping[str, Tensor]):
    """The same, computed when a tensor is asked for and not kept: for writing a soup larger than memory.

    ``shapes``, ``dtypes`` and ``aliases`` are known before anything is read. ``save``, ``write_alike`` and
    ``save_alike`` write one block after another. ``unread``: whose content is to be found out in the same reading;
    ``final_metadata`` then says what was. ``finite``: raise PoolError where the average of finite weights is not,
    as that of an affine recipe may be.
    """

    def __init__(
        self,
        pool: Pool,
        recipe: Recipe,
        *,
        integers_from: str | None = None,
        progress: Progress | None = None,
        unread: Unread | None = None,
        finite: bool = False,
    ) -> None:
        self.pool = pool
        self._checked = finite and recipe.affine
        self._source = integer_source(pool, recipe, integers_from)
        self._members = recipe.members
        self._unread = unread
        checkpoints = [pool[index].checkpoint for index in recipe.members]
        self.aliases: Mapping[str, str] = common_aliases(checkpoints)
        copied = pool[self._source].checkpoint.dtypes
        self.dtypes: Mapping[str, torch.dtype] = {
            name: dtype if is_averaged(dtype) else copied[name] for name, dtype in common_dtypes(checkpoints).items()
        }
        self.shapes = pool.shapes
        self._names = [name for name in pool.names if name not in self.aliases]
        digests = unread.digests if unread is not None else {}
        self._sum = Sum(
            tuple(member.checkpoint for member in pool),
            _ratios(pool, recipe, self.aliases),
            self._source,
            self.dtypes,
            digests,
            set(),
            self._report,
        )
        hashed = [name for found in digests.values() for name in found.sizes]
        self._sizes = {name: count(self.shapes[name]) for name in dict.fromkeys([*self._names, *hashed])}
        self._progress = progress
        self._done, self._lock = 0, threading.Lock()
        self._total = sum(self._bytes(name) for name in self._sizes) if progress is not None else 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.pool.names)

    def __len__(self) -> int:
        return len(self.pool.names)

    def __getitem__(self, name: str) -> Tensor:
        kept = self.aliases.get(name, name)
        return self.tensors([kept])[kept]

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """All tensors by name, or some; tied ones are one object."""
        wanted = list(self.pool.names if names is None else names)
        kept = list(dict.fromkeys(self.aliases.get(name, name) for name in wanted))
        result = {name: torch.empty(self.shapes[name], dtype=self.dtypes[name]) for name in kept}
        flat = {name: tensor.view(-1) for name, tensor in result.items()}

        def keep(piece: Piece, values: Tensor) -> None:
            flat[piece.name][piece.start : piece.stop] = values

        self.stream(kept, keep)
        return {name: result[self.aliases.get(name, name)] for name in wanted}

    def stream(self, names: Iterable[str], sink: Sink) -> None:
        """Compute these tensors, none of them an alias, and hand them on block by block, in the order of the files.

        Raises CheckpointError when a member changed.
        """
        if self._checked:
            sink = _finite(sink)
        members = [self.pool[index] for index in dict.fromkeys([*self._members, self._source])]
        for member in members:
            member.require_unchanged()
        self._sweep(list(names), sink)
        for member in members:
            member.require_unchanged()

    def final_metadata(self, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """The metadata as they are to stay in the file, of the same length: with the fingerprints now known.

        To be called once all is written and before it takes its place. Raises PoolError or CheckpointError for what
        cannot be a pool, ``unread.MistakenError`` where members turn out to be the same.
        """
        if self._unread is None:
            return metadata
        self._sweep([name for name in self._sizes if name not in self._sum.hashed], None)
        self.pool = self._unread.settle()
        return self._unread.filled_in(metadata)

    def _report(self, values: Tensor) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += values.numel() * values.dtype.itemsize
                self._progress(self._done, self._total)

    def _bytes(self, name: str) -> int:
        """How many there are to be read of a tensor, those not counted that are only copied."""
        members = self._sum.reads(name, given=name not in self.aliases)
        if not is_averaged(self.dtypes[name]):
            members = [index for index in members if index in self._sum.digests]
        return sum(self._sizes[name] * self.pool[index].checkpoint.dtypes[name].itemsize for index in members)

    def _sweep(self, names: list[str], sink: Sink | None) -> None:
        """Read tensors block by block, on several threads where there is much to do. sink None: only hash them."""
        reads = {name: self._sum.reads(name, given=sink is not None) for name in names}
        small = sum(map(self._bytes, names)) < _SMALL
        checkpoints = self._sum.checkpoints
        stretches = {name: [checkpoints[index].stretch(name) for index in reads[name]] for name in names}
        places = {
            name: (str(found[0].path), found[0].start)
            for name, found in stretches.items()
            if found and found[0] is not None and None not in found
        }
        in_order = sorted(places, key=places.__getitem__)
        with RawFiles() as files:

            def start() -> Callable[[tuple[Piece, ...]], None]:
                return Adder(self._sum, files, reads, sink).together

            groups = leaves({name: self._sizes[name] for name in in_order})
            on_threads(groups, start, 1 if small else threads_here())
            if rest := [name for name in names if name not in places and reads[name]]:
                adder = Adder(self._sum, files, reads, sink)
                for name in rest:
                    adder.one_by_one(name, self._sizes[name])
        self._sum.hashed.update(names)


def _ratios(pool: Pool, recipe: Recipe, aliases: Mapping[str, str]) -> dict[str, dict[int, float]]:
    """By tensor, the members' ratios by index, those that are 0 left out.

    Raises PoolError for a group that no tensor is in.
    """
    rows = {group.name: group.weights for group in recipe.groups}
    shares: dict[str | None, dict[int, float]] = {
        name: {index: ratio for index, ratio in enumerate(weights) if ratio}
        for name, weights in [(None, recipe.weights), *rows.items()]
    }
    named = {name: recipe.group_of(name) for name in pool.names}
    held = {group for name, group in named.items() if name not in aliases}
    for group in rows:
        if group in held:
            continue
        tied = next((name for name, found in named.items() if found == group), None)
        if tied is not None:
            raise PoolError(
                f"the recipe's group {printable(group)} holds no tensor of its own: {printable(tied)} is tied to "
                f"{printable(aliases[tied])}, which counts; name that one"
            )
        raise PoolError(
            f"the recipe's group {printable(group)} names no tensor of the pool{_similar(group, pool.names)}. A group "
            "is named as the module is, or as the tensor"
        )
    if not recipe.affine:
        return {name: shares[group] for name, group in named.items()}
    inside = {group: _positive(ratios) for group, ratios in shares.items()}
    return {name: (inside if _is_statistic(name) else shares)[group] for name, group in named.items()}


def _finite(sink: Sink) -> Sink:
    """The same sink, which raises PoolError for values that are not finite."""

    def checked(piece: Piece, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise PoolError(
                f"{printable(piece.name)} of this affine recipe is too large for {values.dtype}: give ratios nearer to "
                "0, or members in a wider dtype"
            )
        sink(piece, values)

    return checked


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in STATISTICS


def _positive(ratios: Mapping[int, float]) -> dict[int, float]:
    """The positive ones, scaled to sum 1."""
    total = sum(ratio for ratio in ratios.values() if ratio > 0)
    return {index: ratio / total for index, ratio in ratios.items() if ratio > 0}


def _similar(group: str, names: Iterable[str]) -> str:
    """What may have been meant, as the end of a sentence; empty where nothing is close."""
    modules = dict.fromkeys(
        ".".join(parts[:end]) for name in names for parts in [name.split(".")] for end in range(1, len(parts) + 1)
    )
    close = get_close_matches(group, modules, n=3)
    return f"; close to it: {', '.join(map(printable, close))}" if close else ""


def integer_source(pool: Pool, recipe: Recipe, integers_from: str | None = None) -> int:
    """Index of the member whose integer and bool tensors a soup copies. Raises PoolError for an unknown name."""
    if len(recipe.weights) != len(pool):
        raise PoolError(f"the recipe has {len(recipe.weights)} ratios; this pool has {len(pool)} members")
    if integers_from is None:
        return recipe.weights.index(max(recipe.weights))
    if integers_from not in pool.member_names:
        raise PoolError(f"integers_from: no member is named {integers_from!r}; members: {', '.join(pool.member_names)}")
    return pool.member_names.index(integers_from)


def recipe_metadata(
    pool: Pool, recipe: Recipe, extra: Mapping[str, str] | None = None, *, integers_from: str | None = None
) -> dict[str, str]:
    """Metadata strings that say how a soup was made: its recipe as JSON, radin's version, where integers are from."""
    return {
        RECIPE_KEY: json.dumps(recipe.to_json(pool.member_names, pool.fingerprints)),
        "radin.version": __version__,
        "radin.integers_from": pool.member_names[integer_source(pool, recipe, integers_from)],
        **(extra or {}),
    }
