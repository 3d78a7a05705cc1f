"""Runs whose calls fail: by calls.c, on a disk that is full or read-only, without permission, at a limit of the system.

Each must end well in spite of it, or with one message that tells the cause; and with the cause gone the same command
must end as if nothing had been.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fault_parts.compare import differences
from benchmarks.fault_parts.kills import named
from benchmarks.fault_parts.runs import Runs, lines_of, log_of
from benchmarks.fault_parts.trials import CHANGING, FAIL, SHORT, Ended, Fault

_NOBODY = 65534
_KINDS = ("task", "streamed", "program", "workers")

# Errors with the calls that give them; of the last column, for how long: once, or from then on.
_ERRORS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("ENOSPC", ("create", "write", "mkdir", "truncate", "copy", "sync", "rename"), True),
    ("ENOSPC", ("write",), False),
    ("EDQUOT", ("create", "write"), True),
    ("EIO", ("write", "sync", "read", "rename"), True),
    ("EIO", ("sync",), False),
    ("EIO", ("read", "map"), True),
    ("EACCES", ("create", "mkdir", "rename"), True),
    ("EACCES", ("open", "create"), True),
    ("EROFS", ("create", "mkdir", "rename"), True),
    ("EMFILE", ("open", "create"), True),
    ("ENOMEM", ("map",), False),
    ("EINTR", ("write", "read"), False),
    ("short", ("write",), False),
    ("short", ("write", "read"), True),
)
# What must not be said of a file that is whole, for a call that failed.
_MISLEADING = ("not a radin", "is damaged", "move it away", "Move it away", "Delete it", "own fault")
_SAYS: dict[str, tuple[str, ...]] = {
    "ENOSPC": ("no space", "disk is full", "disk full", "room"),
    "EDQUOT": ("quota",),
    "EIO": ("i/o error", "input/output"),
    "EACCES": ("permission",),
    "EROFS": ("read-only",),
    "EMFILE": ("too many open files", "too many files"),
    "ENOMEM": ("memory",),
}


@dataclass(frozen=True)
class Failed:
    """One injected fault. what: which call on what failed how. verdict: "endured", "refused", or what must not be:
    "crash", "misleading" (a message that tells another cause), "lost", "different".
    """

    kind: str
    what: str
    error: str
    verdict: str
    why: str


Inject = Callable[[Path], tuple[Ended, bool]]
"""Runs the command with the fault, and says whether it came to pass."""


def failed_runs(runs: Runs, faults: int, seed: int = 0) -> Iterable[Failed]:
    """So many faults that came to pass."""
    runs.prepare(list(_KINDS))
    done, start = 0, 0
    while done < faults and start < 5 * faults + 20:
        numbers = range(start, start + min(faults - done, 16))
        start = numbers.stop
        for found in runs.servers.each(lambda k: _one(runs, 1000 * seed + k), numbers):
            if found is not None:
                done += 1
                yield found


def _one(runs: Runs, number: int) -> Failed | None:
    """Fault number so and so; None when it did not come to pass."""
    chance = random.Random(number)
    if number % 5 == 4:
        circumstances = _circumstances()
        name, error, kinds, act = circumstances[(number // 5) % len(circumstances)]
        kind = chance.choice(kinds)
        return _judged(runs, kind, name, error, partial(act, runs, kind, chance))
    if runs.servers.calls is None:
        return None
    kind = _KINDS[(number // 5 + number) % len(_KINDS)] if chance.random() < 0.6 else "task"
    error, operations, lasting = _ERRORS[number % len(_ERRORS)]
    operation = chance.choice(operations)
    # Any kind of file is as likely: a call on one of those that the undisturbed run makes.
    calls = runs.reference(kind).calls if operation in CHANGING else ()
    names = sorted({named(call).split(" ", 1)[1] for call in calls if call.startswith(operation + " ")})
    match = chance.choice(names) if names else ""
    match = max(match.replace("MEMBER", "/").replace("TOKEN", "/").replace("RECIPE", "/").split("/"), key=len)
    count = sum(call.startswith(operation + " ") and match in call for call in calls)
    nth = chance.randint(1, min(count, 40)) if count and chance.random() < 0.7 else chance.randint(1, 3)
    what = f"{'every' if lasting else 'one'} {operation} of {match or 'any file'}"
    number_of = 0 if error == "short" else getattr(errno, error)

    def inject(out: Path) -> tuple[Ended, bool]:
        action = SHORT if error == "short" else FAIL
        fault = Fault(out, (operation,), nth, action, number_of, lasting, match)
        ended = runs.start(kind, out, fault=fault)
        return ended, ended.fired

    return _judged(runs, kind, what, error, inject)


def _judged(runs: Runs, kind: str, what: str, error: str, inject: Inject) -> Failed | None:
    """Run with the fault, then without, and say what came of it."""
    out = runs.new_folder()
    ended, fired = inject(out)
    if not fired:
        _remove(out)
        return None
    verdict, why = {"ok": "endured"}.get(ended.verdict, ended.verdict), ended.head
    if verdict == "refused":
        wrong = [text for text in _MISLEADING if text in ended.message]
        words = _SAYS.get(error, ())
        if error == "EACCES" and "sqlite" in ended.message:
            words += ("read-only",)  # SQLite does not tell one from the other
        told = not _SAYS.get(error) or any(text in ended.message.lower() for text in words)
        verdict = "misleading" if wrong or not told else "refused"
    if verdict == "crash":
        why = f"{ended.code}: {why}"
    after = runs.start(kind, out)
    if after.verdict != "ok":
        verdict, why = "crash", f"with the fault gone: {after.head} (before: {why})"
    else:
        unread = 1  # whatever was read of the members when it failed may be read again
        lost = runs.lost(kind, lines_of(out), 2, 1, unread)
        different = differences(runs.content(kind, out), runs.reference(kind).content)
        if lost:
            verdict, why = "lost", f"{lost} evaluations made again"
        elif different:
            verdict, why = "different", "; ".join(different)
    _remove(out)
    return Failed(kind, what, error, verdict, why.replace(str(out), "OUT"))


# -- what no single call makes fail


@contextmanager
def _mounted(out: Path, *options: str) -> Iterator[bool]:
    """A file system of its own at a folder; False where that is not permitted."""
    out.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(out)], capture_output=True, check=False).returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "-l", str(out)], capture_output=True, check=False)


def can_mount() -> bool:
    """Whether file systems may be mounted here."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, _mounted(Path(folder), "-t", "tmpfs", "-o", "size=64k", "x") as done:
        return done


def _full_disk(runs: Runs, kind: str, chance: random.Random, out: Path) -> tuple[Ended, bool]:
    """A file system of a size that does not do; what was written is then moved to one that does."""
    size = chance.choice((4, 16, 40, 72, 120, 200) if kind in ("task", "workers") else (4, 16, 40, 56, 72))
    place = out.with_name(out.name + ".full")
    with _mounted(place, "-t", "tmpfs", "-o", f"size={size}k,mode=755", "tmpfs") as done:
        if not done:
            return _nothing(), False
        ended = runs.start(kind, place / "run", log=log_of(out))
        if (place / "run").exists():
            shutil.copytree(place / "run", out)
    place.rmdir()
    return ended, ended.verdict != "ok"


def _read_only(runs: Runs, kind: str, chance: random.Random, out: Path) -> tuple[Ended, bool]:
    """A run directory that became read-only after some time."""
    _half(runs, kind, chance, out)
    place = out.with_name(out.name + ".read-only")
    with _mounted(place, "--bind", str(out)) as done:
        if (
            not done
            or subprocess.run(
                ["mount", "-o", "remount,bind,ro", str(place)], capture_output=True, check=False
            ).returncode
        ):
            return _nothing(), False
        ended = runs.start(kind, place, log=log_of(out))
    place.rmdir()
    return ended, True


def _permission(runs: Runs, kind: str, chance: random.Random, out: Path) -> tuple[Ended, bool]:
    """A run directory of another user's, some of its files or its folder not to be written, or not to be read."""
    if os.getuid() != 0:
        return _nothing(), False
    if chance.random() < 0.6:
        _half(runs, kind, chance, out)
    out.mkdir(exist_ok=True)  # killed early enough, a run has none yet
    log_of(out).touch()
    log_of(out).chmod(0o666)
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    if files and chance.random() < 0.6:
        out.chmod(0o777)
        for folder in out.rglob("*"):
            folder.chmod(0o777 if folder.is_dir() else 0o666)
        chance.choice(files).chmod(chance.choice((0o000, 0o444)))
    ended = runs.start(kind, out, uid=_NOBODY)
    for path in [out, *out.rglob("*")]:
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    return ended, True


def _open_files(runs: Runs, kind: str, chance: random.Random, out: Path) -> tuple[Ended, bool]:
    ended = runs.start(kind, out, limits={"NOFILE": chance.choice((6, 8, 10, 12, 14, 18))})
    return ended, True


def _file_size(runs: Runs, kind: str, chance: random.Random, out: Path) -> tuple[Ended, bool]:
    ended = runs.start(kind, out, limits={"FSIZE": chance.choice((6000, 20000, 30000, 50000))})
    return ended, ended.verdict != "ok"


def _terminated(runs: Runs, kind: str, chance: random.Random, out: Path) -> tuple[Ended, bool]:
    """SIGTERM or SIGINT at a random moment: exit 143 or 130 with one message, which is what "refused" means here."""
    number = chance.choice((15, 2))
    ended = runs.start(kind, out, kill_after=chance.random() * runs.reference(kind).seconds, signal=number)
    if ended.code == 0:
        return ended, False
    good = ended.code == 128 + number and ended.stderr.count("radin: ") == 1 and "Traceback" not in ended.stderr
    return Ended(2 if good else ended.code or 1, *_rest(ended)), True


def _rest(ended: Ended) -> tuple[Any, ...]:
    return ended.stdout, ended.stderr, ended.seconds, ended.timeout, ended.fired, ended.kilobytes


def _nothing() -> Ended:
    return Ended(0, "", "", 0.0, False, False, 0)


def _half(runs: Runs, kind: str, chance: random.Random, out: Path) -> None:
    """Bring a run to some place, and stop it by an interrupt."""
    runs.start(kind, out, kill_after=(0.2 + 0.6 * chance.random()) * runs.reference(kind).seconds)


Circumstance = tuple[str, str, Sequence[str], Callable[[Runs, str, random.Random, Path], tuple[Ended, bool]]]


def _circumstances() -> list[Circumstance]:
    return [
        ("a full file system", "ENOSPC", ("task", "streamed", "program"), _full_disk),
        ("a folder or file without permission", "EACCES", ("task", "program", "streamed"), _permission),
        ("a limit of open files", "EMFILE", ("task", "program", "streamed"), _open_files),
        ("a limit of file sizes", "EFBIG", ("task", "program", "streamed"), _file_size),
        ("a read-only file system", "EROFS", ("task", "program"), _read_only),
        ("terminated or interrupted", "signal", _KINDS, _terminated),
    ]


def tally(found: Iterable[Failed]) -> Counter[tuple[str, str]]:
    """(error, verdict) -> how many."""
    return Counter((one.error, one.verdict) for one in found)


def _remove(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    log_of(out).unlink(missing_ok=True)
