"""What a search over many members takes before its first question and between two, and how that grows.

    python benchmarks/members.py --quick --json     24, 72 and 300 members of 5,000 examples in 10 classes; a minute
    python benchmarks/members.py --write            and 2,000 in 100 classes, parts, other strategies and metrics; kept
                                                    in benchmarks/results/members.md

Members are made up: logits of one common start, six directions in which all of them differ, and noise of their own, so
that singles score 0.71 to 0.92 (10 classes) or 0.53 to 0.94 (100). Each pool has a process of its own, on one thread.
Seconds are those of the processor, which other programs on the machine change little. --json ends with one line:

    seconds_24, seconds_72, seconds_300   of adaptive before its first question, accuracy, outputs in memory
    peak_mb_300                           resident memory beyond the outputs then
    metric_calls                          of a metric that is a function, until a search of 300 members has
                                          asked all its questions, the members' own scores included
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are loaded

import numpy as np
import torch

from radin import metrics
from radin.search import Search

RESULT = Path(__file__).resolve().parent / "results" / "members.md"
BUDGET, QUESTIONS = 20, 8


def pool(members: int, examples: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs (N, M, C) in float32, targets (M,) and inner products of weights (N, N)."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, examples)
    start = rng.normal(size=(examples, classes)).astype(np.float32)
    start[np.arange(examples), targets] += rng.normal(size=examples) * 2 + (5 if classes <= 20 else 6.5)
    directions = rng.normal(size=(6, examples, classes)).astype(np.float32)
    outputs = np.empty((members, examples, classes), np.float32)
    for mine in outputs:
        mine[:] = start + np.tensordot(0.4 * rng.normal(size=6).astype(np.float32), directions, 1)
        mine += rng.normal(size=start.shape).astype(np.float32) * (0.3 + 0.7 * rng.random())
    weights = rng.normal(size=(members, 400))
    return outputs, targets, weights @ weights.T


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(members: int, examples: int, classes: int, strategy: str, metric: str, parts: bool) -> dict[str, Any]:
    """One search: seconds to its first question, the mean between two, peak memory, and calls of a function."""
    torch.set_num_threads(1)
    outputs, targets, gram = pool(members, examples, classes)
    calls = [0]

    def kappa(logits: torch.Tensor, labels: torch.Tensor) -> float:
        calls[0] += 1
        guesses = logits.argmax(dim=1)
        chance = float(guesses.bincount(minlength=classes).double() @ labels.bincount(minlength=classes).double())
        chance /= len(labels) ** 2
        return (float((guesses == labels).double().mean()) - chance) / (1 - chance)

    chosen = metrics.get(kappa, True) if metric == "function" else metrics.get(metric)
    singles = np.array([chosen.value(mine, targets) for mine in outputs])
    given: Any = {"singles": singles, "gram": gram, "keys": [f"{k:03}" for k in range(members)]}
    hidden = strategy == "adaptive, no outputs"
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.process_time()
    search = Search(
        None if hidden else outputs,
        None if hidden else targets,
        metric=chosen,
        strategy="adaptive" if hidden else strategy,
        budget=BUDGET,
        parts=parts,
        **given,
    )
    question = search.ask()
    first = time.process_time() - started
    rng, between = np.random.default_rng(1), []
    while question is not None and len(between) < QUESTIONS:
        score = float(singles.max()) + 0.001 * rng.standard_normal()
        if question.examples is None:
            search.tell(question, score)
        else:
            search.tell(question, (rng.random(len(question.examples)) < score).astype(float))
        started = time.process_time()
        question = search.ask()
        between.append(time.process_time() - started)
    done.set()
    watching.join()
    return {
        "first": first,
        "next": float(np.mean(between)) if between else 0.0,
        "peak_mb": (peak[0] - before) / 2**20,
        "outputs_mb": outputs.nbytes / 2**20,
        "calls": calls[0],
    }


def apart(*settings: Any) -> dict[str, Any]:
    """``measured`` in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(*settings, {name: round(value, 2) for name, value in found.items()}, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 classes, accuracy and a function only")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/results/members.md")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(*json.loads(given.one))))
        return
    ten, hundred = (5000, 10), (2000, 100)
    plan: list[tuple[Any, ...]] = [(n, *ten, "adaptive", "accuracy", False) for n in (24, 72, 300)]
    plan.append((300, *ten, "adaptive", "function", False))
    if not given.quick:
        plan.insert(2, (150, *ten, "adaptive", "accuracy", False))
        plan += [(n, *hundred, "adaptive", "accuracy", False) for n in (24, 72, 150, 300)]
        plan += [(300, *data, "adaptive", "accuracy", True) for data in (ten, hundred)]
        plan += [(300, *ten, name, "accuracy", False) for name in ("paper", "greedy", "adaptive, no outputs")]
        plan += [(300, *ten, "adaptive", name, False) for name in ("nll", "brier", "macro_f1", "balanced_accuracy")]
    found = {row: apart(*row) for row in plan}
    lines = ["| members | examples x classes | strategy | metric | first, s | next, s | peak, MiB | outputs, MiB |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (n, m, c, strategy, metric, parts), took in found.items():
        name = f"{strategy}, parts" if parts else strategy
        numbers = f"{took['first']:.1f} | {took['next']:.3f} | {took['peak_mb']:.0f} | {took['outputs_mb']:.0f}"
        lines.append(f"| {n} | {m:,} x {c} | {name} | {metric} | {numbers} |")
    calls = found[plan[-1] if given.quick else (300, *ten, "adaptive", "function", False)]["calls"]
    print("\n".join(lines), f"\nCalls of the function: {calls}, 300 of them for the members' own scores.", sep="\n")
    if given.write:
        machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, one thread"
        about = (
            f"`python benchmarks/members.py --write`; {machine}. Seconds of the processor, other\nprograms running. "
            "First: until the first question; next: until one more. Peak: resident memory beyond the outputs."
        )
        text = "\n".join(["# Many members", "", about, "", *lines, ""])
        notes = RESULT.read_text().partition("\n## ")[1:] if RESULT.exists() else ()
        calling = f"A metric that is a function was called {calls} times, 300 of them for the members' own scores.\n"
        RESULT.write_text(text + "\n" + calling + "".join(notes))
    if given.json:
        seconds = {
            f"seconds_{n}": round(found[n, *ten, "adaptive", "accuracy", False]["first"], 2) for n in (24, 72, 300)
        }
        peak = round(found[300, *ten, "adaptive", "accuracy", False]["peak_mb"])
        print(json.dumps({**seconds, "peak_mb_300": peak, "metric_calls": calls}))


if __name__ == "__main__":
    main()
