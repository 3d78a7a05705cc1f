"""What one session of a run works on, and what it records."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from radin.errors import RunError
from radin.events import Events
from radin.metrics import Metric
from radin.progress import Progress
from radin.question import VALIDATION, Answer
from radin.recipe import Recipe
from radin.run.directory import RunDirectory, way_on
from radin.run.ledger import Ledger
from radin.run.rows import REESTIMATED
from radin.weights import Pool, geometry


@dataclass
class Job:
    """A pool and what evaluates it, in a run directory.

    ``seconds``: what each stage of this session has taken so far. ``batchnorm_layers``: of the model, 0 where nobody
    can tell; ``calibrated``: whether their statistics are estimated again for soups. ``notes``: for the user.
    """

    pool: Pool
    metric: Metric
    directory: RunDirectory
    ledger: Ledger
    progress: Progress | None = None
    batchnorm_layers: int = 0
    calibrated: bool = False
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    events: Events = field(default_factory=Events)
    _grams: dict[tuple[int, ...], NDArray[np.float64]] = field(default_factory=dict, repr=False)
    _doing: str = ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What messages and tables call the members."""
        return tuple(member.name for member in self.pool)

    @property
    def uniform_recipe(self) -> Recipe:
        """The average of all members."""
        return Recipe.uniform(range(len(self.pool)), len(self.pool))

    @cached_property
    def _fingerprints(self) -> tuple[str, ...]:
        return self.pool.fingerprints

    def identity(self, recipe: Recipe) -> str:
        """What the ledger knows a recipe by."""
        return recipe.identity(self._fingerprints)

    def to_json(self, recipe: Recipe) -> dict[str, object]:
        """A recipe as the ledger keeps it."""
        return recipe.to_json(self.names, self._fingerprints)

    def known(self, recipe: Recipe, split: str = VALIDATION) -> Answer | None:
        """The recorded evaluation of a member on any split, or of a soup on one other than validation; or None.

        A member whose BatchNorm statistics were estimated again is known by a recipe of its own.
        """
        found = self.ledger.get(self.identity(recipe), _kind(recipe), split)
        if found is not None:
            self.check_data(split, found)
        return found

    def check_data(self, split: str, found: Answer) -> None:
        """Raise RunError when what was recorded is an evaluation over other data than this run's."""
        bound = self.directory.identity.get(data_name(split))
        if found.data and bound is not None and found.data != bound:
            raise RunError(
                f"{self.ledger.path} holds an evaluation over other data ({found.data[:12]}) than {split} of this run "
                f"({bound[:12]}). {way_on(self.directory.path)}"
            )

    def add(self, recipe: Recipe, split: str, found: Answer) -> None:
        """Record an evaluation that ``known`` is asked about."""
        self.ledger.add(self.identity(recipe), self.to_json(recipe), _kind(recipe), split, found)
        told = {"score": found.score, "stderr": found.stderr, "examples": found.examples, "seconds": found.seconds}
        if split != VALIDATION:
            self.events("split_evaluated", split=split, recipe=self.to_json(recipe), **told)
            return
        member = recipe.members[0]
        name, fingerprint = self.names[member], self._fingerprints[member]
        self.events("member_evaluated", name=name, fingerprint=fingerprint, reestimated=recipe.reestimated, **told)

    def single(self, k: int) -> Answer:
        """A member's evaluation on validation."""
        found = self.known(Recipe.single(k, len(self.pool)))
        assert found is not None
        return found

    @cached_property
    def gram(self) -> NDArray[np.float64]:
        """Inner products of the members' weights, (N, N)."""
        return self._gram(self.pool)

    def gram_of(self, some: NDArray[np.intp]) -> NDArray[np.float64]:
        """The same of some members alone, (n,) -> (n, n), once: of all it takes N times as long as to read them."""
        key = tuple(some.tolist())
        if key not in self._grams:
            self._grams[key] = self._gram(self.pool.reordered(key))
        return self._grams[key]

    def _gram(self, pool: Pool) -> NDArray[np.float64]:
        progress = self.progress
        report = (lambda done, total: progress("distances between members", done, total)) if progress else None
        return geometry(pool, progress=report).gram

    def spent(self, stage: str, seconds: float) -> None:
        """Add to what a stage of this session has taken."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def report(self, what: str) -> None:
        """Say what is done now."""
        self._doing = what
        self.advance(0, None)

    def advance(self, done: float, total: float | None) -> None:
        """Say how far what is done now has come."""
        if self.progress is not None:
            self.progress(self._doing, done, total)


def data_name(split: str) -> str:
    """What the identity of a run calls the fingerprint of a split's data."""
    return split if split == VALIDATION else f"{split} data"


def _kind(recipe: Recipe) -> str:
    """What the ledger files an evaluation under."""
    if recipe.reestimated:
        return REESTIMATED
    return "member" if recipe.is_single else "soup"
