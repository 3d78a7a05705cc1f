"""From what a user typed to checkpoint paths in a fixed order, and short names to show for them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from radin.errors import PoolError
from radin.weights.formats import FOLDER_FILES, SUFFIXES, folder_file, is_index


def find_checkpoints(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Checkpoint paths behind files, folders and glob patterns, in natural order (run2 before run10).

    A folder that is not itself a checkpoint stands for the checkpoint files directly in it, else for the checkpoint
    folders directly in it. Raises PoolError when a path does not exist or nothing is found.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise PoolError("no checkpoints given: name files, folders or patterns such as 'runs/*/best.safetensors'")
    found = [path for item in given for path in _expand(item)]
    return sorted(dict.fromkeys(found), key=natural_key)


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key that compares digits as numbers; the plain string breaks ties such as 02 and 2."""
    text = str(path)
    parts = re.split(r"(\d+)", text)  # text and digits alternate, so like is compared with like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def _expand(item: str | Path) -> list[Path]:
    try:
        return _found_at(item, Path(item).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a folder that may not be read, no home
        reason = getattr(error, "strerror", None) or error
        raise PoolError(f"{str(item)[:200]}: cannot be looked at: {reason}") from error


def _found_at(item: str | Path, path: Path) -> list[Path]:
    if path.is_dir():
        return _in_folder(path) or _nothing(item, f"it is a folder with no file ending in {_endings()}")
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise PoolError(f"{item}: no such file or folder")
    matches = [Path(match) for match in _glob(str(path))]
    if not matches:
        _nothing(item, f"no path matches, seen from {Path.cwd()}")
    usable = [file for match in matches for file in _usable(match)]
    return usable or _nothing(item, f"none of its {len(matches)} matches ends in {_endings()}")


def _glob(pattern: str) -> list[str]:
    """What a pattern matches, as glob.glob; but ** walks each folder once, so links that lead in circles end."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    roots = glob.glob(os.path.join(*parts[:place])) if place else [""]
    found: list[str] = []
    rest = parts[place + 1 :]
    for folder in (folder for root in roots for folder in _folders(root)):
        found += [] if rest or not folder else [folder]  # what ** matches by itself
        found += _glob(os.path.join(glob.escape(folder), *(rest or ["*"])))
    return list(dict.fromkeys(found))


def _folders(root: str) -> Iterator[str]:
    """A folder and all in it, hidden ones left out, each once however many links lead to it; real ones come first."""
    seen: set[tuple[int, int]] = set()
    waiting, links = [root], list[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = os.stat(folder or ".")
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder or ".") as entries:
                inside = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        except OSError:
            continue
        yield folder
        for entry in sorted(inside, key=lambda entry: entry.name):
            (links if entry.is_symlink() else waiting).append(os.path.join(folder, entry.name))


def _nothing(item: str | Path, reason: str) -> list[Path]:
    raise PoolError(f"{item}: no checkpoints found: {reason}")


def _endings() -> str:
    return f"{', '.join(SUFFIXES)} (or is a folder with {FOLDER_FILES[0]})"


def _usable(match: Path) -> list[Path]:
    """A pattern may match logs and plots beside the checkpoints; these are passed over."""
    if match.is_dir():
        return _in_folder(match)
    return [match] if match.suffix in SUFFIXES or is_index(match) else []


def _in_folder(folder: Path) -> list[Path]:
    if folder_file(folder) is not None:
        return [folder]
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    files = [entry for entry in entries if entry.is_file() and entry.suffix in SUFFIXES]
    return files or [entry for entry in entries if entry.is_dir() and folder_file(entry) is not None]


def short_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A unique name for each path: without the folders all share, and without its ending unless that would clash."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    levels = zip(*(part[:-1] for part in parts), strict=False)  # the shortest path has the fewest folders
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    tails = [Path(*part[shared:]) for part in parts]
    stems = [
        tail.with_suffix("") if path.is_file() and tail.suffix in SUFFIXES else tail
        for tail, path in zip(tails, paths, strict=True)
    ]
    chosen = stems if len(set(stems)) == len(stems) else tails
    return tuple(name.as_posix() for name in chosen)
