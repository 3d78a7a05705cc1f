"""The driver over many workers: how busy they are kept, and what it takes for each question.

    python benchmarks/cluster.py --quick --json     the two figures below; a few minutes of one core
    python benchmarks/cluster.py --write            1 to 512 workers, up to 10,000 members, to results/cluster.md, .svg
    python benchmarks/cluster.py --one 72 64 adaptive 256      one run: members, workers, strategy, budget

The workers are simulated (cluster_parts/): the search, session, account and ledger are the real ones, and their work
moves the clock of the workers, whose passes take 10 seconds. --json ends with one line:

    utilisation_64           of 64 workers while soups are evaluated, budget of 4 passes for each, from the first
                             question to the last answer; strategy random, whose questions are whole passes
    driver_ms_per_question   of the processor, with 64 workers and adaptive, the strategy that computes most

and, once cluster_parts/real.py measures a real cluster, with what its ``measured()`` gives.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are loaded
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file too it finds the package

import numpy as np
import torch
from benchmarks.cluster_parts.driver import Phase, simulated
from benchmarks.cluster_parts.engine import Workers
from benchmarks.cluster_parts.pool import SimulatedPool

from radin.run.ledger import Ledger

RESULT = Path(__file__).resolve().parent / "results" / "cluster.md"
SECONDS, PER_WORKER, PATIENCE = 10.0, 4, 600.0
# Members, workers, strategy, budget.
QUICK = [(72, 64, "random", 256), (72, 64, "adaptive", 128)]
PLAN = [
    *((72, w, "random", PER_WORKER * w) for w in (1, 8, 64, 256, 512)),
    *((72, w, "adaptive", b) for w, b in ((1, 8), (8, 32), (64, 256), (256, 512), (512, 1024))),
    *((1000, w, s, b) for s in ("random", "adaptive") for w, b in ((64, 128), (512, 1024))),
    *((10000, 64, s, 128) for s in ("adaptive", "random", "top-k", "greedy")),
]


def commit_seconds(repeats: int = 15) -> float:
    """What one commit of a ledger takes on this disk: the median."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", run="commits")
        took = []
        for _ in range(repeats):
            started = time.perf_counter()
            ledger.start_session({})
            took.append(time.perf_counter() - started)
        ledger.close()
    return statistics.median(took)


def one(members: int, workers: int, strategy: str, budget: int, commit: float) -> dict[str, Any]:
    """One run's phases, as JSON holds them."""
    torch.set_num_threads(1)
    name, _, hidden = strategy.partition(", ")
    pool = SimulatedPool.made(members, examples=500 if members <= 1000 else 100)
    run = simulated(
        pool,
        Workers(workers, SECONDS),
        strategy=name,
        budget=budget,
        outputs=not hidden,
        parts=not hidden,
        commit=commit,
    )
    return {"members": _told(run.members), "soups": _told(run.soups)}


def _told(phase: Phase) -> dict[str, Any]:
    names = ("questions", "seconds", "first", "ideal", "utilisation", "whole", "ms", "commits", "waited", "parts")
    return {name: getattr(phase, name) for name in names}


def apart(row: tuple[Any, ...], commit: float, patience: float) -> dict[str, Any] | None:
    """``one`` in a process of its own; None where it took too long, or more memory than there is."""
    command = [sys.executable, __file__, "--one", *map(str, row), "--commit", str(commit)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        print(*row, f"not done after {patience:.0f} s", file=sys.stderr, flush=True)
        return None
    if done.returncode:
        print(*row, f"failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    soups = {name: round(value, 3) for name, value in found["soups"].items() if name != "parts"}
    print(*row, soups, file=sys.stderr, flush=True)
    return found


def table(found: dict[tuple[Any, ...], dict[str, Any] | None]) -> list[str]:
    """A line for each run."""
    lines = [
        "| members | workers | strategy | budget | questions | utilisation | makespan / ideal | first, s | "
        "ms a question | search, account, ledger, session, ms | commits |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, run in found.items():
        if run is None:
            lines.append(f"| {row[0]:,} | {row[1]} | {row[2]} | {row[3]} | not done | | | | | | |")
            continue
        s = run["soups"]
        parts = [1000 * s["parts"].get(name, 0.0) / s["questions"] for name in ("search", "account", "ledger")]
        parts.append(max(s["ms"] - sum(parts), 0.0))
        lines.append(
            f"| {row[0]:,} | {row[1]} | {row[2]} | {row[3]} | {s['questions']} | {s['utilisation']:.3f} | "
            f"{(s['seconds'] - s['first']) / s['ideal']:.3f} | {s['first']:.1f} | {s['ms']:.2f} | "
            f"{', '.join(f'{part:.2f}' for part in parts)} | {s['commits']} |"
        )
    return lines


def curve(found: dict[tuple[Any, ...], dict[str, Any] | None], path: Path) -> None:
    """Utilisation by workers, of 72 members, a line for each strategy; where a run is in twice, the larger budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "radin", "font.size": 9})
    figure, axes = plt.subplots(figsize=(6.0, 3.2), layout="constrained")
    for strategy, colour in (("random", "#2c6fbb"), ("adaptive", "#c0392b")):
        points = {}
        for members, workers, name, budget in sorted(found):
            run = found[members, workers, name, budget]
            if run is not None and (members, name) == (72, strategy):
                points[workers] = run["soups"]["utilisation"]
        axes.plot(list(points), list(points.values()), "o-", color=colour, label=strategy)
    axes.axhline(0.95, color="#777777", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="workers", ylabel="utilisation", ylim=(0, 1.02))
    axes.set_xticks([1, 8, 64, 256, 512], ["1", "8", "64", "256", "512"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def measured() -> dict[str, Any]:
    """What a real cluster gives, where cluster_parts/real.py is there to measure it."""
    if importlib.util.find_spec("benchmarks.cluster_parts.real") is None:
        return {}
    found: dict[str, Any] = importlib.import_module("benchmarks.cluster_parts.real").measured()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs of 64 workers only")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/cluster.md")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds that a run may take")
    parser.add_argument("--one", nargs=4, metavar=("MEMBERS", "WORKERS", "STRATEGY", "BUDGET"))
    parser.add_argument("--commit", type=float, help="seconds of a commit of the ledger; measured if not given")
    given = parser.parse_args()
    commit = commit_seconds() if given.commit is None else given.commit
    if given.one:
        members, workers, strategy, budget = given.one
        print(json.dumps(one(int(members), int(workers), strategy, int(budget), commit)))
        return
    rows = QUICK if given.quick else dict.fromkeys([*QUICK, *PLAN])
    found = {row: apart(row, commit, given.patience) for row in rows}
    lines = table(found)
    print(*lines, f"\nA commit of the ledger took {1000 * commit:.1f} ms on this disk.", sep="\n")
    if given.write:
        machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
        about = (
            f"`python benchmarks/cluster.py --write`; {machine}, numpy {np.__version__}, one thread. Workers\n"
            f"are simulated, their passes take {SECONDS:.0f} s. The driver's work: by the processor, and each commit\n"
            f"of the ledger {1000 * commit:.0f} ms, as measured on the disk. Utilisation: from the first question on."
        )
        notes = RESULT.read_text().partition("\n## ")[1:] if RESULT.exists() else ()
        RESULT.write_text("\n".join(["# Many workers", "", about, "", *lines, ""]) + "".join(notes))
        curve(found, RESULT.with_suffix(".svg"))
    if given.json:
        busy, asked = (found[row] for row in QUICK)
        figures = {
            "utilisation_64": None if busy is None else round(busy["soups"]["utilisation"], 4),
            "driver_ms_per_question": None if asked is None else round(asked["soups"]["ms"], 2),
        }
        print(json.dumps({**measured(), **figures}))


if __name__ == "__main__":
    main()
