"""What averaging gives on a pool, in plain torch without radin's search: best single, uniform, greedy, random subsets.

    python -m benchmarks.pools.figures .pools/fashion-gentle --soups 200 [--json]

A soup's BatchNorm statistics are estimated again on the task's calibration images. Soups are chosen by validation;
"(best on test)" looks at test and is an upper bound, not a result.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from radin import Task

State = dict[str, torch.Tensor]


class Bench:
    """The pool's weights and data in memory; the accuracy of any average of its members."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.paths = sorted((folder / "members").glob("*.safetensors"))
        self.states = [load_file(path) for path in self.paths]
        task = Task.load(folder / "task.py")
        self.model = task.build_model()
        self.names = ["validation", "test", *(f"shifts/{name}" for name in task.shift_sources())]
        self.sets = {name: list(task.batches(name)) for name in self.names}
        self.calibration = [] if task.calibration is None else [x for x, _ in task.batches("calibration")]

    @torch.no_grad()
    def outputs(self, name: str) -> torch.Tensor:
        """(M, C) logits of the weights now in the model."""
        return torch.cat([self.model(x) for x, _ in self.sets[name]])

    def accuracy(self, name: str, outputs: torch.Tensor) -> float:
        targets = torch.cat([y for _, y in self.sets[name]])
        return float((outputs.argmax(1) == targets).double().mean())

    def soup(self, members: Sequence[int], names: Sequence[str]) -> list[float]:
        """Accuracy on each split of the equal average; one member alone is taken as it is."""
        self.model.load_state_dict(average([self.states[k] for k in members]))
        if len(members) > 1 and self.calibration:
            with torch.no_grad():
                torch.optim.swa_utils.update_bn(self.calibration, self.model)
        self.model.eval()
        return [self.accuracy(name, self.outputs(name)) for name in names]


def average(states: Sequence[State]) -> State:
    """The float64 mean of each floating tensor; others from the first."""
    return {
        name: torch.stack([s[name].double() for s in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def greedy(bench: Bench, order: Sequence[int], best: float) -> list[int]:
    """Sorted best first; a member stays when validation does not drop (Wortsman et al. 2022, recipe 1)."""
    chosen = [order[0]]
    for member in order[1:]:
        score = bench.soup([*chosen, member], ["validation"])[0]
        if score >= best:
            chosen, best = [*chosen, member], score
    return chosen


def figures(bench: Bench, soups: int, seed: int = 0) -> dict[str, list[float]]:
    """Name -> accuracy on each of ``bench.names``."""
    size = len(bench.states)
    singles = [bench.soup([k], bench.names) for k in range(size)]
    order = sorted(range(size), key=lambda k: -singles[k][0])
    found = {
        "worst single": singles[order[-1]],
        "mean of singles": np.mean(singles, axis=0).tolist(),
        "best single": singles[order[0]],
        "uniform": bench.soup(range(size), bench.names),
    }
    chosen = greedy(bench, order, singles[order[0]][0])
    found[f"greedy ({len(chosen)} members, {size - 1} passes)"] = bench.soup(chosen, bench.names)
    rng = np.random.default_rng(seed)
    drawn = [
        bench.soup(rng.choice(size, rng.integers(2, size), replace=False).tolist(), ["validation", "test"])
        for _ in range(soups)
    ]
    if drawn:
        found[f"mean of {soups} random subsets"] = np.mean(drawn, axis=0).tolist()
        found["best of them by validation"] = max(drawn)
        found["(best of them on test)"] = max(drawn, key=lambda pair: pair[1])
    found["ensemble of all logits"] = ensemble(bench)
    return found


def ensemble(bench: Bench) -> list[float]:
    sums = dict.fromkeys(bench.names, torch.zeros(()))
    for state in bench.states:
        bench.model.load_state_dict(state)
        bench.model.eval()
        for name in bench.names:
            sums[name] = sums[name] + bench.outputs(name)
    return [bench.accuracy(name, sums[name]) for name in bench.names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--soups", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    bench = Bench(given.pool)
    found = figures(bench, given.soups)
    error = math.sqrt(0.09 / len(torch.cat([y for _, y in bench.sets["test"]])))
    out = sys.stderr if given.json else sys.stdout
    print(f"| | {' | '.join(bench.names)} |", "|---" * (len(bench.names) + 1) + "|", sep="\n", file=out)
    for name, scores in found.items():
        cells = [f"{s:.4f}" for s in scores] + [""] * (len(bench.names) - len(scores))
        print(f"| {name} | {' | '.join(cells)} |", file=out)
    print(f"{len(bench.states)} members; standard error of one score about {error:.4f} at accuracy 0.9", file=out)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
