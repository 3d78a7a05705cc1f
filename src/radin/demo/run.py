"""The demo: train a real pool, cook it, and compare with greedy at the same number of passes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from radin.demo.pool import build
from radin.progress import Progress
from radin.report.tables import closing_lines, closing_table, number, plain_table, share
from radin.run import cook

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
    found = {"run": ours.to_json(), "greedy": greedy.to_json(), "data": pool.data}
    found["seconds"] = {"training": trained, "total": time.monotonic() - started}
    return found, _shown(found)


def _shown(found: dict[str, Any]) -> list[RenderableType]:
    ours, greedy = found["run"], found["greedy"]
    rows = []
    for label, result, key in (
        ("best single", ours, "best_single"),
        ("greedy", greedy, "best"),
        ("adaptive, the default", ours, "best"),
    ):
        looks = [result, result["test"], *result["shifts"].values()]
        scores = [number(look[key]["score"], look[key]["stderr"]) for look in looks]
        passes = ours["passes"]["outputs"] if key == "best_single" else result["passes"]["total"]
        rows.append([label, str(result[key]["size"]), *scores, share(passes)])
    columns = ["", "members", "validation", "test", *ours["shifts"], "passes"]
    seconds = found["seconds"]
    return [
        closing_table(ours),
        *closing_lines(ours),
        "",
        plain_table("the same budget spent by greedy (sorted best first)", columns, rows),
        f"whole demo: {seconds['total']:.0f} s, of which training {seconds['training']:.0f} s; all of it in the run "
        "directory, so the same command again shows this at once",
    ]
