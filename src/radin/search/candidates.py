"""Where recipes come from: subsets of the pool, averaged uniformly.

Everything here works on members in canonical order (best single first; see ``strategies.base.Problem``).
Axis names: members N, recipes S. A mask (N,) of bools is a subset.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, islice
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.errors import RadinError

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]

DRAWS_PER_BLOCK = 4096
EXHAUSTIVE_LIMIT = 2**20
_ROWS_PER_BLOCK = 65536
_NUMBERS_AT_ONCE = 1 << 22  # random numbers of a block that lie in memory together
_SORTED = 96  # members up to which all of a draw's numbers are sorted


def equal_weights(masks: Masks) -> Floats:
    """The uniform average of each subset: masks (S, N) -> mixing ratios (S, N), equal to Recipe.uniform's."""
    shares = 1.0 / masks.sum(axis=1, keepdims=True)
    weights: Floats = masks * shares
    return weights


def distinct(rows: NDArray[Any]) -> NDArray[np.intp]:
    """Indices of the first appearance of each distinct row, ascending. rows (S, N) bools or floats."""
    packed = np.packbits(rows, axis=1) if rows.dtype == np.bool_ else rows + 0.0
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1] * packed.itemsize))).ravel()
    _, first = np.unique(keys, return_index=True)
    return np.sort(first)


def prefixes(members: int) -> Masks:
    """The k best members, for k = 1 to N, as masks (N, N)."""
    masks: Masks = np.tri(members, dtype=np.bool_)
    return masks


def size_range(members: int, sizes: tuple[int, int] | None) -> tuple[int, int]:
    """The smallest and largest subset size: the given ones, or 2 and N-1 as in the paper.

    Raises RadinError unless 2 <= smallest <= largest <= N.
    """
    if sizes is None:
        return 2, members - 1
    low, high = sizes
    if not 2 <= low <= high <= members:
        raise RadinError(
            f"subset sizes must satisfy 2 <= smallest <= largest <= {members}, the number of members; "
            f"got {low} and {high}"
        )
    return low, high


def count_subsets(members: int, low: int, high: int, most: int | None = None) -> int:
    """How many subsets of ``members`` have a size in [low, high]; where more than ``most``, any number above that.

    Of thousands of members the exact number has thousands of digits, and takes long.
    """
    total = 0
    for size in range(low, high + 1):
        total += comb(members, size)
        if most is not None and total > most:
            break
    return total


def exhaustive(members: int, low: int = 2, high: int | None = None) -> Iterator[Masks]:
    """All subsets with a size in [low, high] (high: N if None).

    In order of size, then of their members, lexicographic. Yields masks in blocks of at most 65,536 rows.
    Raises RadinError if there are more than 2^20 subsets.
    """
    high = members if high is None else high
    total = count_subsets(members, low, high)
    if total > EXHAUSTIVE_LIMIT:
        raise RadinError(
            f"{members} members have {total} subsets of size {low} to {high}, too many to list "
            f"(at most {EXHAUSTIVE_LIMIT}); draw them instead"
        )
    return _blocks_of_subsets(members, low, high)


def _blocks_of_subsets(members: int, low: int, high: int) -> Iterator[Masks]:
    for size in range(low, high + 1):
        subsets_left = combinations(range(members), size)
        while block := list(islice(subsets_left, _ROWS_PER_BLOCK)):
            masks = np.zeros((len(block), members), dtype=np.bool_)
            chosen = np.fromiter(chain.from_iterable(block), np.intp, len(block) * size)
            np.put_along_axis(masks, chosen.reshape(len(block), size), True, axis=1)
            yield masks


def monte_carlo(
    members: int,
    count: int,
    sizes: tuple[int, int],
    rng: np.random.Generator,
    include_uniform: bool = False,
) -> Masks:
    """``count`` distinct random subsets in the order in which they are drawn, as masks (count, N).

    A draw is a size, uniform on [low, high], then a subset of that size, uniform among them; a subset already
    drawn is drawn again. If there are no more than ``count`` in all, each comes once. The random numbers come
    in blocks of 4,096 draws: first ``rng.integers(low, high + 1, 4096)``, the sizes; then ``rng.random((4096,
    N))``, and a draw takes the members with the ``size`` smallest of its N numbers. So a smaller count gives
    the start of a larger one. With ``include_uniform`` the average of all members comes first, one row more,
    and is not drawn again.
    """
    low, high = sizes
    blocked = np.ones((1 if include_uniform else 0, members), dtype=np.bool_)
    total = count_subsets(members, low, high, count + 1) - (1 if include_uniform and high == members else 0)
    wanted = len(blocked) + min(count, total)
    masks = blocked
    while len(masks) < wanted:
        blocks = -(-(wanted - len(masks)) // DRAWS_PER_BLOCK)
        if DRAWS_PER_BLOCK * members <= _NUMBERS_AT_ONCE:
            masks = np.concatenate([masks, *(part for _ in range(blocks) for part in _draw(members, low, high, rng))])
            masks = masks[distinct(masks)]
            continue
        for part in _draw(members, low, high, rng):  # no more of the block than it takes
            masks = np.concatenate([masks, part])
            masks = masks[distinct(masks)]
            if len(masks) >= wanted:
                break
    return masks[:wanted]


def _draw(members: int, low: int, high: int, rng: np.random.Generator) -> Iterator[Masks]:
    """One block of draws, in parts whose random numbers lie in memory together."""
    sizes = rng.integers(low, high + 1, DRAWS_PER_BLOCK)
    for start in range(0, DRAWS_PER_BLOCK, rows := max(1, _NUMBERS_AT_ONCE // members)):
        part = sizes[start : start + rows]
        masks = np.zeros((len(part), members), dtype=np.bool_)
        _mark_smallest(masks, rng.random(masks.shape), part)
        yield masks


def _mark_smallest(masks: Masks, numbers: Floats, sizes: NDArray[np.int64]) -> None:
    """In each row of ``masks`` (S, N) set the places of as many of the smallest ``numbers`` (S, N) as ``sizes`` says.

    Of equal numbers the first. In a large pool they are not sorted, which would take most of the time of a draw.
    """
    members = masks.shape[1]
    if members > _SORTED:
        for mask, row, size in zip(masks, numbers, sizes, strict=True):
            mask[:] = row <= np.partition(row, size - 1)[size - 1]
        left = np.flatnonzero(masks.sum(axis=1) != sizes)  # equal numbers
        masks[left] = False
    else:
        left = np.arange(len(masks))
    order = np.argsort(numbers[left], axis=1, kind="stable")
    masks[left[:, None], order] = np.arange(members) < sizes[left, None]


def subsets(members: int, count: int, rng: np.random.Generator, sizes: tuple[int, int] | None, uniform: bool) -> Masks:
    """The candidates of the paper's Algorithm 2: all subsets when there are at most ``count``, else drawn.

    ``sizes`` as in ``size_range``. With ``uniform`` the average of all members comes first, in addition to
    ``count``.
    """
    if count < 1:
        raise RadinError(f"the number of candidates must be at least 1; got {count}")
    low, high = size_range(members, sizes)
    if count_subsets(members, low, high, count) > count:
        return monte_carlo(members, count, (low, high), rng, uniform)
    whole = np.ones((1 if uniform and members >= 2 else 0, members), dtype=np.bool_)
    masks = np.concatenate([whole, *_blocks_of_subsets(members, low, high)])
    return masks[distinct(masks)] if len(masks) else masks
