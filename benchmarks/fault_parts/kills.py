"""Runs killed with SIGKILL, at random moments and at their n-th call on the run's files, and resumed to their end."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fault_parts.compare import differences
from benchmarks.fault_parts.runs import Runs, has_read_members, lines_of, log_of
from benchmarks.fault_parts.trials import KILL_AFTER, KILL_BEFORE, Fault

# Of every eight runs; the others stop in other places.
_SHARES = ("task", "task", "streamed", "workers", "program", "task", "programs", "workers")
_MOST = 4  # kills in one run
_BEGINNING = 80  # calls


@dataclass(frozen=True)
class Killed:
    """One run that was killed and resumed: where, what was lost, how its end differs; crash: how a session failed."""

    kind: str
    seed: int
    places: tuple[str, ...]
    lost: int
    different: tuple[str, ...]
    crash: str

    @property
    def kills(self) -> int:
        return len(self.places)


def killed_runs(runs: Runs, kills: int, seed: int = 0) -> Iterable[Killed]:
    """As many runs as it takes for so many kills."""
    runs.prepare(list(dict.fromkeys(_SHARES)))
    done, trial = 0, 0
    while done < kills:
        seeds = range(trial, trial + 2 * len(_SHARES) if kills - done > 2 * len(_SHARES) else trial + 2)
        trial = seeds.stop
        for found in runs.servers.each(lambda k: one(runs, _SHARES[k % len(_SHARES)], 1000 * seed + k), seeds):
            done += found.kills
            yield found


def one(runs: Runs, kind: str, seed: int) -> Killed:
    """One run, killed up to four times, until it ends by itself."""
    chance = random.Random(seed)
    reference, out = runs.reference(kind), runs.new_folder()
    wanted = chance.randint(1, _MOST)
    places: list[str] = []
    sessions = unread = 0
    crash = ""
    while True:
        fault, after, place = None, None, ""
        if len(places) < wanted and sessions < 3 * _MOST:
            at_call = runs.servers.calls is not None and chance.random() < 0.7
            if at_call:
                fault, place = _at_call(chance, out, reference.calls, first=not places)
            else:
                after, place = chance.uniform(0.02, 1.0) * reference.seconds, "at a random moment"
        context = "spawn" if seed % 40 == 19 else "fork"  # worker processes as they really start are slow
        ended = runs.start(kind, out, fault=fault, kill_after=after, context=context)
        sessions += 1
        if ended.verdict == "killed":
            places.append(place)
            unread += not has_read_members(out, len(runs.members))
            continue
        if ended.fired:  # a worker process was killed, not the run
            places.append(f"{place}, of a worker")
        if ended.verdict != "ok":
            crash = f"{ended.verdict}: {ended.head}"
        elif not places:
            _remove(out)  # it was over before its time: again, so that there is a kill
            sessions = 0
            continue
        break
    lost = runs.lost(kind, lines_of(out), sessions, len(places), unread)
    different = tuple(differences(runs.content(kind, out), reference.content)) if not crash else ()
    _remove(out)
    return Killed(kind, seed, tuple(places), lost, different, crash)


def _at_call(chance: random.Random, out: Path, calls: tuple[str, ...], *, first: bool) -> tuple[Fault, str]:
    """Any kind of call on any kind of file is as likely, whichever there are more of; now and then one of the first.

    What a resumed run will call is not known: any of its calls.
    """
    names = [named(call) for call in calls]
    name = chance.choice(sorted(set(names)))
    nth = chance.choice([k for k, other in enumerate(names) if other == name]) + 1
    if first and chance.random() < 0.3:  # how a run begins, when its folder is not yet what it will be
        nth = chance.randint(1, min(_BEGINNING, len(calls)))
        name = f"one of the first {_BEGINNING} calls"
    elif not first:
        nth, name = chance.randint(1, max(1, len(calls) // 2)), "any call of a resumed run"
    action = chance.choice((KILL_BEFORE, KILL_AFTER))
    return Fault(out, nth=nth, action=action), f"{'before' if action == KILL_BEFORE else 'after'} {name}"


def named(call: str) -> str:
    """A call with the names of members, processes and temporary files taken out."""
    call = re.sub(r"[0-9a-f]{32}", "MEMBER", call)
    call = re.sub(r"\.tmp[A-Za-z0-9]{6}$", ".tmp", call)
    call = re.sub(r"\.[0-9a-f]{8}-\d+-[0-9a-f]{8}\.", ".TOKEN.", call)
    call = re.sub(r"soup-[0-9a-f]{16}", "soup-RECIPE", call)
    call = re.sub(r"\.\d+\.part", ".part", call)
    return call + "the run directory" if call.endswith(" ") else call


def tally(found: Iterable[Killed]) -> Counter[str]:
    """Kills by place."""
    return Counter(place for one in found for place in one.places)


def _remove(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    log_of(out).unlink(missing_ok=True)
