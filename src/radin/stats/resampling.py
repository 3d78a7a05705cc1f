"""What both bootstraps share: how often each example is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
MOST_UNITS = 1 << 16  # that are resampled: so many examples, or groups of them
_CELLS = 2_000_000  # resampled numbers held at once


def units(rows: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """What is resampled in place of very many examples: sums over groups of them, drawn at random and equally large.

    rows (S, M) -> (S, G), G <= 65,536, and how many examples are in each; the examples themselves where they are no
    more. Resampling groups of independent examples gives means of the same variance, in a bounded time. Fewer examples
    than a group holds may be left over.
    """
    examples = rows.shape[1]
    size = -(-examples // MOST_UNITS)
    if size == 1:
        return rows, 1
    groups = examples // size
    drawn = np.random.default_rng(0).permutation(examples)[: groups * size]
    result = np.empty((len(rows), groups))
    for row, values in zip(result, rows, strict=True):
        row[:] = values[drawn].astype(np.float64).reshape(groups, size).sum(axis=1)
    return result, size


def is_binary(values: NDArray[Any]) -> bool:
    """Whether every number is 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def resample_counts(columns: int, examples: int, resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Blocks (rows, columns): how often each of the first ``columns`` of ``examples`` is drawn with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // columns)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = rng.binomial(examples, columns / examples, rows)
        flat = rng.integers(0, columns, draws.sum(), dtype=np.int32) + np.repeat(np.arange(rows) * columns, draws)
        yield np.bincount(flat, minlength=rows * columns).reshape(rows, columns)
