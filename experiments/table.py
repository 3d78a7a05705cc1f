"""What came out, for people and for programs: validation, test and shifts of every strategy, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from benchmarks.spending import tables
from benchmarks.spending.results import Estimate, Results
from benchmarks.spending.scored import Scored


@dataclass(frozen=True)
class Facts:
    """What a table says besides scores. stderr: of one score, by sampling of validation and of test examples alone."""

    title: str
    pool: int
    members: int
    same: bool
    validation: int
    test: int
    validation_stderr: float
    test_stderr: float
    calibration: int
    device: str
    passes: float
    seconds: float

    @classmethod
    def of(cls, scores: Scored, title: str, members: int, device: str, seconds: float) -> Facts:
        typical, pool = float(np.mean(scores.singles)), len(scores.pool)
        counts = [scores.extent(split)[1] for split in ("validation", "test")]
        errors = [math.sqrt(typical * (1 - typical) / count) for count in counts]
        return cls(
            title,
            pool,
            min(members, pool),
            pool <= members,
            *counts,
            *errors,
            scores.calibration,
            device,
            round(scores.passes, 1),
            seconds,
        )


def as_json(results: Results, facts: Facts, cooked: Mapping[str, Any] | None) -> dict[str, Any]:
    """All means over draws with their standard errors (None where one draw tells none), at every budget."""
    rows = []
    for strategy in results.strategies:
        for budget in range(1, results.most + 1):
            row: dict[str, Any] = {"strategy": strategy, "budget": budget}
            for field in ("validation", "test", "size", "spent"):
                row[field] = _pair(results.mean(strategy, field, budget))
            if results.shifts and budget in results.grid:
                row["shifts"] = {name: _pair(_shift(results, strategy, name, budget)) for name in shift_names(results)}
            rows.append(row)
    return {"facts": asdict(facts), "cooked": None if cooked is None else dict(cooked), "rows": rows}


def as_markdown(results: Results, facts: Facts, cooked: Mapping[str, Any] | None) -> str:
    """The same at a few budgets; differences to ours in percentage points, paired over draws."""
    draws = len(results.subpools(results.pools[0]))
    which = (
        f"{draws} seeds on the same {facts.members} members: ± is over what the strategies draw, not over members"
        if facts.same
        else f"{draws} random sub-pools of {facts.members} of {facts.pool} members, which share members and data"
    )
    lines = [
        f"# {facts.title}",
        "",
        f"Budget B: validation passes spent on soups, beside one for each member. Validation: {facts.validation:,} "
        f"examples (standard error of one score about {facts.validation_stderr:.4f}); test: {facts.test:,} "
        f"({facts.test_stderr:.4f}). ± is one standard error over {which}.",
        "Recipes are chosen on validation alone; test and shifts are looked at for what was chosen. RADIN: 200 "
        'candidates, Algorithm 2. "Ours": the strategy `adaptive`, run anew for each B. "Default": what `radin cook` '
        "does where no strategy is named; below a budget of 8 that is the same, from there on whole runs that learn "
        "ratios by gradient (`learned-by-layer`).",
        f"{facts.passes:,.1f} passes were made for this table, in {facts.seconds:,.0f} s on {facts.device}.",
        "",
        "## Validation / test",
        "",
        tables.scores(results),
        "",
    ]
    if draws > 1:
        lines += ["## Ours minus each, test, percentage points, paired", "", tables.differences(results, "test"), ""]
    if results.shifts:
        names = shift_names(results)
        at = results.grid[-1]
        lines += [f"## Shifts at B = {at}", "", _line(["strategy", "test", *names, *(["mean"] if names[1:] else [])])]
        lines += ["|---" * (len(names) + 2 + bool(names[1:])) + "|"]
        for strategy in results.strategies:
            cells = [_score(results.mean(strategy, "test", at))]
            cells += [_score(_shift(results, strategy, name, at)) for name in names]
            cells += [_score(results.mean(strategy, "shifts", at))] if names[1:] else []
            lines.append(_line([strategy, *cells]))
        lines.append("")
    if cooked is not None:
        lines += [
            f"`radin cook` on all {facts.pool} members, B = {results.most}: members used {cooked['members']}, "
            f"validation {cooked['validation']:.4f}; the run directory is run/.",
            "",
        ]
    return "\n".join(lines)


def shift_names(results: Results) -> list[str]:
    """In the task's order."""
    return list(next(p.shifts for p in results.points if p.shifts))


def _shift(results: Results, strategy: str, name: str, budget: int) -> Estimate:
    found = [
        np.array([p.shifts[name] for p in results.points if (p.pool, p.strategy, p.budget) == (pool, strategy, budget)])  # type: ignore[index]
        for pool in results.pools
    ]
    return Estimate.of(found)


def _pair(value: Estimate) -> list[float | None]:
    return [round(value.mean, 6), None if math.isnan(value.stderr) else round(value.stderr, 6)]


def _score(value: Estimate) -> str:
    return f"{value.mean:.4f}" + ("" if math.isnan(value.stderr) else f" ± {value.stderr:.4f}")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
