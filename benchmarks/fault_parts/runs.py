"""The kinds of runs that are broken, and what each gives when nobody does."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_parts.compare import content, differences
from benchmarks.fault_parts.pool import faults_pool, known_lines
from benchmarks.fault_parts.trials import Ended, Fault, Servers

BUDGET, RAISED = 8, 10
_NUMBER = itertools.count()

# What is given on the command line besides pool, budget and folder. Where several answers come in any order, only
# strategies whose questions depend on no answer ask the same each time.
KINDS: dict[str, tuple[str, ...]] = {
    "task": ("--task", "{pool}/task.py"),
    "streamed": ("--task", "{pool}/task.py", "--no-keep-outputs"),
    "workers": ("--task", "{pool}/task.py", "--jobs", "2", "--strategy", "paper"),
    "program": ("--eval", "{pool}/score.sh {{soup}}"),
    "programs": ("--eval", "{pool}/score.sh {{soup}}", "--jobs", "2", "--strategy", "random"),
}
SLOTS = {"workers": 2, "programs": 2}


@dataclass(frozen=True)
class Reference:
    """A run that nobody disturbed.

    content: of its folder. seconds: it took. calls: on files of the folder, those that change something. lines: what
    went through models or the program. again: what does when the finished run is asked for again.
    """

    content: dict[str, Any]
    seconds: float
    calls: tuple[str, ...]
    lines: Counter[str]
    again: Counter[str]


class Runs:
    """Starts runs of every kind on the small pool, and keeps the references."""

    def __init__(self, servers: Servers, pool: Path) -> None:
        self.servers = servers
        self.pool = pool
        self._references: dict[tuple[str, int], Reference] = {}
        self.members, self._validation = known_lines(pool)

    def new_folder(self) -> Path:
        """A name for a run directory, and for the log beside it."""
        return self.servers.folder / f"run-{next(_NUMBER):06d}"

    def start(self, kind: str, out: Path, *, budget: int = BUDGET, log: Path | None = None, **more: Any) -> Ended:
        """Cook into ``out``; ``more`` as of Servers.run. log: what is run goes there, by default beside the folder."""
        given = [part.format(pool=self.pool) for part in KINDS[kind]]
        argv = ["cook", self.pool / "members", *given, "--budget", budget, "--out", out]
        environment = {"FAULTS_LOG": str(log or log_of(out)), **more.pop("env", {})}
        return self.servers.run(argv, env=environment, **more)

    def reference(self, kind: str, budget: int = BUDGET) -> Reference:
        """What this kind of run gives, made when first asked for."""
        if (kind, budget) not in self._references:
            self._references[kind, budget] = self._undisturbed(kind, budget)
        return self._references[kind, budget]

    def prepare(self, kinds: list[str]) -> None:
        """Make the references of several kinds side by side."""
        list(self.servers.each(self.reference, kinds))

    def content(self, kind: str, out: Path, *, notes: bool = True) -> dict[str, Any]:
        """What a folder holds, as the reference of its kind has it."""
        return content(out, notes=notes, any_order=kind in SLOTS)

    def _undisturbed(self, kind: str, budget: int) -> Reference:
        out = self.new_folder()
        ended = self.start(kind, out, budget=budget, fault=Fault(out), log_calls=True)
        if ended.verdict != "ok":
            raise RuntimeError(f"the undisturbed run {kind} failed: {ended.stderr}")
        once, found = lines_of(out), self.content(kind, out)
        again = self.start(kind, out, budget=budget)
        if again.verdict != "ok" or (said := differences(self.content(kind, out), found)):
            why = again.stderr if again.verdict != "ok" else "; ".join(said)
            raise RuntimeError(f"the undisturbed run {kind} is another when it is asked for again: {why}")
        return Reference(found, ended.seconds, tuple(ended.calls), once, lines_of(out) - once)

    def lost(self, kind: str, lines: Counter[str], sessions: int, kills: int, unread: int) -> int:
        """Evaluations of a run of this kind that were made again though they had been finished; see ``made_again``."""
        slots = SLOTS.get(kind, 1)
        return made_again(lines, self.reference(kind), self.members, self._validation, sessions, kills * slots, unread)


def made_again(
    lines: Counter[str],
    reference: Reference,
    members: frozenset[str],
    validation: frozenset[str],
    sessions: int,
    open_ones: int,
    unread: int,
) -> int:
    """How many evaluations were made again though they had been finished.

    lines: of all sessions of a run. members, validation: the hashes of the members' weights and of the batches.
    open_ones: how many may have been in work when sessions were ended: one for each slot of each. unread: how many
    sessions were ended before the members' outputs were kept: what they had read of these is read again.
    """
    allowed = Counter({line: count * sessions for line, count in reference.again.items()})
    soups: Counter[str] = Counter()
    of_members: Counter[str] = Counter()
    for line, count in (lines - reference.lines - allowed).items():
        weights, _, batch = line.partition(" ")
        which = of_members if weights in members and batch in validation else soups
        which[weights] = max(which[weights], count)
    lost = max(0, sum(soups.values()) - open_ones)
    return lost + sum(max(0, count - unread) for count in of_members.values())


def has_read_members(out: Path, members: int) -> bool:
    """Whether the members' outputs, or what was made of them, are on disk."""
    outputs = out / "outputs"
    kept = [path for path in outputs.glob("*.safetensors") if re.fullmatch("[0-9a-f]{32}", path.stem)]
    return len(kept) >= members or (outputs / "compiled.safetensors").exists()


def log_of(out: Path) -> Path:
    return out.with_name(out.name + ".log")


def lines_of(out: Path) -> Counter[str]:
    """What has been run for a folder so far."""
    log = log_of(out)
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def opened(threads: int, folder: Path) -> Runs:
    """Processes that fork runs, warmed up on the pool."""
    pool = folder / "pool"  # where any user may read it
    shutil.copytree(faults_pool(), pool)
    for path in [pool, *pool.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)
    warm_up = ["cook", pool / "members", "--task", pool / "task.py", "--budget", BUDGET, "--out", folder / "warm-up"]
    servers = Servers(threads, folder, [str(part) for part in warm_up])
    return Runs(servers, pool)
