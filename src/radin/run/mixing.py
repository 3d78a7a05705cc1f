"""Averaged outputs beside the outputs of the soup, on the line between two members and in the simplex of three.

The paper's equations 1 to 4 say that both agree to first order in the members' distances; to second order they differ
by sum_{i<j} p_i p_j h_ij, where h_ij = 1/2 d_ij' H d_ij: along a line by p (1 - p) h. Where soups have their BatchNorm
statistics estimated again, so have the members here: else the two would differ at the ends already.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from radin.data.readings import check_same
from radin.engine.local import LocalEngine
from radin.engine.rows import joined
from radin.metrics import Metric
from radin.outputs.files import open_array
from radin.question import VALIDATION, Answer, Floats, answer_from_outputs
from radin.recipe import Recipe
from radin.run.job import Job
from radin.run.record import RunRecord
from radin.run.truths import Truths
from radin.weights import average

LINE, SIMPLEX = 12, 6
"""Into how many steps the line is cut, and each side of the simplex."""


def can_mix(metric: Metric) -> bool:
    """Whether outputs are one row of the same numbers per example, so that rows can be averaged and compared."""
    return not (metric.by_position or metric.target_only or metric.choices)


def corners(record: RunRecord) -> tuple[int, ...]:
    """The best three members with a score, or two; fewer where there are no more."""
    return tuple(k for k in record.order if np.isfinite(record.singles[k].score))[:3]


def line(record: RunRecord) -> tuple[Recipe, ...]:
    """The soups between the best two members, from the second to the best, both left out."""
    ends = corners(record)[:2]
    return tuple(_recipe(record, ends, (step, LINE - step), LINE) for step in range(1, LINE)) if len(ends) == 2 else ()


def simplex(record: RunRecord) -> tuple[Recipe, ...]:
    """Those of the best three, their sides included, the members left out."""
    best = corners(record)
    if len(best) < 3:
        return ()
    steps = [(i, j, SIMPLEX - i - j) for i in range(SIMPLEX + 1) for j in range(SIMPLEX + 1 - i)]
    return tuple(_recipe(record, best, parts, SIMPLEX) for parts in steps if max(parts) < SIMPLEX)


def _recipe(record: RunRecord, members: tuple[int, ...], parts: tuple[int, ...], whole: int) -> Recipe:
    ratios = dict(zip(members, parts, strict=True))
    return Recipe(tuple(ratios.get(k, 0) / whole for k in range(record.members)))


class Mixing:
    """Makes these passes, one at a time, and keeps what they give in ``truths``."""

    def __init__(self, record: RunRecord, job: Job, engine: LocalEngine, truths: Truths, outputs: Path) -> None:
        """``outputs``: the folder in which those of the members may lie."""
        self._record, self._job, self._engine, self._truths, self._outputs = record, job, engine, truths, outputs
        wanted = dict.fromkeys((*line(record), *simplex(record)))
        self._left = [recipe for recipe in wanted if recipe not in record.mixed]
        self._members: dict[int, Floats] = {}

    def step(self) -> bool:
        """Make one pass: by a member where its outputs are not there, else by the next soup. False: nothing is left."""
        while self._left:
            lacking = next((k for k in self._left[0].members if k not in self._members), None)
            if lacking is None:
                self._mix(self._left.pop(0))
                return True
            stored = self._outputs / f"{self._record.fingerprints[lacking][:32]}.safetensors"
            if not self._job.calibrated and stored.is_file():
                outputs = open_array(stored, self._record.fingerprints[lacking])
                self._members[lacking] = np.asarray(outputs, dtype=np.float64)
                continue
            single = Recipe.single(lacking, self._record.members, reestimated=self._job.calibrated)
            self._members[lacking], answer, _ = self._evaluate(single)
            self._truths.keep(self._job.identity(single), self._job.to_json(single), VALIDATION, answer)
            return True
        return False

    def _mix(self, recipe: Recipe) -> None:
        outputs, answer, targets = self._evaluate(recipe)
        together = sum((recipe.weights[k] * self._members[k] for k in recipe.members), np.zeros_like(outputs))
        averaged = answer_from_outputs(self._job.metric, together, targets, 0.0, answer.data)
        apart = float(np.sqrt(np.mean((together - outputs) ** 2)))
        self._truths.keep_mixed(self._job.identity(recipe), self._job.to_json(recipe), answer, averaged, apart)

    def _evaluate(self, recipe: Recipe) -> tuple[Floats, Answer, Floats]:
        """Outputs (M, C), their answer, and the targets."""
        started = time.monotonic()
        evaluator, metric = self._engine.evaluator, self._job.metric
        integers = self._engine.integers_from
        tensors = average(self._job.pool, recipe, integers_from=integers)
        model, _ = evaluator.prepare(tensors, "the soup", calibrate=not recipe.is_single)
        rows, targets = [], []
        for batch in evaluator.readings.whole(VALIDATION, expected=self._engine.data[VALIDATION], models=1):
            rows.append(evaluator.engine.outputs([model], batch, evaluator.rows)[0].numpy())
            targets.append(evaluator.rows.targets(batch))
        outputs, labels = joined(rows, metric), np.concatenate(targets)
        data = evaluator.readings.fingerprint(VALIDATION)
        check_same(VALIDATION, data, len(labels), self._engine.data[VALIDATION])
        answer = Answer(float("nan"), float("nan"), len(labels), 0.0, data)
        if np.isfinite(outputs).all():
            answer = answer_from_outputs(metric, outputs, labels, time.monotonic() - started, data)
        return np.asarray(outputs, dtype=np.float64), answer, labels
