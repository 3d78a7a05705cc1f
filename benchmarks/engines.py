"""The boundary between a search and what evaluates: is all as before, what does it cost, what do slices save.

    python benchmarks/engines.py --quick --json        a few minutes; builds what it needs
    python benchmarks/engines.py --write               the same with more repeats, kept in benchmarks/results/engines.md

--json ends with one line:

    same_as_before             whether every strategy asks the same recipes and gets the same scores on the demo's pool
                               as recorded before questions and engines (engine_parts/trace.py says what is put back)
    speedup_2_workers          seconds of one process over those of two worker processes, one thread each, same soups
    overhead_ms_per_question   what search, session and ledger take for one question, over an engine that takes no time
    slice_cost_ratio           seconds of reading a 10 % slice of data on disk over 10 % of those of reading all of it
    hidden_vs_greedy_pp        search without outputs minus greedy, validation, percentage points, mean over B = 1..16
    hidden_below_best_single   cases of it below the best single member
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded, here and in the workers
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file too it finds the package
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import numpy as np
import torch
from benchmarks.engine_parts import slices, trace
from benchmarks.spending import hidden

from radin import Answer, Engine, Failure, Metric, Pool, Question, Recipe, Task, cook
from radin.engine.device import Device
from radin.engine.local import LocalEngine
from radin.question import VALIDATION, Rates

POOLS = Path(__file__).resolve().parents[1] / ".pools"
RESULTS = Path(__file__).resolve().parent / "results"


def same_as_before(folder: Path) -> bool:
    """Whether the trace of the demo's pool is played again to the last question; says on stderr what differs."""
    recorded = trace.TRACES / "demo.json"
    with trace.as_it_was():
        found = trace.compared(folder, recorded)
    now = trace.compared(folder, recorded)
    say(f"differences: {len(found)} as it was, {len(now)} with the two faults mended", *found)
    return not found


def answers_per_second(folder: Path, workers: int, soups: int, repeats: int) -> list[float]:
    """Soups evaluated on all examples per second, after each worker has answered once; one figure for each repeat."""
    pool, spec = Pool.open(sorted((folder / "members").glob("*.safetensors"))), folder / "task.py"
    task = Task.load(spec)
    rng = np.random.default_rng(0)
    with LocalEngine(pool, task, Device.create("cpu"), spec=spec, workers=workers) as engine:
        data, examples = engine.fingerprint(VALIDATION)
        engine.bind(data, Rates(examples))

        def run(count: int) -> float:
            questions = [Question(Recipe.normalized(rng.dirichlet(np.ones(len(pool))))) for _ in range(count)]
            started, working = time.perf_counter(), 0
            while questions or working:
                while questions and working < engine.slots:
                    engine.submit(questions.pop())
                    working += 1
                working -= len(engine.wait())
            return count / (time.perf_counter() - started)

        run(2 * workers)
        return [run(soups) for _ in range(repeats)]


class Instant(Engine):
    """Answers at once, out of nothing but the recipe."""

    def __init__(self) -> None:
        self.metric = Metric("score", True, "any", lambda outputs, targets: 0.0)
        self._open: list[Question] = []

    def identity(self) -> dict[str, Any]:
        return {"engine": "instant"}

    def submit(self, question: Question) -> None:
        self._open.append(question)

    def wait(self, timeout: float | None = None) -> list[tuple[Question, Answer | Failure]]:
        asked, self._open = self._open, []
        return [(question, Answer(0.5 + 0.01 * question.recipe.weights[0], 0.01, 0, 0.0)) for question in asked]

    def write(self, recipe: Recipe, path: Path) -> None:
        path.write_bytes(b"")

    def close(self) -> None:
        return


def overhead(folder: Path, questions: int) -> float:
    """Milliseconds for one question: asked, recorded, answered at once, told, recorded."""
    pool = Pool.open(sorted((folder / "members").glob("*.safetensors")))
    scores = [0.5 - 0.001 * k for k in range(len(pool))]
    seconds = []
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for strategy, budget in (("best", 1), ("random", questions)):
            started = time.perf_counter()
            out = Path(work) / strategy
            cook(pool, Instant(), budget=budget, out=out, strategy=strategy, scores=scores, uniform=False)
            seconds.append(time.perf_counter() - started)
    return 1000 * (seconds[1] - seconds[0]) / questions


def say(*texts: str) -> None:
    print(*texts, sep="\n    ", file=sys.stderr, flush=True)


def measured(quick: bool) -> dict[str, Any]:
    """All six figures; progress on stderr."""
    torch.set_num_threads(1)
    folder = trace.demo_pool(POOLS / "engines-demo")
    found: dict[str, Any] = {"same_as_before": same_as_before(folder)}
    soups, repeats = (30, 3) if quick else (100, 5)
    one, two = (answers_per_second(folder, workers, soups, repeats) for workers in (1, 2))
    found["speedup_2_workers"] = round(statistics.median(two) / statistics.median(one), 3)
    say(f"soups a second: one process {spread(one)}, two workers {spread(two)}")
    found["overhead_ms_per_question"] = round(overhead(folder, 200 if quick else 1000), 3)
    with tempfile.TemporaryDirectory(dir=POOLS) as images:
        costs = slices.measure(Path(images), images=2000 if quick else 4000, repeats=3 if quick else 7)
    found["slice_cost_ratio"] = round(costs.slice_cost_ratio, 3)
    say(str(costs))
    found |= hidden.quick(folder, subpools=4 if quick else 20)
    found["hidden_vs_greedy_pp"] = round(found["hidden_vs_greedy_pp"], 4)
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/engines.md")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    given = parser.parse_args()
    started = time.monotonic()
    found = measured(given.quick)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    lines = ["# Engines", "", f"`python benchmarks/engines.py`; {machine}.", "", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in found.items()]
    print("\n".join(lines))
    say(f"{time.monotonic() - started:.0f} s")
    if given.write:
        (RESULTS / "engines.md").write_text("\n".join(lines) + "\n")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
