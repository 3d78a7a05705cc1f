"""Why no soup beat the best single member, as far as it can be told: facts, which radin.report puts into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from radin.errors import RunError
from radin.metrics import Metric
from radin.weights import Pool
from radin.weights.spread import Spread, spread

if TYPE_CHECKING:
    from radin.run.result import Scored


@dataclass(frozen=True)
class TrainingRun:
    """Members that share an initialisation. ``apart``: median distance to the largest such group, or inside it."""

    members: tuple[str, ...]
    apart: float


@dataclass(frozen=True)
class Outlier:
    """A member far from the others: ``times`` the median distance to their mean."""

    name: str
    times: float


@dataclass(frozen=True)
class Reasons:
    """What may have kept soups below the best single member.

    unrelated: median distance between two members, as a share of the norm of their mean's matrices, where they have
    no initialisation in common. runs: training runs, the largest first, where there are several. outliers: farthest
    first. averaged_statistics: BatchNorm layers whose statistics were averaged and not re-estimated. soups: fully
    evaluated; compared: those of them with an estimate; shortfall: how much worse than it they scored, in the mean;
    noise: the mean standard error of these scores, where any is known.
    """

    unrelated: float | None = None
    runs: tuple[TrainingRun, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    averaged_statistics: int = 0
    soups: int = 0
    compared: int = 0
    shortfall: float | None = None
    noise: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The ``reasons`` of result.json."""
        found = asdict(self)
        runs = [{"members": list(run.members), "apart": run.apart} for run in self.runs]
        return found | {"runs": runs, "outliers": [vars(outlier) for outlier in self.outliers]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reasons:
        """Raises RunError when a key is missing or not known."""
        if set(value) != set(cls.__dataclass_fields__):
            raise RunError(f"these are no reasons of this version of radin: they have {', '.join(sorted(value))}")
        runs = tuple(TrainingRun(tuple(run["members"]), run["apart"]) for run in value["runs"])
        outliers = tuple(Outlier(outlier["name"], outlier["times"]) for outlier in value["outliers"])
        return cls(**{**value, "runs": runs, "outliers": outliers})


def reasons_for_no_gain(
    pool: Pool, evaluations: Sequence[Scored], metric: Metric, *, batchnorm_layers: int, calibrated: bool
) -> Reasons:
    """The facts, from the pool's weights and the soups that were fully evaluated."""
    found = spread(pool)
    scored = [e for e in evaluations if e.score is not None and isfinite(e.score)]
    known = [(e.score, e.estimate, e.stderr) for e in scored if e.score is not None and e.estimate is not None]
    known = [(score, estimate, stderr) for score, estimate, stderr in known if isfinite(estimate)]
    noise = [stderr for _, _, stderr in known if stderr is not None and isfinite(stderr)]
    losses = [metric.utility(estimate) - metric.utility(score) for score, estimate, _ in known]
    return Reasons(
        unrelated=found.apart if found.unrelated else None,
        runs=training_runs(pool.member_names, found),
        outliers=outliers(pool.member_names, found),
        averaged_statistics=0 if calibrated else batchnorm_layers,
        soups=len(scored),
        compared=len(known),
        shortfall=float(np.mean(losses)) if known else None,
        noise=float(np.mean(noise)) if noise else None,
    )


def training_runs(names: Sequence[str], found: Spread) -> tuple[TrainingRun, ...]:
    """The members by training run, the largest first; none where all look like one."""
    if len(found.groups) < 2:
        return ()
    main = list(found.groups[0])
    inside = float(np.median([found.distances[i, j] for i in main for j in main if i < j] or [0.0]))
    gaps = [inside, *(float(np.median(found.distances[np.ix_(group, main)])) for group in found.groups[1:])]
    return tuple(
        TrainingRun(tuple(names[k] for k in group), gap) for group, gap in zip(found.groups, gaps, strict=True)
    )


def outliers(names: Sequence[str], found: Spread) -> tuple[Outlier, ...]:
    """The members far from the others, farthest first."""
    return tuple(Outlier(names[k], times) for k, times in found.outliers)
