"""What is known of recipes' true scores, example by example, kept on disk so that nothing is evaluated twice."""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS known (
    identity TEXT NOT NULL,      -- Recipe.identity
    split TEXT NOT NULL,         -- 'validation', 'test' or 'shifts/NAME'
    data TEXT NOT NULL,          -- fingerprints of the split and of the calibration data, and the metric
    mask BLOB NOT NULL,          -- packed bits: the examples whose values are known
    example_values BLOB NOT NULL,   -- zlib, float64, one per example; 0 where unknown
    PRIMARY KEY (identity, split, data)
) WITHOUT ROWID
"""


class Known:
    """Per-example values of recipes on splits. Several processes may use one file at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=300, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_SCHEMA)

    def get(self, identity: str, split: str, data: str, examples: int) -> tuple[Mask, Floats]:
        """Which of the ``examples`` are known, and all values, 0 where they are not: (M,) each."""
        row = self._db.execute(
            "SELECT mask, example_values FROM known WHERE identity = ? AND split = ? AND data = ?",
            (identity, split, data),
        ).fetchone()
        if row is None:
            return np.zeros(examples, np.bool_), np.zeros(examples)
        mask = np.unpackbits(np.frombuffer(row[0], np.uint8), count=examples).astype(np.bool_)
        return mask, np.frombuffer(zlib.decompress(row[1]), np.float64).copy()

    def add(self, identity: str, split: str, data: str, mask: Mask, values: Floats) -> None:
        """Record the values (M,) where ``mask`` (M,) says so, beside what another process may have added."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            before, old = self.get(identity, split, data, len(mask))
            merged = np.where(mask, values, old)
            self._db.execute(
                "INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)",
                (identity, split, data, np.packbits(mask | before).tobytes(), zlib.compress(merged.tobytes(), 1)),
            )
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()
