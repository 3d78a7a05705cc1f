"""From a recipe and a pool to averaged tensors, streamed, and the record of how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from radin import __version__
from radin.errors import PoolError
from radin.recipe import Recipe
from radin.weights.layout import Piece, blocks, chunks, is_averaged, reals
from radin.weights.pool import Member, Pool, Progress, common_aliases, common_dtypes
from radin.weights.saving import RECIPE_KEY, check_output, read_metadata, read_recipe, save

# Elements averaged between opening and closing each member: 64 MB of float32. The float64 sums take twice that.
_CHUNK = 1 << 24
# Elements converted and added at once: few enough to stay in the processor's nearest cache, and that torch runs
# each step on one thread. Threads that wait for each other thousands of times are slow on a busy machine.
_BLOCK = 1 << 15

__all__ = ["average", "check_output", "integer_source", "read_metadata", "read_recipe", "recipe_metadata", "save"]


def average(
    pool: Pool, recipe: Recipe, *, integers_from: str | None = None, progress: Progress | None = None
) -> dict[str, Tensor]:
    """The soup: sum_k p_k theta_k for each float tensor, summed in float64 and rounded once to its own dtype.

    Members are read in chunks, so peak memory is the result, one chunk of sums and one chunk of one member, whatever
    N. Where members' float dtypes differ, the result has the one that holds all. Integer and bool tensors are copied
    from the member named ``integers_from``, by default the one with the largest ratio (the first of equals).
    Tensors tied in every member used are one tensor under all their names. ``progress(done, total)``: bytes read.
    Raises PoolError when the recipe is not over this pool or ``integers_from`` is not in it.
    """
    source = pool[integer_source(pool, recipe, integers_from)]
    used = [(pool[index], recipe.weights[index]) for index in recipe.members]
    checkpoints = [member.checkpoint for member, _ in used]
    aliases, dtypes = common_aliases(checkpoints), common_dtypes(checkpoints)
    kept = [name for name in pool.names if name not in aliases]
    result = {name: torch.empty(pool.shapes[name], dtype=dtypes[name]) for name in kept if is_averaged(dtypes[name])}
    sizes = {name: tensor.numel() for name, tensor in result.items()}
    report = _reporter(progress, used, sizes)
    for chunk in chunks(sizes, _CHUNK):
        for piece, total in _sums(chunk, used, report):
            reals(piece.of(result[piece.name])).copy_(total)
    with source.open() as reader:
        result.update({name: reader[name].clone() for name in kept if name not in result})
    return {name: result[aliases.get(name, name)] for name in pool.names}


def _sums(
    chunk: tuple[Piece, ...], used: list[tuple[Member, float]], report: Callable[[int], None]
) -> Iterator[tuple[Piece, Tensor]]:
    """For each piece its sum by ratio over the members, flat, float64 (real and imaginary parts if complex).

    Each member is opened and closed in turn: mapped pages stay resident for as long as their file is open.
    """
    totals: dict[Piece, Tensor] = {}
    scratch = torch.empty(_BLOCK, dtype=torch.float64)
    for member, ratio in used:
        with member.open() as reader:
            for piece in chunk:
                values = reals(piece.of(reader[piece.name]))
                if piece in totals:
                    _add(totals[piece], values, ratio, scratch)
                else:
                    totals[piece] = _scaled(values, ratio)
                report(values.numel() * values.dtype.itemsize)
    yield from totals.items()


def _scaled(values: Tensor, ratio: float) -> Tensor:
    total = torch.empty(len(values), dtype=torch.float64)
    for start, block in blocks(values, _BLOCK):
        total[start : start + len(block)].copy_(block).mul_(ratio)
    return total


def _add(total: Tensor, values: Tensor, ratio: float, scratch: Tensor) -> None:
    # Product and sum are rounded apart, as in total + ratio * values: a fused step would differ in the last bit.
    for start, block in blocks(values, _BLOCK):
        product = scratch[: len(block)].copy_(block).mul_(ratio)
        total[start : start + len(block)].add_(product)


def _reporter(
    progress: Progress | None, used: list[tuple[Member, float]], sizes: Mapping[str, int]
) -> Callable[[int], None]:
    total = sum(size * member.checkpoint.dtypes[name].itemsize for member, _ in used for name, size in sizes.items())
    done = 0

    def report(read: int) -> None:
        nonlocal done
        done += read
        if progress is not None:
            progress(done, total)

    return report


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
