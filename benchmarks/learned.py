"""Ratios learned by gradient against the search and every simpler way, at the same number of passes.

    python benchmarks/learned.py POOL ... [--draws 20] [--budgets 8 16] [--write]     random sub-pools of 13 members
    python benchmarks/learned.py --summary [--write]                                 tables of what --write kept
    python benchmarks/learned.py --quick [--json]                                    two draws of two pools, budget 8

On each draw ``adaptive``, ``learned`` and ``learned-by-layer`` are whole ``radin.cook`` runs of their own; members'
outputs are kept between them. The baselines need no model of their own between soups: they are played on true scores
kept on disk (benchmarks/spending). Folders whose names differ in a last digit only are splits of one pool, and take
turns. --write adds each number to results/learned.csv when it is known, and goes on where it stopped; the tables are
made of that file. Test is looked at once for each soup that is chosen, and chooses nothing. ``--halves`` leaves it
alone: validation is cut in two, its batches in turn, and what one half chooses is scored on the other, both ways. The
strategies' constants were set so, on draws from 100 on (``--first 100``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from benchmarks.spending import gains, targets
from benchmarks.spending.ablation import without
from benchmarks.spending.command import as_pools
from benchmarks.spending.gains import BASELINES, BEFORE, DEFAULT, Draws, Row
from benchmarks.spending.play import Group, after, run
from benchmarks.spending.strategies import GREEDY
from benchmarks.spending.truth import Truth

import radin
from radin import Pool, RadinError, Task
from radin.search.strategies import learned

POOLS = Path(__file__).resolve().parents[1] / ".pools"
RESULTS = Path(__file__).resolve().parent / "results"
COOKED = (BEFORE, "learned", DEFAULT)


def tasks(folder: Path, halves: bool) -> list[Task]:
    """The pool's task; or two, of which each has as its test what is the other's validation."""
    task = replace(Task.load(folder / "task.py"), shifts=None)
    if not halves:
        return [task]
    batches = list(task.batches("validation"))
    parts = batches[0::2], batches[1::2]
    return [replace(task, validation=mine, test=other) for mine, other in (parts, parts[::-1])]


def drawn(files: list[Path], members: int, draw: int) -> list[Path]:
    """A random sub-pool, as benchmarks/budget.py draws it."""
    if len(files) < members:
        raise RadinError(f"{files[0].parent} has {len(files)} members; sub-pools of {members} cannot be drawn")
    return [files[k] for k in sorted(np.random.default_rng(draw).choice(len(files), members, replace=False).tolist())]


def cooked(
    task: Task, members: list[Path], strategy: str, budget: int, seed: int, outputs: Path
) -> tuple[float, float]:
    """Test and validation accuracy of the soup that a run chooses.

    strategy: NAME, or NAME:OPTION=VALUE,...; an option like _ROUND is a constant of the module ``learned``.
    """
    name, _, settings = strategy.partition(":")
    options = dict(pair.split("=", 1) for pair in re.split(r",(?=\w+=)", settings) if pair)
    constants = {option: json.loads(options.pop(option)) for option in list(options) if option.startswith("_")}
    with tempfile.TemporaryDirectory() as scratch, without(learned, **constants):
        result = radin.cook(
            members,
            task,
            budget=budget,
            out=Path(scratch) / "run",
            strategy=name,
            options=options,
            seed=seed,
            outputs=outputs,
        )
    return float(result.best.splits["test"][0]), float(result.best.score)


def runs(
    pool: str, folder: Path, draws: range, members: int, ways: list[tuple[str, int]], halves: bool, known: set[tuple]
) -> Iterator[Row]:
    """Whole runs of ``radin.cook`` by each strategy and budget on each draw; those known are left out."""
    files = sorted((folder / "members").glob("*.safetensors"))
    mine = None
    with tempfile.TemporaryDirectory() as outputs:
        for draw in draws:
            chosen = drawn(files, members, draw)
            for strategy, budget in ways:
                if (pool, members, draw, strategy, budget) in known:
                    continue
                mine = mine or tasks(folder, halves)
                pairs = [
                    cooked(task, chosen, strategy, budget, draw, Path(outputs) / str(half))  # of other data each
                    for half, task in enumerate(mine)
                ]
                test, validation = np.mean(pairs, axis=0).tolist()
                yield Row(pool, folder.name, members, draw, strategy, budget, test, validation)


def played(
    pool: str, folder: Path, draws: range, members: int, labels: Sequence[str], budgets: list[int], known: set[tuple]
) -> Iterator[Row]:
    """What the baselines choose on the same draws; greedy also at its end, after N - 1 passes."""
    files = sorted((folder / "members").glob("*.safetensors"))
    truth, places = None, {}
    for draw in draws:
        lacking = {
            label: [b for b in _asked(label, budgets, members) if (pool, members, draw, label, b) not in known]
            for label in labels
        }
        if not any(lacking.values()):
            continue
        if truth is None:
            truth = Truth(folder)
            places = {fingerprint: k for k, fingerprint in enumerate(truth.pool.fingerprints)}
        chosen = Pool.open(drawn(files, members, draw))  # the same file twice is one member, as in cook
        group = Group.of(truth, str(draw), [places[one] for one in chosen.fingerprints], draw)
        for label, wanted in lacking.items():
            if wanted:
                standings, _ = run(truth, group, label, max(wanted))
            for budget in wanted:
                found = after(standings, budget)
                test = truth.score(found.recipe, "test")
                yield Row(pool, folder.name, members, draw, label, budget, test, found.score)


def _asked(label: str, budgets: list[int], members: int) -> list[int]:
    return sorted({*budgets, members - 1}) if label == GREEDY else budgets


def measure(folders: list[Path], given: argparse.Namespace, keep: Path | None) -> list[Row]:
    """All rows of one pool, those kept among them; the splits take turns."""
    (pool,) = as_pools(folders)
    found = gains.read(keep) if keep else []
    known = {row.key for row in found}
    ways = [(name, budget) for budget in given.budgets for name in given.strategies]
    every = range(given.first, given.first + given.draws)
    for position, folder in enumerate(folders):
        draws = every[position :: len(folders)]
        sources = [runs(pool, folder, draws, given.members, ways, given.halves, known)]
        if not given.halves:
            sources.insert(0, played(pool, folder, draws, given.members, given.baselines, given.budgets, known))
        for source in sources:
            for row in source:
                found.append(row)
                if keep:
                    gains.append(keep, row)
                text = f"{row.folder}, draw {row.draw}: {row.strategy} {row.budget}: test {row.test:.4f}"
                print(f"{text}, validation {row.validation:.4f}", file=sys.stderr, flush=True)
    return [row for row in found if row.pool == pool and row.members == given.members and row.draw in every]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path, nargs="*", metavar="POOL")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first draw")
    parser.add_argument("--halves", action="store_true", help="on halves of validation, without test")
    parser.add_argument("--members", type=int, default=13)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8])
    parser.add_argument("--strategies", nargs="*", default=list(COOKED), metavar="NAME[:OPTION=VALUE,...]")
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, default=list(BASELINES), help="default all")
    parser.add_argument("--write", action="store_true", help="keep the numbers in benchmarks/results, and the tables")
    parser.add_argument("--summary", action="store_true", help="measure nothing: tables of what --write kept")
    parser.add_argument("--quick", action="store_true", help="two draws of two pools in .pools, budget 8")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    if [bool(given.pools), given.quick, given.summary].count(True) != 1:
        parser.error("give one or more pools, or --quick, or --summary")
    if given.quick:
        given.pools, given.draws = [POOLS / "fashion-rough", POOLS / "sentiment-0"], 2
    missing = [str(folder) for folder in given.pools if not (folder / "task.py").is_file()]
    if missing:
        parser.error(f"no pool in {', '.join(missing)}: build them by benchmarks/pools")
    torch.set_num_threads(1)
    kept = RESULTS / f"learned{'-halves' if given.halves else ''}.csv"
    try:
        pools = as_pools(given.pools)
        rows = [row for folders in pools.values() for row in measure(folders, given, kept if given.write else None)]
    except RadinError as error:
        sys.exit(str(error))
    if given.write or given.summary:
        rows = gains.read(kept)
    if given.write:
        gains.write(kept, rows)
    text = targets.halves(rows) if given.halves else targets.report(rows)
    print(text)
    if given.write:
        kept.with_suffix(".md").write_text(text)
    if given.json:
        draws = Draws(rows, given.members)
        ways = {f"{s} {b}": (s, b) for s, b in dict.fromkeys((r.strategy, r.budget) for r in rows) if s != BEFORE}
        numbers = {name: targets.over_before(draws, *way) for name, way in ways.items()}
        print(json.dumps({"pools": draws.pools, "draws": given.draws, **numbers}))


if __name__ == "__main__":
    main()
