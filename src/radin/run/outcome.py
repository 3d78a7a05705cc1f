"""From what a run has evaluated to its result: scores, the look at test, the gain and how sure it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.question import Answer, answer_from_outputs, answer_from_values
from radin.recipe import Recipe
from radin.run.job import Job
from radin.run.members import Known, mixed
from radin.run.reasons import Reasons, reasons_for_no_gain
from radin.run.result import Gain, Passes, Result, Scored
from radin.run.soups import Soups
from radin.search import Search
from radin.stats.optimism import Optimism, optimism
from radin.stats.paired import PairedDifference, paired_difference, unpaired_difference


@dataclass(frozen=True)
class Outcome:
    """A run whose budget is spent. ``choose``: the examples that decide and that scores are reported on; None: all."""

    job: Job
    known: Known
    search: Search
    soups: Soups
    choose: NDArray[np.intp] | None

    def found(self, recipe: Recipe) -> Answer | None:
        """A member's or a complete soup's evaluation on the examples that decide."""
        found = self.job.known(recipe)
        if found is None or self.choose is None:
            return found
        if found.values is None:  # outputs that were not finite
            return replace(found, examples=len(self.choose))
        return answer_from_values(found.values[self.choose], found.seconds, found.data)

    def _utility(self, recipe: Recipe) -> float:
        found = self.found(recipe)
        return -np.inf if found is None else self.job.metric.utility(found.score)

    def best_single(self) -> Recipe:
        """Of equal members the first by content."""
        fingerprints = self.job.pool.fingerprints
        singles = [Recipe.single(k, len(fingerprints)) for k in range(len(fingerprints))]
        return min(singles, key=lambda r: (-self._utility(r), fingerprints[r.members[0]]))

    def complete(self) -> list[Recipe]:
        """The soups evaluated on all of validation, in the order in which they were begun or told."""
        told = [recipe for recipe, _ in self.search.evaluations]
        others = [recipe for recipe in self.soups.begun if recipe not in told]
        return [recipe for recipe in (*told, *others) if self.job.known(recipe) is not None]

    def best(self) -> Recipe:
        """The best complete soup, or the best single member where none is better."""
        if self.choose is None:
            return self.search.best[0]
        return max([self.best_single(), *self.complete()], key=self._utility)

    def result(self, asked: Mapping[str, Any]) -> Result:
        """Everything that result.json says. Looks at test and the shifts for three models."""
        job, everyone = self.job, self.job.everyone
        top, best, complete = self.best_single(), self.best(), self.complete()
        names = {top: f"best single ({job.names[top.members[0]]})", everyone: "uniform soup"}
        names.setdefault(best, f"chosen soup, {best.size} members")
        looked = self._look_at_test([top, everyone, best])
        estimates = self._estimates([*complete, everyone])

        def scored(recipe: Recipe, name: str) -> Scored:
            found = self.found(recipe)
            return Scored(
                name,
                recipe,
                found.score if found else None,
                found.stderr if found else None,
                estimates.get(recipe),
                found.seconds if found else None,
                looked.get(recipe, {}),
            )

        # A single member's averaged outputs are its own: then the average of all is the one to compare with.
        together = everyone if best.is_single else best
        evaluations = tuple(scored(r, f"soup {i + 1}, {r.size} members") for i, r in enumerate(complete))
        paired = self._paired(best, top)
        flattery = self._optimism(best, complete)
        job.seconds["total"] = sum(job.seconds.values())
        examples = len(self.known.targets) if self.choose is None else len(self.choose)
        return Result(
            out=job.directory.path,
            metric=job.metric.name,
            higher_is_better=job.metric.higher_is_better,
            examples=examples,
            member_names=job.names,
            fingerprints=tuple(job.pool.fingerprints),
            best=scored(best, names[best]),
            best_single=scored(top, names[top]),
            uniform=scored(everyone, names[everyone]),
            ensemble=Scored("logit ensemble", together, *self._ensemble(together)),
            gain=Gain(paired.difference, paired.stderr) if paired else Gain(0.0, 0.0),
            paired=paired,
            optimism=flattery,
            evaluations=evaluations,
            passes=Passes(len(job.pool), self.soups.spent, asked["budget"], started=len(self.soups.begun)),
            strategy={"name": asked["strategy"], **asked["options"], "seed": asked["seed"]},
            seconds=dict(job.seconds),
            notes=(*self._duplicates(), *job.pool.notes, *job.checked.notes, *self._halves(flattery)),
            reasons=self._reasons(evaluations) if best.is_single else None,
            versions=asked["versions"],
            searched=None if self.choose is None else len(self.known.targets) - len(self.choose),
        )

    def _estimates(self, recipes: Sequence[Recipe]) -> dict[Recipe, float]:
        """Scores of averaged outputs on the examples that decide."""
        if self.choose is None:
            return dict(zip(recipes, map(float, self.search.estimate(recipes)), strict=True))
        return {recipe: self._ensemble(recipe)[0] for recipe in recipes}

    def _ensemble(self, recipe: Recipe) -> tuple[float, float]:
        """Score and standard error of a recipe's averaged outputs."""
        known = self.known
        if known.outputs is not None:
            rows = slice(None) if self.choose is None else self.choose
            together = mixed(known.outputs, recipe)[rows]
            found = answer_from_outputs(self.job.metric, together, known.targets[rows], 0.0, known.data)
            return found.score, found.stderr
        score = float(known.estimator.scores(np.array([recipe.weights]))[0])
        return score, float(np.sqrt(score * (1 - score) / max(len(known.targets) - 1, 1)))

    def _look_at_test(self, recipes: Sequence[Recipe]) -> dict[Recipe, dict[str, tuple[float, float]]]:
        """(score, stderr) of each recipe on test and every shift; each looked at once, then kept in the ledger."""
        job = self.job
        splits = ["test"] if job.task.test is not None else []
        splits += [f"shifts/{name}" for name in job.task.shift_sources()]
        looked: dict[Recipe, dict[str, tuple[float, float]]] = {}
        started = time.monotonic()
        for recipe in dict.fromkeys(recipes):
            looked[recipe] = {}
            model: torch.nn.Module | None = None
            for split in splits:
                found = job.known(recipe, split)
                if found is None:
                    model = model or self.soups.build(recipe)[0]
                    found = job.evaluator.score(model, split, f"{recipe.size} members", progress=job.progress)
                    job.add(recipe, split, found)
                looked[recipe][split] = (found.score, found.stderr)
        job.seconds["test"] = time.monotonic() - started
        return looked

    def _paired(self, best: Recipe, top: Recipe) -> PairedDifference | None:
        """The best soup against the best single member; None where the best single member was chosen."""
        if best == top:
            return None
        soup, single = self.found(best), self.found(top)
        assert soup is not None
        assert single is not None
        higher = self.job.metric.higher_is_better
        if soup.values is not None and single.values is not None:
            return paired_difference(soup.values, single.values, higher)
        scores = (soup.score, soup.stderr), (single.score, single.stderr)
        return unpaired_difference(*scores, soup.examples, higher)

    def _optimism(self, best: Recipe, complete: Sequence[Recipe]) -> Optimism | None:
        """How much choosing among members and soups flatters the best; None where there are no numbers per example.

        A soup that was begun and dropped was a candidate too. On the examples where it is not known it is taken to do
        as the best does: it was dropped by what it did on the others. On a half that only chooses, only members and
        complete soups are candidates.
        """
        singles = [Recipe.single(k, len(self.job.pool)) for k in range(len(self.job.pool))]
        rows = [found.values for recipe in singles if (found := self.found(recipe)) and found.values is not None]
        chosen = self.found(best)
        if len(rows) < len(singles) or chosen is None or chosen.values is None:
            return None
        seen = complete if self.choose is not None else self.soups.begun
        for recipe in seen:
            found = self.found(recipe)
            if found is not None and found.values is not None:
                rows.append(found.values)
            elif found is None:
                values = self.soups.values(recipe)
                rows.append(np.where(np.isnan(values), chosen.values, values))
        higher = self.job.metric.higher_is_better
        flattery = optimism(np.array(rows, dtype=np.float32), higher, incumbents=len(singles))
        # The score is that of the best complete one: what a soup seen in part would have is not known.
        sign = 1.0 if higher else -1.0
        assert flattery.gain_optimism is not None
        gain = chosen.score - (self.found(self.best_single()) or chosen).score
        return replace(
            flattery,
            score=chosen.score,
            corrected=chosen.score - sign * flattery.optimism,
            corrected_gain=gain - sign * flattery.gain_optimism,
        )

    def _halves(self, flattery: Optimism | None) -> list[str]:
        if self.choose is None:
            return []
        searched, chosen = len(self.known.targets) - len(self.choose), len(self.choose)
        text = f"searched on {searched:,} examples of validation, chosen and scored on the other {chosen:,}"
        if flattery is not None:
            text += (
                f"; the choice among {flattery.candidates} there flatters the score by about "
                f"{max(flattery.optimism, 0):.4f}: corrected {flattery.corrected:.4f}"
            )
        return [text]

    def _duplicates(self) -> list[str]:
        return [f"{dropped} has the same weights as {kept}; used once" for dropped, kept in self.job.pool.duplicates]

    def _reasons(self, evaluations: Sequence[Scored]) -> Reasons:
        return reasons_for_no_gain(
            self.job.pool,
            evaluations,
            self.job.metric,
            batchnorm_layers=self.job.checked.batchnorm_layers,
            calibrated=self.job.task.calibration is not None,
        )
