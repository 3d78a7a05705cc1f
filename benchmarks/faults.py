"""radin broken from outside: killed, failed, its files damaged, its readers fed with nonsense; what it made of that.

    python benchmarks/faults.py --quick --json      about 90 seconds on two cores
    python benchmarks/faults.py --write             the whole of it, kept in benchmarks/results/faults.md
    python benchmarks/faults.py --soak 30 --write   half an hour of kills: memory, open files and disk over time

It needs no knowledge of radin but what the files of a run directory are called: everything is compared with a run that
nobody disturbed. Linux with a C compiler; without one, calls are neither failed nor are they places to kill at, and
where file systems may not be mounted there is no full one. --json ends with one line:

    kills              SIGKILLs, at random moments and at named calls, in this process, with workers, with programs
    faults             failing calls, a full disk, missing permissions, limits of the system
    flips              bits flipped in files of finished and half-finished runs
    lost               evaluations made again though they had been finished
    different_results  runs that were killed or failed, resumed, and ended otherwise than undisturbed
    silent_flips       flips after which the result is another, or that are still there, or are told without the file
    fuzzed             inputs to readers, damaged or made up
    crashes            tracebacks, messages that tell another cause, ends that never came, wherever
    slowest_file_s     the longest time that any of these inputs took
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded, here and in the runs
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file too it finds the package

from benchmarks.fault_parts import failing, flips, fuzz, kills, report, runs, soak, trials

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("kills", "faults", "flips", "fuzz")


@dataclass
class Found:
    """All that was tried, and what came of it."""

    kills: list[kills.Killed] = field(default_factory=list)
    faults: list[failing.Failed] = field(default_factory=list)
    flips: list[flips.Flipped] = field(default_factory=list)
    fuzz: list[fuzz.Fuzzed] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The line of --json."""
        bad = [one.verdict for one in self.faults]
        crashes = [
            *(one for one in self.kills if one.crash),
            *(verdict for verdict in bad if verdict in ("crash", "misleading")),
            *(one for one in self.flips if one.verdict == "crash"),
            *(one for one in self.fuzz if one.verdict == "crash"),
        ]
        return {
            "kills": sum(one.kills for one in self.kills),
            "faults": len(self.faults),
            "flips": len(self.flips),
            "lost": sum(one.lost for one in self.kills) + bad.count("lost"),
            "different_results": sum(bool(one.different) for one in self.kills) + bad.count("different"),
            "silent_flips": sum(one.silent for one in self.flips),
            "fuzzed": sum(one.inputs for one in self.fuzz),
            "crashes": len(crashes),
            "slowest_file_s": round(max((one.seconds for one in self.fuzz), default=0.0), 3),
        }


def measured(amounts: dict[str, int], *, seed: int = 0, threads: int = 2) -> Found:
    """As ``broken``, with so many runs side by side."""
    with trials.scratch() as folder:
        started = time.monotonic()
        opened = runs.opened(threads, folder)
        seconds = time.monotonic() - started
        try:
            found = broken(opened, amounts, seed)
        finally:
            opened.servers.close()
    found.seconds = {"start": seconds, **found.seconds}
    return found


def broken(all_runs: runs.Runs, amounts: dict[str, int], seed: int = 0) -> Found:
    """Break radin so many times in each of the ways: "kills", "faults", "flips", "fuzz"."""
    found = Found()
    if all_runs.servers.calls is None:
        found.notes.append("no C compiler: no failing calls, and no kills at named calls")
    if not failing.can_mount():
        found.notes.append("mounting is not permitted here: no full and no read-only file system")
    ways = {
        "kills": kills.killed_runs,
        "faults": failing.failed_runs,
        "flips": flips.flipped_bits,
        "fuzz": fuzz.fuzzed,
    }
    for name, act in ways.items():
        if not amounts.get(name):
            continue
        started = time.monotonic()
        for one in act(all_runs, amounts[name], seed):
            getattr(found, name).append(one)
            if text := report.complaint(one):
                print(text, file=sys.stderr, flush=True)
        found.seconds[name] = time.monotonic() - started
    return found


QUICK = {"kills": 40, "faults": 20, "flips": 100, "fuzz": 2000}
FULL = {"kills": 300, "faults": 100, "flips": 2000, "fuzz": 20_000}


def main(arguments: Sequence[str] | None = None) -> None:
    """Break, count, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small share of it")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--write", action="store_true", help="keep the tables in benchmarks/results/faults.md")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="runs side by side")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="instead: kill and resume for so long")
    given = parser.parse_args(arguments)
    if given.soak:
        table = soak.soaked(given.soak, seed=given.seed)
        print(report.soak_text(table))
        if given.write:
            report.write(RESULTS / "faults.md", soak=table)
        return
    amounts = QUICK if given.quick else FULL
    found = measured(
        {name: count for name, count in amounts.items() if name in (given.only or PARTS)},
        seed=given.seed,
        threads=given.threads,
    )
    print(report.text(found))
    if given.write:
        report.write(RESULTS / "faults.md", found=found)
    if given.json:
        print(json.dumps(found.summary()))


if __name__ == "__main__":
    main()
