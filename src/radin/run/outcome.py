"""From what a run has evaluated to its result: scores, also on test, the gain and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.engine.base import Engine
from radin.estimate import PositionAccuracy
from radin.positions import rows_of
from radin.question import Answer, answer_from_numbers, answer_from_outputs
from radin.recipe import Recipe
from radin.run import references
from radin.run.job import Job
from radin.run.members import Known, mixed
from radin.run.reasons import Reasons, reasons_for_no_gain
from radin.run.result import Gain, Passes, Result, Scored
from radin.run.session import Session
from radin.stats.optimism import Optimism, corrected, optimism
from radin.stats.paired import PairedDifference, paired_difference, unpaired_difference


@dataclass(frozen=True)
class Outcome:
    """A run whose budget is spent. ``choose``: the examples that decide and that scores are reported on; None: all."""

    job: Job
    known: Known
    session: Session
    choose: NDArray[np.intp] | None

    def found(self, recipe: Recipe) -> Answer | None:
        """A member's or a complete soup's evaluation on the examples that decide."""
        found = self.job.known(recipe) if recipe.size == 1 else self.session.answer(recipe)
        return None if found is None else references.on(found, self.choose, self.job.metric)

    def _utility(self, recipe: Recipe) -> float:
        found = self.found(recipe)
        return -np.inf if found is None else self.job.metric.utility(found.score)

    @cached_property
    def best_single(self) -> Recipe:
        """The best member as it is, of equals the first by content."""
        return references.best_of(self.job, references.singles(self.job), self.choose)

    @property
    def best_reestimated(self) -> Recipe | None:
        """The best of the members evaluated with their BatchNorm statistics estimated again; None where none was."""
        again = references.reestimated(self.job)
        return references.best_of(self.job, again, self.choose) if again else None

    def complete(self) -> list[Recipe]:
        """The soups evaluated on all of validation, in the order in which they were told or started."""
        told = [recipe for recipe, _ in self.session.search.evaluations]
        others = [recipe for recipe in self.session.account.started if recipe not in told]
        return [recipe for recipe in (*told, *others) if self.session.answer(recipe) is not None]

    def best(self) -> Recipe:
        """The best complete soup, or what a soup has to beat where none is better."""
        soup = self._best_soup()
        single = references.to_beat(self.job, self.choose)
        return soup if soup is not None and self._utility(soup) > self._utility(single) else single

    def _best_soup(self) -> Recipe | None:
        if self.choose is None:
            best = self.session.search.best[0]
            return None if best.is_single else best
        return max(self.complete(), key=self._utility, default=None)

    def reestimate(self, engine: Engine) -> None:
        """Evaluate the main member of the best soup with its BatchNorm statistics estimated again, as the soup's are.

        It need not be the best single member: statistics of its own that do not fit it may have hidden how good it is.
        """
        best = self.best()
        if best.size > 1:
            references.reestimate(self.job, engine, references.main_member(self.job, best, self.choose))

    def evaluate_splits(self, splits: Sequence[str]) -> None:
        """Evaluate the models that are reported on test and the shifts."""
        shown = dict.fromkeys((self.best_single, self.best_reestimated, self.job.uniform_recipe, self.best()))
        self.session.evaluate_splits([(recipe, split) for recipe in shown if recipe is not None for split in splits])

    def result(self, asked: Mapping[str, Any]) -> Result:
        """Everything that result.json says."""
        job, uniform = self.job, self.job.uniform_recipe
        top, again, best, complete = self.best_single, self.best_reestimated, self.best(), self.complete()
        names = {top: f"best single ({job.names[top.members[0]]})", uniform: "uniform soup"}
        if again is not None:
            names[again] = f"best single re-estimated ({job.names[again.members[0]]})"
        names.setdefault(best, f"chosen soup, {best.size} members")
        on_splits = {recipe: self._on_splits(recipe) for recipe in names}
        estimates = self._estimates([*complete, uniform])

        def scored(recipe: Recipe, name: str) -> Scored:
            found = self.found(recipe)
            return Scored(
                name,
                recipe,
                found.score if found else None,
                found.stderr if found else None,
                estimates.get(recipe),
                found.seconds if found else None,
                on_splits.get(recipe, {}),
            )

        # A single member's averaged outputs are its own: then the average of all is the one to compare with. Outputs
        # have no groups: they are averaged by the ratios outside of them.
        together = uniform if best.size == 1 else Recipe(best.weights, affine=best.affine)
        ensemble = self._ensemble(together)
        averaged = "probability ensemble" if job.metric.target_only else "logit ensemble"
        evaluations = tuple(scored(r, f"soup {i + 1}, {r.size} members") for i, r in enumerate(complete))
        paired = self._paired(best, references.to_beat(job, self.choose)) if best.size > 1 else None
        bias = self._optimism(best, complete)
        job.seconds["total"] = sum(job.seconds.values())
        examples = self.known.examples if self.choose is None else len(self.choose)
        return Result(
            soup_name=self.session.soup.name,
            out=job.directory.path,
            metric=job.metric.name,
            higher_is_better=job.metric.higher_is_better,
            examples=examples,
            member_names=job.names,
            fingerprints=tuple(job.pool.fingerprints),
            best=scored(best, names[best]),
            best_single=scored(top, names[top]),
            reestimated=None if again is None else scored(again, names[again]),
            reestimation=None if again is None else self._paired(again, top),
            uniform=scored(uniform, names[uniform]),
            ensemble=None if ensemble is None else Scored(averaged, together, *ensemble),
            gain=Gain(paired.difference, paired.stderr) if paired else Gain(0.0, 0.0),
            paired=paired,
            optimism=bias,
            evaluations=evaluations,
            passes=Passes(
                len(job.pool) - asked["cached_members"],
                round(self.session.account.spent, 9),
                asked["budget"],
                len(self.session.account.started),
                len(self.session.failed),
                len(references.reestimated(job)),
            ),
            strategy={"name": asked["strategy"], **asked["options"], "seed": asked["seed"]},
            seconds=dict(job.seconds),
            notes=(
                *self._duplicates(),
                *job.pool.notes,
                *job.notes,
                *self._failed(),
                *self._learned(),
                *self._halves(bias),
            ),
            reasons=self._reasons(evaluations) if best.size == 1 else None,
            versions=asked["versions"],
            searched=None if self.choose is None else self.known.examples - len(self.choose),
        )

    def _estimates(self, recipes: Sequence[Recipe]) -> dict[Recipe, float]:
        """Scores of averaged outputs on the examples that decide, where there are outputs; of plain recipes alone."""
        recipes = [recipe for recipe in recipes if not recipe.groups]
        if self.known.targets is None:
            return {}
        if self.choose is None:
            values = zip(recipes, map(float, self.session.search.estimate(recipes)), strict=True)
            return {recipe: value for recipe, value in values if not recipe.affine or np.isfinite(value)}
        return {recipe: found[0] for recipe in recipes if (found := self._ensemble(recipe)) is not None}

    def _ensemble(self, recipe: Recipe) -> tuple[float, float] | None:
        """Score and standard error of a plain recipe's averaged outputs; None where there are no outputs.

        Of an affine one they must be at hand, and no probabilities: compiled margins know nothing of negative ratios.
        """
        known = self.known
        if known.estimator is None or known.targets is None:
            return None
        if recipe.affine and (known.outputs is None or self.job.metric.target_only):
            return None
        if known.outputs is not None:
            rows: slice | NDArray[np.intp] = slice(None) if self.choose is None else self.choose
            if self.choose is not None and self.job.metric.by_position:
                rows = rows_of(known.targets, self.choose)
            together = mixed(known.outputs, recipe, self.job.metric)[rows]
            found = answer_from_outputs(self.job.metric, together, known.targets[rows], 0.0, known.data)
            return found.score, found.stderr
        score = float(known.estimator.scores(np.array([recipe.weights]))[0])
        if isinstance(known.estimator, PositionAccuracy):
            hits = known.estimator.answers(np.array([recipe.weights]), 1.0)[0][0]
            totals = np.stack([hits, known.estimator.compiled.counts], axis=1)
            return score, answer_from_numbers(self.job.metric, totals, 0.0).stderr
        if self.job.metric.by_position:
            return score, float("nan")
        return score, float(np.sqrt(score * (1 - score) / max(len(known.targets) - 1, 1)))

    def _on_splits(self, recipe: Recipe) -> dict[str, tuple[float, float]]:
        """(score, stderr) on test and every shift, where it was evaluated."""
        answers = {split: self.job.known(recipe, split) for split in self.job.ledger.splits()}
        return {split: (found.score, found.stderr) for split, found in answers.items() if found is not None}

    def _failed(self) -> list[str]:
        return [
            f"a soup of {recipe.size} members could not be evaluated and was left out: {why.splitlines()[0]}"
            for recipe, why in self.session.failed.items()
        ]

    def _paired(self, better: Recipe, single: Recipe) -> PairedDifference | None:
        """A soup, or a member re-estimated, against a single member; None where it has no score."""
        first, second = self.found(better), self.found(single)
        assert first is not None
        assert second is not None
        higher = self.job.metric.higher_is_better
        if first.values is not None and second.values is not None:
            return paired_difference(first.values, second.values, higher)
        if not np.isfinite(first.score):
            return None
        scores = (first.score, first.stderr), (second.score, second.stderr)
        return unpaired_difference(*scores, first.examples, higher)

    def _optimism(self, best: Recipe, complete: Sequence[Recipe]) -> Optimism | None:
        """The selection bias of the best among members and soups; None where there are no numbers per example.

        Members that were re-estimated are candidates, and what the soups are compared with.

        A soup that was started and not continued was a candidate too. On the examples where it is not known it is taken
        to do as the best does: it was dropped by what it did on the others. On a half that only chooses, only members
        and complete soups are candidates.
        """
        # By content, whatever the order of members and answers: the resampling draws the same, ties go the same way.
        order = self.job.identity
        singles = sorted([*references.singles(self.job), *references.reestimated(self.job)], key=order)
        known = [(recipe, self.found(recipe)) for recipe in singles]
        rows = [found.values for _, found in known if found is not None and found.values is not None]
        if any(recipe.is_single and (found is None or found.values is None) for recipe, found in known):
            return None
        incumbents, chosen = len(rows), self.found(best)
        if chosen is None or chosen.values is None:
            return None
        seen = complete if self.choose is not None else self.session.account.started
        for recipe in sorted(seen, key=order):
            found = self.found(recipe)
            if found is not None and found.values is not None:
                rows.append(found.values)
            elif found is None:
                known_of_it = self.session.account.values(recipe)
                assert chosen.numbers is not None
                filled = np.where(np.isnan(known_of_it), chosen.numbers, known_of_it)
                rows.append(filled if filled.ndim == 1 else self.job.metric.values(filled))
        bias = optimism(np.array(rows, dtype=np.float32), self.job.metric.higher_is_better, incumbents=incumbents)
        # The score is that of the best complete one: what a partly evaluated soup would have is not known.
        single = self.found(references.to_beat(self.job, self.choose))
        assert single is not None
        return corrected(bias, chosen.score, chosen.score - single.score)

    def _halves(self, bias: Optimism | None) -> list[str]:
        if self.choose is None:
            return []
        searched, chosen = self.known.examples - len(self.choose), len(self.choose)
        text = f"searched on {searched:,} examples of validation, chosen and scored on the other {chosen:,}"
        if bias is not None:
            text += (
                f"; the choice among {bias.candidates} there has a selection bias of about "
                f"{max(bias.optimism, 0):.4f}: corrected {bias.corrected:.4f}"
            )
        return [text]

    def _learned(self) -> list[str]:
        count, passes = self.session.account.gradients
        if not count:
            return []
        return [f"{passes:.1f} of the passes went into {count} gradients by the ratios, each three times its examples"]

    def _duplicates(self) -> list[str]:
        return [f"{dropped} has the same weights as {kept}; used once" for dropped, kept in self.job.pool.duplicates]

    def _reasons(self, evaluations: Sequence[Scored]) -> Reasons:
        return reasons_for_no_gain(
            self.job.pool,
            evaluations,
            self.job.metric,
            batchnorm_layers=self.job.batchnorm_layers,
            calibrated=self.job.calibrated,
        )
