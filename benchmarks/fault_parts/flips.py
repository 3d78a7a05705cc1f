"""Single bits flipped in the files of a run directory; then the same command again, or with a larger budget."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fault_parts.compare import content, differences, same_end
from benchmarks.fault_parts.runs import BUDGET, RAISED, Runs, log_of
from benchmarks.fault_parts.trials import KILL_BEFORE, Fault

# What is flipped: (kind of run, how far it is, budget of the command that follows). Twice as likely: the usual one.
STATES = (
    ("task", "finished", BUDGET),
    ("task", "finished", RAISED),
    ("task", "half", BUDGET),
    ("task", "half", BUDGET),
    ("task", "committing", BUDGET),
    ("streamed", "finished", RAISED),
    ("streamed", "half", BUDGET),
    ("program", "finished", BUDGET),
    ("program", "half", BUDGET),
)
_HEAD = 512  # bytes in which a file says what it is, flipped more often than the rest


@dataclass(frozen=True)
class Flipped:
    """One bit of one file, and what became of it.

    verdict: "same" (the result as without, and no file damaged), "refused" (a message that names the file), or what
    must not be: "unnamed" (a message that does not), "other result", "left damaged", "crash".
    """

    state: str
    file: str
    byte: int
    bit: int
    verdict: str
    why: str

    @property
    def silent(self) -> bool:
        return self.verdict in ("other result", "left damaged", "unnamed")


@dataclass(frozen=True)
class _State:
    """A run directory to damage, and what the command that follows makes of it when nobody does."""

    kind: str
    label: str
    budget: int
    folder: Path
    expected: dict[str, Any]


class States:
    """The run directories, made when first asked for."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self.get = cache(self._make)

    def _make(self, kind: str, how_far: str, budget: int) -> _State:
        runs, folder = self._runs, self._runs.new_folder()
        fault = None
        if how_far != "finished":
            fault = Fault(folder, nth=self._place(kind, how_far, folder), action=KILL_BEFORE)
        ended = runs.start(kind, folder, fault=fault)
        assert ended.verdict == ("ok" if fault is None else "killed"), ended.stderr
        copy = self._copy(folder)
        then = runs.start(kind, copy, budget=budget)
        assert then.verdict == "ok", then.stderr
        expected = content(copy, notes=False)
        shutil.rmtree(copy)
        return _State(kind, f"{kind}, {how_far}, budget {BUDGET} then {budget}", budget, folder, expected)

    def _place(self, kind: str, how_far: str, folder: Path) -> int:
        """The call at which a run is stopped: when about two thirds are done; or within a commit, the journal hot."""
        calls = self._runs.reference(kind).calls
        ends = [k for k, call in enumerate(calls) if call == "unlink /ledger.sqlite-journal"]
        at = ends[2 * len(ends) // 3]
        return at + 1 if how_far == "committing" else at + 2

    def _copy(self, folder: Path) -> Path:
        copy = self._runs.new_folder()
        shutil.copytree(folder, copy)
        return copy

    def flip(self, chance: random.Random, which: tuple[str, str, int]) -> Flipped:
        """Flip one bit in a copy and give the command."""
        state = self.get(*which)
        copy = self._copy(state.folder)
        path = _choice(chance, copy)
        data = bytearray(path.read_bytes())
        byte, bit = _byte(chance, data), chance.randrange(8)
        data[byte] ^= 1 << bit
        path.write_bytes(data)
        file = re.sub("[0-9a-f]{32}", "MEMBER", str(path.relative_to(copy)))
        ended = self._runs.start(state.kind, copy, budget=state.budget)
        verdict, why = ended.verdict, ended.head
        if verdict == "ok":
            found = content(copy, notes=False)
            said = differences(found, state.expected)
            verdict = "same" if not said else "left damaged" if same_end(found, state.expected) else "other result"
            why = "; ".join(said)
        elif verdict == "refused" and path.name.removesuffix("-journal") not in ended.message:
            verdict = "unnamed"
        shutil.rmtree(copy)
        log_of(copy).unlink(missing_ok=True)
        return Flipped(state.label, file, byte, bit, verdict, why.replace(str(copy), "OUT"))


def flipped_bits(runs: Runs, flips: int, seed: int = 0) -> Iterable[Flipped]:
    """So many bits, over files and states."""
    states = States(runs)
    runs.prepare(["task", "streamed", "program"])
    for which in dict.fromkeys(STATES):
        states.get(*which)
    yield from runs.servers.each(
        lambda k: states.flip(random.Random(1_000_000 * seed + k), STATES[k % len(STATES)]), range(flips)
    )


def _byte(chance: random.Random, data: bytearray) -> int:
    """A place: where a file says what it is more often than elsewhere, and where nothing is written more seldom."""
    inside = min(_HEAD, len(data)) if chance.random() < 0.25 else len(data)
    for _ in range(3 if chance.random() < 0.8 else 0):
        at = chance.randrange(inside)
        if data[at] not in b"\0 ":
            return at
    return chance.randrange(inside)


def _choice(chance: random.Random, folder: Path) -> Path:
    """A file: kinds of files alike, so that there are as many flips in a small one as in the largest."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            name = re.sub("[0-9a-f]{32}", "MEMBER", str(path.relative_to(folder)))
            kinds.setdefault(name, []).append(path)
    weights = [3 if name.startswith("ledger") else 1 for name in kinds]
    return chance.choice(kinds[chance.choices(list(kinds), weights)[0]])


def tally(found: Iterable[Flipped]) -> Counter[tuple[str, str]]:
    """(file, verdict) -> how many."""
    return Counter((one.file, one.verdict) for one in found)
