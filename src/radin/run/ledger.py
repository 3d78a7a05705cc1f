"""The ledger: every evaluation on disk the moment it is known (SQLite), so that none is ever paid for twice."""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.errors import RunError
from radin.question import Answer

_EVALUATIONS = """
CREATE TABLE IF NOT EXISTS evaluations (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,      -- Recipe.identity: contents and ratio, whatever the order of the members
    recipe TEXT NOT NULL,        -- Recipe.to_json
    kind TEXT NOT NULL,          -- 'member' (from the outputs cache), 'soup' or 'ensemble'
    split TEXT NOT NULL,         -- 'validation', 'test' or 'shifts/NAME'
    score REAL,                  -- NULL for NaN
    stderr REAL,
    examples INTEGER NOT NULL,
    seconds REAL NOT NULL,
    data TEXT NOT NULL,          -- fingerprint of the split's data
    bits INTEGER NOT NULL,       -- 1: example_values are packed bits (correct or not), 0: float32
    example_values BLOB,         -- zlib; NULL when the metric is not a mean over examples
    created REAL NOT NULL,
    UNIQUE (identity, kind, split)
)
"""

_PARTS = """
CREATE TABLE IF NOT EXISTS parts (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,
    recipe TEXT NOT NULL,
    split TEXT NOT NULL,
    total INTEGER NOT NULL,      -- examples of the split
    examples BLOB NOT NULL,      -- which of them: zlib of packed bits, one per example of the split
    seconds REAL NOT NULL,
    data TEXT NOT NULL,
    bits INTEGER NOT NULL,       -- 1: example_values are packed bits, 0: float64
    example_values BLOB,         -- zlib, in the order of the examples; NULL when outputs were not finite
    created REAL NOT NULL
)
"""


@dataclass(frozen=True)
class Entry:
    """One row of the ledger."""

    identity: str
    recipe: dict[str, Any]
    kind: str
    split: str
    evaluation: Answer


@dataclass(frozen=True, eq=False)
class PartEntry:
    """A soup's values on some examples: ``examples`` (m,) ascending indices, ``values`` (m,), NaN for outputs that were
    not finite."""

    identity: str
    recipe: dict[str, Any]
    split: str
    total: int
    examples: NDArray[np.intp]
    values: NDArray[np.float64]
    seconds: float
    data: str


class Ledger:
    """The evaluations of one run directory. Every ``add`` is committed and synced before it returns."""

    def __init__(self, path: Path) -> None:
        """Raises RunError when the file is damaged or not a ledger."""
        self.path = path
        try:
            self._db = sqlite3.connect(path)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(_EVALUATIONS)
            self._db.execute(_PARTS)
            self._db.commit()
        except sqlite3.DatabaseError as error:
            raise RunError(f"{path} is not a radin ledger ({error}). Move it away to start anew.") from None

    def add(self, identity: str, recipe: dict[str, Any], kind: str, split: str, found: Answer) -> None:
        """Record an evaluation; one that is there already is left as it is."""
        with self._db:
            self._insert(identity, recipe, kind, split, found)

    def add_part(self, part: PartEntry, complete: Answer | None) -> None:
        """Record a part of a soup and, when it is the last, the soup with it: both or neither."""
        mask = np.zeros(part.total, dtype=bool)
        mask[part.examples] = True
        bits, blob = _packed(None if np.isnan(part.values).any() else part.values, np.float64)
        with self._db:
            self._db.execute(
                "INSERT INTO parts (identity, recipe, split, total, examples, seconds, data, bits, example_values,"
                " created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    part.identity,
                    json.dumps(part.recipe),
                    part.split,
                    part.total,
                    zlib.compress(np.packbits(mask).tobytes()),
                    part.seconds,
                    part.data,
                    bits,
                    blob,
                    time.time(),
                ),
            )
            if complete is not None:
                self._insert(part.identity, part.recipe, "soup", part.split, complete)

    def _insert(self, identity: str, recipe: dict[str, Any], kind: str, split: str, found: Answer) -> None:
        bits, blob = _packed(found.values, np.float32)
        self._db.execute(
            "INSERT OR IGNORE INTO evaluations (identity, recipe, kind, split, score, stderr, examples, seconds,"
            " data, bits, example_values, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                identity,
                json.dumps(recipe),
                kind,
                split,
                found.score,  # SQLite stores NaN as NULL
                found.stderr,
                found.examples,
                found.seconds,
                found.data,
                bits,
                blob,
                time.time(),
            ),
        )

    def parts(self, split: str) -> list[PartEntry]:
        """All parts of soups on a split, in the order in which they were made."""
        rows = self._db.execute(
            "SELECT identity, recipe, split, total, examples, seconds, data, bits, example_values FROM parts"
            " WHERE split = ? ORDER BY id",
            (split,),
        )
        entries = []
        for identity, recipe, on, total, mask, seconds, data, bits, blob in rows:
            packed = np.frombuffer(zlib.decompress(mask), np.uint8)
            examples = np.flatnonzero(np.unpackbits(packed, count=total))
            values = _unpacked(bits, blob, len(examples), np.float64)
            if values is None:
                values = np.full(len(examples), np.nan)
            entries.append(PartEntry(identity, json.loads(recipe), on, total, examples, values, seconds, data))
        return entries

    def get(self, identity: str, kind: str, split: str) -> Answer | None:
        """The recorded evaluation, or None."""
        found = self._select("identity = ? AND kind = ? AND split = ?", (identity, kind, split))
        return found[0].evaluation if found else None

    def entries(self, kind: str, split: str) -> list[Entry]:
        """All evaluations of a kind on a split, in the order in which they were made."""
        return self._select("kind = ? AND split = ?", (kind, split))

    def _select(self, where: str, values: tuple[str, ...]) -> list[Entry]:
        rows = self._db.execute(
            "SELECT identity, recipe, kind, split, score, stderr, examples, seconds, data, bits, example_values"
            f" FROM evaluations WHERE {where} ORDER BY id",
            values,
        )
        return [
            Entry(
                row[0],
                json.loads(row[1]),
                row[2],
                row[3],
                Answer(
                    _number(row[4]),
                    _number(row[5]),
                    row[6],
                    row[7],
                    row[8],
                    _unpacked(row[9], row[10], row[6], np.float32),
                ),
            )
            for row in rows
        ]

    def close(self) -> None:
        self._db.close()


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


Kind = type[np.float32] | type[np.float64]


def _packed(values: NDArray[np.float64] | None, kind: Kind) -> tuple[int, bytes | None]:
    if values is None:
        return 0, None
    bits = bool(np.isin(values, (0.0, 1.0)).all())
    raw = np.packbits(values.astype(bool)).tobytes() if bits else values.astype(kind).tobytes()
    return int(bits), zlib.compress(raw)


def _unpacked(bits: int, blob: bytes | None, examples: int, kind: Kind) -> NDArray[np.float64] | None:
    if blob is None:
        return None
    raw = zlib.decompress(blob)
    if bits:
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=examples).astype(np.float64)
    return np.frombuffer(raw, kind).astype(np.float64)
