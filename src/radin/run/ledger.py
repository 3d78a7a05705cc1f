"""The ledger: what was asked and what was told, on disk the moment it is known, so that no answer is paid for twice.

SQLite. Every call that writes is committed and synced before it returns. Questions and answers share one sequence of
numbers, so that a run with several open questions can be replayed in the order in which things happened.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radin.errors import RunError
from radin.question import VALIDATION, Answer, Floats, Indices, answer_from_values

VERSION = 2
REESTIMATED = "re-estimated"
"""The kind of a member that was evaluated with its BatchNorm statistics estimated again."""

_TABLES = """
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
    UNIQUE (identity, kind, split)
);
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY,
    settings TEXT NOT NULL,      -- JSON: all that decides what is asked
    created REAL NOT NULL
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
    created REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS pauses (
    place INTEGER PRIMARY KEY,   -- in the sequence: nothing was to be asked until an open question was answered
    session INTEGER NOT NULL REFERENCES sessions (id)
);
"""


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
    answer: None while open, and where ``error`` says why there is none.
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


@dataclass(frozen=True)
class SessionEntry:
    """One session of a run: what decided what it asked."""

    number: int
    settings: dict[str, Any]


class Ledger:
    """What one run directory has evaluated. ``read_only``: of a run that is only read; nothing is changed."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Raises RunError when the file is damaged, not a ledger, in use, or another version's."""
        self.path = path
        try:
            if read_only:
                self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            else:
                self._db = sqlite3.connect(path)
                self._db.execute("PRAGMA synchronous = FULL")
            self._check_version(read_only)
            places = (
                "SELECT max(asked) FROM questions UNION SELECT max(told) FROM questions"
                " UNION SELECT max(place) FROM pauses"
            )
            last = max((row[0] or 0 for row in self._db.execute(places)), default=0)
        except sqlite3.OperationalError as error:
            raise self._failed(error) from None
        except sqlite3.DatabaseError as error:
            raise RunError(f"{path} is damaged, or not a radin ledger ({error}). Move it away to start anew.") from None
        self._next = last + 1

    def _check_version(self, read_only: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and version != VERSION:
            raise RunError(f"{self.path} was written by another version of radin. Give a new directory with --out.")
        if not tables:
            if read_only:
                raise RunError(f"{self.path} is empty: the run has not evaluated anything yet")
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")

    def _failed(self, error: sqlite3.OperationalError) -> RunError:
        """What an error of the operating system, or of another process, means. The ledger itself is whole."""
        text = str(error)
        if "locked" in text or "busy" in text:
            return RunError(f"{self.path} is in use by another process. Wait for it, and give the same command again.")
        return RunError(f"{self.path} cannot be used: {text}. It is not damaged by that; mend the cause and continue.")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it on disk at the end, or nothing."""
        try:
            with self._db:
                yield
        except sqlite3.OperationalError as error:
            raise self._failed(error) from None

    def add(self, identity: str, recipe: Mapping[str, Any], kind: str, split: str, found: Answer) -> None:
        """Record an evaluation of a member, or of a soup on a split other than validation; one there already stays."""
        with self._transaction():
            self._insert(identity, recipe, kind, split, found)

    def _insert(self, identity: str, recipe: Mapping[str, Any], kind: str, split: str, found: Answer) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO evaluations (identity, recipe, kind, split, score, stderr, examples, seconds,"
            " data, bits, example_values, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (identity, json.dumps(recipe), kind, split, *_columns(found), time.time()),
        )

    def start_session(self, settings: Mapping[str, Any]) -> int:
        """Record what decides the questions of this session; its number."""
        with self._transaction():
            row = self._db.execute(
                "INSERT INTO sessions (settings, created) VALUES (?, ?)",
                (json.dumps(settings, sort_keys=True), time.time()),
            )
        assert row.lastrowid is not None
        return row.lastrowid

    def sessions(self) -> list[SessionEntry]:
        """All sessions so far, the first one first."""
        rows = self._db.execute("SELECT id, settings FROM sessions ORDER BY id")
        return [SessionEntry(number, json.loads(settings)) for number, settings in rows]

    def ask(
        self,
        session: int,
        origin: str,
        identity: str,
        recipe: Mapping[str, Any],
        total: int,
        examples: Indices | None,
    ) -> int:
        """Record that a question was asked, before it is worked on; its number."""
        blob = None
        if examples is not None:
            mask = np.zeros(total, dtype=bool)
            mask[examples] = True
            blob = zlib.compress(np.packbits(mask).tobytes())
        with self._transaction():
            row = self._db.execute(
                "INSERT INTO questions (session, origin, identity, recipe, total, asked_examples, asked, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (session, origin, identity, json.dumps(recipe), total, blob, self._place(), time.time()),
            )
        assert row.lastrowid is not None
        return row.lastrowid

    def tell(self, number: int, answer: Answer) -> None:
        """Record the answer to a question, and its scores on further sets: all or nothing."""
        with self._transaction():
            self._db.execute(
                "UPDATE questions SET told = ?, score = ?, stderr = ?, examples = ?, seconds = ?, data = ?, bits = ?,"
                " example_values = ? WHERE id = ? AND told IS NULL",
                (self._place(), *_columns(answer), number),
            )
            if answer.further:
                row = self._db.execute("SELECT identity, recipe FROM questions WHERE id = ?", (number,)).fetchone()
                for name, (score, stderr) in answer.further.items():
                    self._insert(row[0], json.loads(row[1]), "soup", split_name(name), Answer(score, stderr, 0, 0.0))

    def fail(self, number: int, why: str) -> None:
        """Record that a question was given no answer."""
        with self._transaction():
            self._db.execute("UPDATE questions SET told = ?, error = ? WHERE id = ?", (self._place(), why, number))

    def reopen_failures(self) -> None:
        """Take back the failures since the last answer, and what was asked after the first of them.

        No answer is lost by that. What was in the way may be mended by now: these questions are to be worked on again.
        """
        last = "SELECT coalesce(max(told), 0) FROM questions WHERE error IS NULL"
        first = f"SELECT min(told) FROM questions WHERE error IS NOT NULL AND told > ({last})"
        place = self._db.execute(first).fetchone()[0]
        if place is None:
            return
        with self._transaction():
            self._db.execute("DELETE FROM questions WHERE asked > ?", (place,))
            self._db.execute("DELETE FROM pauses WHERE place > ?", (place,))
            self._db.execute("UPDATE questions SET told = NULL, error = NULL WHERE told >= ?", (place,))

    def pause(self, session: int) -> None:
        """Record that there was nothing to ask, though a question was open: the search had to wait for its answer."""
        with self._transaction():
            self._db.execute("INSERT INTO pauses (place, session) VALUES (?, ?)", (self._place(), session))

    def pauses(self) -> list[tuple[int, int]]:
        """(place in the sequence, session) of each pause."""
        return list(self._db.execute("SELECT place, session FROM pauses ORDER BY place"))

    def _place(self) -> int:
        place, self._next = self._next, self._next + 1
        return place

    def questions(self) -> list[Asked]:
        """All questions about soups on validation, in the order in which they were asked."""
        rows = self._db.execute(
            "SELECT id, session, origin, identity, recipe, total, asked_examples, asked, told, error, score, stderr,"
            " examples, seconds, data, bits, example_values FROM questions ORDER BY asked"
        )
        found = []
        for number, session, origin, identity, recipe, total, mask, asked, told, error, *answer in rows:
            examples = None
            if mask is not None:
                packed = np.frombuffer(zlib.decompress(mask), np.uint8)
                examples = np.flatnonzero(np.unpackbits(packed, count=total))
            known = _answer(answer) if told is not None and error is None else None
            found.append(
                Asked(number, session, origin, identity, json.loads(recipe), total, examples, asked, told, known, error)
            )
        return found

    def soups(self) -> list[Entry]:
        """The soups evaluated on all of validation, in the order in which they were completed."""
        parts: dict[str, Floats] = {}
        seconds: dict[str, float] = {}
        complete: dict[str, Entry] = {}
        told = sorted((q for q in self.questions() if q.answer is not None), key=lambda q: q.told or 0)
        for asked in told:
            answer, key = asked.answer, asked.identity
            assert answer is not None
            seconds[key] = seconds.get(key, 0.0) + answer.seconds
            whole: Answer | None = answer
            if asked.examples is not None and answer.values is not None:
                values = parts.setdefault(key, np.full(asked.total, np.nan))
                values[asked.examples] = answer.values
                whole = None if np.isnan(values).any() else answer_from_values(values, seconds[key], answer.data)
            if whole is not None and key not in complete:
                complete[key] = Entry(key, asked.recipe, "soup", VALIDATION, whole)
        return list(complete.values())

    def get(self, identity: str, kind: str, split: str) -> Answer | None:
        """The recorded evaluation, or None. Not for soups on validation: see ``questions``."""
        found = self._select("identity = ? AND kind = ? AND split = ?", (identity, kind, split))
        return found[0].evaluation if found else None

    def entries(self, kind: str, split: str) -> list[Entry]:
        """All evaluations of a kind on a split, in the order in which they were made."""
        return self._select("kind = ? AND split = ?", (kind, split))

    def data(self, split: str) -> str | None:
        """The fingerprint of the data that evaluations on a split were made with; None where there are none."""
        row = self._db.execute(
            "SELECT data FROM evaluations WHERE split = ? AND data != '' LIMIT 1", (split,)
        ).fetchone()
        return None if row is None else str(row[0])

    def splits(self) -> list[str]:
        """The splits besides validation on which anything was evaluated."""
        rows = self._db.execute("SELECT split FROM evaluations GROUP BY split ORDER BY min(id)")
        return [split for (split,) in rows if split != VALIDATION]

    def _select(self, where: str, values: tuple[str, ...]) -> list[Entry]:
        rows = self._db.execute(
            "SELECT identity, recipe, kind, split, score, stderr, examples, seconds, data, bits, example_values"
            f" FROM evaluations WHERE {where} ORDER BY id",
            values,
        )
        return [
            Entry(identity, json.loads(recipe), kind, split, _answer(answer))
            for identity, recipe, kind, split, *answer in rows
        ]

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def split_name(name: str) -> str:
    """What the ledger calls a further set that a program reports: "test" as it is, any other a shift."""
    return name if name == "test" or name.startswith("shifts/") else f"shifts/{name}"


def _columns(answer: Answer) -> tuple[float, float, int, float, str, int, bytes | None]:
    bits, blob = _packed(answer.values)
    # SQLite stores NaN as NULL
    return answer.score, answer.stderr, answer.examples, answer.seconds, answer.data, bits, blob


def _answer(columns: list[Any]) -> Answer:
    score, stderr, examples, seconds, data, bits, blob = columns
    values = _unpacked(bits, blob, examples)
    return Answer(_number(score), _number(stderr), examples, seconds, data, values)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _packed(values: Floats | None) -> tuple[int, bytes | None]:
    if values is None:
        return 0, None
    bits = bool(np.isin(values, (0.0, 1.0)).all())
    raw = np.packbits(values.astype(bool)).tobytes() if bits else values.astype(np.float64).tobytes()
    return int(bits), zlib.compress(raw)


def _unpacked(bits: int, blob: bytes | None, examples: int) -> Floats | None:
    if blob is None:
        return None
    raw = zlib.decompress(blob)
    if bits:
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=examples).astype(np.float64)
    return np.frombuffer(raw, np.float64).copy()
