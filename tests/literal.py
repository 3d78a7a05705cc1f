"""The paper's Algorithm 2 (arXiv 2401.17790) written literally, slow and plain: what radin's is compared with."""

from __future__ import annotations

import numpy as np


def candidates_of_the_paper(members: int, count: int, seed: int) -> list[frozenset[int]]:
    """``count`` distinct subsets, size uniform on [2, N-1], from the random numbers that ``monte_carlo`` documents."""
    rng = np.random.default_rng(seed)
    seen: dict[frozenset[int], int] = {}
    while len(seen) < count:
        sizes = rng.integers(2, members, 4096)
        numbers = rng.random((4096, members))
        for size, row in zip(sizes, numbers, strict=True):
            by_number = sorted(range(members), key=lambda k: row[k])
            subset = frozenset(by_number[:size])
            if subset not in seen and len(seen) < count:
                seen[subset] = len(seen)
    return list(seen)
