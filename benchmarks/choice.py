"""By which score to choose among evaluated soups: on halves of validation sets, never on test.

    python benchmarks/choice.py POOL... [--draws 6] [--budget 8] [--write] [--json]

Each draw takes 13 members of a pool and cuts its validation examples into two halves at random. A search spends its
budget on one half; a rule chooses among the soups that it evaluated in full there, by that half alone; the choice is
scored by its accuracy on the other half. Then the halves change places. What is shown is that accuracy less that of
today's default, which chooses by accuracy: paired, the mean of both directions a draw, with the standard error over
draws (which share members and examples). A pool is a folder as benchmarks/pools builds it.

Searches: "default" (adaptive, soups started on parts of the examples, one finished), "finish 2" and "finish 4" (so many
finished), "whole" (adaptive, whole soups only), "smooth" (whole soups, the search itself by softened accuracy).

Rules: the accuracy; softened accuracy, the mean of sigmoid(margin / (s x mean |margin|)); cross-entropy with its
temperature free; sums of accuracy and one of these, each over its standard deviation among the candidates; the average
of the recipes of the best three; ratios half way to uniform. The last two cost a pass more, which is not counted. No
other rule takes a soup whose accuracy is below that of the best single member.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.spending.command import RESULTS, as_pools, quick_pool, say
from benchmarks.spending.truth import Truth
from numpy.typing import NDArray

from radin import Metric, Recipe, Search
from radin.metrics import correct, negative_log_likelihood, temperature

Floats = NDArray[np.float64]
Array = NDArray[Any]

MEMBERS = 13
SHARPNESS = (0.03, 0.1, 0.3)


def margins(outputs: Array, targets: Array) -> Floats:
    """Output of the true class less the best other one, (..., M); outputs (..., M, C), targets (M,)."""
    places = np.arange(len(targets))
    right = outputs[..., places, targets].astype(np.float64)
    rest = outputs.astype(np.float64)
    rest[..., places, targets] = -np.inf
    return right - rest.max(axis=-1)


def softened(outputs: Array, targets: Array, sharpness: float) -> Floats:
    """sigmoid(margin / (sharpness x mean |margin|)) of each example, (..., M)."""
    found = margins(outputs, targets)
    scaled = found / np.maximum(sharpness * np.abs(found).mean(axis=-1, keepdims=True), 1e-30)
    return 1.0 / (1.0 + np.exp(-np.clip(scaled, -50, 50)))


def calibrated(outputs: Array, targets: Array) -> float:
    """Minus the cross-entropy of outputs over their best temperature."""
    return -float(negative_log_likelihood(outputs / temperature(outputs, targets), targets).mean())


class Softened:
    """The estimate of softened accuracy: that of the averaged outputs."""

    def __init__(self, outputs: Sequence[Array], targets: Array, sharpness: float) -> None:
        self._shape = outputs[0].shape
        self._flat = np.stack([np.asarray(one, np.float32).ravel() for one in outputs])
        self._targets, self._sharpness = targets, sharpness
        self.examples = len(targets)

    def scores(self, weights: Array) -> Floats:
        """(S,) of recipes (S, N)."""
        found = []
        for rows in np.array_split(np.asarray(weights, np.float32), max(1, len(weights) // 64)):
            together = (rows @ self._flat).reshape(len(rows), *self._shape)
            found.append(softened(together, self._targets, self._sharpness).mean(axis=-1))
        return np.concatenate(found)


@dataclass(frozen=True)
class Half:
    """Members of a pool, and the examples (m,) that are searched on. ``outputs``: of soups, by recipe of the pool."""

    truth: Truth
    members: tuple[int, ...]
    examples: Array
    seed: int
    outputs: dict[Recipe, Array]

    @property
    def targets(self) -> Array:
        return self.truth.targets[self.examples]

    def all_of(self, recipe: Recipe) -> Array:
        """The soup's outputs on all of validation."""
        if recipe not in self.outputs:
            everything = np.arange(len(self.truth.targets))
            if recipe.is_single:
                self.outputs[recipe] = np.asarray(self.truth.outputs[recipe.members[0]])
            else:
                self.outputs[recipe] = self.truth.soup_outputs(recipe, "validation", everything)
        return self.outputs[recipe]

    def whole(self, recipe: Recipe) -> Recipe:
        """A recipe over these members as one over the pool."""
        weights = [0.0] * len(self.truth.pool)
        for position, k in enumerate(self.members):
            weights[k] = recipe.weights[position]
        return Recipe(tuple(weights))

    def searched(self, name: str, budget: int) -> list[Recipe]:
        """What a search evaluated in full, the best single member first."""
        mine = [np.asarray(self.truth.outputs[k])[self.examples] for k in self.members]
        chosen = list(self.members)
        smooth = name == "smooth"
        common = {
            "keys": [self.truth.pool.fingerprints[k] for k in chosen],
            "gram": self.truth.gram[np.ix_(chosen, chosen)],
            "budget": budget,
            "seed": self.seed,
            "calibration": self.truth.calibration,
        }
        values: Callable[[Array, Array], Floats] = correct
        if smooth:
            values = partial(softened, sharpness=0.1)
            metric = Metric("softened accuracy", True, "classes", per_example=values, family="accuracy")
            singles = np.array([values(one, self.targets).mean() for one in mine])
            common |= {"metric": metric, "estimator": Softened(mine, self.targets, 0.1), "singles": singles}
        elif name.startswith("finish"):
            common["options"] = {"finish": int(name.split()[1])}
        search = Search(mine, self.targets, parts=name not in ("whole", "smooth"), **common)
        while (question := search.ask()) is not None:
            asked = np.arange(len(self.examples)) if question.examples is None else question.examples
            rows = self.examples[asked]
            found = self.all_of(self.whole(question.recipe))[rows]
            told = values(found, self.truth.targets[rows])
            search.tell(question, float(told.mean()) if question.examples is None else told)
        best = int(np.argmax([correct(one, self.targets).mean() for one in mine]))
        singles_first = [Recipe.single(best, len(chosen))]
        return [self.whole(recipe) for recipe in [*singles_first, *(r for r, _ in search.evaluations if r.size > 1)]]

    def chosen(self, candidates: Sequence[Recipe]) -> dict[str, Recipe]:
        """By each rule, the recipe that it takes; the first candidate is the best single member."""
        targets = self.targets
        seen = [self.all_of(recipe)[self.examples] for recipe in candidates]
        accuracy = np.array([correct(one, targets).mean() for one in seen])
        scores = {"accuracy": accuracy}
        for sharpness in SHARPNESS:
            scores[f"softened, s = {sharpness}"] = np.array([softened(o, targets, sharpness).mean() for o in seen])
        scores["cross-entropy"] = np.array([calibrated(one, targets) for one in seen])
        for name in list(scores)[1:]:
            scores[f"accuracy and {name}"] = _scaled(accuracy) + _scaled(scores[name])
        allowed = np.flatnonzero(accuracy >= accuracy[0])
        result = {name: candidates[allowed[np.argmax(found[allowed])]] for name, found in scores.items()}
        for name in ("accuracy", "softened, s = 0.1"):
            order = allowed[np.argsort(-scores[name][allowed], kind="stable")]
            few = [candidates[k].weights for k in order if k][:3] or [candidates[0].weights]
            result[f"mean of the best 3 by {name}"] = Recipe.normalized(np.mean(few, axis=0))
            best = candidates[order[0]]
            even = Recipe.uniform(best.members, len(best.weights)).weights
            result[f"half way to uniform, best by {name}"] = Recipe.normalized(np.add(best.weights, even))
        return result


def _scaled(values: Floats) -> Floats:
    return (values - values.mean()) / (values.std() or 1.0)


def draw(truth: Truth, seed: int, budget: int, searches: Sequence[str]) -> dict[str, tuple[float, float]]:
    """By search and rule: accuracy on the other half, and on the half that chose; means of both directions."""
    rng = np.random.default_rng([20, seed])
    members = tuple(sorted(rng.choice(len(truth.pool), min(MEMBERS, len(truth.pool)), replace=False).tolist()))
    shuffled = rng.permutation(len(truth.targets))
    parts = [np.sort(part) for part in np.array_split(shuffled, 2)]
    outputs: dict[Recipe, Array] = {}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for mine, other in (parts, parts[::-1]):
        half = Half(truth, members, mine, seed, outputs)
        for search in searches:
            candidates = half.searched(search, budget)
            for rule, recipe in half.chosen(candidates).items():
                right = correct(half.all_of(recipe), truth.targets)
                found[f"{search}: {rule}"].append((float(right[other].mean()), float(right[mine].mean())))
    return {name: tuple(np.mean(both, axis=0).tolist()) for name, both in found.items()}


def table(found: dict[str, list[dict[str, tuple[float, float]]]], reference: str) -> str:
    """Markdown: each rule's accuracy on the other half less the reference's, by pool and over all pools."""
    pools = list(found)
    names = list(found[pools[0]][0])
    lines = ["| search: rule | " + " | ".join(pools) + " | all pools |", "|---" * (len(pools) + 2) + "|"]
    for name in names:
        cells, means, errors = [], [], []
        for pool in pools:
            gaps = np.array([100 * (one[name][0] - one[reference][0]) for one in found[pool]])
            error = gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float("nan")
            cells.append(f"{gaps.mean():+.2f} ± {error:.2f}")
            means.append(gaps.mean())
            errors.append(error)
        cells.append(f"{np.mean(means):+.3f} ± {np.sqrt(np.sum(np.square(errors))) / len(pools):.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    kept = [np.mean([100 * (one[reference][1] - one[reference][0]) for one in found[pool]]) for pool in pools]
    lines += ["", "Selection bias of the reference (the half that chose less the other): "]
    lines[-1] += ", ".join(f"{pool} {value:+.2f}" for pool, value in zip(pools, kept, strict=True)) + "."
    return "\n".join(lines)


SEARCHES = ("default", "finish 2", "finish 4", "whole", "smooth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path, nargs="*", metavar="POOL")
    parser.add_argument("--draws", type=int, default=6, help="draws of each pool")
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES), choices=SEARCHES)
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/choice.md")
    parser.add_argument("--quick", action="store_true", help="two draws of a small pool")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    if bool(given.pools) == given.quick:
        parser.error("give one or more pools, or --quick")
    torch.set_num_threads(1)
    draws = 2 if given.quick else given.draws
    found: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for pool, folders in as_pools([quick_pool()] if given.quick else given.pools).items():
        found[pool] = []
        for position, folder in enumerate(folders):
            truth = Truth(folder)
            for seed in range(position, draws, len(folders)):
                started = time.monotonic()
                found[pool].append(draw(truth, seed, given.budget, given.searches))
                say(f"{folder.name}, draw {seed}: {time.monotonic() - started:.0f} s")
    reference = f"{given.searches[0]}: accuracy"
    text = table(found, reference)
    print(text)
    if given.write:
        command = f"python benchmarks/choice.py POOL... --draws {draws} --budget {given.budget}"
        head = f"# By which score to choose\n\n`{command}`\n\nPercentage points of accuracy on the other half, less"
        kept = RESULTS / "choice.md"
        _, mark, further = kept.read_text().partition("\n## ")  # what other benchmarks measured, written by hand
        kept.write_text(f"{head} those of `{reference}`.\n\n{text}\n{mark}{further}")
    if given.json:
        print(json.dumps({"pools": list(found), "draws": draws, "found": found}))


if __name__ == "__main__":
    main()
