"""Fingerprints remembered between commands, so that a pool is not read whole by each of them.

An entry holds what one pass over a checkpoint's content found, and the state of each of its files then: resolved path,
device, inode, size, and the times of the last change of content (mtime) and of the inode (ctime, which no program can
set). It is believed only where all of these are as they were and none of the times is young: a file written twice
within the tick of a clock has the same times both times, which git calls racy. Anything that looks odd is a miss, and a
miss costs one pass over the content, as if there were no cache.

The folder is $RADIN_CACHE, else radin in $XDG_CACHE_HOME or ~/.cache; RADIN_CACHE=off keeps nothing. One small file per
checkpoint, put in place whole by a rename, so that commands may run side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from radin.files import JSON_BYTES, open_regular, parse_json, replacing
from radin.weights.content import VERSION, Content, examine, require_finite
from radin.weights.formats import Checkpoint
from radin.weights.layout import short

FileState = tuple[str, int, int, int, int, int]
"""Resolved path, device, inode, size in bytes, mtime and ctime in nanoseconds."""

States = tuple[FileState, ...]

RACY_NS = 2_000_000_000  # the coarsest clock of a file system that is in use: FAT's two seconds
ENTRIES = 10_000
_KEPT = 0.9  # of them when the folder is full: the newest
_OFF = "off"
_FORMAT = 2


def remembered_content(checkpoint: Checkpoint, report: Callable[[int], None] | None = None) -> Content:
    """What a pass over the checkpoint's content finds: remembered where its files are as they were, else found anew.

    ``report`` is told the bytes done since it was last called, those that needed no reading included. Raises
    CheckpointError when a float is NaN or infinite, remembered or not.
    """
    before = file_states(checkpoint)
    found = recall(checkpoint, before)
    if found is not None:
        if report is not None:
            report(checkpoint.bytes)
    else:
        found = examine(checkpoint, report)
        remember(checkpoint, before, found)
    require_finite(checkpoint, found)
    return found


def recall(checkpoint: Checkpoint, now: States | None) -> Content | None:
    """What was found in these files while they were as they are ``now``; None where nothing is known."""
    folder = cache_folder()
    return _recall(folder, checkpoint, now) if folder and now else None


def remember(checkpoint: Checkpoint, before: States | None, found: Content) -> None:
    """Keep what a pass over the content found, if the files are as they were ``before`` it."""
    folder = cache_folder()
    if folder and before and file_states(checkpoint) == before:
        _remember(folder, checkpoint, before, found)


def cache_folder() -> Path | None:
    """Where fingerprints are kept; None where they are not: RADIN_CACHE=off, or there is no home."""
    given = os.environ.get("RADIN_CACHE")
    if given:
        return None if given.lower() == _OFF else Path(given).expanduser() / "fingerprints"
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(shared) if shared else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "radin" / "fingerprints"


def file_states(checkpoint: Checkpoint) -> tuple[FileState, ...] | None:
    """The state of each file now; None where it is no ground for trust: unreadable, without ctime or inode, or racy."""
    if os.name == "nt":  # there ctime is the time of creation
        return None
    try:
        found = states(checkpoint)
    except OSError:
        return None
    latest = time.time_ns() - RACY_NS
    return found if all(_is_old_enough(state, latest) for state in found) else None


def states(checkpoint: Checkpoint) -> States:
    """The state of each file now. Raises OSError."""
    found = []
    for path in checkpoint.files:
        with path.open("rb") as file:  # opening makes a network file system ask for the state anew
            status = os.fstat(file.fileno())
            resolved = os.path.realpath(path)
        found.append((resolved, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def _is_old_enough(state: FileState, latest: int) -> bool:
    """Whether the times are there and none is later than ``latest``, in nanoseconds; those in the future are not."""
    _, _, inode, _, mtime, ctime = state
    return inode != 0 and ctime > 0 and mtime < latest and ctime < latest


def _recall(folder: Path, checkpoint: Checkpoint, now: tuple[FileState, ...]) -> Content | None:
    """What was found in exactly these files; None where nothing is known or the entry is damaged."""
    try:
        with open_regular(_place(folder, checkpoint)) as file:
            checksum, _, text = file.read(JSON_BYTES).decode("ascii").partition("\n")
        if checksum != _checksum(text):
            return None
        entry = parse_json(text)
        if entry["about"] != _about(checkpoint, now):
            return None
        return Content(
            str(entry["fingerprint"]),
            tuple((str(name), int(bad)) for name, bad in entry["not_finite"]),
            tuple((str(name), str(digest)) for name, digest in entry["copied"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(folder: Path, checkpoint: Checkpoint, states: tuple[FileState, ...], found: Content) -> None:
    """Write an entry whole or not at all; a folder that cannot be written to is no error."""
    entry = {
        "about": _about(checkpoint, states),
        "fingerprint": found.fingerprint,
        "not_finite": found.not_finite,
        "copied": found.copied,
    }
    text = json.dumps(entry)
    place = _place(folder, checkpoint)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(place, durable=False) as temporary:
            temporary.write_text(f"{_checksum(text)}\n{text}", encoding="ascii")
        _bound(folder)


def _about(checkpoint: Checkpoint, states: tuple[FileState, ...]) -> str:
    """All that the content found depends on, as a hash: the files' states, what is taken out of them, and how.

    Names, notes and ties come from the headers, which are read every time: a radin that unwraps differently misses.
    """
    layout = [
        [name, short(checkpoint.dtypes[name]), shape, checkpoint.aliases.get(name)]
        for name, shape in checkpoint.shapes.items()
    ]
    return _checksum(json.dumps([_FORMAT, VERSION, states, checkpoint.key, checkpoint.notes, layout]))


def _place(folder: Path, checkpoint: Checkpoint) -> Path:
    """One file for each set of files, so that a checkpoint written again takes the place of what it was."""
    paths = [os.path.realpath(path) for path in checkpoint.files]
    return folder / f"{_checksum(json.dumps([paths, checkpoint.key]))[:40]}.json"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _bound(folder: Path) -> None:
    """Drop the oldest entries, and what interrupted commands left, when there are too many."""
    with os.scandir(folder) as found:
        names = [entry.name for entry in found]
    if len(names) <= ENTRIES:
        return
    times = {}
    for name in names:
        with suppress(OSError):  # another command may be doing the same
            times[name] = (folder / name).stat().st_mtime_ns
    for name in sorted(times, key=times.__getitem__)[: -int(_KEPT * ENTRIES)]:
        with suppress(OSError):
            (folder / name).unlink()
