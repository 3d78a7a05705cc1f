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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.fault_parts.compare import content, differences
from benchmarks.fault_parts.pool import faults_pool, known_lines
from benchmarks.fault_parts.runs import Reference, has_read_members, lines_of, log_of, made_again
from benchmarks.fault_parts.trials import scratch

MEMBERS, BUDGET = 72, 200
_EVERY = 60.0  # seconds that a row stands for
_LOOK = 0.1
_IMPORTS = 3.0  # seconds in which there is nothing to break


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
    disk: float = 0.0
    files: int = 0

    def look(self, out: Path) -> None:
        """See how much a run directory takes."""
        disk, files = _disk(out)
        self.disk, self.files = max(self.disk, disk), max(self.files, files)

    def row(self, minute: float, cache: float) -> Row:
        starts = sorted(self.at_start)
        memory = starts[len(starts) // 2] if starts else float("nan")
        counts = (self.sessions, self.kills, self.finished)
        return Row(minute, *counts, memory, self.most, self.open_files, self.disk, self.files, cache)


def soaked(minutes: float, *, members: int = MEMBERS, budget: int = BUDGET, seed: int = 0) -> Soaked:
    """Run for so long; one undisturbed run first, with which all others are compared."""
    table = Soaked(members, budget)
    pool, chance = faults_pool(members), random.Random(seed)
    hashes = known_lines(pool)
    with scratch() as folder:
        cook = partial(_session, pool, folder, budget)
        reference = folder / "reference"
        seconds = cook(reference, None, _Minute(), Soaked(members, budget))
        assert seconds is not None
        lines, expected = lines_of(reference), content(reference)
        cook(reference, None, _Minute(), Soaked(members, budget))
        undisturbed = Reference(expected, seconds, (), lines, lines_of(reference) - lines)
        started = begun = time.monotonic()
        minute, number, sessions, kills, unread = _Minute(), 0, 0, 0, 0
        while time.monotonic() - started < 60 * minutes:
            out = folder / f"run-{number}"
            # Most sessions end before a quarter of a run is done, so that there are many.
            patience = seconds * chance.uniform(0, 0.25 if chance.random() < 0.8 else 1.0)
            killed = cook(out, patience, minute, table) is None
            sessions += 1
            kills += killed
            unread += killed and not has_read_members(out, members)
            minute.look(out)
            if not killed:
                minute.finished += 1
                table.finished += 1
                said = differences(content(out), expected)
                table.different += bool(said)
                table.said += said
                table.lost += made_again(lines_of(out), undisturbed, *hashes, sessions, kills, unread)
                shutil.rmtree(out)
                log_of(out).unlink()
                number, sessions, kills, unread = number + 1, 0, 0, 0
            if time.monotonic() - begun > _EVERY:
                cache = _disk(folder / "cache")[0]
                table.rows.append(minute.row((time.monotonic() - started) / 60, cache))
                minute, begun = _Minute(), time.monotonic()
    return table


def _session(
    pool: Path, folder: Path, budget: int, out: Path, patience: float | None, minute: _Minute, table: Soaked
) -> float | None:
    """Cook in a new process; its seconds, or None when it was killed."""
    command = [sys.executable, "-m", "radin", "cook", str(pool / "members"), "--task", str(pool / "task.py")]
    command += ["--budget", str(budget), "--out", str(out)]
    log = log_of(out)
    environment = os.environ | {"FAULTS_LOG": str(log), "RADIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    started, before, answered = time.monotonic(), _size(log), False
    table.sessions += 1
    minute.sessions += 1
    with (folder / "stderr").open("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        until = None if patience is None else started + _IMPORTS + patience
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
