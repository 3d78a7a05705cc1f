"""The demo: train a real pool, cook it, and compare with greedy at the same number of passes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from radin.demo.pool import build
from radin.progress import Progress
from radin.report.sentences import number, share
from radin.report.tables import closing_lines, closing_table, plain_table
from radin.run import Result, Scored, cook

MEMBERS = 16


def run_demo(
    out: Path, *, data: str, budget: int, seed: int, progress: Progress | None = None
) -> tuple[dict[str, Any], list[RenderableType]]:
    """Train (or find) the pool in ``out``/pool, cook it in ``out``/run, run greedy in ``out``/greedy.

    Returns the JSON form and what to print. Raises RadinError when the data cannot be had.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    pool = build(out / "pool", seed=seed, members=MEMBERS, data=data, progress=progress)
    trained = time.monotonic() - started
    ours = cook(pool.paths, pool.task_path, budget=budget, out=out / "run", seed=seed, progress=progress)
    greedy = cook(
        pool.paths,
        pool.task_path,
        budget=budget,
        out=out / "greedy",
        strategy="greedy",
        seed=seed,
        uniform=False,
        progress=progress,
    )
    seconds = {"training": trained, "total": time.monotonic() - started}
    found = {"run": ours.to_json(), "greedy": greedy.to_json(), "data": pool.data, "seconds": seconds}
    return found, _shown(ours, greedy, seconds)


def _shown(ours: Result, greedy: Result, seconds: Mapping[str, float]) -> list[RenderableType]:
    splits = list(ours.best.splits)

    def row(label: str, found: Scored, passes: float) -> list[str]:
        scores = [number(found.score, found.stderr), *(number(*found.splits[name]) for name in splits)]
        return [label, str(found.recipe.size), *scores, share(passes)]

    rows = [
        row("best single", ours.best_single, len(ours.member_names)),
        row("greedy", greedy.best, greedy.passes.total),
        row(f"{ours.strategy['name']}, the default", ours.best, ours.passes.total),
    ]
    columns = ["", "members", "validation", *(name.removeprefix("shifts/") for name in splits), "passes"]
    return [
        closing_table(ours),
        *closing_lines(ours),
        "",
        plain_table("the same budget spent by greedy (sorted best first)", columns, rows),
        f"whole demo: {seconds['total']:.0f} s, of which training {seconds['training']:.0f} s; all of it in the run "
        "directory, so the same command again shows this at once",
    ]
