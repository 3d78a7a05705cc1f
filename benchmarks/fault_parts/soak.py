"""A long time of one large run after another, killed again and again: does anything grow?

72 members, a budget of 200. Every session is a process of its own, started as a user would. What is watched: memory at
the same place of every session (when its first answer is in), and the most of it; open files; the run directory, and
the cache of fingerprints.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fault_parts.compare import content, differences
from benchmarks.fault_parts.pool import faults_pool
from benchmarks.fault_parts.trials import scratch

MEMBERS, BUDGET = 72, 200
_EVERY = 60.0  # seconds that a row stands for
_LOOK = 0.1


@dataclass(frozen=True)
class Row:
    """A minute. Memory in MB: at_start, the median over sessions at their first answer; most, over all."""

    minute: float
    sessions: int
    kills: int
    finished: int
    at_start: float
    most: float
    open_files: int
    disk: float
    files: int
    cache: float


@dataclass
class Soaked:
    """What half an hour gave."""

    members: int
    budget: int
    rows: list[Row] = field(default_factory=list)
    sessions: int = 0
    kills: int = 0
    finished: int = 0
    different: int = 0
    lost: int = 0
    crashes: int = 0
    said: list[str] = field(default_factory=list)


@dataclass
class _Minute:
    sessions: int = 0
    kills: int = 0
    finished: int = 0
    at_start: list[float] = field(default_factory=list)
    most: float = 0.0
    open_files: int = 0


def soaked(minutes: float, *, members: int = MEMBERS, budget: int = BUDGET, seed: int = 0) -> Soaked:
    """Run for so long; one undisturbed run first, with which all others are compared."""
    table = Soaked(members, budget)
    pool, chance = faults_pool(members), random.Random(seed)
    with scratch() as folder:
        reference, minute = folder / "reference", _Minute()
        seconds = _session(pool, reference, folder, budget, None, minute, table)
        expected = content(reference)
        evaluated = _soups(folder / "reference.log")
        started, begun, number = time.monotonic(), time.monotonic(), 0
        out, kills = folder / "run-0", 0
        minute = _Minute()
        while time.monotonic() - started < 60 * minutes:
            # Half of the sessions end before a quarter of a run is done, so that there are many.
            patience = seconds * chance.choice((chance.uniform(0, 0.25), chance.uniform(0, 1.2)))
            killed = _session(pool, out, folder, budget, patience, minute, table) is None
            kills += killed
            if not killed:
                minute.finished += 1
                table.finished += 1
                said = differences(content(out), expected)
                table.different += bool(said)
                table.said += said
                more = _soups(out.with_name(out.name + ".log")) - evaluated
                table.lost += max(0, len(more) - kills)
                _look(table, minute, started, out, folder, final=False)
                shutil.rmtree(out)
                out.with_name(out.name + ".log").unlink()
                number, kills = number + 1, 0
                out = folder / f"run-{number}"
            if time.monotonic() - begun > _EVERY:
                _look(table, minute, started, out, folder, final=True)
                minute, begun = _Minute(), time.monotonic()
    return table


def _session(
    pool: Path, out: Path, folder: Path, budget: int, patience: float | None, minute: _Minute, table: Soaked
) -> float | None:
    """Cook in a new process; its seconds, or None when it was killed."""
    command = [sys.executable, "-m", "radin", "cook", str(pool / "members"), "--task", str(pool / "task.py")]
    command += ["--budget", str(budget), "--out", str(out)]
    log = out.with_name(out.name + ".log")
    environment = os.environ | {"FAULTS_LOG": str(log), "RADIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    before = _size(log)
    with (folder / "stderr").open("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        table.sessions += 1
        minute.sessions += 1
        answered = False
        # Imports and the reading of the pool take a while, in which there is nothing to break.
        until = None if patience is None else started + 3.0 + patience
        while process.poll() is None:
            memory = _memory(process.pid)
            minute.most = max(minute.most, memory)
            minute.open_files = max(minute.open_files, _open_files(process.pid))
            if not answered and _size(log) > before:
                answered = True
                minute.at_start.append(memory)
            if until is not None and time.monotonic() > until:
                process.send_signal(signal.SIGKILL)
                process.wait()
                minute.kills += 1
                table.kills += 1
                return None
            time.sleep(_LOOK)
        if process.returncode:
            table.crashes += 1
            errors.seek(0)
            table.said.append(errors.read()[-500:])
    return time.monotonic() - started


def _look(table: Soaked, minute: _Minute, started: float, out: Path, folder: Path, *, final: bool) -> None:
    """Add a row when its minute is over. The disk is looked at where a run has just ended, or is now."""
    if final:
        starts = sorted(minute.at_start)
        memory = starts[len(starts) // 2] if starts else 0.0
        disk, files = _disk(out)
        row = Row(
            (time.monotonic() - started) / 60,
            minute.sessions,
            minute.kills,
            minute.finished,
            memory,
            minute.most,
            minute.open_files,
            disk,
            files,
            _disk(folder / "cache")[0],
        )
        table.rows.append(row)


def _soups(log: Path) -> Counter[str]:
    """Weights of which more than one session may have run the same batch: weights -> the most often that one was."""
    counts = Counter(log.read_text().splitlines()) if log.exists() else Counter()
    most: Counter[str] = Counter()
    for line, count in counts.items():
        weights = line.split()[0]
        most[weights] = max(most[weights], count)
    return most


def _memory(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, IndexError):
        return 0.0


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _disk(folder: Path) -> tuple[float, int]:
    """MB and number of the files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return sum(_size(path) for path in files) / 1e6, len(files)
