"""How far a run is, from another process: nothing in its folder is changed or locked, whoever works on it.

The ledger is read as its bytes were at one moment, so that SQLite need not lock it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radin.errors import RadinError, RunError, printable
from radin.locks import LEASE, holder
from radin.metrics import Metric
from radin.question import VALIDATION, Answer, Question, Rates
from radin.recipe import Recipe
from radin.run.directory import RunDirectory
from radin.run.journal import has_ledger, is_empty, journal_folder
from radin.run.ledger import Ledger
from radin.run.record import metric_of
from radin.run.result import Result
from radin.run.rows import REESTIMATED
from radin.search.account import Account

_PATIENCE = 2.0  # seconds to wait for a moment at which nobody writes the ledger
_COUNTER = slice(24, 28)  # of SQLite's header: counted up by every change


@dataclass(frozen=True)
class Best:
    """The best so far on all of validation: a soup, or a member. name: a member's; of a soup how many it has."""

    name: str
    members: int
    score: float
    stderr: float


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    state: "working" (a process holds the run's lock), "stopped", "finished", "damaged" or "unfinished" (whether a
    process works on it cannot be told on this system). stage: "members", "search", "choice", "test", "finished", or
    "unknown" where files are damaged. held: whether a process holds the lock; None where that cannot be told; process:
    its number, where the system says so. members_done: evaluated, or with outputs on disk. spent: passes on soups, of
    ``budget``; open: questions without an answer. seconds_left: at the speed so far; None where nothing tells. idle:
    seconds since the run last wrote anything. problems: what is damaged, each in a sentence.
    """

    path: Path
    state: str
    stage: str
    held: bool | None
    process: int | None = None
    metric: str | None = None
    higher_is_better: bool | None = None
    strategy: str | None = None
    members: int | None = None
    members_done: int = 0
    budget: float | None = None
    spent: float | None = None
    open: int = 0
    started: int = 0
    complete: int = 0
    failed: int = 0
    best: Best | None = None
    best_single: Best | None = None
    seconds_left: float | None = None
    idle: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def left(self) -> float | None:
        """Passes of the budget that are left."""
        if self.budget is None or self.spent is None:
            return None
        return max(self.budget - self.spent, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {**vars(self), "path": str(self.path), "left": self.left} | {
            name: None if found is None else {n: v if v == v else None for n, v in vars(found).items()}
            for name, found in (("best", self.best), ("best_single", self.best_single))
        }

    @classmethod
    def read(cls, directory: str | Path) -> RunStatus:
        """The status of a run directory. Raises RunError where there is none."""
        path = Path(directory)
        if not any((path / name).is_file() for name in ("run.json", "result.json")) and not has_ledger(path):
            held, process = _holder(path)
            if held:  # at its very beginning
                return cls(path, "working", "members", held, process)
            raise RunError(f"{path} is not a run directory: it has no run.json and ledger.sqlite. Give cook's --out.")
        return _read(path)


def _read(path: Path) -> RunStatus:
    held, process = _holder(path)
    known: dict[str, Any] = {"held": held, "process": process, "idle": _idle(path)}
    problems: list[str] = []
    stage, complete = "unknown", False
    try:
        found = RunDirectory(path, {}).read()
        if not found:
            raise RunError(f"{path / 'run.json'} is gone")
        identity, settings = found["identity"], found["settings"]
        known |= {
            "metric": printable(identity["metric"]),
            "higher_is_better": bool(identity["higher_is_better"]),
            "strategy": settings["strategy"],
            "members": len(identity["members"]),
            "budget": settings["budget"],
        }
        progress = _ledger(path, found, held, problems)
        stage = progress.pop("stage")
        known |= progress
        complete = _finished(path, settings["budget"])
    except RadinError as error:
        problems.append(str(error))
    except (OSError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{path} is damaged: {printable(type(error).__name__)}: {printable(error)}")
    if complete and not held:
        stage = "finished"
        known["seconds_left"] = 0.0
    state = "stopped" if held is False else "unfinished"
    state = "working" if held else "damaged" if problems else "finished" if complete else state
    if state != "working" and not complete:
        known["seconds_left"] = None
    return RunStatus(path=path, state=state, stage=stage, problems=tuple(problems), **known)


def _ledger(path: Path, run: dict[str, Any], held: bool | None, problems: list[str]) -> dict[str, Any]:
    """What the ledger knows: see RunStatus. ``problems`` gets what is damaged in a journal."""
    identity, settings = run["identity"], run["settings"]
    prints = tuple(map(str, identity["members"]))
    names = tuple(printable(name) for name in identity["members"].values())
    outputs = sum((path / "outputs" / f"{fingerprint[:32]}.safetensors").is_file() for fingerprint in prints)
    if not has_ledger(path):
        if "cached_members" in settings:
            raise RunError(f"{path / 'ledger.sqlite'} is gone, and with it all that was evaluated")
        return {"stage": "members", "members_done": outputs}
    content = None if journal_folder(path / "ledger.sqlite").is_dir() else snapshot(path / "ledger.sqlite")
    if (
        is_empty(path / "ledger.sqlite") if content is None else not content
    ) and "cached_members" not in settings:  # made, and nothing written yet
        return {"stage": "members", "members_done": outputs}
    metric = metric_of(identity, None)
    ledger = Ledger(path / "ledger.sqlite", run=run["run"], read_only=True, metric=metric, content=content)
    problems += ledger.notes
    try:
        singles = {entry.identity: entry.evaluation for entry in ledger.entries("member", VALIDATION)}
        again = ledger.entries(REESTIMATED, VALIDATION)
        asked, soups, splits = ledger.questions(), ledger.soups(), ledger.splits()
    finally:
        ledger.close()
    rates = Rates(**settings["rates"]) if "rates" in settings else Rates()
    account = Account(settings["budget"], rates, metric.score)
    seconds = 0.0
    for question in sorted((q for q in asked if q.answer is not None), key=lambda q: q.told or 0):
        assert question.answer is not None
        seconds += question.answer.seconds
        recipe = Recipe.from_json(question.recipe, prints)
        account.charge(Question(recipe, question.examples, gradient=question.gradient), question.answer)
    waiting = sum(q.told is None for q in asked)
    done = [(k, singles.get(Recipe.single(k, len(prints)).identity(prints))) for k in range(len(prints))]
    members = [Best(names[k], 1, a.score, a.stderr) for k, a in done if a is not None]
    reference = list(members)
    for entry in again:
        recipe = Recipe.from_json(entry.recipe, prints)
        reference.append(_best(f"{names[recipe.members[0]]} re-estimated", 1, entry.evaluation))
    every = list(reference)
    for entry in soups:
        size = Recipe.from_json(entry.recipe, prints).size
        every.append(_best(f"soup of {size} members", size, entry.evaluation))
    stage = "search"
    if len(members) < len(prints):
        stage = "members"
    elif splits and not waiting and asked:
        stage = "test"
    elif asked and asked[-1].origin == "choice":
        stage = "choice"
    left = None
    if stage in ("search", "choice") and account.spent > 0:
        slots = max(waiting, 1) if held else 1
        left = seconds / account.spent * max(settings["budget"] - account.spent, 0.0) / slots
    elif stage == "members" and members and "cached_members" in settings:
        each = [answer.seconds for answer in singles.values()]
        left = (len(prints) - len(members)) * sum(each) / len(each) if sum(each) else None
    return {
        "stage": stage,
        "members_done": max(len(members), outputs),
        "spent": round(account.spent, 9),
        "open": waiting,
        "started": len(account.started),
        "complete": len(soups),
        "failed": sum(q.error is not None for q in asked),
        "best": _top(every, metric),
        "best_single": _top(members, metric),
        "seconds_left": left,
    }


def _best(name: str, members: int, found: Answer) -> Best:
    return Best(name, members, found.score, found.stderr)


def _top(found: list[Best], metric: Metric) -> Best | None:
    return max(found, key=lambda best: metric.utility(best.score), default=None)


def _finished(path: Path, budget: float) -> bool:
    """Whether there is a result, and of the budget that the run has now: it may have been given more since."""
    return (path / "result.json").is_file() and Result.load(path).passes.budget >= budget


def _idle(path: Path) -> float | None:
    """Seconds since anything in the run's folder was written."""
    times = []
    for folder in (path, path / "outputs", journal_folder(path / "ledger.sqlite")):
        if folder.is_dir():
            times += [entry.stat().st_mtime for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    return max(time.time() - max(times), 0.0) if times else None


def _holder(path: Path) -> tuple[bool | None, int | None]:
    """Whether a process works on a run, and its number where that is known: by the run's lease, or by its lock."""
    try:
        found = holder(path / LEASE)
    except OSError:
        return None, None
    if found is not None:
        return not found.is_stale, found.process
    return lock_holder(path / ".lock")


def lock_holder(lock: Path) -> tuple[bool | None, int | None]:
    """Whether a process holds a lock file, and its number where the system tells it; the lock itself is not touched.

    (None, None) where that cannot be told: the system lists no locks. Of another machine's process nothing is known.
    """
    try:
        found = lock.stat()
        listed = Path("/proc/locks").read_text()
    except FileNotFoundError:
        return (None, None) if lock.exists() else (False, None)
    except OSError:
        return None, None
    major, minor = os.major(found.st_dev), os.minor(found.st_dev)
    for line in listed.splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[1] not in ("FLOCK", "POSIX"):
            continue
        device = fields[5].split(":")
        if len(device) != 3 or device[2] != str(found.st_ino):
            continue
        # Where the device is a file system's own (overlay, btrfs) the two need not name it alike.
        if major == 0 or (int(device[0], 16), int(device[1], 16)) == (major, minor):
            number = int(fields[4])
            return True, number if number > 0 else None
    return False, None


def snapshot(path: Path) -> bytes:
    """The bytes of a SQLite file at a moment when no change was half done, without a lock on it.

    While a change is made there is a journal beside it; one that stays was left by a process that was killed, and is
    undone in a copy elsewhere. Raises StorageError's causes (OSError), and RunError where it is never at rest.
    """
    journal = path.with_name(path.name + "-journal")
    end = time.monotonic() + _PATIENCE
    while True:
        before = _content(journal)
        content = path.read_bytes()
        after = _content(journal)
        with path.open("rb") as file:
            same = content[_COUNTER] == file.read(_COUNTER.stop)[_COUNTER]
        if same and not before and not after:
            return content
        if time.monotonic() >= end:
            break
        time.sleep(0.01)
    if not same or before != after:
        raise RunError(f"{path} is being written all the time; try again")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        copy.with_name(journal.name).write_bytes(before)
        try:
            db = sqlite3.connect(copy)
            try:
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                return bytes(db.serialize())
            finally:
                db.close()
        except sqlite3.Error as error:
            raise RunError(f"{path} is damaged: {printable(error)}") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
