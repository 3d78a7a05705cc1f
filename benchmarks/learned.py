"""Ratios learned by gradient against the default search, at the same number of passes, on random sub-pools.

    python benchmarks/learned.py POOL ... [--draws 20] [--members 13] [--budgets 8 16]
    python benchmarks/learned.py --quick [--json]      two draws of two pools, budget 8

Each line is a mean over draws of test accuracy minus that of ``adaptive`` with a budget of 8, in percentage points,
with the standard error of that difference over draws, which share members. Every run is a whole ``radin.cook`` of its
own; members' outputs are kept between runs. Test is looked at once for each soup that is chosen, and chooses nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import radin
from radin import RadinError

POOLS = Path(__file__).parents[1] / ".pools"
BASE = ("adaptive", 8)
LEARNED = ("learned", "learned-by-layer")


def score(folder: Path, members: list[Path], strategy: str, budget: int, seed: int, outputs: Path) -> float:
    """Test accuracy of the soup that a run chooses."""
    with tempfile.TemporaryDirectory() as scratch:
        result = radin.cook(
            members,
            folder / "task.py",
            budget=budget,
            out=Path(scratch) / "run",
            strategy=strategy,
            seed=seed,
            outputs=outputs,
        )
    return float(result.best.splits["test"][0])


def measure(folder: Path, draws: int, members: int, ways: list[tuple[str, int]]) -> dict[str, list[float]]:
    """Test accuracy by way, one number for each draw."""
    files = sorted((folder / "members").glob("*.safetensors"))
    if len(files) < members:
        raise RadinError(f"{folder} has {len(files)} members; sub-pools of {members} cannot be drawn")
    found: dict[str, list[float]] = {f"{name} {budget}": [] for name, budget in ways}
    with tempfile.TemporaryDirectory() as outputs:
        for draw in range(draws):
            drawn = sorted(np.random.default_rng(draw).choice(len(files), members, replace=False).tolist())
            for name, budget in ways:
                value = score(folder, [files[k] for k in drawn], name, budget, draw, Path(outputs))
                found[f"{name} {budget}"].append(value)
                print(f"{folder.name}, draw {draw}: {name} {budget}: {value:.4f}", file=sys.stderr, flush=True)
    return found


def against(found: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Mean difference from BASE and its standard error, in percentage points; NaN of a single draw."""
    base = np.array(found[f"{BASE[0]} {BASE[1]}"])
    result = {}
    for way, scores in found.items():
        difference = 100 * (np.array(scores) - base)
        stderr = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
        result[way] = (float(difference.mean()), float(stderr))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path, nargs="*", metavar="POOL")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--members", type=int, default=13)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 16], help="of the strategies that learn")
    parser.add_argument("--quick", action="store_true", help="two draws of two pools in .pools, budget 8")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    if bool(given.pools) == given.quick:
        parser.error("give one or more pools, or --quick")
    if given.quick:
        given.pools = [POOLS / "fashion-rough", POOLS / "sentiment-0"]
        given.draws, given.budgets = 2, [8]
    missing = [str(folder) for folder in given.pools if not (folder / "task.py").is_file()]
    if missing:
        parser.error(f"no pool in {', '.join(missing)}: build them by benchmarks/pools")
    torch.set_num_threads(1)
    ways = [BASE, *((name, budget) for budget in given.budgets for name in LEARNED)]
    numbers = {}
    try:
        for folder in given.pools:
            rows = against(measure(folder, given.draws, given.members, ways))
            for way, (mean, stderr) in rows.items():
                print(f"{folder.name:20} {way:22} {mean:+.2f} ± {stderr:.2f}", flush=True)
                numbers[f"{folder.name}: {way}"] = [round(mean, 3), round(stderr, 3)]
    except RadinError as error:
        sys.exit(str(error))
    if given.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
