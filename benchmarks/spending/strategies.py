"""The strategies compared: radin's own by their options, and two that a user would try, written here.

Those two are registered like any other, so that Search drives all in the same way and counts their passes alike.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from radin.search.candidates import Floats
from radin.search.strategies.base import Asks, Problem, strategy

OURS = "adaptive"
"""The registered name of the strategy that is compared with all others."""

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "best single": ("best", {}),
    "uniform": ("uniform", {}),
    "top-k": ("top-k", {}),
    "greedy, strict": ("greedy", {"accept": "strict"}),
    "greedy, ties": ("greedy", {"accept": "ties"}),
    "pruned": ("pruned", {}),
    "random": ("random", {}),
    "RADIN, lambda 0": ("paper", {"uniform": False}),
    "RADIN, lambda 1": ("paper", {"prior": 1.0}),
    "greedy on logits": ("greedy on logits", {}),
    "CMA-ES": ("cma-es", {}),
    "ours": (OURS, {}),
}
"""What tables call them -> registered name and options."""

PAPER = ("RADIN, lambda 0", "RADIN, lambda 1")
GREEDY = "greedy, strict"

_SPREAD = 1.0  # CMA-ES's first standard deviation: mixing weights within a factor e of each other, mostly


def register() -> None:
    """Make the two known to Search. Not done on import: whoever lists radin's own strategies must not see them."""
    strategy("greedy on logits")(greedy_on_logits)
    strategy("cma-es")(cma_es)


def greedy_on_logits(problem: Problem) -> Asks:
    """Grow an ensemble by the member that helps its averaged outputs most, no repeats; build that one soup.

    Caruana et al. 2004, "Ensemble selection from libraries of models", without replacement: from the best member on,
    as long as the estimate rises.
    """
    mask = np.eye(1, problem.members, dtype=np.bool_)[0]
    current = float(problem.singles[0])
    while not mask.all():
        outside = np.flatnonzero(~mask)
        grown = mask | np.eye(problem.members, dtype=np.bool_)[outside]
        estimates = problem.estimate(grown / grown.sum(axis=1, keepdims=True))
        best = int(estimates.argmax())
        if estimates[best] <= current:
            break
        mask, current = grown[best], float(estimates[best])
    yield mask / mask.sum()


def cma_es(
    problem: Problem,
    *,
    spread: Annotated[float, "standard deviation of the first draws, of the weights' logarithms"] = _SPREAD,
) -> Asks:
    """Adapt a normal distribution over the logarithms of the mixing weights by true scores (Hansen 2016).

    The package ``cma`` with its own population size. The uniform soup, where the distribution is centred, comes first.
    """
    import cma  # type: ignore[import-untyped]

    yield np.full(problem.members, 1.0 / problem.members)
    if problem.members < 2:
        return
    search = cma.CMAEvolutionStrategy(
        np.zeros(problem.members), spread, {"seed": problem.seed + 1, "verbose": -9, "maxiter": 10**6}
    )
    while True:
        points = search.ask()
        losses = []
        for point in points:
            utility = yield _softmax(np.asarray(point))
            losses.append(-utility if np.isfinite(utility) else 1e9)
        search.tell(points, losses)


def _softmax(logarithms: Floats) -> Floats:
    powers = np.exp(logarithms - logarithms.max())
    weights: Floats = powers / powers.sum()
    return weights
