"""A real Ray cluster on this machine: two workers against one, and what is lost when one is killed.

python -m benchmarks.cluster_parts.real [POOL]      by default .pools/fashion-gentle: build it with
                                                    python -m benchmarks.pools.fashion --kind gentle

speedup_2_workers   members' outputs per second, of two workers over one, each of one thread, both started
same_result         whether a run by two workers has the winner, scores and soup of a run in one process
lost                members and soups of a run of which a worker is killed that are missing afterwards
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

import radin
from radin.engine.crew import Crew, Plan, Work
from radin.engine.ray_cluster import Ray
from radin.engine.worker import MemberRows
from radin.errors import RadinError

POOL = Path(__file__).resolve().parents[2] / ".pools" / "fashion-gentle"
ROUNDS = 3


def throughput(crew: Crew, members: list[int]) -> float:
    """Members' outputs per second. Its workers have loaded the task and read the data."""
    started = time.monotonic()
    for member in members:
        crew.submit(Work(member=member))
    done = 0
    while done < len(members):
        came = crew.wait()
        assert all(isinstance(reply.found, MemberRows) for _, reply in came)
        done += len(came)
    return len(members) / (time.monotonic() - started)


def speedup(pool: radin.Pool, source: Path, rounds: int) -> dict[str, float]:
    """Of two workers over one: the median of rounds in which both take turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    plan = Plan(pool, str(source), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        crew = Ray(workers=2).crew(plan, Path(folder))
        try:
            throughput(crew, [0, 1, 2, 3])  # each loads the task and reads the data before it is timed
            for _ in range(rounds):
                rates[2].append(throughput(crew, list(range(len(pool)))))
                rates[1].append(throughput(_One(crew), list(range(len(pool)))))
        finally:
            crew.close()
    one, two = (statistics.median(rates[size]) for size in (1, 2))
    return {"one": one, "two": two, "speedup": two / one}


class _One(Crew):
    """Of a crew of two, one worker at a time: work is handed on when the one before it is done."""

    size = 1

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._waiting: list[Work] = []

    def submit(self, work: Work) -> None:
        self._waiting.append(work)

    def wait(self, timeout: float | None = None) -> Any:
        self._crew.submit(self._waiting.pop(0))
        return self._crew.wait(timeout)

    def close(self) -> None:
        self._crew.close()


def _summary(result: radin.Result) -> tuple[Any, ...]:
    scores = sorted((evaluation.recipe.weights, evaluation.score) for evaluation in result.evaluations)
    return result.best.recipe, result.best.score, scores, Path(result.soup).read_bytes()


def _kill_a_worker(folder: Path, after: int) -> None:
    """Once so many members' outputs are there, kill one process that holds an actor."""
    while len(list((folder / "outputs").glob("*.safetensors"))) < after:
        time.sleep(0.02)
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit() and b"ray::Actor" in (place / "cmdline").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)
                return
        except OSError:
            continue


def runs(pool: radin.Pool, source: Path, budget: int) -> dict[str, Any]:
    """The same run in one process, and by two workers of which one is killed."""
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder) / "here", Path(folder) / "there"
        given: dict[str, Any] = {"budget": budget, "strategy": "paper"}
        one = radin.cook(pool, source, out=here, device="cpu", **given)
        killer = threading.Thread(target=_kill_a_worker, args=(there, 5), daemon=True)
        killer.start()
        two = radin.cook(pool, source, out=there, device="cpu", engine=Ray(workers=2), **given)
        names = {path.name for path in (here / "outputs").iterdir()}
        missing = len(names - {path.name for path in (there / "outputs").iterdir()})
        return {
            "same": _summary(one) == _summary(two),
            "lost": missing + len({e.recipe for e in one.evaluations} - {e.recipe for e in two.evaluations}),
            "killed": any("died" in note for note in two.notes),
        }


def measured(quick: bool = True, folder: Path = POOL) -> dict[str, Any]:
    """The figures above. Raises RadinError where the pool is not there."""
    if not (folder / "task.py").exists():
        raise RadinError(f"no pool in {folder}: build it with python -m benchmarks.pools.fashion --kind gentle")
    pool = radin.Pool.open(folder / "members")
    rates = speedup(pool, folder / "task.py", 1 if quick else ROUNDS)
    found = runs(pool, folder / "task.py", 4)
    if not found["killed"]:
        raise RadinError("no worker was killed, so nothing is known of what is lost: run it again")
    print(
        f"{rates['one']:.3f} members' outputs per second with one worker, {rates['two']:.3f} with two", file=sys.stderr
    )
    return {"speedup_2_workers": rates["speedup"], "same_result": found["same"], "lost": found["lost"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(False, *map(Path, sys.argv[1:]))))
