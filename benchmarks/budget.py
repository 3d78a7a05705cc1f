"""What a budget of soup evaluations buys: every strategy on real pools, validation and test, whole pool and sub-pools.

    python benchmarks/budget.py .pools/fashion-gentle --subpools 0            # the whole pool: one table
    python benchmarks/budget.py .pools/fashion-gentle --subpools 20           # means over random sub-pools of 13

A pool is a folder with task.py and members/*.safetensors, as benchmarks/pools and "radin demo" make them. True scores
are memoised beside it (truth/), so that no soup is ever evaluated twice. Choosing sees validation only; test is looked
at for what was chosen, to report it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from radin import Pool, Recipe, Search, Task
from radin.passes import Evaluation, Evaluator, LocalEngine, OutputStore, collect_outputs
from radin.run.ledger import Ledger
from radin.weights import average, geometry

BUDGETS = (1, 2, 4, 8, 16)
RESULTS = Path(__file__).parent / "results"

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "best single": ("best", {}),
    "uniform": ("uniform", {}),
    "top-k": ("top-k", {}),
    "greedy, strict": ("greedy", {"accept": "strict"}),
    "greedy, ties": ("greedy", {"accept": "ties"}),
    "pruned": ("pruned", {}),
    "random": ("random", {}),
    "RADIN, lambda 0": ("radin", {"uniform": False}),
    "RADIN, lambda 1": ("radin", {"prior": 1.0}),
    "adaptive": ("adaptive", {}),
}


class Truth:
    """True scores of recipes over one pool, each computed once and kept on disk."""

    def __init__(self, folder: Path) -> None:
        self.pool = Pool.open(sorted((folder / "members").glob("*.safetensors")))
        self.task = Task.load(folder / "task.py")
        self.metric = self.task.get_metric()
        self.evaluator = Evaluator(self.task, LocalEngine.create("cpu"), self.metric)
        place = folder / "truth"
        store = OutputStore(place / "outputs")
        found = collect_outputs(self.task, self.pool, store, self.evaluator.engine, self.metric)
        self.outputs = [np.asarray(o) for o in found.outputs]
        self.targets = found.targets
        self.ledger = Ledger(place / "truth.sqlite")
        self.splits = ["test", *(f"shifts/{name}" for name in self.task.shift_sources())]
        self.gram = geometry(self.pool).gram
        self.seconds: list[float] = []

    def __call__(self, recipe: Recipe, split: str) -> Evaluation:
        """The soup's evaluation on a split; a single member is taken as it is, BatchNorm untouched."""
        identity = recipe.identity(self.pool.fingerprints)
        found = self.ledger.get(identity, "soup", split)
        if found is None:
            started = time.monotonic()
            tensors = average(self.pool, recipe)
            model, _ = self.evaluator.prepare(tensors, "soup", calibrate=not recipe.is_single)
            found = self.evaluator.score(model, split, "soup")
            found = replace(found, seconds=time.monotonic() - started)
            self.seconds.append(found.seconds)
            form = recipe.to_json([m.name for m in self.pool], self.pool.fingerprints)
            self.ledger.add(identity, form, "soup", split, found)
        return found


@dataclass(frozen=True)
class Point:
    """One strategy's choice at one budget on one sub-pool."""

    strategy: str
    budget: int
    subpool: int
    validation: float
    test: float
    shifts: tuple[float, ...]
    size: int
    spent: int


def play(
    truth: Truth, members: Sequence[int], label: str, budgets: Iterable[int], subpool: int, seed: int
) -> list[Point]:
    """The strategy on these members of the pool, at each budget, on validation; then test for what it chose."""
    name, options = STRATEGIES[label]
    points = []
    for budget in budgets:
        search = Search(
            [truth.outputs[k] for k in members],
            truth.targets,
            metric=truth.metric,
            strategy=name,
            options=options,
            budget=budget,
            seed=seed,
            keys=[truth.pool.fingerprints[k] for k in members],
            gram=truth.gram[np.ix_(members, members)],
        )
        while (recipe := search.ask()) is not None:
            search.tell(recipe, truth(_whole(recipe, members, len(truth.pool)), "validation").score)
        best, score = search.best
        chosen = _whole(best, members, len(truth.pool))
        looks = [truth(chosen, split).score for split in truth.splits]
        points.append(Point(label, budget, subpool, score, looks[0], tuple(looks[1:]), best.size, search.spent))
    return points


def _whole(recipe: Recipe, members: Sequence[int], size: int) -> Recipe:
    """A recipe over a sub-pool as one over the whole pool."""
    weights = [0.0] * size
    for position, k in enumerate(members):
        weights[k] = recipe.weights[position]
    return Recipe(tuple(weights))


def table(points: Sequence[Point], truth: Truth, budgets: Sequence[int], members: int) -> str:
    """Markdown: validation / test accuracy for each strategy and budget; means and standard errors over sub-pools."""
    lines = ["| strategy | " + " | ".join(f"B = {b}" for b in budgets) + " | passes at the last B |"]
    lines.append("|---" * (len(budgets) + 2) + "|")
    for label in dict.fromkeys(p.strategy for p in points):
        cells = []
        for budget in budgets:
            here = [p for p in points if p.strategy == label and p.budget == budget]
            values = [np.array([p.validation for p in here]), np.array([p.test for p in here])]
            cells.append(" / ".join(_mean(v) for v in values))
        spent = np.mean([p.spent for p in points if p.strategy == label and p.budget == budgets[-1]])
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {members} + {spent:.0f} |")
    return "\n".join(lines)


def _mean(values: np.ndarray) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--subpools", type=int, default=0, help="random sub-pools; 0: the whole pool, once")
    parser.add_argument("--members", type=int, default=13, help="members of a sub-pool")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--only", nargs="+", choices=list(STRATEGIES), help="some strategies; default all")
    parser.add_argument("--from-subpool", type=int, default=0, help="leave out the sub-pools before this one")
    parser.add_argument("--no-shifts", action="store_true", help="do not look at the shift sets")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results")
    parser.add_argument("--json", action="store_true", help="all points as the last line of standard output")
    given = parser.parse_args()

    truth = Truth(given.pool)
    if given.no_shifts:
        truth.splits = ["test"]
    everyone = list(range(len(truth.pool)))
    if given.subpools:
        rng = np.random.default_rng(0)
        groups = [sorted(rng.choice(everyone, given.members, replace=False).tolist()) for _ in range(given.subpools)]
    else:
        groups = [everyone]
    points: list[Point] = []
    for index, members in list(enumerate(groups))[given.from_subpool :]:
        for label in given.only or STRATEGIES:
            started = time.monotonic()
            points += play(truth, members, label, given.budgets, index, seed=index)
            print(f"{index + 1}/{len(groups)} {label}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

    examples, typical = len(truth.targets), float(np.mean([p.validation for p in points]))
    stderr = np.sqrt(typical * (1 - typical) / examples)
    what = f"{given.subpools} random sub-pools of {given.members}" if given.subpools else f"all {len(everyone)} members"
    text = "\n".join(
        [
            f"# {given.pool.name}: {truth.metric.name} by budget, {what}",
            "",
            f"validation / test; {examples} validation examples, standard error of one score about {stderr:.4f}.",
            "Budget B: soups evaluated, beside one pass for each member's outputs. The best single member is always in",
            "the running.",
            "",
            table(points, truth, given.budgets, len(groups[0])),
            "",
        ]
    )
    print(text)
    if given.write:
        suffix = f"-{given.subpools}x{given.members}" if given.subpools else ""
        (RESULTS / f"budget-{given.pool.name}{suffix}.md").write_text(text)
    if given.json:
        print(json.dumps([vars(p) for p in points]))


if __name__ == "__main__":
    main()
