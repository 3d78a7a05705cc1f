"""From what a user typed to checkpoint paths in that order, short names to show for them, and back."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from radin.errors import PoolError, printable
from radin.files import open_regular
from radin.progress import Progress
from radin.weights import braces, remote, searching
from radin.weights.formats import FOLDER_FILES, is_index
from radin.weights.kinds import SUFFIXES, is_checkpoint_file, stem
from radin.weights.limits import INDEX_BYTES
from radin.weights.remote import is_url
from radin.weights.searching import Found

_LISTED = 10_000  # paths that a list may name
_LONG = 300  # characters of a path that a message shows


def find_checkpoints(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Checkpoint paths behind files, folders, patterns, lists and URLs: see ``look_for``."""
    return look_for(paths).paths


def look_for(paths: str | Path | Iterable[str | Path], progress: Progress | None = None) -> Found:
    """Checkpoints behind what was given, in that order, each once, and what to say of the search.

    Files, folders (see radin.weights.searching), glob patterns, braces (see radin.weights.braces), URLs, and @list.txt,
    which has one of these a line. What is behind a folder or a pattern comes in its place, in natural order (run2
    before run10). Raises PoolError when a path does not exist or nothing is found.
    ``progress`` is told how far remote files have been copied.
    """
    if isinstance(paths, Found):
        return paths
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise PoolError("no checkpoints given: name files, folders or patterns such as 'runs/*/best.safetensors'")
    whole = Found()
    named: set[Path] = set()
    for item in (one for entry in given for one in _listed(entry)):
        found = _expand(item, progress)
        for path in found.paths:
            require_utf8(path)
        whole.paths += sorted(found.paths, key=natural_key)
        whole.searched |= found.searched
        whole.notes += found.notes
        named.update(path for path in found.paths if path not in found.searched)
    return Found(list(dict.fromkeys(whole.paths)), whole.searched - named, list(dict.fromkeys(whole.notes)))


def _listed(item: str | Path, deep: bool = False) -> Iterator[str | Path]:
    """The item, or what a list or braces in it stand for."""
    text = str(item)
    if not (text.startswith("@") or "{" in text) or (not is_url(item) and _is_there(item)):
        yield item
        return
    if text.startswith("@"):
        if deep:
            raise PoolError(f"{_shown(item)}: a list may not name further lists")
        yield from _in_list(_at_home(text[1:]))
        return
    try:
        yield from filter(None, braces.expanded(text))  # a shell leaves out empty words
    except ValueError as error:
        raise PoolError(f"{_shown(item)}: {error}") from None


def _is_there(item: str | Path) -> bool:
    with suppress(OSError, ValueError):
        return _at_home(item).exists()
    return False


def _in_list(file: Path) -> Iterator[str | Path]:
    """What a list names, one on each line; # begins a comment. Paths in it are seen from its folder."""
    try:
        with open_regular(file) as opened:
            text = opened.read(INDEX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PoolError(f"@{_shown(file)}: the list cannot be read: {reason}") from None
    lines = [line.strip() for line in text.decode("utf-8", "surrogateescape").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(text) > INDEX_BYTES or len(lines) > _LISTED:
        raise PoolError(f"@{_shown(file)}: a list of more than {_LISTED:,} paths")
    if not lines:
        raise PoolError(f"@{_shown(file)}: the list names nothing")
    for line in lines:
        yield from _listed(line if is_url(line) else str(file.parent / _at_home(line)), deep=True)


def require_utf8(path: str | Path) -> None:
    """Raise PoolError for a path that is not UTF-8: the libraries that read and write tensors take no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise PoolError(f"{printable(path)}: its name is not UTF-8, as it must be: rename it") from None


def absolute(path: Path) -> Path:
    """The path from the root, as far as there is a working directory: it may have been removed meanwhile."""
    try:
        return Path(os.path.abspath(path))
    except OSError:
        return path


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key that compares digits as numbers; the plain string breaks ties such as 02 and 2."""
    text = str(path)
    parts = re.split(r"(\d+)", text)  # text and digits alternate, so like is compared with like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def _expand(item: str | Path, progress: Progress | None) -> Found:
    if is_url(item):
        return remote.fetch(str(item), progress)
    try:
        return _behind(item, _at_home(item))
    except (OSError, ValueError) as error:  # not to be entered, a name longer than any, a null character in it
        reason = getattr(error, "strerror", None) or str(error)
        raise PoolError(f"{_shown(item)}: cannot be looked up: {reason}") from None


def _at_home(item: str | Path) -> Path:
    """The path with ~ for the user's own folder, where there is one."""
    try:
        return Path(item).expanduser()
    except RuntimeError:
        return Path(item)


def _shown(item: str | Path) -> str:
    text = printable(item)
    return text if len(text) <= _LONG else f"{text[:_LONG]}... ({len(text):,} characters)"


def _behind(item: str | Path, path: Path) -> Found:
    if path.is_dir():
        found = searching.search(path)
        if not found.paths:
            reason = f"it is a folder with no file ending in {_endings()}, and no folder below it has one"
            _nothing(item, reason)
        if found.paths == [path]:
            return Found([path], set(), found.notes)
        return found
    if path.exists():
        return Found([path])
    if not glob.has_magic(str(path)):
        raise PoolError(f"{_shown(item)}: no such file or folder")
    matches = [Path(match) for match in _glob(str(path))]
    if not matches:
        _nothing(item, f"no path matches, seen from {printable(absolute(Path()))}")
    return _matching(item, path, matches)


def _matching(item: str | Path, pattern: Path, matches: list[Path]) -> Found:
    """The checkpoints among a pattern's matches: logs and plots beside them are passed over without a word."""
    found = Found()
    left = [match for match in matches if searching.is_not_weights(match.name)]
    for match in (match for match in matches if match not in left):
        if match.is_dir():
            below = searching.search(match)
            found.paths += below.paths
            found.notes += below.notes
        elif is_index(match) or is_checkpoint_file(match):
            found.paths.append(match)
    if not found.paths:
        _nothing(item, f"none of its {len(matches)} matches ends in {_endings()}")
    # A name that the pattern spells out was asked for; one that a wildcard found was not.
    if glob.has_magic(pattern.name):
        members = [path for path in found.paths if not searching.is_initial(path)]
        if members:
            found.notes += [searching.initial_note(path) for path in found.paths if path not in members]
            found.paths = members
    if left:
        shown = ", ".join(dict.fromkeys(printable(path.name) for path in left[:3]))
        found.notes.append(f"{_shown(item)}: passed over {len(left)} matches that hold no weights ({shown})")
    found.searched = set(found.paths)
    return found


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


def _nothing(item: str | Path, reason: str) -> NoReturn:
    raise PoolError(f"{_shown(item)}: no checkpoints found: {reason}")


def _endings() -> str:
    return f"{', '.join(SUFFIXES)} (or is a folder with {FOLDER_FILES[0]})"


def short_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A unique, printable name for each path: without the folders all share, and its ending unless that would clash."""
    parts = [absolute(path).parts for path in paths]
    levels = zip(*(part[:-1] for part in parts), strict=False)  # the shortest path has the fewest folders
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    tails = [Path(*part[shared:]) for part in parts]
    stems = [stem(tail) if path.is_file() else tail for tail, path in zip(tails, paths, strict=True)]
    chosen = [name.as_posix() for name in (stems if len(set(stems)) == len(stems) else tails)]
    shown = [printable(name) for name in chosen]
    if len(set(shown)) < len(shown):  # a name has the very backslashes that stand for another's control characters
        shown = [printable(name.replace("\\", "\\\\")) for name in chosen]
    return tuple(shown)


class Lookup:
    """Finds members by what a user or a file calls them: a name, a path, or the end of one that fits one member alone.

    names, paths: of the members; there may be further paths. folder: where a path may be seen from, besides the working
    directory.
    """

    def __init__(self, names: Sequence[str], paths: Sequence[Path], folder: Path | None = None) -> None:
        self._names = {name: k for k, name in enumerate(names)}
        self._paths = [absolute(path) for path in paths]
        self._folder = folder

    def find(self, key: str) -> int | None:
        """The index of a member, or None."""
        if key in self._names:
            return self._names[key]
        for k, path in enumerate(self._paths):
            if self.same(key, path):
                return k
        end = Path(key).parts
        fits = [k for k, path in enumerate(self._paths) if end and end in _ends(path, len(end))]
        return fits[0] if len(fits) == 1 else None

    def same(self, key: str, path: Path) -> bool:
        """Whether ``key`` is a path to the same file."""
        seen = _at_home(key)
        places = (absolute(seen), *(() if self._folder is None else (self._folder / seen,)))
        with suppress(OSError, ValueError):  # what cannot be a path is none
            return any(place == path or place.resolve() == path.resolve() for place in places)
        return False


def _ends(path: Path, length: int) -> tuple[tuple[str, ...], ...]:
    return path.parts[-length:], stem(path).parts[-length:], path.with_suffix("").parts[-length:]
