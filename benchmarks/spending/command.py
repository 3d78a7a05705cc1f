"""The command: which pools, how many processes, what is kept."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from benchmarks.spending import figures, tables
from benchmarks.spending.play import Facts, Group, Point, Work, play, share
from benchmarks.spending.results import Results, numbers, read_csv, write_csv
from benchmarks.spending.strategies import STRATEGIES, register
from benchmarks.spending.truth import Checked, Truth

import radin.demo
from radin import RadinError

RESULTS = Path(__file__).parents[1] / "results"
POOLS = Path(__file__).parents[2] / ".pools"
QUICK = {"pool": 16, "members": 10, "subpools": 10, "most": 8}
_SPLIT = re.compile(r"-\d$")


@dataclass(frozen=True)
class Plan:
    """What is run on each pool."""

    subpools: int
    members: int
    whole: bool
    most: int
    labels: tuple[str, ...]
    shifts: bool
    jobs: int


@dataclass(frozen=True)
class Opened:
    """What the report says of one folder."""

    members: int
    examples: int
    calibration: int
    tests: int
    stderr: float
    check: Checked


_truth: Truth | None = None  # a worker's own


def _open(folder: Path) -> None:
    global _truth
    torch.set_num_threads(1)
    register()
    _truth = Truth(folder)


def _check() -> Opened:
    assert _truth is not None
    values = _truth.singles
    typical = float(np.mean(values))
    examples = len(_truth.targets)
    stderr = float(np.sqrt(typical * (1 - typical) / examples))
    tests = len(_truth.held("test").targets)
    return Opened(len(values), examples, _truth.calibration, tests, stderr, _truth.check())


def _play(pool: str, name: str, count: int, seed: int, plan: Plan) -> tuple[list[Point], list[Work], str]:
    """All strategies on one sub-pool of ``count`` members, drawn by ``seed``; the whole pool if ``count`` is 0."""
    assert _truth is not None
    started, before = time.monotonic(), _truth.passes
    pool_size = len(_truth.pool)
    drawn = list(range(pool_size))
    if count:
        if count > pool_size:
            raise RadinError(f"{_truth.folder} has {pool_size} distinct members; sub-pools of {count} cannot be drawn")
        drawn = sorted(np.random.default_rng(seed).choice(pool_size, count, replace=False).tolist())
    group = Group.of(_truth, name, drawn, seed)
    points: list[Point] = []
    works: list[Work] = []
    for label in plan.labels:
        found, thinking = play(_truth, pool, group, label, plan.most, plan.shifts)
        points += found
        if label == "ours":
            works = thinking
    made = f"{_truth.passes - before:.1f} new passes over validation, {time.monotonic() - started:.0f} s"
    return points, works, made


def measure(pool: str, folders: Sequence[Path], plan: Plan) -> tuple[list[Point], Facts]:
    """All points of one pool, in order, and what else the report says."""
    found: dict[str, list[Point]] = {}
    works: dict[str, list[Work]] = {"sub-pools": [], "the whole pool": []}
    opened = []
    for position, folder in enumerate(folders):
        # New workers for each folder: their task files may import modules of the same name.
        with ProcessPoolExecutor(plan.jobs, get_context("spawn"), _open, (folder,)) as workers:
            opened.append(workers.submit(_check).result())
            say(f"{folder}: {opened[-1]}")
            mine = range(position, plan.subpools, len(folders))
            tasks = [("sub-pools", str(index), plan.members, index) for index in mine]
            if plan.whole:
                tasks.append(("the whole pool", f"whole-{position}", 0, position))
            futures = {workers.submit(_play, pool, *task[1:], plan): task for task in tasks}
            for future in as_completed(futures):
                what, name = futures[future][:2]
                found[name], thinking, made = future.result()
                works[what] += thinking
                say(f"{pool} {name}: {made}")
    order = sorted(found, key=lambda name: (name.startswith("whole"), int(name.removeprefix("whole-"))))
    first = opened[0]
    seconds = float(np.mean([o.check.pass_seconds for o in opened]))
    shares = {what: share(done, seconds) for what, done in works.items() if done}
    differing = max(o.check.differing for o in opened)
    checked = sum(o.check.recipes for o in opened)
    facts = Facts(
        pool,
        first.members,
        first.examples,
        first.calibration,
        first.tests,
        first.stderr,
        checked,
        differing,
        seconds,
        shares,
    )
    return [point for name in order for point in found[name]], facts


def as_pools(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Pool name -> its folders: those whose names differ in a last digit only are splits of one pool."""
    stems: dict[str, list[Path]] = {}
    for folder in folders:
        stems.setdefault(_SPLIT.sub("", folder.resolve().name), []).append(folder)
    return {(stem if len(found) > 1 else found[0].resolve().name): found for stem, found in stems.items()}


def show(title: str, name: str, points: Sequence[Point], facts: Sequence[Facts], write: bool) -> None:
    """Print a report; with ``write`` keep it, and its figure, in benchmarks/results."""
    results = Results(points)
    text = tables.report(title, results, facts)
    print(text)
    if write:
        (RESULTS / f"{name}.md").write_text(text)
        sub, whole = results.parts()
        shown = sub or whole
        if shown is not None:
            figures.curves(shown, title.split(":")[0], RESULTS / f"{name}.svg")


def keep(pool: str, points: Sequence[Point], facts: Facts) -> None:
    """The points as CSV, and the facts beside them, from which --summary makes the reports again."""
    write_csv(points, RESULTS / f"budget-{pool}.csv")
    (RESULTS / f"budget-{pool}.json").write_text(json.dumps(asdict(facts), indent=2) + "\n")


def kept(pools: Sequence[str]) -> list[tuple[list[Point], Facts]]:
    """What ``keep`` wrote, of these pools, or of all. Raises RadinError when there is none."""
    paths = [RESULTS / f"budget-{pool}.csv" for pool in pools] or sorted(RESULTS.glob("budget-*.csv"))
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise RadinError(f"not measured yet: {', '.join(missing) or 'any pool'}. Run with --write first.")
    return [(read_csv(path), Facts(**json.loads(path.with_suffix(".json").read_text()))) for path in paths]


def quick_pool() -> Path:
    """A small pool of the demo's: Fashion-MNIST where Debian's package is installed, else MNIST-5k."""
    data = "fashion" if radin.demo.data.find_fashion() else "mnist"
    say("building a small pool")
    return radin.demo.build(POOLS / f"quick-{data}", members=QUICK["pool"], data=data).folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(description: str) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path, nargs="*", metavar="POOL")
    parser.add_argument("--subpools", type=int, default=20, help="random sub-pools of each pool")
    parser.add_argument("--members", type=int, default=13, help="members of a sub-pool")
    parser.add_argument("--whole", action="store_true", help="also the whole pool")
    parser.add_argument("--most", type=int, default=25, help="the largest budget")
    parser.add_argument("--only", nargs="+", choices=list(STRATEGIES), help="some strategies; default all")
    parser.add_argument("--no-shifts", action="store_true", help="do not look at the shift sets")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--write", action="store_true", help="keep tables, points and figures in benchmarks/results")
    parser.add_argument("--summary", action="store_true", help="evaluate nothing: from what --write kept")
    parser.add_argument("--quick", action="store_true", help="a small pool and budgets to 8, in minutes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    if given.write and (given.only or given.quick):
        parser.error("--write keeps whole runs only: leave out --only and --quick")
    if not given.summary and bool(given.pools) == given.quick:
        parser.error("give one or more pools, or --quick")
    missing = [str(folder) for folder in given.pools if not (given.summary or (folder / "task.py").is_file())]
    if missing:
        parser.error(f"no task.py in {', '.join(missing)}: not a pool")
    if given.quick:
        given.subpools, given.members, given.most = QUICK["subpools"], QUICK["members"], QUICK["most"]
    plan = Plan(
        given.subpools,
        given.members,
        given.whole,
        given.most,
        tuple(label for label in STRATEGIES if not given.only or label in given.only),
        not (given.no_shifts or given.quick),
        given.jobs,
    )
    try:
        pools = as_pools([quick_pool()] if given.quick else given.pools)
        if given.summary:
            measured = kept(list(pools))
        else:
            measured = []
            for pool, folders in pools.items():
                measured.append(measure(pool, folders, plan))
                if given.write:
                    keep(pool, *measured[-1])
    except RadinError as error:
        sys.exit(str(error))
    for points, facts in measured:
        show(f"{facts.pool}: accuracy by budget", f"budget-{facts.pool}", points, [facts], given.write)
    together = [point for points, _ in measured for point in points]
    if len(measured) > 1:
        title = "Mean over pools: accuracy by budget"
        show(title, "budget", together, [facts for _, facts in measured], given.write)
    if given.json:
        everything = Results(together)
        sub, _ = everything.parts()
        print(json.dumps(numbers(sub or everything)))
