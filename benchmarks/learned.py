"""Ratios learned by gradient against the default search, at the same number of passes, on random sub-pools.

    python benchmarks/learned.py POOL ... [--draws 20] [--members 13] [--budgets 8 16] [--write]
    python benchmarks/learned.py --quick [--json]      two draws of two pools, budget 8

Each number is a mean over draws of accuracy minus that of ``adaptive`` at the same budget, in percentage points,
with the standard error of that difference over draws, which share members; folders whose names differ in a last digit
only are splits of one pool, and take turns. Every run is a whole ``radin.cook`` of its own; members' outputs are kept
between runs. Test is looked at once for each soup that is chosen, and chooses nothing. ``--halves`` leaves it alone:
validation is cut in two, its batches in turn, and what one half chooses is scored on the other, both ways. The
strategies' constants were set so, on draws from 100 on (``--first 100``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.spending.command import as_pools

import radin
from radin import RadinError, Task

POOLS = Path(__file__).parents[1] / ".pools"
RESULTS = Path(__file__).parent / "results"
BASE = "adaptive"
LEARNED = ("learned", "learned-by-layer")
KINDS = ("test", "validation")

Scores = dict[str, list[tuple[float, float]]]
"""By strategy and budget, (test, validation) accuracy of each draw."""


def tasks(folder: Path, halves: bool) -> list[Task]:
    """The pool's task; or two, of which each has as its test what is the other's validation."""
    task = replace(Task.load(folder / "task.py"), shifts=None)
    if not halves:
        return [task]
    batches = list(task.batches("validation"))
    parts = batches[0::2], batches[1::2]
    return [replace(task, validation=mine, test=other) for mine, other in (parts, parts[::-1])]


def score(task: Task, members: list[Path], strategy: str, budget: int, seed: int, outputs: Path) -> tuple[float, float]:
    """Test and validation accuracy of the soup that a run chooses."""
    with tempfile.TemporaryDirectory() as scratch:
        result = radin.cook(
            members,
            task,
            budget=budget,
            out=Path(scratch) / "run",
            strategy=strategy,
            seed=seed,
            outputs=outputs,
        )
    return float(result.best.splits["test"][0]), float(result.best.score)


def measure(folders: list[Path], draws: range, members: int, budgets: list[int], halves: bool) -> Scores:
    """Accuracies by way, one pair for each draw; the splits of a pool take turns."""
    ways = [(name, budget) for budget in budgets for name in (BASE, *LEARNED)]
    found: Scores = {f"{name} {budget}": [] for name, budget in ways}
    for position, folder in enumerate(folders):
        files = sorted((folder / "members").glob("*.safetensors"))
        if len(files) < members:
            raise RadinError(f"{folder} has {len(files)} members; sub-pools of {members} cannot be drawn")
        mine = tasks(folder, halves)
        with tempfile.TemporaryDirectory() as outputs:
            for draw in draws[position :: len(folders)]:
                drawn = sorted(np.random.default_rng(draw).choice(len(files), members, replace=False).tolist())
                for name, budget in ways:
                    chosen = [files[k] for k in drawn]
                    pairs = [score(task, chosen, name, budget, draw, Path(outputs)) for task in mine]
                    value = (float(np.mean([test for test, _ in pairs])), float(np.mean([own for _, own in pairs])))
                    found[f"{name} {budget}"].append(value)
                    text = (
                        f"{folder.name}, draw {draw}: {name} {budget}: test {value[0]:.4f}, validation {value[1]:.4f}"
                    )
                    print(text, file=sys.stderr, flush=True)
    return found


def gains(found: Scores, way: str, kind: str) -> np.ndarray:
    """Percentage points over BASE at the same budget, (draws,)."""
    base = f"{BASE} {way.rsplit(' ', 1)[1]}"
    column = KINDS.index(kind)
    return np.array([100 * (mine[column] - other[column]) for mine, other in zip(found[way], found[base], strict=True)])


def mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; NaN of a single value."""
    stderr = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(values.mean()), float(stderr)


def over_pools(measured: dict[str, Scores], way: str, kind: str) -> tuple[float, float]:
    """The mean of the pools' means, and its standard error over draws."""
    pairs = np.array([mean(gains(found, way, kind)) for found in measured.values()])
    return float(pairs[:, 0].mean()), float(np.sqrt((pairs[:, 1] ** 2).sum()) / len(pairs))


def table(measured: dict[str, Scores]) -> str:
    """Markdown: rows are pools, columns strategies and budgets."""
    ways = [way for way in next(iter(measured.values())) if not way.startswith(f"{BASE} ")]
    lines = []
    for kind in KINDS:
        lines += [f"## {kind.capitalize()}", "", "| pool | draws | " + " | ".join(_said(way) for way in ways) + " |"]
        lines.append("|---" * (len(ways) + 2) + "|")
        for pool, found in measured.items():
            cells = [_cell(mean(gains(found, way, kind))) for way in ways]
            lines.append(f"| {pool} | {len(found[ways[0]])} | " + " | ".join(cells) + " |")
        lines.append("| mean | | " + " | ".join(_cell(over_pools(measured, way, kind)) for way in ways) + " |")
        lines.append("")
    return "\n".join(lines)


def _said(way: str) -> str:
    name, budget = way.rsplit(" ", 1)
    return f"{name}, B = {budget}"


def _cell(value: tuple[float, float]) -> str:
    return f"{value[0]:+.2f} ± {value[1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path, nargs="*", metavar="POOL")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first draw")
    parser.add_argument("--halves", action="store_true", help="on halves of validation, without test")
    parser.add_argument("--members", type=int, default=13)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8])
    parser.add_argument("--write", action="store_true", help="keep the tables in benchmarks/results/learned.md")
    parser.add_argument("--quick", action="store_true", help="two draws of two pools in .pools, budget 8")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    if bool(given.pools) == given.quick:
        parser.error("give one or more pools, or --quick")
    if given.quick:
        given.pools, given.draws = [POOLS / "fashion-rough", POOLS / "sentiment-0"], 2
    missing = [str(folder) for folder in given.pools if not (folder / "task.py").is_file()]
    if missing:
        parser.error(f"no pool in {', '.join(missing)}: build them by benchmarks/pools")
    torch.set_num_threads(1)
    measured: dict[str, Scores] = {}
    try:
        for pool, folders in as_pools(given.pools).items():
            draws = range(given.first, given.first + given.draws)
            measured[pool] = measure(folders, draws, given.members, given.budgets, given.halves)
    except RadinError as error:
        sys.exit(str(error))
    text = table(measured)
    print(text)
    if given.write:
        budgets = " ".join(map(str, given.budgets))
        more = f" --halves --first {given.first}" if given.halves else ""
        head = (
            "# Ratios learned by gradient, against the search\n\n"
            f"`python benchmarks/learned.py POOL ... --draws {given.draws} --budgets {budgets}{more}`\n\n"
            f"Accuracy minus that of `{BASE}` at the same budget, percentage points, on random sub-pools of\n"
            f"{given.members} members; ± is one standard error of the paired difference over draws.\n"
        )
        (RESULTS / f"learned{'-halves' if given.halves else ''}.md").write_text(f"{head}\n{text}")
    if given.json:
        ways = [way for way in next(iter(measured.values())) if not way.startswith(f"{BASE} ")]
        numbers = {way: [round(number, 3) for number in over_pools(measured, way, "test")] for way in ways}
        print(json.dumps({"pools": list(measured), "draws": given.draws, **numbers}))


if __name__ == "__main__":
    main()
