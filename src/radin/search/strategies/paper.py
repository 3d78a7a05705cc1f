"""The paper's procedure: rank many subsets by their estimate, evaluate the few best (arXiv 2401.17790, Algorithm 2)."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from radin.search.candidates import Floats, distinct, equal_weights, subsets
from radin.search.screening import estimated
from radin.search.strategies.base import Asks, Problem, strategy


@strategy("paper", outputs=True, independent=True)
def paper(
    problem: Problem,
    *,
    candidates: Annotated[int, "how many distinct subsets to draw (C); all are taken when no more exist", 1] = 200,
    prior: Annotated[float, "utility added per member (lambda); the paper uses 0 and 1"] = 0.0,
    uniform: Annotated[bool, "whether the average of all members joins the candidates"] = True,
    sizes: Annotated[tuple[int, int] | None, "smallest and largest subset drawn; 2 to N-1 if not given"] = None,
) -> Asks:
    """Draw subsets, rank them by the score of their averaged outputs, evaluate the best.

    Algorithm 2 of arXiv 2401.17790. Candidates are those of ``candidates.subsets``; they are ranked by
    estimate + prior * size, best first, equal ones in candidate order, and the first B are evaluated in that
    order.
    """
    pool = equal_weights(subsets(problem.members, candidates, np.random.default_rng(problem.seed), sizes, uniform))
    for index in ranked(problem, pool, prior)[: problem.budget]:
        yield pool[index]


def ranked(problem: Problem, weights: Floats, prior: float = 0.0) -> list[int]:
    """Indices of the distinct rows of mixing ratios (S, N), best estimate + prior * size first; ties in order."""
    kept = distinct(weights)
    if not len(kept):
        return []
    chosen = weights[kept]
    utility = estimated(problem, chosen) + prior * (chosen > 0).sum(axis=1)
    return [int(kept[i]) for i in np.argsort(-utility, kind="stable")]
