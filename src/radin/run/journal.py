"""The ledger as whole files, where no lock of SQLite's can be trusted: each change is one file, made once.

``journal/NNNNNNNN.json`` holds the rows that one transaction changed, as they were after it, and a checksum. The
database is a temporary one of this process, built from them when the run is opened, on whichever machine. A change is a
file before it is in the database, so what is told is kept. A file that is damaged or gone is named in a note, moved to
``journal/damaged``, and what it held is asked for again where it is needed.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radin.checksums import opened, row_checksum, sealed
from radin.errors import RunError
from radin.files import read_json, replacing_folder, storage_error, sync_folder, told, write_json
from radin.locks import distrusted, put
from radin.run.rows import TABLE_NAMES

FORMAT = 1
_ENTRY = re.compile(r"(\d{8,12})\.json")
_LEFT = re.compile(r"\..+\.(new|claim)")
_IMPORTED_BYTES = 8 << 20  # of rows in one file, where a whole database becomes a journal
_LEDGER = "ledger.sqlite"

Changed = Mapping[str, Sequence[Sequence[Any]]]


def journal_folder(ledger: Path) -> Path:
    """Where the journal of a ledger is, or would be: ``journal``; of another database beside it, named after that."""
    return ledger.with_name("journal" if ledger.name == _LEDGER else f"journal-{ledger.stem}")


def has_ledger(run: Path) -> bool:
    """Whether a run's folder holds a ledger, as a database or as a journal; empty ones count."""
    return (run / _LEDGER).is_file() or journal_folder(run / _LEDGER).is_dir()


def is_empty(ledger: Path) -> bool:
    """Whether there is no ledger at this place, or one in which nothing was ever written."""
    if any(_ENTRY.fullmatch(entry.name) for entry in _names(journal_folder(ledger))):
        return False
    return not (ledger.exists() and ledger.stat().st_size)


def last_written(run: Path) -> float:
    """When a run's ledger was changed last, in seconds since 1970. Raises OSError where there is none."""
    folder = journal_folder(run / _LEDGER)
    return (folder if folder.is_dir() else run / _LEDGER).stat().st_mtime


class Journal:
    """One ledger's journal. ``read_only``: nothing is moved or written. ``notes``: what is to be said of it."""

    def __init__(self, folder: Path, run: str | None, *, read_only: bool) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self._run = run
        self._read_only = read_only
        self._number = 1
        self._before = ""
        self._attached = False

    @classmethod
    def beside(cls, ledger: Path, run: str | None, *, read_only: bool) -> Journal | None:
        """The journal of a ledger; None where it is a SQLite file. A new one where SQLite cannot be trusted.

        A database that is there already becomes a journal then. Raises RunError, StorageError.
        """
        folder = journal_folder(ledger)
        if folder.is_dir():
            if not read_only:
                with told(ledger):
                    ledger.unlink(missing_ok=True)  # the journal was made from it, and a kill came before this
            return cls(folder, run, read_only=read_only)
        why = None if read_only else distrusted(ledger.parent)
        if why is None:
            return None
        found = cls(folder, run, read_only=False)
        found.notes.append(f"the ledger is kept as whole files in {folder}, not as a SQLite database: {why}")
        with told(folder):
            with replacing_folder(folder) as temporary:
                if ledger.is_file() and ledger.stat().st_size:
                    found._take_in(ledger, temporary)
            ledger.unlink(missing_ok=True)
        return found

    def _take_in(self, ledger: Path, folder: Path) -> None:
        """Write all rows of a database as the first files of a journal."""
        from radin.run.status import snapshot

        db = sqlite3.connect(":memory:")
        try:
            db.deserialize(snapshot(ledger))
            number, size, rows = 0, 0, dict[str, list[list[Any]]]()
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "runs" in tables and [self._run] != [run for (run,) in db.execute("SELECT run FROM runs")]:
                raise RunError(f"{ledger} is another run's: it was put here. Put the run's own back.")
            for table in (name for name in TABLE_NAMES if name in tables):
                for row in db.execute(f"SELECT * FROM {table} ORDER BY rowid"):
                    rows.setdefault(table, []).append(list(row))
                    size += sum(len(value) for value in row if isinstance(value, str | bytes))
                    if size > _IMPORTED_BYTES:
                        number, size = number + 1, 0
                        write_json(folder / f"{number:08d}.json", self._value(number, rows, {}, (), ""))
                        rows = {}
            if rows:
                number += 1
                write_json(folder / f"{number:08d}.json", self._value(number, rows, {}, (), ""))
        except sqlite3.Error as error:
            raise RunError(f"{ledger} is damaged: {error}. Put a copy of it back if you have one.") from None
        finally:
            db.close()

    def database(self, layout: str) -> sqlite3.Connection:
        """A temporary database with all that the journal holds; ``layout``: the statements that make its tables.

        Empty where the journal is. Raises RunError for another run's, StorageError.
        """
        db = sqlite3.connect("")  # a file that no other process sees, gone with the connection
        with told(self.folder, doing="read"):
            entries = sorted(_names(self.folder), key=lambda path: path.name)
            files = {int(path.stem): path for path in entries if _ENTRY.fullmatch(path.name)}
            if not self._read_only:
                for path in entries:
                    if _LEFT.fullmatch(path.name):
                        path.unlink(missing_ok=True)
        if not files:
            return db
        db.executescript(layout)
        lost, mended = self._play(db, files)
        runs = [run for (run,) in db.execute("SELECT run FROM runs")]
        if not runs and self._run is not None:
            db.execute("INSERT INTO runs (run, checksum) VALUES (?, ?)", (self._run, row_checksum(1, self._run)))
        db.commit()
        self._mend(db, files, lost, mended)
        return db

    def _play(self, db: sqlite3.Connection, files: Mapping[int, Path]) -> tuple[dict[int, str], set[int]]:
        """Bring all whole entries into a database; the numbers of the others and why, and those known to be lost."""
        lost: dict[int, str] = {}
        known: set[int] = set()
        self._held: dict[int, str] = {}
        for number in range(1, max(files) + 1):
            if number not in files:
                lost[number] = "it is gone"
                continue
            try:
                value = opened(read_json(files[number]))
                if value["format"] != FORMAT or value["number"] != number:
                    raise ValueError("it is no entry of this journal")
                if self._run is not None and value["run"] != self._run:
                    raise RunError(f"{files[number]} is another run's: it was put here. Put the run's own back.")
                self._apply(db, value)
                known |= set(map(int, value["without"]))
                self._held[number - 1] = str(value["before"])
                self._before = _what(value["rows"], value["removed"])
            except OSError as error:
                raise storage_error(error, files[number], doing="read") from None
            except (ValueError, KeyError, TypeError, AttributeError, sqlite3.Error) as error:
                lost[number] = str(error)
        self._number = max(files) + 1
        return lost, known

    @staticmethod
    def _apply(db: sqlite3.Connection, value: Mapping[str, Any]) -> None:
        """One entry's rows. Raises what is caught above, and leaves nothing of a part."""
        db.execute("SAVEPOINT entry")
        try:
            for table in TABLE_NAMES:
                for row in value["removed"].get(table, ()):
                    db.execute(f"DELETE FROM {table} WHERE rowid = ?", (int(row),))
            for table in TABLE_NAMES:
                for row in value["rows"].get(table, ()):
                    marks = ", ".join("?" * len(row))
                    db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", [_value_of(part) for part in row])
        except BaseException:
            db.execute("ROLLBACK TO entry")
            raise
        finally:
            db.execute("RELEASE entry")

    def _mend(
        self, db: sqlite3.Connection, files: Mapping[int, Path], lost: Mapping[int, str], known: set[int]
    ) -> None:
        """Close the gaps that lost entries leave, and put what is left of them aside."""
        quarantine = self.folder / "damaged"
        new = {number: why for number, why in lost.items() if number not in known}
        for number, why in new.items():
            name = self.folder / f"{number:08d}.json"
            what = self._held.get(number)
            said = f" It held {what}." if what else ""
            place = "" if number not in files or self._read_only else f" It lies in {quarantine} now."
            self.notes.append(
                f"{name} is damaged ({why}).{said}{place} What it held is asked for again where it is needed"
            )
        if new:
            changed = _renumbered(db)
            if not self._read_only:
                self.attach(db)
                for table, row in changed:
                    db.execute("INSERT INTO temp.changed VALUES (?, ?)", (table, row))
                self.record(db, without=sorted(new))
            db.commit()
        if self._read_only:
            return
        with told(quarantine):
            for number in (number for number in lost if number in files):
                quarantine.mkdir(exist_ok=True)
                target, k = quarantine / files[number].name, 1
                while target.exists():
                    target, k = quarantine / f"{files[number].name}.{k}", k + 1
                files[number].rename(target)
                sync_folder(quarantine)

    def attach(self, db: sqlite3.Connection) -> None:
        """Have a database note which of its rows change, from now on; of a new journal, all that it holds."""
        if self._attached or self._read_only:
            return
        self._attached = True
        db.execute("CREATE TEMP TABLE changed (name TEXT, id INTEGER)")
        for table in TABLE_NAMES:
            for event, rows in (("INSERT", ("NEW",)), ("UPDATE", ("OLD", "NEW")), ("DELETE", ("OLD",))):
                notes = " ".join(f"INSERT INTO changed VALUES ('{table}', {row}.rowid);" for row in rows)
                db.execute(f"CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN {notes} END")
        if self._number == 1:
            for table in TABLE_NAMES:
                db.execute(f"INSERT INTO temp.changed SELECT '{table}', rowid FROM main.{table}")
            self.record(db)
            db.commit()

    def record(self, db: sqlite3.Connection, *, without: Sequence[int] = ()) -> None:
        """Put what the open transaction changed into a file of its own. To be called before it is committed.

        Raises StorageError; and RunError where another process has written here.
        """
        if not self._attached:
            return
        rows: dict[str, list[list[Any]]] = {}
        removed: dict[str, list[int]] = {}
        for table, number in db.execute("SELECT DISTINCT name, id FROM temp.changed ORDER BY name, id").fetchall():
            row = db.execute(f"SELECT * FROM main.{table} WHERE rowid = ?", (number,)).fetchone()
            if row is None:
                removed.setdefault(table, []).append(number)
            else:
                rows.setdefault(table, []).append(list(row))
        if not (rows or removed or without):
            return
        path = self.folder / f"{self._number:08d}.json"
        value = self._value(self._number, rows, removed, without, self._before)
        with told(path):
            made = put(path, _text(value))
        if not made:
            raise RunError(
                f"{path} was written by another process, which works on this run too. Wait for it, and give the same "
                "command again."
            )
        db.execute("DELETE FROM temp.changed")
        self._number, self._before = self._number + 1, _what(rows, removed)

    def _value(
        self, number: int, rows: Changed, removed: Mapping[str, Sequence[int]], without: Sequence[int], before: str
    ) -> dict[str, Any]:
        return sealed(
            {
                "format": FORMAT,
                "run": self._run,
                "number": number,
                "rows": {table: [[_json_of(part) for part in row] for row in found] for table, found in rows.items()},
                "removed": dict(removed),
                "without": list(without),  # lost entries: what they left was mended by this one
                "before": before,  # what the entry before holds, in case it is lost
            }
        )


def _renumbered(db: sqlite3.Connection) -> list[tuple[str, int]]:
    """Close gaps in the sequence of asks, tells and pauses, in their order; the rows changed by that."""
    places = list(
        db.execute(
            "SELECT asked, 'questions', 'asked', id FROM questions UNION ALL SELECT told, 'questions', 'told', id FROM"
            " questions WHERE told IS NOT NULL UNION ALL SELECT place, 'pauses', 'place', place FROM pauses ORDER BY 1"
        )
    )
    moved = [(new, *found) for new, found in enumerate(places, 1) if found[0] != new]
    # Once to the other side of zero, and back: no two rows may have one place in between.
    for new, old, table, column, _ in moved:
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (-new, old))
    changed: dict[tuple[str, int], None] = {}
    for new, old, table, column, row in moved:
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, -new))
        changed |= {(table, new if table == "pauses" else row): None}
        if table == "pauses":
            changed |= {(table, old): None}
    for table, row in changed:
        whole = db.execute(f"SELECT * FROM {table} WHERE rowid = ?", (row,)).fetchone()
        if whole is not None:
            db.execute(f"UPDATE {table} SET checksum = ? WHERE rowid = ?", (row_checksum(*whole[:-1]), row))
    return list(changed)


def _what(rows: Mapping[str, Sequence[Any]], removed: Mapping[str, Sequence[Any]]) -> str:
    """What an entry holds, for people."""
    parts = [f"{table} {', '.join(str(row[0]) for row in found[:3])}" for table, found in rows.items()]
    parts += [f"the removal of {table} {', '.join(map(str, found[:3]))}" for table, found in removed.items()]
    return "; ".join(parts)


def _json_of(value: Any) -> Any:
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _value_of(value: Any) -> Any:
    """A column's value. Raises KeyError, TypeError, ValueError for what was never written."""
    if isinstance(value, dict):
        return base64.b64decode(value["bytes"], validate=True)
    if isinstance(value, list):
        raise TypeError("a list in a column")
    return value


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _names(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def put_aside(ledger: Path, table: str, row: Sequence[Any]) -> Path:
    """Keep a damaged row that is taken out of a ledger, as a file beside it. Raises StorageError."""
    folder = ledger.parent / "damaged"
    path = folder / f"{ledger.stem}-{table}-{row[0]}.json"
    with told(path):
        folder.mkdir(exist_ok=True)
        write_json(path, {"table": table, "row": [_json_of(part) for part in row]})
    return path
