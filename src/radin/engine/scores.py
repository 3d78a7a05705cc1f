"""The members' scores from a file: CSV or JSON, a name or path and a score."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.errors import RadinError
from radin.files import parse_json
from radin.weights.paths import Lookup

_NAMES = ("name", "path", "member", "model", "checkpoint", "file")
_SCORES = ("score", "value")
_SHOWN = 5


def read_scores(
    path: Path, names: Sequence[str], paths: Sequence[Path], *, dropped: Sequence[Path] = ()
) -> NDArray[np.float64]:
    """The scores (N,) in the pool's order, from a file that gives each member's name or path and its score.

    CSV (comma, semicolon or tab; with a header, or two columns without) or JSON: a list of objects, a mapping from name
    to score, or what `radin evaluate --json` prints. names, paths: (N,) of the members. A path counts from the working
    directory or from the file's folder; the end of one that fits a single member is enough. dropped: paths that repeat
    a member and may be in the file too. Raises RadinError naming members that are missing, unknown or given twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RadinError(f"{path}: cannot be read as scores: {getattr(error, 'strerror', None) or error}") from None
    is_json = path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "[")
    pairs = list(_from_json(path, text) if is_json else _from_csv(path, text))
    members = Lookup(names, paths, path.absolute().parent)
    scores = np.full(len(names), np.nan)
    given: dict[int, str] = {}
    unknown, twice = [], []
    for key, score in pairs:
        found = members.find(key)
        if found is None:
            if not any(members.same(key, other) for other in dropped):
                unknown.append(key)
        elif found in given:
            twice.append(f"{names[found]} (as {given[found]} and as {key})" if given[found] != key else key)
        else:
            given[found], scores[found] = key, score
    missing = [name for k, name in enumerate(names) if k not in given]
    problems = [
        f"{what}: {_some(which)}"
        for what, which in (("not in it", missing), ("not in the pool", unknown), ("given twice", twice))
        if which
    ]
    if problems:
        raise RadinError(f"{path}: the scores do not fit the pool of {len(names)} members; " + "; ".join(problems))
    return scores


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _from_json(path: Path, text: str) -> Iterator[tuple[str, float]]:
    try:
        found: Any = parse_json(text)
    except ValueError as error:
        raise RadinError(f"{path}: is not JSON ({error})") from None
    if isinstance(found, dict) and isinstance(found.get("members"), list):
        found = found["members"]
    if isinstance(found, dict):
        for name, value in found.items():
            yield name, _score(path, name, value.get("score") if isinstance(value, dict) else value)
        return
    if not isinstance(found, list):
        raise RadinError(f'{path}: expected a list of {{"name": ..., "score": ...}} or a mapping from name to score')
    for entry in found:
        key = (
            next((entry[c] for c in _NAMES if isinstance(entry.get(c), str)), None) if isinstance(entry, dict) else None
        )
        if key is None or "score" not in entry:
            raise RadinError(f'{path}: every entry needs a "name" or "path" and a "score"; got {str(entry)[:80]}')
        yield key, _score(path, key, entry["score"])


def _from_csv(path: Path, text: str) -> Iterator[tuple[str, float]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max("\t;,", key=first.count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except csv.Error as error:
        raise RadinError(f"{path}: is no table of names and scores ({error})") from None
    rows = [row for row in rows if any(row) and not row[0].startswith("#")]
    if not rows:
        raise RadinError(f"{path}: holds no scores")
    at, score_at = 0, 1
    if not any(_is_number(cell) for cell in rows[0][1:]):
        at, score_at = _columns(path, rows.pop(0))
    for row in rows:
        if len(row) <= max(at, score_at):
            raise RadinError(f"{path}: expected a name or path and a score in each line; got {delimiter.join(row)!r}")
        yield row[at], _score(path, row[at], row[score_at])


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int]:
    """Which columns of a table with a header hold the names and the scores."""
    lower = [cell.lower() for cell in header]
    at = next((lower.index(c) for c in _NAMES if c in lower), None)
    score_at = next((lower.index(c) for c in _SCORES if c in lower), None)
    if len(header) == 2 and (at is None or score_at is None):
        # Of two columns, whatever they are called, one is known by the other.
        at = at if at is not None else 1 - score_at if score_at is not None else 0
        score_at = 1 - at
    if at is None or score_at is None:
        raise RadinError(
            f"{path}: expected columns called name (or path) and score; its first line is {', '.join(header)}"
        )
    return at, score_at


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _score(path: Path, key: str, value: Any) -> float:
    if isinstance(value, str) and _is_number(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RadinError(f"{path}: the score of {key} must be a number; got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise RadinError(f"{path}: the score of {key} is too large for a number") from None
