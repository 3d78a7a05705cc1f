"""The paper's experiments, each from an empty folder to its table, on small real data in the data sets' own formats.

    python benchmarks/paper.py --quick --json

cifar10 with a small timm model and members trained for it, shifts and domainnet with a small open_clip model, imagenet
with the checkpoints that shifts left, as a folder of released ones would be taken. --quick: 5 members and budgets to 4;
without it 14 members, 20 sub-pools of 13, budgets to 25. The data are stand-ins (experiments/standins.py): the scores
say nothing about the data sets. Then the paper's six figures are drawn from the run that cifar10 left, further soups
evaluated for them as ``radin figures --evaluate`` does. --json ends with one line:

    experiments_run             of 4: those whose table has every strategy at every budget, on validation, test, shifts
    figures                     of 6: those drawn, all their values finite
    learned_vs_ours_test_pp     the default, learned-by-layer, minus adaptive: test, B = 8, mean over pools, points
    ours_vs_pruned_test_pp      the default minus pruned, the same
    learned_vs_ours_se_pp, ours_vs_pruned_se_pp     paired standard errors

The last four are made of benchmarks/results/learned.csv, draw by draw, and not of this run: measuring them anew takes
hours (benchmarks/learned.py POOL ... --write).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMM = "timm:test_resnet,img_size=32"
KEPT = ROOT / "benchmarks" / "results" / "learned.csv"
QUICK = {"training": 300, "test": 120, "count": 5, "members": 3, "draws": 2, "most": 4, "evaluate": 80}
FULL = {"training": 2000, "test": 1000, "count": 14, "members": 13, "draws": 20, "most": 25, "evaluate": 200}


def commands(folder: Path, size: dict[str, int]) -> dict[str, list[Any]]:
    """Write the data; experiment -> its arguments, in an order in which each finds what it needs."""
    from experiments import standins

    clip = f"open_clip:{standins.tiny_clip(folder / 'configs')}"
    training, test = size["training"], size["test"]
    cifar = standins.cifar10(folder / "cifar-10-batches-bin", training, test)
    imagenet = standins.imagenet(folder / "imagenet-and-shifts", training, test, max(60, test // 2))
    domains = standins.domainnet(folder / "domainnet", training // 3, test // 3)
    train = ["--train", size["count"], "--rates", -3, -2, "--epochs", 1, 2, "--train-batch", 16, "--start-epochs", 3]
    return {
        "cifar10": ["--data", cifar, "--model", TIMM, "--hold-out", 0.3, *train],
        "shifts": ["--data", imagenet, "--model", clip, "--hold-out", 0.3, *train],
        "imagenet": [
            *("--data", imagenet, "--model", clip, "--hold-out", 0.3),
            *("--checkpoints", folder / "out" / "shifts" / "members"),
        ],
        "domainnet": ["--data", domains, "--model", clip, *train],
    }


def whole(tables: list[dict[str, Any]], most: int, shifted: bool) -> bool:
    """Whether every strategy is there at every budget, each score a finite number."""
    from experiments.running import STRATEGIES

    for table in tables:
        rows = {(row["strategy"], row["budget"]): row for row in table["rows"]}
        for strategy in STRATEGIES:
            for budget in range(1, most + 1):
                row = rows.get((strategy, budget))
                if row is None or not all(math.isfinite(row[field][0]) for field in ("validation", "test")):
                    return False
            if shifted and not all(math.isfinite(mean) for mean, _ in rows[strategy, 1]["shifts"].values()):
                return False
    return bool(tables)


def figures(place: Path, passes: int) -> int:
    """How many of the paper's figures can be drawn from an experiment's run, in ``place``, with all values finite."""
    from radin.report.figures import FIGURES, Unavailable, write
    from radin.run.further import evaluate_further
    from radin.run.record import RunRecord

    run, outputs = place / "run", place / "outputs"
    evaluate_further(run, place / "task.py", passes, outputs=outputs, device="cpu")
    record = RunRecord.read(run, outputs=outputs)
    drawn = 0
    for number, function in FIGURES.items():
        found = function(record)
        if isinstance(found, Unavailable):
            print(f"figure {number}: not drawn: {found.why}", file=sys.stderr)
        elif not finite(found):
            print(f"figure {number}: not all its values are finite", file=sys.stderr)
        else:
            drawn += write(found, place / "figures", "svg").stat().st_size > 0
    return drawn


def finite(value: Any) -> bool:
    """Whether all numbers of a figure's values are finite, but for standard errors, which a single soup has none of."""
    if is_dataclass(value) and not isinstance(value, type):
        return all(finite(getattr(value, field.name)) for field in fields(value) if field.name != "stderr")
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    if isinstance(value, tuple | list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 members, budgets to 4")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    from benchmarks.spending import gains, targets

    from experiments.__main__ import main as experiment

    size = QUICK if given.quick else FULL
    usual = ["--draws", size["draws"], "--members", size["members"], "--most", size["most"], "--device", "cpu"]
    done = 0
    with tempfile.TemporaryDirectory(prefix="radin-paper-") as place:
        for name, arguments in commands(Path(place), size).items():
            found = experiment([str(a) for a in (name, *arguments, *usual, "--out", Path(place) / "out" / name)])
            done += whole(found, size["most"], name in ("shifts", "domainnet"))
        print(f"{done} of 4 experiments ran from their files to a whole table", file=sys.stderr)
        drawn = figures(Path(place) / "out" / "cifar10", size["evaluate"])
        print(f"{drawn} of 6 figures were drawn from the run of cifar10", file=sys.stderr)
    compared = targets.numbers(gains.read(KEPT))
    before, pruned = (
        f"{compared[name + '_test_pp']:+.2f} ± {compared[name + '_se_pp']:.2f}"
        for name in ("learned_vs_ours", "ours_vs_pruned")
    )
    print(
        f"From {KEPT.relative_to(ROOT)}, measured before on real pools and not in this run, test, B = 8: the default "
        f"minus `adaptive` {before} points, minus pruned {pruned}."
    )
    if given.json:
        print(json.dumps({"experiments_run": done, "figures": drawn, **compared}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded
    sys.path.insert(0, str(ROOT))  # as a file too it finds the experiments
    main()
