"""What a run directory holds in the end, without times, and in what two of them differ."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Times, a run's own number, and a checksum over these.
_TIMES = ("seconds", "created", "run", "checksum")
# Places in the order of things, which a run that was interrupted has more of, and checksums over them.
_ORDER = re.compile(r"id|session|asked|told|place|created|seconds|(check|seal|sum|digest|hash|crc).*")
_HISTORY = ("soups",)  # every soup that was written, by the bytes of its file
_NOT_COMPARED = (".lock",)


def content(out: Path, *, notes: bool = True, any_order: bool = False) -> dict[str, Any]:
    """File -> what it holds, comparable between runs in different folders and at different speeds.

    ``notes``: whether what the run has to say is compared too. ``any_order``: soups may have been answered in another
    order. A file that cannot be read is its error.
    """
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_dir() or path.name in _NOT_COMPARED:
            continue
        name = str(path.relative_to(out))
        try:
            if path.suffix == ".json":
                value = _plain(json.loads(path.read_text().replace(str(out), "OUT")), notes)
                found[name] = _in_any_order(value) if any_order and name == "result.json" else value
            elif path.suffix == ".safetensors":
                found[name] = _tensors(path)
            elif path.suffix == ".sqlite":
                found[name] = rows(path)
            else:
                found[name] = path.read_bytes()
        except (OSError, ValueError, sqlite3.Error) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The files that are not the same: missing, other than expected, or left over."""
    said = []
    for name in sorted({*found, *expected}):
        if name not in found:
            said.append(f"{name} is missing")
        elif name not in expected:
            said.append(f"{name} is left over")
        elif not same(found[name], expected[name]):
            said.append(f"{name}: {_first(found[name], expected[name])}")
    return said


def same(found: Any, expected: Any) -> bool:
    """Equal, numbers to 12 digits: sums are taken in the order in which workers answer."""
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-15) or (found != found and expected != expected)
    if isinstance(found, Counter) or type(found) is not type(expected):
        return bool(found == expected)
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in found)
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def same_end(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two results say the same, whatever became of the other files."""
    return same(found.get("result.json"), expected.get("result.json"))


def _plain(value: Any, notes: bool) -> Any:
    if isinstance(value, dict):
        dropped = _TIMES if notes else (*_TIMES, "notes")
        return {name: _plain(part, notes) for name, part in value.items() if name not in dropped}
    return [_plain(part, notes) for part in value] if isinstance(value, list) else value


def _in_any_order(result: dict[str, Any]) -> dict[str, Any]:
    """Soups are numbered as they were answered, which several at once do in any order."""
    soups = [{name: part for name, part in soup.items() if name != "name"} for soup in result.get("evaluations", [])]
    return result | {"evaluations": sorted(soups, key=lambda soup: json.dumps(soup["recipe"]))}


def _tensors(path: Path) -> tuple[str, bytes]:
    """Header and data: the library writes what stands in the header in any order, and a checksum covers the order."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    about = {name: text for name, text in header.pop("__metadata__", {}).items() if "checksum" not in name}
    return json.dumps([about, header], sort_keys=True), whole[8 + length :]


def rows(path: Path) -> dict[str, Counter[Any]]:
    """Table -> its rows, in no order. Tables that say only in what order things happened are left out.

    So is the record of which soup was on disk: an interrupted run may have written one more than once.
    """
    with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {}
        for table in tables:
            cursor = database.execute(f'SELECT * FROM "{table}"')
            kept = [k for k, column in enumerate(cursor.description) if not _ORDER.fullmatch(column[0])]
            if table not in _HISTORY and "identity" in [cursor.description[k][0] for k in kept]:
                found[table] = Counter(tuple(row[k] for k in kept) for row in cursor)
    database.close()
    return found


def _first(found: Any, expected: Any, where: str = "") -> str:
    """The first place where two values differ."""
    if isinstance(found, Counter) and isinstance(expected, Counter):
        more, less = sum((found - expected).values()), sum((expected - found).values())
        return f"{where} {more} other rows, {less} rows missing"
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in [*expected, *found]:
            if name not in found or name not in expected:
                return f"{where}.{name} is only in one"
            if not same(found[name], expected[name]):
                return _first(found[name], expected[name], f"{where}.{name}")
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple) and len(found) == len(expected):
        pairs: Iterable[tuple[int, tuple[Any, Any]]] = enumerate(zip(found, expected, strict=True))
        for k, (a, b) in pairs:
            if not same(a, b):
                return _first(a, b, f"{where}[{k}]")
    return f"{where} is {str(found)[:60]!r}, expected {str(expected)[:60]!r}"
