"""Validation in two halves: one to search on, one to choose on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.errors import TaskError


def split_halves(targets: NDArray[Any] | int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the examples to search on and to choose on, both sorted; a function of targets and seed alone.

    targets: (M,) classes, each then split evenly to within one example; or other targets, or M, split at random. The
    halves differ by at most one example. Raises TaskError for fewer than two examples.
    """
    labels = np.zeros(targets) if isinstance(targets, int) else np.asarray(targets)
    if len(labels) < 2:
        raise TaskError(f"validation holds {len(labels)} examples; to search on half and choose on half takes two")
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        labels = np.zeros(len(labels))
    # In turns along the examples sorted by class, in random order within each: even by class and in total.
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    return np.sort(order[0::2]), np.sort(order[1::2])
