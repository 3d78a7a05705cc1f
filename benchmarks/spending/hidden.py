"""Search without outputs, side by side with what needs none: the best validation score after each evaluated soup.

    PYTHONPATH=. python -m benchmarks.spending.hidden POOL... [--subpools 20] [--first 10] [--members 13] [--most 16]

Each strategy gets the members' scores and the inner products of their weights, nothing else, and is told the true
validation score of each soup it asks for. Sub-pools are drawn as in benchmarks/budget.py. What stands at a budget B is
the best of the first B soups and of the single members. Folders whose names differ in a last digit only are splits of
one pool and share its sub-pools. Constants of ``radin.search.prior`` and ``surrogate`` were set
on sub-pools 0 to 5 of four folders; --first leaves those out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.spending.known import Floats
from benchmarks.spending.truth import Truth

from radin import RadinError, Recipe, Search

OURS = "ours"
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("adaptive", {}),
    "greedy, strict": ("greedy", {"accept": "strict"}),
    "top-k": ("top-k", {}),
    "pruned": ("pruned", {}),
    "CMA-ES": ("cma-es", {}),
}
"""What the table calls them -> registered name and options."""

GREEDY = "greedy, strict"
MOST = 16


@dataclass(frozen=True)
class Curves:
    """Best utility after B = 1, 2, ... soups on each sub-pool, by strategy (S, B), and of the best members (S,)."""

    pool: str
    best: dict[str, Floats]
    single: Floats

    def mean(self) -> dict[str, Floats]:
        """Over sub-pools, (B,) each."""
        return {label: values.mean(axis=0) for label, values in self.best.items()}

    def lead(self, label: str) -> tuple[Floats, Floats]:
        """Ours minus another, paired: the mean over sub-pools and its standard error, (B,) each, percentage points."""
        difference = 100 * (self.best[OURS] - self.best[label])
        error = difference.std(axis=0, ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0 * difference[0]
        return difference.mean(axis=0), error

    def below_single(self) -> int:
        """Cases, a sub-pool and a budget each, in which ours stands below the best single member."""
        return int((self.best[OURS] < self.single[:, None]).sum())


def curve(truth: Truth, members: Sequence[int], label: str, most: int, seed: int) -> Floats:
    """The best utility after each of ``most`` soups of these members, the best single member included, (B,)."""
    name, options = STRATEGIES[label]
    chosen = list(members)
    search = Search(
        None,
        metric=truth.metric,
        strategy=name,
        options=options,
        budget=most,
        seed=seed,
        keys=[truth.pool.fingerprints[k] for k in chosen],
        singles=truth.singles[chosen],
        gram=truth.gram[np.ix_(chosen, chosen)],
    )
    best = [truth.metric.utility(search.best[1])]
    while (question := search.ask()) is not None:
        recipe = question.recipe
        weights = np.zeros(len(truth.pool))
        weights[chosen] = recipe.weights
        search.tell(recipe, truth.score(Recipe(tuple(weights.tolist())), "validation"))
        best.append(truth.metric.utility(search.best[1]))
    best += [best[-1]] * (most + 1 - len(best))
    return np.array(best[1:])


def play(
    truth: Truth, pool: str, seeds: Sequence[int], members: int, most: int, labels: Sequence[str] = tuple(STRATEGIES)
) -> Curves:
    """All strategies on the sub-pools of ``members`` drawn by ``seeds``."""
    pool_size = len(truth.pool)
    if members > pool_size:
        raise RadinError(f"{pool} has {pool_size} distinct members; sub-pools of {members} cannot be drawn")
    best: dict[str, list[Floats]] = {label: [] for label in labels}
    single = []
    for seed in seeds:
        drawn = sorted(np.random.default_rng(seed).choice(pool_size, members, replace=False).tolist())
        single.append(max(truth.metric.utility(float(truth.singles[k])) for k in drawn))
        for label in labels:
            best[label].append(curve(truth, drawn, label, most, seed))
    return Curves(pool, {label: np.stack(values) for label, values in best.items()}, np.array(single))


def together(curves: Sequence[Curves], name: str) -> Curves:
    """All sub-pools of several pools as if of one; pools should have as many sub-pools each."""
    labels = curves[0].best
    best = {label: np.concatenate([c.best[label] for c in curves]) for label in labels}
    return Curves(name, best, np.concatenate([c.single for c in curves]))


def table(curves: Curves) -> str:
    """Means, and ours minus each, as Markdown."""
    budgets = range(1, len(curves.best[OURS][0]) + 1)
    lines = [
        f"## {curves.pool}: {len(curves.single)} sub-pools",
        "",
        f"Mean validation score, percent; the best single member {100 * curves.single.mean():.2f}.",
        "",
        "| B | " + " | ".join(str(b) for b in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for label, values in curves.mean().items():
        lines.append(f"| {label} | " + " | ".join(f"{100 * value:.2f}" for value in values) + " |")
    lines += ["", "Ours minus each, percentage points, paired standard errors; last the smallest over B.", ""]
    lines += ["| B | " + " | ".join(str(b) for b in budgets) + " | smallest |", "|---" * (len(budgets) + 2) + "|"]
    for label in curves.best:
        if label != OURS:
            mean, error = curves.lead(label)
            cells = [f"{m:+.2f} ± {e:.2f}" for m, e in zip(mean, error, strict=True)]
            lines.append(f"| {label} | " + " | ".join(cells) + f" | {mean.min():+.2f} |")
    lines += ["", f"Below the best single member: {curves.below_single()} of {curves.best[OURS].size} cases.", ""]
    return "\n".join(lines)


def quick(folder: Path, subpools: int = 6, members: int = 8, most: int = MOST) -> Mapping[str, float]:
    """Two numbers from one small pool: ours minus greedy, percentage points, and cases below the best single."""
    curves = play(Truth(folder), folder.name, range(subpools), members, most, (OURS, GREEDY))
    return {
        "hidden_vs_greedy_pp": float(curves.lead(GREEDY)[0].mean()),
        "hidden_below_best_single": curves.below_single(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path, nargs="*", metavar="POOL")
    parser.add_argument("--subpools", type=int, default=20, help="random sub-pools of each pool")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first sub-pool")
    parser.add_argument("--members", type=int, default=13, help="members of a sub-pool")
    parser.add_argument("--most", type=int, default=MOST, help="the largest budget")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    from benchmarks.spending.command import as_pools
    from benchmarks.spending.strategies import register  # needs cma, which quick() does not

    torch.set_num_threads(1)
    register()
    seeds = range(given.first, given.first + given.subpools)
    found = []
    try:
        for name, folders in as_pools(given.pools).items():
            parts = []
            for position, folder in enumerate(folders):
                mine = seeds[position :: len(folders)]
                parts.append(play(Truth(folder), name, mine, given.members, given.most))
            found.append(together(parts, name))
            print(table(found[-1]), flush=True)
    except RadinError as error:
        sys.exit(str(error))
    if len(found) > 1:
        print(table(together(found, "All pools")))
    if given.json and found:
        whole = together(found, "all")
        print(
            json.dumps(
                {
                    "smallest_lead_pp": {
                        c.pool: min(float(c.lead(label)[0].min()) for label in c.best if label != OURS) for c in found
                    },
                    "hidden_vs_greedy_pp": float(whole.lead(GREEDY)[0].mean()),
                    "hidden_below_best_single": whole.below_single(),
                }
            )
        )


if __name__ == "__main__":
    main()
