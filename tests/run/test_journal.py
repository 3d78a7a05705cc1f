"""The ledger as whole files: the same run, nothing lost by a kill between any two steps, damage named and kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import radin
import toy
from radin import locks
from radin.checksums import opened, sealed
from radin.errors import RadinError, RunError
from radin.question import Answer, answer_from_values
from radin.run.ledger import Ledger
from radin.run.record import RunRecord
from radin.run.status import RunStatus

BUDGET = 4
RECIPE = {"members": [{"name": "a", "fingerprint": "f", "weight": 1.0}]}


@pytest.fixture(scope="module")
def task():
    return radin.Task(model=toy.model, validation=lambda: toy.batches(toy.VALIDATION))


@pytest.fixture(scope="module")
def whole(toy_pool, task, tmp_path_factory):
    """A finished run with a journal."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADIN_LEDGER", "journal")
        radin.cook(toy_pool, task, budget=BUDGET, out=out)
    return out


def test_a_run_with_a_journal_is_the_same_run(toy_pool, task, whole, tmp_path):
    radin.cook(toy_pool, task, budget=BUDGET, out=tmp_path / "run")
    assert toy.what_matters(whole) == toy.what_matters(tmp_path / "run")
    assert not (whole / "ledger.sqlite").exists()
    assert not (whole / ".lease").exists()
    notes = json.loads((whole / "result.json").read_text())["notes"]
    said = f"the ledger is kept as whole files in {whole / 'journal'}, not as a SQLite database: RADIN_LEDGER=journal"
    assert f"{said} asks for that" in notes
    status, record = RunStatus.read(whole), RunRecord.read(whole)
    assert (status.state, status.problems) == ("finished", ())
    other = RunRecord.read(tmp_path / "run")
    assert [soup.recipe for soup in record.soups] == [soup.recipe for soup in other.soups]
    assert [a.score for a in record.singles] == [a.score for a in other.singles]


def test_a_run_goes_on_without_being_asked_for_a_journal_again(toy_pool, task, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run" / "journal").iterdir())
    radin.cook(toy_pool, task, budget=BUDGET + 2, out=tmp_path / "run")
    after = sorted(path.name for path in (tmp_path / "run" / "journal").iterdir())
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert not (tmp_path / "run" / "ledger.sqlite").exists()


def test_a_database_that_is_there_becomes_a_journal(toy_pool, task, tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = radin.cook(toy_pool, task, budget=2, out=out)
    monkeypatch.setenv("RADIN_LEDGER", "journal")
    again = radin.cook(toy_pool, task, budget=2, out=out)
    assert again.best.score == first.best.score
    assert again.passes.soups == first.passes.soups
    assert not (out / "ledger.sqlite").exists()
    ledger = Ledger(out / "ledger.sqlite", read_only=True)
    assert [q.number for q in ledger.questions()] == list(range(1, len(ledger.questions()) + 1))


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "empty"])
@pytest.mark.parametrize("table", ["evaluations", "questions", "runs", "sessions"])
def test_a_damaged_entry_is_put_aside_named_and_asked_again(toy_pool, task, whole, tmp_path, how, table):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    entries = sorted((out / "journal").glob("*.json"))
    path = next(p for p in reversed(entries) if table in json.loads(p.read_text())["rows"])
    text = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"flipped": text.replace(b"0.", b"1.", 1), "cut": text[: len(text) // 2], "empty": b""}[how])
    if how == "flipped" and path.read_bytes() == text:
        path.write_bytes(text[:-3] + b"x" + text[-2:])
    status = RunStatus.read(out)
    last = path == entries[-1] and how == "gone"
    assert last or any(str(path) in problem for problem in status.problems)
    result = radin.cook(toy_pool, task, budget=BUDGET, out=out)
    assert toy.what_matters(out) == toy.what_matters(whole)
    noted = [note for note in result.notes if str(path) in note]
    assert last or len(noted) == 1
    if path != entries[-1]:
        assert f"It held {table} " in noted[0] or "; " + table in noted[0]
    if how != "gone":
        aside = out / "journal" / "damaged" / path.name
        assert aside.read_bytes() != text
        assert str(aside.parent) in noted[0]
    assert RunStatus.read(out).problems == ()
    assert not any(str(path) in note for note in radin.cook(toy_pool, task, budget=BUDGET, out=out).notes)


def test_another_runs_entry_is_refused(toy_pool, task, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = out / "journal" / "00000003.json"
    value = opened(json.loads(path.read_text()))
    path.write_text(json.dumps(sealed({**value, "run": "0" * 32})))
    with pytest.raises(RunError, match=r"00000003\.json is another run's: it was put here"):
        radin.cook(toy_pool, task, budget=BUDGET, out=out)


def work(folder: Path, said: int) -> None:
    """Ask and tell, writing one byte to ``said`` for each step that returned."""
    ledger = Ledger(folder / "ledger.sqlite", run="mine")
    os.write(said, b"o")
    session = ledger.start_session({"seed": 0})
    os.write(said, b"s")
    for k in range(3):
        number = ledger.ask(session, "search", f"soup {k}", RECIPE, 4, None)
        os.write(said, b"a")
        ledger.tell(number, answer_from_values(np.array([1.0, 0.0, 1.0, 0.25 * k]), 1.0, "data"))
        os.write(said, b"t")


def test_a_kill_between_any_two_steps_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIN_LEDGER", "journal")
    killed = 0
    for at in range(1, 80):
        folder = tmp_path / str(at)
        folder.mkdir()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            calls = 0
            for name in ("open", "link", "unlink", "fsync", "rename", "replace", "mkdir"):
                real = getattr(os, name)

                def step(*arguments, real=real, at=at, **given):
                    nonlocal calls
                    calls += 1
                    if calls == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **given)

                setattr(os, name, step)
            work(folder, write)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            steps = file.read().decode()
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        ledger = Ledger(folder / "ledger.sqlite", run="mine")
        asked = ledger.questions()
        told = [q for q in asked if q.answer is not None]
        assert steps.count("a") <= len(asked) <= steps.count("a") + 1, at
        assert steps.count("t") <= len(told) <= steps.count("t") + 1, at
        assert [q.answer.score for q in told] == [(2 + 0.25 * k) / 4 for k in range(len(told))]
        assert not [note for note in ledger.notes if "damaged" in note], at
        ledger.close()
        if not os.WIFSIGNALED(status):
            break
    assert killed > 40
    assert not os.WIFSIGNALED(status)  # the last one came to its end


def test_two_writers_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIN_LEDGER", "journal")
    first = Ledger(tmp_path / "ledger.sqlite", run="mine")
    second = Ledger(tmp_path / "ledger.sqlite", run="mine")
    first.start_session({})
    with pytest.raises(RunError, match="was written by another process, which works on this run too"):
        second.start_session({})
    first.add("x", RECIPE, "member", "validation", Answer(0.5, 0.1, 4, 1.0))
    assert len(Ledger(tmp_path / "ledger.sqlite", run="mine").sessions()) == 1


def test_a_lease_is_one_process_s_and_a_dead_one_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIN_LEDGER", "journal")
    first, second = locks.FolderLock(tmp_path), locks.FolderLock(tmp_path)
    first.acquire()
    with pytest.raises(locks.InUseError, match=rf"in use by another radin process: {os.getpid()} of .* is free 120 s"):
        second.acquire()
    monkeypatch.setenv("RADIN_LEDGER", "sqlite")  # whoever trusts locks looks for a lease too
    with pytest.raises(locks.InUseError, match="in use"):
        locks.FolderLock(tmp_path).acquire()
    monkeypatch.setenv("RADIN_LEDGER", "journal")
    first.release()
    second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []
    child = os.fork()
    if not child:
        locks.FolderLock(tmp_path).acquire()
        os._exit(0)  # as if it were killed
    os.waitpid(child, 0)
    third = locks.FolderLock(tmp_path)
    third.acquire()
    assert third.notes == [f"{tmp_path} was taken over from process {child} of {locks._host()}, which is gone"]
    third.release()
    lease = tmp_path / ".lease"
    lease.write_text(json.dumps({"host": "other", "process": 7, "token": "t"}))
    with pytest.raises(locks.InUseError, match="7 of other"):
        third.acquire()
    os.utime(lease, (0, time.time() - 500))
    third.acquire()
    assert "process 7 of other, which had not said for 500 s" in third.notes[-1] or "501 s" in third.notes[-1]
    third.release()


def test_without_hard_links_a_name_is_taken_first(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(PermissionError(1, "no links")))
    assert locks.put(tmp_path / "a", b"1")
    assert not locks.put(tmp_path / "a", b"2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"1")]


def test_a_url_is_no_place_for_a_run(toy_pool, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="s3://bucket/run is a URL; a run lives in a folder"):
        radin.cook(toy_pool, task, budget=BUDGET, out="s3://bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mode_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIN_LEDGER", "paper")
    with pytest.raises(RadinError, match="RADIN_LEDGER must be journal or sqlite"):
        Ledger(tmp_path / "ledger.sqlite")
