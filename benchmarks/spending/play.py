"""One strategy on one sub-pool: what it has chosen after each pass, and how that does on data it has not seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.spending.known import Floats
from benchmarks.spending.scored import Scored
from benchmarks.spending.strategies import GREEDY, STRATEGIES

from radin import Recipe, Search
from radin.estimate import Estimator, estimator

GRID = (1, 2, 4, 8, 16, 25)
"""Budgets in the tables; those for which the shifts are looked at."""

PLAYED = (*range(1, 9), 10, 12, 16, 20, 25)
"""Budgets with which ours is run; between them what a smaller budget found stands."""


@dataclass(frozen=True)
class Point:
    """A strategy's choice at a budget on a sub-pool, and its scores. ``shifts``: None off the grid.

    ``spent``: passes spent on soups, at most ``budget``.
    """

    pool: str
    subpool: str
    members: int
    strategy: str
    budget: int
    validation: float
    test: float
    shifts: dict[str, float] | None
    size: int
    spent: float


@dataclass(frozen=True)
class Work:
    """Processor seconds of a strategy's own thinking. ``first``: before its first evaluation; ``between``: later."""

    first: float
    between: tuple[float, ...]


@dataclass(frozen=True)
class Facts:
    """What a report says of a pool besides scores. Sizes are of its first folder where it has several splits.

    ``differing``: see Checked. ``thinking``: for "sub-pools" and "the whole pool", see ``share``.
    """

    pool: str
    members: int
    examples: int
    calibration: int
    tests: int
    stderr: float
    checked: int
    differing: float
    pass_seconds: float
    thinking: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Group:
    """Members of a pool (indices), their estimator, and the seed of whatever is random on them."""

    name: str
    members: tuple[int, ...]
    estimator: Estimator
    seed: int

    @classmethod
    def of(cls, truth: Scored, name: str, members: Sequence[int], seed: int) -> Group:
        outputs = [truth.outputs[k] for k in members]
        return cls(name, tuple(members), estimator(outputs, truth.targets, truth.metric), seed)

    def whole(self, recipe: Recipe, size: int) -> Recipe:
        """A recipe over these members as one over the whole pool of ``size``."""
        weights = [0.0] * size
        for position, k in enumerate(self.members):
            weights[k] = recipe.weights[position]
        return Recipe(tuple(weights))


@dataclass(frozen=True)
class Standing:
    """The best recipe after ``spent`` passes, over the whole pool, and its validation score."""

    spent: float
    recipe: Recipe
    score: float


def run(truth: Scored, group: Group, label: str, budget: int) -> tuple[list[Standing], Work]:
    """Spend the budget; what stood after each evaluation, the best single member first."""
    name, options = STRATEGIES[label]
    chosen = list(group.members)
    clock = time.process_time()
    search = Search(
        [truth.outputs[k] for k in chosen],
        truth.targets,
        metric=truth.metric,
        strategy=name,
        options=options,
        budget=budget,
        seed=group.seed,
        keys=[truth.pool.fingerprints[k] for k in chosen],
        estimator=group.estimator,
        singles=truth.singles[chosen],
        gram=truth.gram[np.ix_(chosen, chosen)],
        parts=True,
        calibration=truth.calibration,
    )
    standings, thinking = [_standing(search, group, len(truth.pool))], []
    while True:
        part = search.ask()
        thinking.append(time.process_time() - clock)
        if part is None:
            break
        values = truth.values(group.whole(part.recipe, len(truth.pool)), "validation", part.examples)
        clock = time.process_time()
        search.tell(part, values)
        standings.append(_standing(search, group, len(truth.pool)))
    # what follows the last evaluation delays no other
    return standings, Work(thinking[0], tuple(thinking[1:-1]))


def _standing(search: Search, group: Group, size: int) -> Standing:
    recipe, score = search.best
    return Standing(float(search.spent), group.whole(recipe, size), score)


def after(standings: Sequence[Standing], budget: float) -> Standing:
    """The last one within the budget."""
    return [s for s in standings if s.spent <= budget + 1e-9][-1]


def play(truth: Scored, pool: str, group: Group, label: str, most: int, shifts: bool) -> tuple[list[Point], list[Work]]:
    """The strategy at every budget from 1 to ``most``; strict greedy to its end, so that its final score is known.

    Ours asks otherwise when its budget is larger, so it is run anew for each of PLAYED; any other runs once and is cut.
    """
    points, works = [], []
    last = max(most, len(group.members) - 1) if label == GREEDY else most
    standings: list[Standing] = []
    for budget in range(1, last + 1):
        if (label == "ours" and budget in PLAYED) or not standings:
            standings, work = run(truth, group, label, budget if label == "ours" else last)
            works.append(work)
        found = after(standings, budget)
        points.append(
            Point(
                pool,
                group.name,
                len(group.members),
                label,
                budget,
                found.score,
                truth.score(found.recipe, "test"),
                {name: truth.score(found.recipe, f"shifts/{name}") for name in truth.shifts}
                if shifts and budget in GRID
                else None,
                found.recipe.size,
                found.spent,
            )
        )
    return points, works


def share(works: Sequence[Work], pass_seconds: float) -> tuple[float, float, float]:
    """Thinking as shares of a full pass: the largest and the mean between evaluations, the mean before the first."""
    between: Floats = np.array([seconds for work in works for seconds in work.between])
    first = float(np.mean([work.first for work in works])) if works else 0.0
    if not len(between):
        return 0.0, 0.0, first / pass_seconds
    return float(between.max()) / pass_seconds, float(between.mean()) / pass_seconds, first / pass_seconds
