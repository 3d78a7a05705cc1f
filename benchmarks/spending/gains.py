"""Scores of whole runs, draw by draw, kept as CSV; and what the default gains over each other way, paired over draws.

Gains are percentage points of accuracy, the default's minus the other's. Where there are several pools, means are of
the pools' means. Standard errors are over draws, which share members and data.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from benchmarks.spending.results import Estimate

DEFAULT = "learned-by-layer"
BEFORE = "adaptive"
"""The default before ratios were learned, and still below a budget of 8."""

BASELINES = ("greedy, strict", "top-k", "pruned", "RADIN, lambda 0", "RADIN, lambda 1", "uniform", "best single")
"""Those of benchmarks/spending/strategies.py that the default is compared with; RADIN's with C = 200 candidates."""

FIELDS = ("test", "validation")


@dataclass(frozen=True, order=True)
class Row:
    """What a strategy chose on one draw of ``members`` members: accuracies. folder: the pool, or its split."""

    pool: str
    folder: str
    members: int
    draw: int
    strategy: str
    budget: int
    test: float
    validation: float

    @property
    def key(self) -> tuple[str, int, int, str, int]:
        return self.pool, self.members, self.draw, self.strategy, self.budget


def append(path: Path, row: Row) -> None:
    """Add a line, in one piece, so that several processes may write."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow([field.name for field in fields(Row)])
        writer.writerow(_texts(row))


def write(path: Path, rows: Iterable[Row]) -> None:
    """All rows in order."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(map(_texts, sorted(rows)))


def _texts(row: Row) -> list[str]:
    return [f"{value:.6f}" if isinstance(value, float) else str(value) for value in astuple(row)]


def read(path: Path) -> list[Row]:
    """The rows kept, each once; none where there is no file."""
    if not path.exists():
        return []
    found = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            row = Row(
                line["pool"],
                line["folder"],
                int(line["members"]),
                int(line["draw"]),
                line["strategy"],
                int(line["budget"]),
                float(line["test"]),
                float(line["validation"]),
            )
            found[row.key] = row
    return list(found.values())


class Draws:
    """Rows by pool and strategy, of sub-pools of one size."""

    def __init__(self, rows: Iterable[Row], members: int = 13) -> None:
        self._at = {row.key: row for row in rows if row.members == members}
        self.rows = list(self._at.values())
        self.members = members
        self.pools = list(dict.fromkeys(row.pool for row in self._at.values()))

    def with_all(self, strategies: Sequence[str], budget: int) -> list[str]:
        """Pools where each of these strategies has at least two draws in common with the default."""
        return [pool for pool in self.pools if all(len(self.gains(pool, s, budget, "test")) > 1 for s in strategies)]

    def gains(self, pool: str, strategy: str, budget: int, field: str, other: int | None = None) -> np.ndarray:
        """The default's minus ``strategy``'s at budget ``other`` (by default the same), (draws that both have,)."""
        return self.against(pool, DEFAULT, budget, strategy, budget if other is None else other, field)

    def against(self, pool: str, first: str, budget: int, second: str, other: int, field: str) -> np.ndarray:
        """One strategy at a budget minus another at a budget, percentage points, (draws that both have,)."""
        pairs = []
        for key, row in sorted(self._at.items()):
            if key == (pool, self.members, row.draw, first, budget):
                there = self._at.get((pool, self.members, row.draw, second, other))
                if there is not None:
                    pairs.append(100 * (getattr(row, field) - getattr(there, field)))
        return np.array(pairs)

    def mean(self, pools: Sequence[str], strategy: str, budget: int, field: str) -> Estimate:
        """The mean over pools of the default's gain."""
        return Estimate.of([self.gains(pool, strategy, budget, field) for pool in pools])

    def scores(self, pools: Sequence[str], strategy: str, budget: int, field: str) -> Estimate:
        """A strategy's accuracy, in percent, on the draws that it shares with the default."""
        found = []
        for pool in pools:
            draws = {
                row.draw for row in self._at.values() if (row.pool, row.strategy, row.budget) == (pool, DEFAULT, budget)
            }
            mine = [
                100 * getattr(row, field)
                for row in self._at.values()
                if (row.pool, row.strategy, row.budget) == (pool, strategy, budget) and row.draw in draws
            ]
            found.append(np.array(mine))
        return Estimate.of(found)


def tables(draws: Draws, budget: int) -> str:
    """Gains on test and on validation: rows are pools and their mean, columns what the default is compared with."""
    others = [BEFORE, *BASELINES]
    pools = draws.with_all(others, budget)
    lines = []
    for field in FIELDS:
        lines += [f"### B = {budget}, {field}", "", "| pool | draws | " + " | ".join(f"- {o}" for o in others) + " |"]
        lines.append("|---" * (len(others) + 2) + "|")
        for pool in pools:
            cells = [said(Estimate.of([draws.gains(pool, other, budget, field)])) for other in others]
            count = len(draws.gains(pool, BEFORE, budget, field))
            lines.append(f"| {pool} | {count} | " + " | ".join(cells) + " |")
        cells = [said(draws.mean(pools, other, budget, field)) for other in others]
        lines += [f"| mean of {len(pools)} | | " + " | ".join(cells) + " |", ""]
    return "\n".join(lines)


def accuracies(draws: Draws, budgets: Sequence[int], pools: Sequence[str]) -> str:
    """Table 1 as it is measured here: test and validation accuracy, means over pools, by strategy and budget."""
    lines = ["| | " + " | ".join(f"B = {b}, test | B = {b}, validation" for b in budgets) + " |"]
    lines.append("|---" * (2 * len(budgets) + 1) + "|")
    for strategy in (DEFAULT, BEFORE, *BASELINES):
        cells = [
            f"{value.mean:.2f} ± {value.stderr:.2f}"
            for budget in budgets
            for value in (draws.scores(pools, strategy, budget, field) for field in FIELDS)
        ]
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def said(value: Estimate) -> str:
    """As tables have it."""
    return f"{value.mean:+.2f}" + ("" if math.isnan(value.stderr) else f" ± {value.stderr:.2f}")
