"""Every reader of radin's but that of checkpoints, with what it is fed.

Each is made once in the process that feeds it, from a finished run and the pool; its probe then makes one damaged input
after another and has it read. It may raise what says that the input is bad (RadinError, AnswerError, Refused);
everything else is a crash.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.fault_parts.mutate import damaged_bytes, damaged_json

from radin.checksums import BLANK, row_checksum, sealed, sealed_header

Probe = Callable[[random.Random], str]
"""Makes one input and has it read; what was read, in a word. Raises what the reader raises."""


class Refused(Exception):
    """A command ended with exit code 2 and one message."""


class Broken(Exception):
    """A command ended in any other way than done, or refused in one message."""


def command(*arguments: object) -> None:
    """The command line in this process. Raises Refused, and Broken."""
    from radin.cli import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["radin", *map(str, arguments)]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            code = error.code
    said = err.getvalue()
    if code == 2 and "Traceback (most" not in said.replace(_users_traceback(said), ""):
        raise Refused(said[max(0, said.rfind("radin: ")) :].strip())
    if code or "Traceback (most" in said:
        lines = [line for line in said.splitlines() if line.strip()]
        places = [line.strip() for line in lines if "/radin/" in line and line.strip().startswith("File ")]
        errors = [line for line in lines if line[:1].isalpha() and "Error" in line.split(":")[0]] or lines[-1:]
        where = places[-1].rsplit("/radin/", 1)[-1] if places else ""
        raise Broken(f"exit code {code}: {' '.join(errors[-1:])[:160]} at {where}")
    if not out.getvalue():
        raise Broken("exit code 0, and nothing was said")


def _users_traceback(said: str) -> str:
    """The traceback of a user's own code, which is shown above the message."""
    at = said.find("Traceback (most")
    end = said.rfind("radin: ")
    return said[at:end] if 0 <= at < end and "/radin/" not in said[at:end] else ""


def reader(name: str, pool: Path, run: Path, folder: Path) -> Probe:
    """The probe of a name. pool: the small pool; run: a finished run on it; folder: to write inputs in."""
    return _READERS[name](pool, run, folder)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


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


def _outputs_npy(pool: Path, run: Path, folder: Path) -> Probe:
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
        path = _write(folder / "x.npy", damaged_bytes(chance, data, 128) if chance.random() < 0.7 else data)
        _ranked(run, path, other)
        return "ok"

    return probe


def _outputs_safetensors(pool: Path, run: Path, folder: Path) -> Probe:
    first, second, *_ = _members(run)
    whole = first.read_bytes()

    def probe(chance: random.Random) -> str:
        path = _write(folder / "x.safetensors", _damaged_tensors(chance, whole))
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


def _targets(pool: Path, run: Path, folder: Path) -> Probe:
    whole = (run / "outputs" / "targets.safetensors").read_bytes()
    labels = np.load(_labels(run, folder))
    pair = _members(run)[:2]

    def probe(chance: random.Random) -> str:
        if chance.random() < 0.5:
            path = _write(folder / "t.safetensors", _damaged_tensors(chance, whole))
        else:
            kinds = (np.int64, np.int8, np.uint8, np.float32, np.bool_, np.complex64, "S3", "U5")
            other = labels.astype(chance.choice(kinds)) if chance.random() < 0.6 else labels.reshape(-1, 1)
            out = io.BytesIO()
            np.save(out, other + 10 ** chance.randrange(18) if other.dtype == np.int64 else other)
            data = out.getvalue()
            path = _write(folder / "t.npy", damaged_bytes(chance, data, 128) if chance.random() < 0.5 else data)
        _ranked(run, *pair, targets=path)
        return "ok"

    return probe


def _labels(run: Path, folder: Path) -> Path:
    whole = (run / "outputs" / "targets.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    path = folder / "labels.npy"
    np.save(path, np.frombuffer(whole[8 + length :], np.int64))
    return path


def _compiled(pool: Path, run: Path, folder: Path) -> Probe:
    from radin import metrics
    from radin.estimate import estimator_of, load_margins

    whole = (run / "outputs" / "compiled.safetensors").read_bytes()
    metric = metrics.get("accuracy")
    count = len(_members(run))

    def probe(chance: random.Random) -> str:
        path = _write(folder / "compiled.safetensors", _damaged_tensors(chance, whole))
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


def _ledger(pool: Path, run: Path, folder: Path) -> Probe:
    whole = (run / "ledger.sqlite").read_bytes()

    def probe(chance: random.Random) -> str:
        path = _write(_no_journal(folder / "ledger.sqlite"), damaged_bytes(chance, whole, len(whole)))
        return _read_ledger(path)

    return probe


def _ledger_rows(pool: Path, run: Path, folder: Path) -> Probe:
    """Values of any kind in any column, tables and columns gone, versions of others."""
    whole = (run / "ledger.sqlite").read_bytes()
    values = (None, -1, 0, 2**62, 1e308, "", "x", "[]", "{}", "null", "9" * 400, b"", b"\x00", b"x\x9c\x03", "\x1b[2J")

    def probe(chance: random.Random) -> str:
        path = _write(_no_journal(folder / "rows.sqlite"), whole)
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


def _run_json(pool: Path, run: Path, folder: Path) -> Probe:
    from radin.run.directory import RunDirectory

    whole = json.loads((run / "run.json").read_text())
    place = folder / "a-run"
    place.mkdir()

    def probe(chance: random.Random) -> str:
        _write(place / "run.json", resealed_json(chance, whole))
        with RunDirectory(place, dict(whole["identity"])) as directory:
            directory.read().get("settings", {}).get("rates")
        return "ok"

    return probe


def _run_json_names(pool: Path, run: Path, folder: Path) -> Probe:
    """Where the members' names are looked up by ``radin rank RUN/outputs``."""
    whole = json.loads((run / "run.json").read_text())
    place = folder / "ranked"
    (place / "outputs").mkdir(parents=True)
    for path in [*_members(run)[:2], run / "outputs" / "targets.safetensors"]:
        shutil.copy(path, place / "outputs")

    def probe(chance: random.Random) -> str:
        _write(place / "run.json", resealed_json(chance, whole))
        command("rank", "--outputs", place / "outputs", "--count", 5, "--top", 2, "--source", "top-k")
        return "ok"

    return probe


def _result(pool: Path, run: Path, folder: Path) -> Probe:
    whole = json.loads((run / "result.json").read_text())
    place = folder / "finished"
    place.mkdir()

    def probe(chance: random.Random) -> str:
        _write(place / "result.json", resealed_json(chance, whole))
        command("report", place, *(["--json"] if chance.random() < 0.5 else []))
        return "ok"

    return probe


def _recipe(pool: Path, run: Path, folder: Path) -> Probe:
    whole = json.loads((run / "recipe.json").read_text())

    def probe(chance: random.Random) -> str:
        path = _write(folder / "recipe.json", resealed_json(chance, whole))
        output = folder / "averaged.safetensors"
        command("average", pool / "members", "--recipe", path, "-o", output, "--force")
        return "ok"

    return probe


def _soup(pool: Path, run: Path, folder: Path) -> Probe:
    """What a soup says of its own recipe, which is read to know whether it is still the best."""
    from radin import Recipe
    from radin.weights import read_recipe

    whole = (run / "soup.safetensors").read_bytes()
    prints = [m["fingerprint"] for m in json.loads((run / "result.json").read_text())["uniform"]["recipe"]["members"]]

    def probe(chance: random.Random) -> str:
        path = _write(folder / "soup.safetensors", _damaged_tensors(chance, whole))
        Recipe.from_json(read_recipe(path), prints)
        return "ok"

    return probe


def _scores(pool: Path, run: Path, folder: Path) -> Probe:
    from radin.engine.scores import read_scores

    names = [f"run-{k}" for k in range(5)]
    paths = [folder / "members" / f"{name}.safetensors" for name in names]
    forms: list[tuple[str, Any]] = [
        ("scores.json", [{"name": name, "score": 0.5 + k / 10} for k, name in enumerate(names)]),
        ("scores.json", dict.fromkeys(names, 0.5)),
        (
            "scores.json",
            {"members": [{"name": n, "path": str(p), "score": 0.5} for n, p in zip(names, paths, strict=True)]},
        ),
        ("scores.csv", "name,score\n" + "".join(f"{name},0.{k}\n" for k, name in enumerate(names))),
        ("scores.txt", "".join(f"{path}\t0.{k}\n" for k, path in enumerate(paths))),
        ("scores.csv", "model;other;value\n" + "".join(f'"{name}";x;0.{k}\n' for k, name in enumerate(names))),
    ]

    def probe(chance: random.Random) -> str:
        file, value = chance.choice(forms)
        data = damaged_json(chance, value) if file.endswith(".json") else damaged_bytes(chance, value.encode(), 200)
        if not file.endswith(".json") and chance.random() < 0.1:
            data += chance.choice(
                (b"~x,1\n", b"~nobody/x\t0.5\n", b'"' + b"x" * 200_000 + b'",1\n', b"\x00,1\n", b"," * 9999)
            )
        read_scores(_write(folder / file, data), names, paths)
        return "ok"

    return probe


def _answer(pool: Path, run: Path, folder: Path) -> Probe:
    from radin.engine.answers import parse

    forms: list[Any] = [
        {
            "score": 0.9,
            "stderr": 0.01,
            "values": [1, 0, 1, 1],
            "further": {"test": 0.8, "x": {"score": 1, "stderr": 2}},
        },
        {"score": 0.75, "values": [True, False, None, 1]},
        {"score": 0.912, "examples": 100},
    ]
    texts = (
        "0.912",
        "nan",
        "-inf",
        "1e999",
        "91.2 %",
        "0,912",
        "tensor(0.9)",
        "accuracy: 0.9",
        "9" * 5000,
        "1_0",
        "٣",
        "²",
    )

    def probe(chance: random.Random) -> str:
        if chance.random() < 0.3:
            text = damaged_bytes(chance, chance.choice(texts).encode()).decode(errors="replace")
        else:
            text = damaged_json(chance, chance.choice(forms)).decode(errors="replace")
        text = (
            chance.choice(("", "epoch 1\n", "{\n" * 60, "\x1b[31m")) + text + chance.choice(("", "\n", "\n\n", "\x00"))
        )
        found = parse(text, whole=chance.random() < 0.8)
        repr(found.answer(0.1))
        return "ok"

    return probe


def _remembered(pool: Path, run: Path, folder: Path) -> Probe:
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


def _command_text(pool: Path, run: Path, folder: Path) -> Probe:
    from radin import Command
    from radin.engine.template import Template

    parts = ("./score.sh ", "{soup}", "{slot}", "{examples}", "{out}", "{", "}", "{{", "}}", "{soup!r}", "{soup:>9}")
    parts += (
        "{0}",
        "{}",
        "'",
        '"',
        "\\",
        "$(",
        "`",
        "\x00",
        "\n",
        "{soup.x}",
        "{soup[0]}",
        "é",
        "\ud800",
        "{a" * 50,
        " " * 999,
    )

    def probe(chance: random.Random) -> str:
        text = "".join(chance.choice(parts) for _ in range(chance.randint(0, 8)))
        if chance.random() < 0.5:
            text += "{soup}"
        made = Command(
            text, timeout=chance.choice((None, 1, 0, -1, float("nan"), "x")), jobs=chance.choice((1, 1, 0, "2"))
        )
        Template.parse(made.command).fill(dict.fromkeys(("soup", "slot", "examples", "out"), "/a b'\"$x"))
        return "ok"

    return probe


def _options(pool: Path, run: Path, folder: Path) -> Probe:
    """Text after options of the command line, up to where the work would begin."""
    numbers = (
        "0",
        "-1",
        "1e308",
        "1e308,1e308,0,0,0,0,0",
        "nan",
        "inf",
        "",
        "x",
        "9" * 400,
        "1_0",
        "0x10",
        "٣",
        "1.5",
        " 1",
        "1,,1",
    )
    ratios = (
        *numbers,
        "1,1,1,1,1,1,1",
        "0,0,0,0,0,0,0",
        "-1,1,1,1,1,1,1",
        "nan,1,1,1,1,1,1",
        "run-00=1",
        "run-00=1,run-00=2",
        "a=b",
        "=",
    )
    names = ("count", "keep", "finish", "lambda", "", "x", "subsets", "candidates", "prior")

    def probe(chance: random.Random) -> str:
        members = pool / "members"
        if chance.random() < 0.5:
            out = folder / "averaged.safetensors"
            command(
                "average",
                members,
                chance.choice(("--weights", "--ratios")),
                chance.choice(ratios),
                "-o",
                out,
                "--force",
            )
            return "ok"
        strategy = chance.choice(("adaptive", "paper", "random", "top-k", "greedy", "x", ""))
        given = ["-O", f"{chance.choice(names)}={chance.choice(numbers)}"] if chance.random() < 0.7 else []
        if chance.random() < 0.4:
            given += ["--seed", chance.choice(numbers)]
        if chance.random() < 0.3:
            given += [chance.choice(("--device", "--precision", "--batch-size", "--jobs")), chance.choice(numbers)]
        out = folder / "no-run"
        shutil.rmtree(out, ignore_errors=True)
        budget = "1" if chance.random() < 0.8 else chance.choice(("0", "-1", "1e308", "", "x"))
        task = pool / ("task.py" if chance.random() < 0.15 else "none.py")
        command("cook", members, "--task", task, "--budget", budget, "--out", out, "--strategy", strategy, *given)
        return "ok"

    return probe


_TASK = """
import sys
import torch
from torch import nn
def _net(): return nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))
def _data(n=20): return [(torch.arange(64.0 * n).reshape(n, 64).sin(), torch.arange(n) % 10)]
def model(): return _net()
def validation(): return _data()
class _Odd:
    def __getattr__(self, name): raise ValueError("odd")
def _raise(*a, **k): raise ZeroDivisionError("user")
"""
_ODD = (
    "None", "0", "-1", "'x'", "[]", "{}", "()", "_Odd()", "_Odd", "_raise", "lambda: None", "lambda: 3",
    "lambda: [3]", "lambda: [(1, 2)]", "lambda: [(1, 2, 3)]", "lambda: [None]", "lambda: iter(())", "lambda: {}",
    "lambda: 'text'", "lambda *a: 'text'", "lambda *a: float('nan')", "lambda *a: None", "lambda *a: [1, 2]",
    "lambda *a: 10**400", "b'x'", "1e308", "True", "object()", "type", "print", "_net()", "lambda: _net",
    "lambda: nn.Linear(3, 3)", "lambda: torch.zeros(3)", "lambda: [(torch.zeros(0, 64), torch.zeros(0))]",
    "lambda: [(torch.zeros(2, 64), ['a', 'b'])]", "lambda: [(torch.zeros(2, 64), torch.tensor([0, 99]))]",
    "lambda: [(torch.zeros(2, 64), torch.zeros(2, 3, 4))]", "lambda: [(torch.zeros(2, 64), torch.zeros(3))]",
    "lambda: [({'x': torch.zeros(2, 64)}, torch.zeros(2))]", "lambda: {'a': 3}", "lambda: {'a': _raise}",
    "lambda: {3: _data()}", "lambda: {'\\x1b[2J': _data()}", "lambda: sys.exit()", "lambda: sys.exit(3)",
    "lambda: (_ for _ in [1])", "lambda: torch.utils.data.TensorDataset(torch.zeros(2, 64))",
)  # fmt: skip
_NAMES = ("model", "validation", "test", "shifts", "calibration", "metric", "higher_is_better", "outputs")


def _task(pool: Path, run: Path, folder: Path) -> Probe:
    first = min((pool / "members").glob("*"))

    def probe(chance: random.Random) -> str:
        lines = [f"{chance.choice(_NAMES)} = {chance.choice(_ODD)}" for _ in range(chance.choice((1, 1, 2, 3)))]
        lines += [chance.choice(("sys.exit()", "1/0", "x = (", "del model"))] * (chance.random() < 0.04)
        path = _write(folder / "task.py", (_TASK + "\n".join(lines)).encode())
        command("evaluate", first, "--task", path)
        return "ok"

    return probe


_READERS: dict[str, Callable[[Path, Path, Path], Probe]] = {
    "outputs .npy": _outputs_npy,
    "outputs .safetensors": _outputs_safetensors,
    "targets": _targets,
    "compiled margins": _compiled,
    "ledger": _ledger,
    "ledger, rows": _ledger_rows,
    "run.json": _run_json,
    "run.json, rank": _run_json_names,
    "result.json": _result,
    "recipe.json": _recipe,
    "soup's recipe": _soup,
    "scores file": _scores,
    "a program's answer": _answer,
    "remembered fingerprint": _remembered,
    "command": _command_text,
    "options": _options,
    "task file": _task,
}
NAMES = tuple(_READERS)
