"""What a ledger's rows are: its tables, what they hold as values, and numbers per example as bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.question import Answer, Floats, Gradient, Indices

REESTIMATED = "re-estimated"
"""The kind of a member that was evaluated with its BatchNorm statistics estimated again."""

TABLES = """
CREATE TABLE IF NOT EXISTS evaluations (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,      -- Recipe.identity: contents and ratios, whatever the order of the members
    recipe TEXT NOT NULL,        -- Recipe.to_json
    kind TEXT NOT NULL,          -- 'member', 're-estimated' (a member, see REESTIMATED) or 'soup'
    split TEXT NOT NULL,         -- 'validation' (not soups), 'test' or 'shifts/NAME'
    score REAL,                  -- NULL for NaN
    stderr REAL,
    examples INTEGER NOT NULL,
    seconds REAL NOT NULL,
    data TEXT NOT NULL,          -- fingerprint of the split's data
    bits INTEGER NOT NULL,       -- 1: example_values are packed bits (correct or not), 0: float64
    example_values BLOB,         -- zlib; NULL when the metric is not a mean over examples
    created REAL NOT NULL,
    checksum TEXT,               -- of the columns before it
    UNIQUE (identity, kind, split)
);
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY,
    settings TEXT NOT NULL,      -- JSON: all that decides what is asked
    created REAL NOT NULL,
    checksum TEXT
);
CREATE TABLE IF NOT EXISTS questions (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions (id),
    origin TEXT NOT NULL,        -- 'search', or 'choice': asked after it, to choose among what it found
    identity TEXT NOT NULL,
    recipe TEXT NOT NULL,
    total INTEGER NOT NULL,      -- examples of validation; 0 where they are not known
    asked_examples BLOB,         -- zlib of packed bits, one per example of validation; NULL: all
    asked INTEGER NOT NULL UNIQUE,
    told INTEGER UNIQUE,         -- NULL: open
    error TEXT,                  -- told, but no answer: why
    score REAL,                  -- NULL for NaN
    stderr REAL,
    examples INTEGER,
    seconds REAL,
    data TEXT,
    bits INTEGER,
    example_values BLOB,         -- zlib, in the order of the examples; NULL: a score alone, or outputs not finite
    created REAL NOT NULL,
    checksum TEXT
);
CREATE TABLE IF NOT EXISTS pauses (
    place INTEGER PRIMARY KEY,   -- in the sequence: nothing was to be asked until an open question was answered
    session INTEGER NOT NULL REFERENCES sessions (id),
    checksum TEXT
);
CREATE TABLE IF NOT EXISTS gradients (
    id INTEGER PRIMARY KEY REFERENCES questions (id),   -- a question that asked for one; its score is the objective's
    objective TEXT NOT NULL,
    groups TEXT NOT NULL,        -- JSON: names of groups of tensors
    gradient BLOB,               -- zlib, float64 (1 + groups, members of the recipe); NULL: open, or not given
    checksum TEXT
);
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL,           -- the run that it belongs to, as run.json names it
    checksum TEXT
);
CREATE TABLE IF NOT EXISTS soups (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,      -- the recipe of the soup in the run's folder; the last row is the present one
    content TEXT NOT NULL,       -- SHA-256 of the file, or of all files in the folder
    checksum TEXT
);
"""
LATER = ("gradients",)
"""Tables that a ledger need not have: those written before they were thought of are read all the same."""
TABLE_NAMES = ("evaluations", "sessions", "questions", "pauses", "gradients", "runs", "soups")


@dataclass(frozen=True)
class Entry:
    """A member's or a soup's evaluation on all examples of a split."""

    identity: str
    recipe: dict[str, Any]
    kind: str
    split: str
    evaluation: Answer


@dataclass(frozen=True, eq=False)
class Asked:
    """A question about a soup on validation, and what became of it.

    examples: (m,) ascending indices; None: all. asked, told: places in the sequence; told is None while it is open.
    answer: None while open, and where ``error`` says why there is none. gradient: what was asked for; the answer's has
    a column for each of the recipe's members, in their order there.
    """

    number: int
    session: int
    origin: str
    identity: str
    recipe: dict[str, Any]
    total: int
    examples: Indices | None
    asked: int
    told: int | None
    answer: Answer | None
    error: str | None
    gradient: Gradient | None = None


@dataclass(frozen=True)
class SessionEntry:
    """One session of a run: what decided what it asked."""

    number: int
    settings: dict[str, Any]


def columns(answer: Answer) -> tuple[float, float, int, float, str, int, bytes | None]:
    """An answer as the columns from ``score`` to ``example_values``."""
    bits, blob = packed(answer.numbers)
    # SQLite stores NaN as NULL
    return answer.score, answer.stderr, answer.examples, answer.seconds, answer.data, bits, blob


def number_of(value: float | None) -> float:
    """A score as it was: NULL is NaN."""
    return float("nan") if value is None else value


def packed(values: Floats | None) -> tuple[int, bytes | None]:
    """How values (m,) or totals (m, K) are kept, and they: 0 float64, 1 packed bits, 2 rows of float64."""
    if values is None:
        return 0, None
    if values.ndim > 1:
        return 2, zlib.compress(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    bits = bool(np.isin(values, (0.0, 1.0)).all())
    raw = np.packbits(values.astype(bool)).tobytes() if bits else values.astype(np.float64).tobytes()
    return int(bits), zlib.compress(raw)


def unpacked(bits: int, blob: bytes | None, examples: int) -> Floats | None:
    """What ``packed`` was given, of so many examples. Raises ValueError, zlib.error for what it never gave."""
    if blob is None:
        return None
    raw = zlib.decompress(blob)
    if bits == 1:
        return bits_of(raw, examples).astype(np.float64)
    if bits == 2:  # ValueError where they are no whole rows
        return np.frombuffer(raw, np.float64).reshape(examples, -1).copy()
    return np.frombuffer(raw, np.float64).copy()


def bits_of(raw: bytes, count: int) -> NDArray[np.uint8]:
    """The first ``count`` of packed bits. Raises ValueError when there are fewer."""
    if not 0 <= count <= 8 * len(raw):
        raise ValueError(f"{count} bits of {len(raw)} bytes")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count)
