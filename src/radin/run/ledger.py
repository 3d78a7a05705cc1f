"""The ledger: what was asked and what was told, on disk the moment it is known, so that no answer is paid for twice.

SQLite; where its locks cannot be trusted, a journal of whole files (``journal.py``). Every call that writes is
committed and synced before it returns, or with others at the end of ``together``: a commit takes tens of milliseconds
on many disks, whatever it holds. Questions and answers share one sequence of
numbers, so that a run with several open questions can be replayed in the order in which things happened. Every row has
a checksum of its other columns; all are compared when the file is opened.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from radin.checksums import row_checksum
from radin.errors import RadinError, RunError
from radin.files import storage_error
from radin.metrics import Metric
from radin.question import VALIDATION, Answer, Floats, Gradient, Indices, answer_from_numbers, answer_from_values
from radin.run.directory import way_on
from radin.run.journal import Journal, put_aside
from radin.run.rows import (
    LATER,
    TABLE_NAMES,
    TABLES,
    Asked,
    Entry,
    SessionEntry,
    bits_of,
    columns,
    number_of,
    unpacked,
)

VERSION = 3
_APPLICATION = 0x7261646E  # SQLite's application_id: "radn"
_LAYOUT = f"BEGIN; {TABLES} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {VERSION};"

P = ParamSpec("P")
R = TypeVar("R")

# What SQLite says of the operating system -> the system's own number for it.
_SYSTEM = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_AUTH: errno.EACCES,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}


def _reads(method: Callable[Concatenate[Ledger, P], R]) -> Callable[Concatenate[Ledger, P], R]:
    """A method of Ledger that reads: whatever it finds that cannot be what was written is a RunError."""

    @wraps(method)
    def guarded(self: Ledger, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            raise self._failed(error) from None
        except (ValueError, TypeError, KeyError, zlib.error, OverflowError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from None

    return guarded


class Ledger:
    """What one run directory has evaluated. ``read_only``: of a run that is only read; nothing is changed."""

    def __init__(
        self,
        path: Path,
        *,
        run: str | None = None,
        read_only: bool = False,
        metric: Metric | None = None,
        content: bytes | None = None,
    ) -> None:
        """``run``: the run that it must belong to; a new ledger belongs to it. ``metric``: scores totals by position.
        ``content``: what the file held at one moment, read in its place, without SQLite's locks.

        Raises RunError when the file is damaged, not a ledger, in use, another run's, or another version's.
        """
        self.path = path
        self._metric = metric
        self.notes: list[str] = []
        """What was damaged and is made again."""
        self._together = False
        self._journal: Journal | None = None
        journal = None if content is not None else Journal.beside(path, run, read_only=read_only)
        try:
            if journal is not None:
                self._db = journal.database(_LAYOUT)
            elif content is not None:
                read_only, self._db = True, sqlite3.connect(":memory:")
                self._db.deserialize(content)
            elif read_only:
                self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
            else:
                self._db = sqlite3.connect(path)
                self._db.execute("PRAGMA synchronous = FULL")
            # A damaged text need not be UTF-8; its checksum tells.
            self._db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            self._check_version(read_only, run)
            if journal is not None:
                self._journal, self.notes = journal, journal.notes
                journal.attach(self._db)
            self._verify(read_only)
            if run is not None:
                self._check_run(run)
            self._next = self._last() + 1
        except sqlite3.Error as error:
            raise self._failed(error) from None
        except UnicodeDecodeError as error:  # SQLite's own message, which quotes what it found
            raise self._damaged(str(error)) from None

    def _check_version(self, read_only: bool, run: str | None) -> None:
        found = [self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables:
            if read_only:
                raise RunError(f"{self.path} is empty: the run has not evaluated anything yet")
            with self._transaction():  # all at once: tables without a run would be another run's
                self._db.executescript(_LAYOUT)
                if run is not None:
                    self._add("INSERT INTO runs (run) VALUES (?)", (run,), "runs")
        elif found[0] == _APPLICATION and found[1] != VERSION:
            raise RunError(f"{self.path} was written by another version of radin. Give a new directory with --out.")
        elif found[0] != _APPLICATION or not self._schema(None) >= self._schema(self._db) >= self._schema(None, LATER):
            raise self._damaged("it is not laid out as radin does it")
        elif not read_only and self._schema(self._db) != self._schema(None):
            with self._transaction():  # one from before there were gradients
                self._db.executescript(f"BEGIN; {TABLES}")

    @staticmethod
    def _schema(db: sqlite3.Connection | None, without: Sequence[str] = ()) -> set[tuple[str, ...]]:
        """The statements that made its tables; None: those of this version."""
        with closing(sqlite3.connect(":memory:")) as fresh:
            if db is None:
                fresh.executescript(TABLES)
            found = (db or fresh).execute("SELECT type, name, sql FROM sqlite_master ORDER BY name")
            return {statement for statement in found if statement[1] not in without}

    def _verify(self, read_only: bool) -> None:
        """Compare all checksums. What can be made again from cached outputs is; else RunError."""
        wrong = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if wrong != "ok":
            raise self._damaged(wrong)
        tables = {name for _, name, _ in self._schema(self._db)}
        for table in (name for name in TABLE_NAMES if name in tables):
            for row in self._db.execute(f"SELECT * FROM {table} ORDER BY 1"):
                if row[-1] == row_checksum(*row[:-1]):
                    continue
                where = f"row {row[0]} of its {table} does not match its checksum"
                if read_only or table not in ("evaluations", "soups"):
                    raise self._damaged(where)
                kept = put_aside(self.path, table, row)
                with self._transaction():
                    self._db.execute(f"DELETE FROM {table} WHERE id = ?", (row[0],))
                self.notes.append(f"made again: {self.path} is damaged, {where}; what it says lies in {kept}")

    def _check_run(self, run: str) -> None:
        """Raise RunError unless it is this run's."""
        if [run] != [found for (found,) in self._db.execute("SELECT run FROM runs")]:
            raise RunError(f"{self.path} is another run's: it was put here. Put the run's own back.")

    def _last(self) -> int:
        """The last place in the sequence that is taken. Raises RunError when one before it is missing."""
        places = (
            "SELECT asked FROM questions UNION ALL SELECT told FROM questions WHERE told IS NOT NULL"
            " UNION ALL SELECT place FROM pauses ORDER BY 1"
        )
        found = [place for (place,) in self._db.execute(places)]
        if found != list(range(1, len(found) + 1)):
            raise self._damaged("what was asked and told is not all there")
        return len(found)

    def _damaged(self, what: str) -> RunError:
        return RunError(f"{self.path} is damaged: {what}. {way_on(self.path.parent)}")

    def _failed(self, error: sqlite3.Error) -> RadinError:
        """What an error of SQLite's means: of the operating system, of another process, or a damaged file."""
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return RunError(f"{self.path} is in use by another process. Wait for it, and give the same command again.")
        if code == sqlite3.SQLITE_READONLY_ROLLBACK:
            return RunError(
                f"{self.path}: the last session was killed while it wrote here. The run's cook command mends that; "
                "give it first."
            )
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return storage_error(OSError(errno.ENOENT, str(error)), self.path)
        if primary == sqlite3.SQLITE_CANTOPEN:
            return storage_error(self._why_not(), self.path, doing="opened")
        if primary in _SYSTEM:
            return storage_error(OSError(_SYSTEM[primary], str(error)), self.path)
        try:  # a disk that fails can look like a damaged file
            with self.path.open("rb") as file:
                while file.read(1 << 20):
                    pass
        except OSError as reason:
            return storage_error(reason, self.path, doing="read")
        return self._damaged(str(error))

    def _why_not(self) -> OSError:
        """Why SQLite could not open the file, or the journal beside it: it does not say."""
        try:
            os.close(os.open(self.path, os.O_RDWR))
            journal = Path(f"{self.path}-journal")
            if not journal.exists():  # an empty one means nothing to SQLite
                os.close(os.open(journal, os.O_RDWR | os.O_CREAT | os.O_EXCL))
                journal.unlink()
        except OSError as error:
            return OSError(error.errno, error.strerror)
        return OSError(0, "SQLite could not open it, or its journal")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it on disk at the end, or nothing; inside of ``together``, at the end of that."""
        try:
            if not self._together:
                with self._db:
                    yield
                    self._to_journal()
                return
            if not self._db.in_transaction:  # else the first savepoint would be a transaction of its own
                self._db.execute("BEGIN")
            self._db.execute("SAVEPOINT record")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK TO record")
                raise
            finally:
                if self._db.in_transaction:
                    self._db.execute("RELEASE record")
        except sqlite3.Error as error:
            raise self._failed(error) from None

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that is recorded inside by one commit, on disk at the end; as far as it went where an error ends it."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
            self.settle()

    def settle(self) -> None:
        """Commit what was recorded so far inside of ``together``: something that takes long comes before its end."""
        try:
            if self._db.in_transaction:
                self._to_journal()
            self._db.commit()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _to_journal(self) -> None:
        """What the open transaction changed is a file first: the database beside a journal is this process's alone."""
        if self._journal is not None:
            self._journal.record(self._db)

    def _add(self, statement: str, values: Sequence[Any], table: str) -> int:
        """Insert a row with its checksum, inside a transaction; its number, 0 where it was there already."""
        row = self._db.execute(statement, values)
        if row.rowcount != 1 or row.lastrowid is None:
            return 0
        self._seal(table, row.lastrowid)
        return row.lastrowid

    def _seal(self, table: str, number: int) -> None:
        """Give a row the checksum of what it holds now."""
        row = self._db.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,)).fetchone()
        self._db.execute(f"UPDATE {table} SET checksum = ? WHERE rowid = ?", (row_checksum(*row[:-1]), number))

    def add(self, identity: str, recipe: Mapping[str, Any], kind: str, split: str, found: Answer) -> None:
        """Record an evaluation of a member, or of a soup on a split other than validation; one there already stays."""
        with self._transaction():
            self._insert(identity, recipe, kind, split, found)

    def _insert(self, identity: str, recipe: Mapping[str, Any], kind: str, split: str, found: Answer) -> None:
        self._add(
            "INSERT OR IGNORE INTO evaluations (identity, recipe, kind, split, score, stderr, examples, seconds,"
            " data, bits, example_values, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (identity, json.dumps(recipe), kind, split, *columns(found), time.time()),
            "evaluations",
        )

    def start_session(self, settings: Mapping[str, Any]) -> int:
        """Record what decides the questions of this session; its number."""
        with self._transaction():
            return self._add(
                "INSERT INTO sessions (settings, created) VALUES (?, ?)",
                (json.dumps(settings, sort_keys=True), time.time()),
                "sessions",
            )

    @_reads
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
        gradient: Gradient | None = None,
    ) -> int:
        """Record that a question was asked, before it is worked on; its number."""
        blob = None
        if examples is not None:
            mask = np.zeros(total, dtype=bool)
            mask[examples] = True
            blob = zlib.compress(np.packbits(mask).tobytes())
        with self._transaction():
            number = self._add(
                "INSERT INTO questions (session, origin, identity, recipe, total, asked_examples, asked, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (session, origin, identity, json.dumps(recipe), total, blob, self._place(), time.time()),
                "questions",
            )
            if gradient is not None:
                groups = json.dumps(gradient.groups)
                row = (number, gradient.objective, groups)
                self._add("INSERT INTO gradients (id, objective, groups) VALUES (?, ?, ?)", row, "gradients")
            return number

    def tell(self, number: int, answer: Answer) -> None:
        """Record the answer to a question, and its scores on further sets: all or nothing.

        A gradient has a column for each of the recipe's members, in their order there.
        """
        with self._transaction():
            self._db.execute(
                "UPDATE questions SET told = ?, score = ?, stderr = ?, examples = ?, seconds = ?, data = ?, bits = ?,"
                " example_values = ? WHERE id = ? AND told IS NULL",
                (self._place(), *columns(answer), number),
            )
            self._seal("questions", number)
            if answer.gradient is not None:
                blob = zlib.compress(answer.gradient.astype(np.float64).tobytes())
                self._db.execute("UPDATE gradients SET gradient = ? WHERE id = ?", (blob, number))
                self._seal("gradients", number)
            if answer.further:
                row = self._db.execute("SELECT identity, recipe FROM questions WHERE id = ?", (number,)).fetchone()
                for name, (score, stderr) in answer.further.items():
                    self._insert(row[0], json.loads(row[1]), "soup", split_name(name), Answer(score, stderr, 0, 0.0))

    def fail(self, number: int, why: str) -> None:
        """Record that a question was given no answer."""
        with self._transaction():
            self._db.execute("UPDATE questions SET told = ?, error = ? WHERE id = ?", (self._place(), why, number))
            self._seal("questions", number)

    @_reads
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
            self._db.execute("DELETE FROM gradients WHERE id NOT IN (SELECT id FROM questions)")
            self._db.execute("DELETE FROM pauses WHERE place > ?", (place,))
            taken_back = list(self._db.execute("SELECT id FROM questions WHERE told >= ?", (place,)))
            self._db.execute("UPDATE questions SET told = NULL, error = NULL WHERE told >= ?", (place,))
            for (number,) in taken_back:
                self._seal("questions", number)
        self._next = self._last() + 1

    def pause(self, session: int) -> None:
        """Record that there was nothing to ask, though a question was open: the search had to wait for its answer."""
        with self._transaction():
            self._add("INSERT INTO pauses (place, session) VALUES (?, ?)", (self._place(), session), "pauses")

    @_reads
    def pauses(self) -> list[tuple[int, int]]:
        """(place in the sequence, session) of each pause."""
        return list(self._db.execute("SELECT place, session FROM pauses ORDER BY place"))

    def _place(self) -> int:
        place, self._next = self._next, self._next + 1
        return place

    @_reads
    def questions(self) -> list[Asked]:
        """All questions about soups on validation, in the order in which they were asked."""
        rows = self._db.execute(
            "SELECT id, session, origin, identity, recipe, total, asked_examples, asked, told, error, score, stderr,"
            " examples, seconds, data, bits, example_values FROM questions ORDER BY asked"
        )
        gradients = self._gradients()
        found = []
        for number, session, origin, identity, recipe, total, mask, asked, told, error, *answer in rows:
            examples = None
            if mask is not None:
                examples = np.flatnonzero(bits_of(zlib.decompress(mask), total))
            known = self._answer(answer) if told is not None and error is None else None
            gradient, slopes = gradients.get(number, (None, None))
            if known is not None and gradient is not None:
                known = replace(known, gradient=slopes)
            made = json.loads(recipe)
            found.append(
                Asked(number, session, origin, identity, made, total, examples, asked, told, known, error, gradient)
            )
        return found

    def _gradients(self) -> dict[int, tuple[Gradient, Floats | None]]:
        """What questions asked for gradients, by number, and these, (1 + groups, members of the recipe)."""
        if not any(name == "gradients" for _, name, _ in self._schema(self._db)):
            return {}
        found: dict[int, tuple[Gradient, Floats | None]] = {}
        for number, objective, groups, blob in self._db.execute(
            "SELECT id, objective, groups, gradient FROM gradients"
        ):
            asked = Gradient(objective, tuple(json.loads(groups)))
            slopes = None
            if blob is not None:
                slopes = np.frombuffer(zlib.decompress(blob), np.float64).reshape(1 + len(asked.groups), -1)
            found[number] = (asked, slopes)
        return found

    @_reads
    def soups(self) -> list[Entry]:
        """The soups evaluated on all of validation, in the order in which they were completed."""
        parts: dict[str, Floats] = {}
        seconds: dict[str, float] = {}
        complete: dict[str, Entry] = {}
        told = [q for q in self.questions() if q.answer is not None and q.gradient is None]
        told.sort(key=lambda q: q.told or 0)
        for asked in told:
            answer, key = asked.answer, asked.identity
            assert answer is not None
            seconds[key] = seconds.get(key, 0.0) + answer.seconds
            whole: Answer | None = answer
            if asked.examples is not None and (told_values := answer.numbers) is not None:
                values = parts.setdefault(key, np.full((asked.total, *told_values.shape[1:]), np.nan))
                values[asked.examples] = told_values
                whole = None if np.isnan(values).any() else self._from_numbers(values, seconds[key], answer.data)
            if whole is not None and key not in complete:
                complete[key] = Entry(key, asked.recipe, "soup", VALIDATION, whole)
        return list(complete.values())

    @_reads
    def get(self, identity: str, kind: str, split: str) -> Answer | None:
        """The recorded evaluation, or None. Not for soups on validation: see ``questions``."""
        found = self._select("identity = ? AND kind = ? AND split = ?", (identity, kind, split))
        return found[0].evaluation if found else None

    @_reads
    def entries(self, kind: str, split: str) -> list[Entry]:
        """All evaluations of a kind on a split, in the order in which they were made."""
        return self._select("kind = ? AND split = ?", (kind, split))

    @_reads
    def data(self, split: str) -> str | None:
        """The fingerprint of the data that evaluations on a split were made with; None where there are none."""
        row = self._db.execute(
            "SELECT data FROM evaluations WHERE split = ? AND data != '' LIMIT 1", (split,)
        ).fetchone()
        return None if row is None else str(row[0])

    def wrote(self, identity: str, content: str) -> None:
        """Record which soup was written into the run's folder, and the hash of its content."""
        with self._transaction():
            self._add("INSERT INTO soups (identity, content) VALUES (?, ?)", (identity, content), "soups")

    @_reads
    def written(self) -> tuple[str, str] | None:
        """The recipe's identity and the content's hash of the soup written last; None where there is none."""
        row = self._db.execute("SELECT identity, content FROM soups ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else (str(row[0]), str(row[1]))

    @_reads
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
            Entry(identity, json.loads(recipe), kind, split, self._answer(answer))
            for identity, recipe, kind, split, *answer in rows
        ]

    def _answer(self, columns: list[Any]) -> Answer:
        score, stderr, examples, seconds, data, bits, blob = columns
        found = unpacked(bits, blob, examples)
        whole = None if found is None else self._from_numbers(found, seconds, data)
        if whole is not None:  # the score is theirs, and no other
            return whole
        return Answer(number_of(score), number_of(stderr), examples, seconds, data)

    def _from_numbers(self, numbers: Floats, seconds: float, data: str) -> Answer | None:
        """None where these are totals of a metric that is not known here."""
        if numbers.ndim == 1:
            return answer_from_values(numbers, seconds, data)
        if self._metric is None or not self._metric.by_position:
            return None
        return answer_from_numbers(self._metric, numbers, seconds, data)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def split_name(name: str) -> str:
    """What the ledger calls a further set that a program reports: "test" as it is, any other a shift."""
    return name if name == "test" or name.startswith("shifts/") else f"shifts/{name}"
