"""What every experiment does with its task and its checkpoints: cook, replay the strategies, write the table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.spending.play import Group, Point, play
from benchmarks.spending.results import Results, write_csv
from benchmarks.spending.scored import Scored

import radin
from experiments import default, table
from experiments.scores import Streamed
from radin import Pool, Task
from radin.engine.device import Device
from radin.files import write_json, write_text

REPLAYED = (
    "best single",
    "uniform",
    "top-k",
    "greedy, strict",
    "pruned",
    "RADIN, lambda 0",
    "RADIN, lambda 1",
    "ours",
)
"""Those of benchmarks/spending/strategies.py that a table has; RADIN's with C = 200 candidates."""

STRATEGIES = (*REPLAYED, default.LABEL)
"""All that a table has."""


@dataclass(frozen=True)
class Plan:
    """How much is run: random sub-pools of so many members, and the largest budget B."""

    draws: int = 20
    members: int = 13
    most: int = 25
    device: str = "auto"
    batch_size: int | None = None
    cook: bool = True


def run(title: str, task: Path, members: Sequence[Path], out: Path, plan: Plan) -> dict[str, Any]:
    """Everything from task file and checkpoints to ``out``/table.md and table.json; goes on where it stopped.

    out/outputs: the members' outputs. out/known.sqlite: true scores, so that no soup is evaluated twice.
    out/defaults.json: what runs of the default chose. out/run: the run directory of cook on all members at the largest
    budget. out/points.csv: each strategy's choice in each draw. Returns what table.json holds.
    """
    started = time.monotonic()
    pool = Pool.open(members)
    pool.require_several()
    device = Device.create(plan.device, batch_size=plan.batch_size)
    scores = Streamed(pool, Task.load(task), out, device)
    say(f"{title}: {len(pool)} members, {len(scores.targets):,} validation examples")
    places = [member.path for member in pool]
    defaults = default.Defaults(scores, places, task, out, device=plan.device, batch_size=plan.batch_size)
    points = replayed(scores, title, plan, defaults)
    scores.passes += defaults.passes
    write_csv(points, out / "points.csv")
    facts = table.Facts.of(scores, title, plan.members, device.name, round(time.monotonic() - started, 1))
    cooked = None
    if plan.cook:
        result = radin.cook(
            pool,
            str(task),
            budget=plan.most,
            out=out / "run",
            outputs=out / "outputs",
            device=plan.device,
            batch_size=plan.batch_size,
        )
        cooked = {"members": result.best.recipe.size, "validation": result.best.score}
    found = table.as_json(Results(points), facts, cooked)
    write_json(out / "table.json", found)
    write_text(out / "table.md", table.as_markdown(Results(points), facts, cooked))
    return found


def replayed(scores: Scored, title: str, plan: Plan, defaults: default.Defaults) -> list[Point]:
    """Every strategy on every draw: its choice after each pass, scored on test and shifts."""
    points = []
    for index in range(plan.draws):
        started, before = time.monotonic(), scores.passes + defaults.passes
        group = Group.of(scores, str(index), drawn(len(scores.pool), plan.members, index), index)
        for label in REPLAYED:
            found = play(scores, title, group, label, plan.most, shifts=bool(scores.shifts))[0]
            points += found
            if label == "ours":
                points += defaults.points(found, group, plan.most)
        made = f"{scores.passes + defaults.passes - before:.1f} new passes, {time.monotonic() - started:.0f} s"
        say(f"  draw {index + 1} of {plan.draws}: {made}")
    return points


def drawn(pool: int, members: int, seed: int) -> list[int]:
    """A random sub-pool, as benchmarks/budget.py draws it; all where the pool is no larger."""
    if pool <= members:
        return list(range(pool))
    return sorted(np.random.default_rng(seed).choice(pool, members, replace=False).tolist())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shown(found: dict[str, Any]) -> str:
    return json.dumps(found)
