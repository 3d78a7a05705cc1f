"""Soups built and evaluated, whole or in parts; each part is in the ledger the moment it is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from radin.engine.batchnorm import statistics
from radin.question import Answer, answer_from_values
from radin.recipe import Recipe
from radin.run.job import Job
from radin.run.ledger import PartEntry
from radin.weights import average, read_recipe, recipe_metadata, save

Indices = NDArray[np.intp]
Floats = NDArray[np.float64]

_ROUNDING = 1e-9  # of passes, which are sums of shares


@dataclass(frozen=True, eq=False)
class Recorded:
    """What an earlier session has evaluated: some examples with their values, or a whole soup's score alone."""

    recipe: Recipe
    examples: Indices
    values: Floats | None
    score: float


class Soups:
    """The soups of a run: what is known of each, and the way to know more.

    A pass is M + K examples, the validation examples and those over which BatchNorm statistics are estimated again; a
    soup costs K when it is begun and each example that it is evaluated on. The re-estimated statistics of soups begun
    are kept in memory, so going on with one costs only its examples. After an interruption they are estimated anew
    where a soup is gone on with; that is not counted, so a run costs at most one estimation more for each interruption
    and soup gone on with.

    ``examples``: M. ``calibration``: K. ``budget``: passes, for progress only. ``choose``: the examples by which soups
    are compared, default all. ``best``: the utility that a complete soup must exceed to be written to disk at once.
    """

    def __init__(
        self,
        job: Job,
        data: str,
        *,
        examples: int,
        calibration: int,
        budget: int,
        choose: Indices | None,
        best: float,
    ) -> None:
        self._job = job
        self._data = data
        self._examples = examples
        self._calibration = calibration
        self._budget = budget
        self._choose = choose
        self._best = best
        self._values: dict[Recipe, Floats] = {}
        self._told: dict[Recipe, NDArray[np.bool_]] = {}
        self._seconds: dict[Recipe, float] = {}
        self._statistics: dict[Recipe, dict[str, torch.Tensor]] = {}
        self._built: tuple[Recipe, torch.nn.Module, dict[str, torch.Tensor]] | None = None

    @property
    def begun(self) -> tuple[Recipe, ...]:
        """All soups that were evaluated on any example, in the order in which they were begun."""
        return tuple(self._told)

    @property
    def spent(self) -> float:
        """Passes."""
        seen = sum(int(told.sum()) for told in self._told.values())
        whole = self._examples + self._calibration
        return round((seen + self._calibration * len(self._told)) / whole, 9)

    def affords(self, recipe: Recipe, examples: Indices) -> bool:
        """Whether these examples of a soup, none of them known, are within the budget."""
        begins = 0 if recipe in self._told else self._calibration
        cost = (begins + len(examples)) / (self._examples + self._calibration)
        return self.spent + cost <= self._budget + _ROUNDING

    def values(self, recipe: Recipe) -> Floats:
        """A soup's values on validation, (M,), NaN where they are not known."""
        found = self._values.get(recipe)
        return np.full(self._examples, np.nan) if found is None else found.copy()

    def missing(self, recipe: Recipe, among: Indices) -> Indices:
        """Those of some examples on which a soup was not evaluated."""
        told = self._told.get(recipe)
        return among if told is None else among[~told[among]]

    def recorded(self) -> Iterator[Recorded]:
        """What the ledger holds, in the order in which it was evaluated. To be read once, before anything else."""
        fingerprints = self._job.pool.fingerprints
        parts = self._job.ledger.parts("validation")
        by_parts = {part.identity for part in parts}
        everything = np.arange(self._examples)
        for entry in self._job.ledger.entries("soup", "validation"):
            if entry.identity not in by_parts:
                recipe, found = Recipe.from_json(entry.recipe, fingerprints), entry.evaluation
                values = np.full(self._examples, np.nan) if found.values is None else found.values
                self._learn(recipe, everything, values, found.seconds)
                yield Recorded(recipe, everything, found.values, found.score)
        for part in parts:
            recipe = Recipe.from_json(part.recipe, fingerprints)
            self._learn(recipe, part.examples, part.values, part.seconds)
            yield Recorded(recipe, part.examples, part.values, float("nan"))
        for recipe in self._told:
            known = self._job.known(recipe)
            if known is not None:
                self._best = max(self._best, self._utility(known))

    def _learn(self, recipe: Recipe, examples: Indices, values: Floats, seconds: float) -> None:
        self._values.setdefault(recipe, np.full(self._examples, np.nan))[examples] = values
        self._told.setdefault(recipe, np.zeros(self._examples, dtype=bool))[examples] = True
        self._seconds[recipe] = self._seconds.get(recipe, 0.0) + seconds

    def evaluate(self, recipe: Recipe, examples: Indices) -> Floats:
        """A soup's values on some examples (m,), none of them known; NaN for all when its outputs are not finite.

        The last part makes it complete: its evaluation on all examples is recorded with it, and a new best is written
        to disk before that. So is one whose outputs are not finite, with a score of NaN: it is not gone on with.
        """
        started, job = time.monotonic(), self._job
        what = self._what(recipe, len(examples))
        model, tensors = self.build(recipe)
        found = job.evaluator.values(
            model, "validation", examples, expected_data=self._data, progress=job.progress, what=what
        )
        seconds = time.monotonic() - started
        self._learn(recipe, examples, found, seconds)
        complete = self._complete(recipe, bool(np.isnan(found).any()))
        if complete is not None:
            self._keep(recipe, tensors, complete)
        part = PartEntry(
            job.identity(recipe),
            job.to_json(recipe),
            "validation",
            self._examples,
            examples,
            found,
            seconds,
            self._data,
        )
        job.ledger.add_part(part, complete)
        job.seconds["soups"] = job.seconds.get("soups", 0.0) + seconds
        return found

    def evaluate_whole(self, recipe: Recipe) -> float:
        """A soup's score, for metrics that are no mean over examples."""
        started, job = time.monotonic(), self._job
        what = self._what(recipe, self._examples)
        model, tensors = self.build(recipe)
        found = job.evaluator.score(
            model, "validation", "the soup", expected_data=self._data, progress=job.progress, what=what
        )
        seconds = time.monotonic() - started
        found = Answer(found.score, found.stderr, found.examples, seconds, found.data, None)
        self._learn(recipe, np.arange(self._examples), np.full(self._examples, np.nan), seconds)
        self._keep(recipe, tensors, found)
        job.add(recipe, "validation", found)
        job.seconds["soups"] = job.seconds.get("soups", 0.0) + seconds
        return found.score

    def _what(self, recipe: Recipe, examples: int) -> str:
        """What is done now, for progress: how far the budget is spent, and about how long the rest will take."""
        spent, seconds = self.spent, sum(self._seconds.values())
        text = f"pass {spent:.1f} of {self._budget}: soup of {recipe.size} members, {examples:,} examples"
        if spent > 0:
            left = seconds / spent * max(self._budget - spent, 0.0)
            text += f", in all about {_duration(left)} left"
        return text

    def _complete(self, recipe: Recipe, diverged: bool) -> Answer | None:
        seconds = self._seconds[recipe]
        if diverged:
            return Answer(float("nan"), float("nan"), self._examples, seconds, self._data, None)
        if not self._told[recipe].all():
            return None
        return answer_from_values(self._values[recipe].copy(), seconds, self._data)

    def _utility(self, found: Answer) -> float:
        score = found.score
        if self._choose is not None and found.values is not None:
            score = float(found.values[self._choose].mean())
        return self._job.metric.utility(score)

    def _keep(self, recipe: Recipe, tensors: dict[str, torch.Tensor], complete: Answer) -> None:
        if self._utility(complete) > self._best:
            self._best = self._utility(complete)
            self._save(recipe, tensors)

    def build(self, recipe: Recipe) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        """The soup as a model on the device, BatchNorm re-estimated, and its tensors. A member alone stays as it is.

        The last one built is kept, for the next part of the same soup.
        """
        if self._built is not None and self._built[0] == recipe:
            return self._built[1], self._built[2]
        self._built = None  # before the next one takes its memory
        kept = self._statistics.get(recipe)
        tensors = average(self._job.pool, recipe, integers_from=self._job.integers_from)
        calibrate = not recipe.is_single
        model, final = self._job.evaluator.prepare(tensors, "the soup", calibrate=calibrate, statistics=kept)
        if kept is None and self._calibrated(recipe):
            self._statistics[recipe] = statistics(model)
        self._built = (recipe, model, final)
        return model, final

    def _calibrated(self, recipe: Recipe) -> bool:
        return bool(self._job.checked.batchnorm_layers) and self._job.task.calibration is not None and recipe.size > 1

    def _save(self, recipe: Recipe, tensors: dict[str, torch.Tensor]) -> None:
        extra = {"batchnorm": "re-estimated"} if self._calibrated(recipe) else {}
        metadata = recipe_metadata(self._job.pool, recipe, extra, integers_from=self._job.integers_from)
        save(tensors, self._job.directory.soup, metadata=metadata)

    def write(self, best: Recipe) -> None:
        """Make sure that soup.safetensors holds the best recipe; it does already unless a kill came in between."""
        if self._job.directory.soup.exists():
            held = read_recipe(self._job.directory.soup)
            if Recipe.from_json(held, self._job.pool.fingerprints) == best:
                return
        self._save(best, self.build(best)[1])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
