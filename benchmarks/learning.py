"""What learning ratios by gradient takes beside its passes: memory with large members, and time between two questions.

    python benchmarks/learning.py [--pool FOLDER] [--json] [--write]     to benchmarks/results/learning.md

Memory: the default, budget 8, over 24 members of 100 MB in float32 (a perceptron of three layers, made here), in a
process of its own; resident memory at its highest, beyond what the process held before it opened the pool. Time: the
default, budget 8, over a pool of benchmarks/pools; what the search takes between an answer and the next question, as a
share of the pass of a member there, seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are loaded

import torch
from benchmarks.members import resident

import radin
from radin.run.ledger import Ledger
from radin.search import Search
from radin.weights import save

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "learning.md"
MEMBERS, BUDGET, EXAMPLES = 24, 8, 512
SIZES = (500, 4600, 4700, 10)  # of the layers: 24 million numbers


def network() -> torch.nn.Module:
    """About 100 MB in float32."""
    one, two, three, last = SIZES
    layer = torch.nn.Linear
    return torch.nn.Sequential(layer(one, two), torch.nn.ReLU(), layer(two, three), torch.nn.ReLU(), layer(three, last))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Points around ten means, in four batches."""
    torch.manual_seed(1)
    targets = torch.arange(EXAMPLES) % SIZES[-1]
    points = torch.randn(SIZES[-1], SIZES[0])[targets] * 0.3 + torch.randn(EXAMPLES, SIZES[0])
    return list(zip(points.split(EXAMPLES // 4), targets.split(EXAMPLES // 4), strict=True))


def memory(folder: Path) -> dict[str, float]:
    """Of a whole run over members that lie in ``folder``, MB."""
    torch.set_num_threads(1)
    task = radin.Task(model=network, validation=batches)
    before, highest, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = radin.cook(folder / "members", task, budget=BUDGET, out=folder / "run", members_at_once=1)
    finally:
        done.set()
        watcher.join()
    size = next((folder / "members").iterdir()).stat().st_size
    assert result.strategy["name"] == "learned-by-layer", result.strategy
    return {"member_mb": size / 1e6, "before_mb": before / 1e6, "beyond_mb": (highest[0] - before) / 1e6}


def make(folder: Path) -> None:
    """Members: one start, a step towards the data's means and noise of their own."""
    (folder / "members").mkdir()
    torch.manual_seed(0)
    start = network().state_dict()
    for k in range(MEMBERS):
        torch.manual_seed(100 + k)
        tensors = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in start.items()}
        save(tensors, folder / "members" / f"m{k:02}.safetensors")


def thinking(pool: Path) -> dict[str, float]:
    """Seconds from one answer to the next question, and of a member's pass, over a pool that is there."""
    torch.set_num_threads(1)
    ask, tell = Search.ask, Search.tell
    taken: list[float] = []
    spent = [0.0]

    def asking(self: Search) -> Any:
        started = time.thread_time()
        found = ask(self)
        spent[0] += time.thread_time() - started
        if found is not None:
            taken.append(spent[0])
            spent[0] = 0.0
        return found

    def telling(self: Search, *given: Any) -> None:
        started = time.thread_time()
        tell(self, *given)
        spent[0] += time.thread_time() - started

    Search.ask, Search.tell = asking, telling  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "run"
        result = radin.cook(pool / "members", pool / "task.py", budget=BUDGET, out=out, members_at_once=1)
        asked = Ledger(out / "ledger.sqlite", read_only=True).questions()
    assert result.strategy["name"] == "learned-by-layer", result.strategy
    seconds = [(q.answer.seconds, q.answer.examples) for q in asked if q.answer is not None and q.gradient is None]
    whole = statistics.median(s for s, examples in seconds if examples == result.examples)
    between = taken[1:]
    return {
        "questions": len(taken),
        "pass_s": whole,
        "between_mean_share": statistics.mean(between) / whole,
        "between_largest_share": max(between) / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=ROOT / ".pools" / "fashion-gentle")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of is not None:
        print(json.dumps(memory(given.memory_of)))
        return
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        command = [sys.executable, __file__, "--memory-of", made]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1]) | thinking(given.pool)
    lines = [
        "# What learning takes beside its passes",
        "",
        f"`python benchmarks/learning.py`, default strategy, budget {BUDGET}, torch {torch.__version__}, one thread.",
        "",
        f"* {MEMBERS} members of {found['member_mb']:.0f} MB: {found['beyond_mb']:.0f} MB resident at most, beyond the "
        f"{found['before_mb']:.0f} MB of the process before.",
        f"* {given.pool.name}: {found['questions']} questions; between an answer and the next question "
        f"{found['between_mean_share']:.1%} of a pass ({found['pass_s']:.2f} s) on average, "
        f"{found['between_largest_share']:.1%} at most.",
    ]
    print("\n".join(lines))
    if given.write:
        RESULT.write_text("\n".join(lines) + "\n")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
