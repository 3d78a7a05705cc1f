"""Greedy up from the best member, and down from all of them."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from radin.search.candidates import Floats
from radin.search.strategies.base import Asks, Problem, strategy

Accept = Literal["strict", "ties"]


def _average(mask: list[bool]) -> Floats:
    chosen = np.array(mask)
    weights: Floats = chosen / chosen.sum()
    return weights


def _accepts(accept: Accept, utility: float, current: float) -> bool:
    return utility > current or (accept == "ties" and utility == current)


@strategy("greedy")
def greedy(
    problem: Problem,
    *,
    accept: Annotated[Accept, "keep a member only if the score rises (strict), or also if it stays (ties)"] = "strict",
) -> Asks:
    """Start from the best member; try to add each other once, best first; keep those that help.

    Model Soups (arXiv 2203.05482), Recipe 1. Its text keeps a member at an equal score ("ties"), its official
    code only at a higher one ("strict").
    """
    mask = [k == 0 for k in range(problem.members)]
    current = float(problem.singles[0])
    for k in range(1, problem.members):
        mask[k] = True
        utility = yield _average(mask)
        if _accepts(accept, utility, current):
            current = utility
        else:
            mask[k] = False


@strategy("pruned")
def pruned(
    problem: Problem,
    *,
    accept: Annotated[Accept, "drop a member only if the score rises (strict), or also if it stays (ties)"] = "ties",
) -> Asks:
    """Start from the average of all; try to drop each member once, worst first; drop those that hurt."""
    if problem.members < 2:
        return
    mask = [True] * problem.members
    current = yield _average(mask)
    for k in reversed(range(problem.members)):
        if sum(mask) == 1:
            return
        mask[k] = False
        utility = yield _average(mask)
        if _accepts(accept, utility, current):
            current = utility
        else:
            mask[k] = True
