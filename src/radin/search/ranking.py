"""Rank recipes by their estimate, from cached outputs alone: no model, no pass, no budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radin.checks import whole_number
from radin.estimate import Estimator, Outputs
from radin.metrics import Metric
from radin.progress import Progress
from radin.recipe import Recipe
from radin.search.screening import reranked, screened
from radin.search.search import Search
from radin.search.sources import best_recipes, default_sources
from radin.search.strategies.base import MOST_RECIPES

_KEPT_AT_LEAST = 64


@dataclass(frozen=True)
class RankedRecipe:
    """A recipe, its estimated score in the metric's own units, how many members it mixes, and where it came from."""

    recipe: Recipe
    estimate: float
    size: int
    source: str


def rank(
    outputs: Outputs,
    targets: Any,
    metric: str | Metric = "accuracy",
    *,
    sources: Sequence[str] | None = None,
    top: int = 20,
    count: int = 10_000,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    estimator: Estimator | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[RankedRecipe]:
    """The ``top`` recipes by estimate, best first, among those of the sources named.

    ``outputs``, ``targets``, ``metric``, ``keys``, ``names``, ``estimator``, ``device`` as in ``Search``.
    ``sources``: names in ``sources.SOURCES``; ``default_sources`` if None. ``count``: how many recipes each random
    source draws. Recipes are over the members in the order given. The estimate is the score of the averaged outputs,
    not the soup's. ``seed``: of what is drawn. ``progress``: called with (what, done, total). Raises RadinError for
    anything that does not fit.
    """
    for name, value in (("top", top), ("count", count)):
        whole_number(name, value, 1, MOST_RECIPES)
    search = Search(
        outputs,
        targets,
        metric=metric,
        strategy="best",
        budget=0,
        seed=seed,
        keys=keys,
        names=names,
        estimator=estimator,
        device=device,
        progress=progress,
    )
    problem = search.problem
    chosen = default_sources(problem.members, count) if sources is None else sources
    # Where estimates take long, only the best by something cheap get one each.
    rough = screened(problem) if problem.affords else problem
    kept = max(top, problem.affords or _KEPT_AT_LEAST)
    ranking = best_recipes(rough, chosen, count=count, keep=kept, progress=progress)
    places, utilities = np.arange(len(ranking.utilities)), ranking.utilities
    if problem.affords:
        places, utilities = reranked(problem, ranking.weights)
    numbers = np.isfinite(utilities)
    ranked = []
    for place, utility in zip(places[numbers][:top], utilities[numbers][:top], strict=True):
        recipe = search.recipe(ranking.weights[place])
        ranked.append(RankedRecipe(recipe, search.score(float(utility)), recipe.size, ranking.sources[place]))
    return ranked
