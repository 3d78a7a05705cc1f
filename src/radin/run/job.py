"""What one session of a run works on, and what it records."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radin.data.task import Task
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.metrics import Metric
from radin.progress import Progress
from radin.question import Answer
from radin.recipe import Recipe
from radin.run.directory import RunDirectory
from radin.run.ledger import Ledger
from radin.run.preflight import Preflight
from radin.weights import Pool, geometry


@dataclass(frozen=True)
class Job:
    """A pool and a task in a run directory. ``seconds``: what each stage of this session has taken so far."""

    pool: Pool
    task: Task
    metric: Metric
    engine: Device
    evaluator: Evaluator
    directory: RunDirectory
    ledger: Ledger
    checked: Preflight
    integers_from: str | None
    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.pool)

    @property
    def everyone(self) -> Recipe:
        """The average of all members."""
        return Recipe.uniform(range(len(self.pool)), len(self.pool))

    def identity(self, recipe: Recipe) -> str:
        return recipe.identity(self.pool.fingerprints)

    def to_json(self, recipe: Recipe) -> dict[str, object]:
        return recipe.to_json(self.names, self.pool.fingerprints)

    def known(self, recipe: Recipe, split: str = "validation") -> Answer | None:
        """The recorded evaluation of a member or of a complete soup, or None."""
        return self.ledger.get(self.identity(recipe), "member" if recipe.is_single else "soup", split)

    def add(self, recipe: Recipe, split: str, found: Answer) -> None:
        """Record an evaluation of a member or of a complete soup."""
        kind = "member" if recipe.is_single else "soup"
        self.ledger.add(self.identity(recipe), self.to_json(recipe), kind, split, found)

    def single(self, k: int) -> Answer:
        """A member's evaluation on validation, which its outputs gave."""
        found = self.known(Recipe.single(k, len(self.pool)))
        assert found is not None
        return found

    def gram(self) -> NDArray[np.float64]:
        """Inner products of the members' weights, (N, N)."""
        progress = self.progress
        report = (lambda done, total: progress("distances between members", done, total)) if progress else None
        return geometry(self.pool, progress=report).gram
