"""Readers of what radin itself has written: outputs, margins, ledgers, results, soups, remembered fingerprints."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.fault_parts.mutate import damaged_bytes, damaged_json
from benchmarks.fault_parts.reading import Probe, command, write_bytes

from radin.checksums import BLANK, row_checksum, sealed, sealed_header


def _members(run: Path) -> list[Path]:
    return sorted(p for p in (run / "outputs").glob("*.safetensors") if len(p.stem) == 32)


def _ranked(run: Path, *outputs: Path, targets: Path | None = None) -> None:
    given = [part for path in outputs for part in ("--outputs", path)]
    targets = targets or run / "outputs" / "targets.safetensors"
    command("rank", *given, "--targets", targets, "--count", 5, "--top", 2, "--source", "top-k")


def _arrays(run: Path) -> list[np.ndarray]:
    """The members' outputs as plain arrays, whatever else their files say."""
    found = []
    for path in _members(run):
        whole = path.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        shape = next(e["shape"] for name, e in json.loads(whole[8 : 8 + length]).items() if name != "__metadata__")
        found.append(np.frombuffer(whole[8 + length :], np.float32).reshape(shape))
    return found


def outputs_npy(pool: Path, run: Path, folder: Path) -> Probe:
    other = folder / "whole.npy"
    array = _arrays(run)[0]
    np.save(other, _arrays(run)[1])

    def probe(chance: random.Random) -> str:
        out = io.BytesIO()
        kinds = (np.float32, np.float16, np.float64, np.int64, np.int8, np.bool_, np.complex64, "S3", "datetime64[s]")
        changed = array.astype(chance.choice(kinds)) if chance.random() < 0.2 else array
        if chance.random() < 0.2:
            changed = changed[: chance.choice((0, 1, 5))] if chance.random() < 0.5 else changed.reshape(-1)
        np.save(out, changed)
        data = out.getvalue()
        path = write_bytes(folder / "x.npy", damaged_bytes(chance, data, 128) if chance.random() < 0.7 else data)
        _ranked(run, path, other)
        return "ok"

    return probe


def outputs_safetensors(pool: Path, run: Path, folder: Path) -> Probe:
    first, second, *_ = _members(run)
    whole = first.read_bytes()

    def probe(chance: random.Random) -> str:
        path = write_bytes(folder / "x.safetensors", _damaged_tensors(chance, whole))
        _ranked(run, path, second)
        return "ok"

    return probe


def _damaged_tensors(chance: random.Random, whole: bytes) -> bytes:
    """A .safetensors file with other bytes, or with a header of another shape and a length that fits it.

    Most are given a checksum that is right: what does not match its own goes no further.
    """
    if chance.random() < 0.3:
        return damaged_bytes(chance, whole, 400)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    data = damaged_bytes(chance, whole[8 + length :], 400) if chance.random() < 0.3 else whole[8 + length :]
    return resealed_tensors(damaged_json(chance, header), data)


def resealed_tensors(header: bytes, data: bytes) -> bytes:
    """A .safetensors file, its checksum made anew if its header still has one."""
    blank = re.sub(rb'("radin\.checksum":\s*")[0-9a-f]{64}"', rb"\g<1>" + BLANK.encode() + b'"', header)
    head = len(blank).to_bytes(8, "little") + blank
    if re.search(rb'"radin\.checksum":\s*"0{64}"', blank):
        head = sealed_header(head, hashlib.sha256(data))
    return head + data


def resealed_json(chance: random.Random, value: Any) -> bytes:
    """A JSON text of another shape; most of those that are objects with a checksum that is right."""
    text = damaged_json(chance, value)
    if chance.random() < 0.3:
        return text
    try:
        changed = json.loads(text)
        return json.dumps(sealed(changed)).encode() if isinstance(changed, dict) else text
    except (ValueError, RecursionError):
        return text


def targets(pool: Path, run: Path, folder: Path) -> Probe:
    whole = (run / "outputs" / "targets.safetensors").read_bytes()
    labels = np.load(_labels(run, folder))
    pair = _members(run)[:2]

    def probe(chance: random.Random) -> str:
        if chance.random() < 0.5:
            path = write_bytes(folder / "t.safetensors", _damaged_tensors(chance, whole))
        else:
            kinds = (np.int64, np.int8, np.uint8, np.float32, np.bool_, np.complex64, "S3", "U5")
            other = labels.astype(chance.choice(kinds)) if chance.random() < 0.6 else labels.reshape(-1, 1)
            out = io.BytesIO()
            np.save(out, other + 10 ** chance.randrange(18) if other.dtype == np.int64 else other)
            data = out.getvalue()
            path = write_bytes(folder / "t.npy", damaged_bytes(chance, data, 128) if chance.random() < 0.5 else data)
        _ranked(run, *pair, targets=path)
        return "ok"

    return probe


def _labels(run: Path, folder: Path) -> Path:
    whole = (run / "outputs" / "targets.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    path = folder / "labels.npy"
    np.save(path, np.frombuffer(whole[8 + length :], np.int64))
    return path


def compiled(pool: Path, run: Path, folder: Path) -> Probe:
    from radin import metrics
    from radin.estimate import estimator_of, load_margins

    whole = (run / "outputs" / "compiled.safetensors").read_bytes()
    metric = metrics.get("accuracy")
    count = len(_members(run))

    def probe(chance: random.Random) -> str:
        path = write_bytes(folder / "compiled.safetensors", _damaged_tensors(chance, whole))
        margins, keys = load_margins(path)
        if len(keys.members) != count:
            return "other members"
        estimator_of(margins, metric, device="cpu").scores(np.full((1, count), 1 / count))
        return "ok"

    return probe


def _read_ledger(path: Path) -> str:
    from radin.run.ledger import Ledger

    ledger = Ledger(path)
    try:
        ledger.sessions()
        ledger.questions()
        ledger.pauses()
        ledger.soups()
        for split in ["validation", *ledger.splits()]:
            ledger.data(split)
            for kind in ("member", "soup"):
                for entry in ledger.entries(kind, split):
                    ledger.get(entry.identity, kind, split)
        ledger.reopen_failures()
    finally:
        ledger.close()
    return "ok"


def ledger(pool: Path, run: Path, folder: Path) -> Probe:
    whole = (run / "ledger.sqlite").read_bytes()

    def probe(chance: random.Random) -> str:
        path = write_bytes(_no_journal(folder / "ledger.sqlite"), damaged_bytes(chance, whole, len(whole)))
        return _read_ledger(path)

    return probe


def ledger_rows(pool: Path, run: Path, folder: Path) -> Probe:
    """Values of any kind in any column, tables and columns gone, versions of others."""
    whole = (run / "ledger.sqlite").read_bytes()
    values = (None, -1, 0, 2**62, 1e308, "", "x", "[]", "{}", "null", "9" * 400, b"", b"\x00", b"x\x9c\x03", "\x1b[2J")

    def probe(chance: random.Random) -> str:
        path = write_bytes(_no_journal(folder / "rows.sqlite"), whole)
        with closing(sqlite3.connect(path)) as database, database:
            tables = [n for (n,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for _ in range(chance.choice((1, 1, 2))):
                table = chance.choice(tables)  # it may be gone by now
                columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
                column = chance.choice(columns or ["id"])
                way = chance.randrange(12)
                try:
                    if way == 0:
                        database.execute(f'DROP TABLE "{table}"')
                    elif way == 1:
                        database.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "other"')
                    elif way == 2:
                        database.execute(f"PRAGMA user_version = {chance.choice((0, 1, 3, 99, -1))}")
                    elif way == 3:
                        database.execute(f'DELETE FROM "{table}" WHERE rowid % 2')
                    else:
                        where = f"rowid = {chance.randint(1, 20)}" if chance.random() < 0.8 else "1"
                        given = chance.choice(values)
                        database.execute(f'UPDATE OR REPLACE "{table}" SET "{column}" = ? WHERE {where}', (given,))
                    if chance.random() < 0.8:
                        _reseal_rows(database, table)
                except sqlite3.Error:
                    continue
        return _read_ledger(path)

    return probe


def _reseal_rows(database: sqlite3.Connection, table: str) -> None:
    """Give all rows of a table checksums that are right."""
    for number, *row in database.execute(f'SELECT rowid, * FROM "{table}"').fetchall():
        database.execute(f'UPDATE "{table}" SET checksum = ? WHERE rowid = ?', (row_checksum(*row[:-1]), number))


def _no_journal(path: Path) -> Path:
    path.with_name(path.name + "-journal").unlink(missing_ok=True)
    return path


def run_json(pool: Path, run: Path, folder: Path) -> Probe:
    from radin.run.directory import RunDirectory

    whole = json.loads((run / "run.json").read_text())
    place = folder / "a-run"
    place.mkdir()

    def probe(chance: random.Random) -> str:
        write_bytes(place / "run.json", resealed_json(chance, whole))
        with RunDirectory(place, dict(whole["identity"])) as directory:
            directory.read().get("settings", {}).get("rates")
        return "ok"

    return probe


def run_json_names(pool: Path, run: Path, folder: Path) -> Probe:
    """Where the members' names are looked up by ``radin rank RUN/outputs``."""
    whole = json.loads((run / "run.json").read_text())
    place = folder / "ranked"
    (place / "outputs").mkdir(parents=True)
    for path in [*_members(run)[:2], run / "outputs" / "targets.safetensors"]:
        shutil.copy(path, place / "outputs")

    def probe(chance: random.Random) -> str:
        write_bytes(place / "run.json", resealed_json(chance, whole))
        command("rank", "--outputs", place / "outputs", "--count", 5, "--top", 2, "--source", "top-k")
        return "ok"

    return probe


def result(pool: Path, run: Path, folder: Path) -> Probe:
    whole = json.loads((run / "result.json").read_text())
    place = folder / "finished"
    place.mkdir()

    def probe(chance: random.Random) -> str:
        write_bytes(place / "result.json", resealed_json(chance, whole))
        command("report", place, *(["--json"] if chance.random() < 0.5 else []))
        return "ok"

    return probe


def recipe(pool: Path, run: Path, folder: Path) -> Probe:
    whole = json.loads((run / "recipe.json").read_text())

    def probe(chance: random.Random) -> str:
        path = write_bytes(folder / "recipe.json", resealed_json(chance, whole))
        output = folder / "averaged.safetensors"
        command("average", pool / "members", "--recipe", path, "-o", output, "--force")
        return "ok"

    return probe


def soup(pool: Path, run: Path, folder: Path) -> Probe:
    """What a soup says of its own recipe, which is read to know whether it is still the best."""
    from radin import Recipe
    from radin.weights import read_recipe

    whole = (run / "soup.safetensors").read_bytes()
    prints = [m["fingerprint"] for m in json.loads((run / "result.json").read_text())["uniform"]["recipe"]["members"]]

    def probe(chance: random.Random) -> str:
        path = write_bytes(folder / "soup.safetensors", _damaged_tensors(chance, whole))
        Recipe.from_json(read_recipe(path), prints)
        return "ok"

    return probe


def remembered(pool: Path, run: Path, folder: Path) -> Probe:
    """Entries of the cache of fingerprints: damaged, they must be as if they were not there."""
    from radin.weights import Pool

    own = folder / "members"
    shutil.copytree(pool / "members", own)
    old = 1_600_000_000
    for path in own.iterdir():
        os.utime(path, (old, old))
    cache = folder / "cache"
    os.environ["RADIN_CACHE"] = str(cache)
    true = Pool.open(str(own)).fingerprints
    sealed = {path: path.read_bytes() for path in (cache / "fingerprints").glob("*")}

    def probe(chance: random.Random) -> str:
        from radin.weights.remembered import RACY_NS  # noqa: F401  (there is such a cache)

        os.environ["RADIN_CACHE"] = str(cache)
        for path, data in sealed.items():
            if chance.random() < 0.5:
                path.write_bytes(damaged_bytes(chance, data))
        found = Pool.open(str(own)).fingerprints
        if found != true:
            raise AssertionError("a damaged entry gave another fingerprint")
        return "ok"

    return probe
