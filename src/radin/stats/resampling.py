"""What both bootstraps share: how often each example is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_CELLS = 2_000_000  # resampled numbers held at once


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
