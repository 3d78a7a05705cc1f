"""What each ingredient of the default strategy gives: the strategy without it, on the same sub-pools and budgets.

    python -m benchmarks.spending.ablation POOL [POOL ...] [--subpools 6] [--budgets 1 4] [--write]

Scores are differences, the strategy without the ingredient minus the whole one, in percentage points, paired over
sub-pools; a minus says that the ingredient helps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.spending.known import Floats
from benchmarks.spending.play import Group, after, run
from benchmarks.spending.strategies import OURS, STRATEGIES
from benchmarks.spending.truth import Truth

from radin.search.strategies import adaptive, base, process, slices
from radin.search.strategies.base import Asks, Problem

RESULTS = Path(__file__).parents[1] / "results"


@contextmanager
def without(module: Any, **changed: Any) -> Iterator[None]:
    """Other values for some names of a module, for as long as one strategy runs."""
    before = {name: getattr(module, name) for name in changed}
    for name, value in changed.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _whole_soups(problem: Problem) -> Asks:
    """Every soup on all examples, one after the other; the rest as it is."""
    assert problem.examples is not None
    weights = adaptive.candidates(problem, 4096, 384)
    soft = adaptive.softened(problem.examples, weights, problem.estimate(weights))
    yield from adaptive._whole(problem, weights, process.Process.of(problem, weights, soft))


class _NothingLearned(adaptive._Model):
    """Each soup is known by its own slices alone; nothing is concluded for others."""

    def posterior(self, seen: list[int], truth: Floats, noise: Floats) -> tuple[Floats, Floats]:
        mean, variance = super().posterior([], np.array([]), np.array([]))
        mean, variance = mean.copy(), variance.copy()
        share = variance[seen] / (variance[seen] + noise + 1e-18)
        mean[seen] += share * (truth - mean[seen])
        variance[seen] *= 1 - share
        return mean, variance


def _no_unequal(members: int, count: int) -> tuple[str, ...]:
    return ("top-k", "random", "local")


def _first(weights: Floats, keep: int) -> Floats:
    return weights[:keep]


def _as_counted(examples: Any, weights: Floats, estimates: Floats) -> Floats:
    return estimates


def _patched(module: Any, **changed: Any) -> Callable[[Problem], Asks]:
    def play(problem: Problem) -> Asks:
        with without(module, **changed):
            yield from base.get(OURS).run(problem, **base.get(OURS).settings())

    return play


def _no_distances(problem: Problem) -> Asks:
    yield from base.get(OURS).run(replace(problem, gram=None), **base.get(OURS).settings())


VARIANTS: dict[str, Callable[[Problem], Asks]] = {
    "slices: whole soups only": _whole_soups,
    "levels: one slice of 35 %": _patched(slices, LEVELS=(0.35,)),
    "learning from soups evaluated": _patched(adaptive, _Model=_NothingLearned),
    "distances between members": _no_distances,
    "nonlinearity of the outputs": _patched(process, _NONLINEAR_LOSS=0.0),
    "loss expected anywhere": _patched(process, _USUAL_LOSS=0.0),
    "softened estimate": _patched(adaptive, softened=_as_counted),
    "keeping candidates apart": _patched(adaptive, thinned=_first),
    "unequal ratios": _patched(adaptive, default_sources=_no_unequal),
}
"""What is left out -> the strategy without it."""


def measure(folders: Sequence[Path], subpools: int, members: int, budgets: Sequence[int]) -> dict[str, Floats]:
    """Label -> validation and test scores, (pools, sub-pools, budgets, 2)."""
    for label, play in VARIANTS.items():
        play.__doc__ = play.__doc__ or "A variant."
        base.strategy(label, geometry=True)(play)
        STRATEGIES[label] = (label, {})
    labels = ["ours", *VARIANTS]
    found = {label: np.zeros((len(folders), subpools, len(budgets), 2)) for label in labels}
    for pool, folder in enumerate(folders):
        truth = Truth(folder)
        for index in range(subpools):
            drawn = sorted(np.random.default_rng(index).choice(len(truth.pool), members, replace=False).tolist())
            group = Group.of(truth, str(index), drawn, index)
            for label in labels:
                for column, budget in enumerate(budgets):
                    standings, _ = run(truth, group, label, budget)
                    best = after(standings, budget)
                    found[label][pool, index, column] = best.score, truth.score(best.recipe, "test")
            print(f"{folder.name} {index}: {truth.passes:.0f} passes so far", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Floats], names: Sequence[str], budgets: Sequence[int]) -> str:
    """A row for each ingredient: validation and test by budget, mean of pools; validation by pool, mean of budgets."""
    heads = [f"{what}, B = {b}" for what in ("validation", "test") for b in budgets]
    heads += [f"validation, {name}" for name in names]
    lines = ["| without | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for label in VARIANTS:
        gap = 100 * (found[label] - found["ours"])
        columns = [gap[:, :, column, what] for what in (0, 1) for column in range(len(budgets))]
        columns += [gap[pool : pool + 1, :, :, 0].mean(axis=2) for pool in range(len(names))]
        lines.append(f"| {label} | " + " | ".join(_cell(column) for column in columns) + " |")
    return "\n".join(lines)


def _cell(gaps: Floats) -> str:
    """Mean over pools (P, sub-pools) with its standard error."""
    errors = gaps.std(axis=1, ddof=1) / np.sqrt(gaps.shape[1])
    return f"{gaps.mean():+.2f} ± {np.sqrt((errors**2).sum()) / len(gaps):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path, nargs="+", metavar="POOL")
    parser.add_argument("--subpools", type=int, default=6, help="at least 2")
    parser.add_argument("--members", type=int, default=13)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results")
    given = parser.parse_args()
    missing = [str(folder) for folder in given.pools if not (folder / "task.py").is_file()]
    if missing:
        parser.error(f"no task.py in {', '.join(missing)}: not a pool")
    torch.set_num_threads(1)
    found = measure(given.pools, given.subpools, given.members, given.budgets)
    names = [folder.resolve().name for folder in given.pools]
    text = "\n".join(
        [
            "# What each ingredient of the default strategy gives",
            "",
            "The strategy without an ingredient minus the whole strategy, percentage points of accuracy, paired over",
            f"{given.subpools} sub-pools of {given.members} members from each of {', '.join(names)};",
            "a minus says that the ingredient helps. ± is one standard error over sub-pools, which share members and",
            "data.",
            "",
            table(found, names, given.budgets),
            "",
        ]
    )
    print(text)
    if given.write:
        (RESULTS / "ablation.md").write_text(text)


if __name__ == "__main__":
    main()
