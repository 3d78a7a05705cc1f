"""The plain ways to make a soup, which any search must beat at the same number of passes."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from radin.errors import RadinError
from radin.search.candidates import equal_weights, subsets
from radin.search.strategies.base import Asks, Problem, strategy


@strategy("uniform", independent=True)
def uniform(problem: Problem) -> Asks:
    """Evaluate the average of all members."""
    yield np.full(problem.members, 1.0 / problem.members)


@strategy("top-k", independent=True)
def top_k(
    problem: Problem,
    *,
    k: Annotated[int | None, "average this many of the best only; 2, 3, ... in turn if not given"] = None,
) -> Asks:
    """Evaluate the average of the k best members, for k = 2, 3, ... or for one k."""
    if k is not None and not 1 <= k <= problem.members:
        raise RadinError(f"option 'k' must be between 1 and {problem.members}, the number of members; got {k}")
    for size in range(2, problem.members + 1) if k is None else (k,):
        _ = yield equal_weights(np.arange(problem.members)[None] < size)[0]


@strategy("best", spends=False)
def best(problem: Problem) -> Asks:
    """Evaluate no soup: the best single member."""
    yield from ()


@strategy("random", independent=True)
def random(
    problem: Problem,
    *,
    sizes: Annotated[tuple[int, int] | None, "smallest and largest subset drawn; 2 to N-1 if not given"] = None,
) -> Asks:
    """Evaluate random subsets in the order in which they are drawn, without an estimate."""
    drawn = subsets(problem.members, problem.budget, np.random.default_rng(problem.seed), sizes, False)
    for mask in drawn:
        _ = yield equal_weights(mask[None])[0]
