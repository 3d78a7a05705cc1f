"""What came out, as arrays over sub-pools: means, paired differences, and the few numbers that sum a run up.

Scores are accuracies; differences are ours minus another strategy's, in percentage points, paired over sub-pools.
Where there are several pools, means are of the pools' means.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.spending.known import Floats
from benchmarks.spending.play import GRID, Point
from benchmarks.spending.strategies import GREEDY, PAPER

EARLY = range(1, 9)
"""B = 1..8, over which differences are averaged."""

_FIELDS = ("pool", "subpool", "members", "strategy", "budget", "validation", "test", "size", "spent")
_SHIFT = "shift: "


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; NaN where there is nothing to estimate it from."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, groups: Sequence[Floats]) -> Estimate:
        """The mean over groups (pools) of the means of their values (one per sub-pool)."""
        means = [float(values.mean()) for values in groups]
        errors = [float(v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else float("nan") for v in groups]
        return cls(float(np.mean(means)), float(np.sqrt(np.sum(np.square(errors))) / len(groups)))


class Results:
    """Points of one or more pools, all with the same strategies on the same sub-pools."""

    def __init__(self, points: Iterable[Point]) -> None:
        self.points = list(points)
        self._at = {(p.pool, p.subpool, p.strategy, p.budget): p for p in self.points}
        self._subpools: dict[str, dict[str, None]] = {}
        for p in self.points:
            self._subpools.setdefault(p.pool, {})[p.subpool] = None
        self.pools = list(self._subpools)
        self.strategies = list(dict.fromkeys(p.strategy for p in self.points))
        self.most = min(max(p.budget for p in self.points if p.strategy == s) for s in self.strategies)
        self.grid = [b for b in GRID if b <= self.most]
        self.shifts = self.points[0].shifts is not None and bool(self.points[0].shifts)

    def of(self, pool: str) -> Results:
        """Those of one pool."""
        return Results(p for p in self.points if p.pool == pool)

    def parts(self) -> tuple[Results | None, Results | None]:
        """Those of sub-pools, and those of whole pools."""
        sub = [p for p in self.points if not p.subpool.startswith("whole")]
        whole = [p for p in self.points if p.subpool.startswith("whole")]
        return (Results(sub) if sub else None), (Results(whole) if whole else None)

    def subpools(self, pool: str) -> list[str]:
        return list(self._subpools[pool])

    def values(self, strategy: str, field: str, budget: int) -> list[Floats]:
        """For each pool, one value per sub-pool. ``field``: "shifts" is the mean over the shift sets."""
        return [
            np.array([_value(self._at[pool, subpool, strategy, budget], field) for subpool in self.subpools(pool)])
            for pool in self.pools
        ]

    def mean(self, strategy: str, field: str, budget: int) -> Estimate:
        return Estimate.of(self.values(strategy, field, budget))

    def difference(self, strategy: str, field: str, budgets: Iterable[int]) -> Estimate:
        """Ours minus ``strategy``, percentage points: averaged over the budgets in each sub-pool first."""
        gaps = []
        for budget in budgets:
            pairs = zip(self.values("ours", field, budget), self.values(strategy, field, budget), strict=True)
            gaps.append([100 * (ours - other) for ours, other in pairs])
        return Estimate.of([np.mean(of_pool, axis=0) for of_pool in zip(*gaps, strict=True)])

    @property
    def early(self) -> range:
        return range(EARLY.start, min(EARLY.stop, self.most + 1))


def _value(point: Point, field: str) -> float:
    if field == "shifts":
        return float(np.mean(list((point.shifts or {"": np.nan}).values())))
    return float(getattr(point, field))


@dataclass(frozen=True)
class Reach:
    """Passes that ours needs for greedy's final validation score, over greedy's passes.

    ``fraction``: the mean over sub-pools, of which the share ``reached`` gets there. ``of_means``: where the mean of
    ours reaches the mean of greedy's; None where it does not.
    """

    fraction: float
    reached: float
    of_means: float | None


def reach(results: Results) -> Reach | None:
    """The smallest budget at which ours scores at least what strict greedy ends with, over greedy's N - 1 passes.

    Capped at the largest budget where it is not reached. The mean over pools of the means over their sub-pools.
    """
    if not {"ours", GREEDY} <= set(results.strategies):
        return None
    fractions, reached, finals, passes = [], [], [], []
    for pool in results.pools:
        shares, there, ends = [], [], []
        for subpool in results.subpools(pool):
            mine = [p for p in results.points if (p.pool, p.subpool) == (pool, subpool)]
            last = mine[0].members - 1
            final = [p.validation for p in mine if p.strategy == GREEDY and p.budget == last]
            if not final:
                return None
            ours = sorted((p.budget, p.validation) for p in mine if p.strategy == "ours")
            enough = [budget for budget, score in ours if score >= final[0]]
            shares.append((enough[0] if enough else results.most) / last)
            there.append(bool(enough))
            ends.append(final[0])
            passes.append(last)
        finals.append(np.mean(ends))
        fractions.append(np.mean(shares))
        reached.append(np.mean(there))
    budgets = range(1, results.most + 1)
    together = [b for b in budgets if results.mean("ours", "validation", b).mean >= np.mean(finals)]
    of_means = together[0] / float(np.mean(passes)) if together else None
    return Reach(float(np.mean(fractions)), float(np.mean(reached)), of_means)


def below_best_single(results: Results) -> int:
    """Sub-pools times budgets where ours scores below the best single member on validation."""
    single = {(p.pool, p.subpool): p.validation for p in results.points if p.strategy == "best single"}
    ours = [p for p in results.points if p.strategy == "ours"]
    return sum(p.validation < single[p.pool, p.subpool] for p in ours)


def numbers(results: Results) -> dict[str, float | int | None]:
    """The run in five numbers; None for what the strategies run do not tell."""
    others = [s for s in results.strategies if s != "ours"]
    paper = [results.difference(s, "test", results.early) for s in PAPER if s in others]
    against = min(paper, key=lambda e: e.mean) if paper else None  # the better of the two on test
    worst = [
        -results.difference(s, "validation", [budget]).mean for s in others for budget in range(1, results.most + 1)
    ]
    greedy = reach(results)
    return {
        "vs_paper_radin_pp": round(against.mean, 4) if against else None,
        "vs_paper_radin_se_pp": round(against.stderr, 4) if against and np.isfinite(against.stderr) else None,
        "worst_vs_any_validation_pp": round(max([0.0, *worst]), 4),
        "greedy_fraction": round(greedy.fraction, 4) if greedy else None,
        "below_best_single": below_best_single(results) if "best single" in others else None,
    }


def write_csv(points: Sequence[Point], path: Path) -> None:
    """One line per point; shifts have a column each."""
    shifts = sorted({name for p in points for name in p.shifts or {}})
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_FIELDS, *(_SHIFT + name for name in shifts)])
        for p in points:
            row = [f"{v:.6g}" if isinstance(v := getattr(p, name), float) else v for name in _FIELDS]
            writer.writerow([*row, *(f"{p.shifts[name]:.6g}" if p.shifts else "" for name in shifts)])


def read_csv(path: Path) -> list[Point]:
    """The points that ``write_csv`` wrote, scores to six digits."""
    points = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            shifts = {name.removeprefix(_SHIFT): float(v) for name, v in row.items() if name.startswith(_SHIFT) and v}
            points.append(
                Point(
                    row["pool"],
                    row["subpool"],
                    int(row["members"]),
                    row["strategy"],
                    int(row["budget"]),
                    float(row["validation"]),
                    float(row["test"]),
                    shifts or None,
                    int(row["size"]),
                    float(row["spent"]),
                )
            )
    return points
