"""Very large pools: a search over the members that lead, as if there were no others.

What candidates are made from, their model and the estimates of tens of thousands of recipes grow with the members, some
of it with their square. From ``LEADING`` members on, more of them cost a search far more than they give it: soups are
made of good members, and there are more good ones than a soup can use. So the others are looked at once, by their
scores, and then left out; the recipes are over the whole pool all the same.

Axis names: members N, those that lead n.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from radin.recipe import Recipe
from radin.search.strategies.base import Asks, Floats, Indices, Open, Problem, Slice

LEADING = 256
"""Members up to which a search looks at all; of more, at as many of the best."""


def leading(problem: Problem) -> Indices | None:
    """Which members a search should look at, (n,) in canonical order, so the best; None: at all of them."""
    if problem.members <= LEADING or problem.among is None:
        return None
    return np.arange(LEADING)


def over_all(asks: Asks, some: Indices, members: int) -> Asks:
    """What a strategy asks that knows only ``some`` (n,) of the members, as recipes over all N."""

    def widened(ratios: Floats | Recipe) -> Floats | Recipe:
        if isinstance(ratios, Recipe):
            return replace(
                ratios,
                weights=tuple(wide(ratios.weights).tolist()),
                groups=tuple(replace(group, weights=tuple(wide(group.weights).tolist())) for group in ratios.groups),
            )
        return wide(ratios)

    def wide(ratios: Any) -> Floats:
        result = np.zeros(members)
        result[some] = ratios
        return result

    reply: Any = None
    while True:
        try:
            asked = asks.send(reply)
        except StopIteration:
            return
        if isinstance(asked, Open):
            plain = asked.ask
            if isinstance(plain, Slice):
                asked = replace(asked, ask=replace(plain, ratios=widened(plain.ratios)))
            else:
                asked = replace(asked, ask=widened(plain))
        elif isinstance(asked, np.ndarray | Recipe):
            asked = widened(asked)
        elif isinstance(asked, Slice):
            asked = replace(asked, ratios=widened(asked.ratios))
        reply = yield asked
