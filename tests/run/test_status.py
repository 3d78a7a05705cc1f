"""How far a run is, seen from beside it: at every stage, and without a trace in its folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import radin
from radin.errors import RunError
from radin.report.status import status_lines
from radin.run.directory import RunDirectory
from radin.run.status import RunStatus, lock_holder, snapshot

SLOW = """
import time
import toy
import torch
class Slow(torch.nn.Sequential):
    def forward(self, x):
        time.sleep(0.004)
        return super().forward(x)
def model(): return Slow(*toy.model())
def validation(): return toy.batches(toy.VALIDATION, 20)
def calibration(): return toy.batches(toy.TRAINING)
"""
linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who holds a lock is told by /proc/locks alone")


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(toy_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("status") / "run"
    return out, radin.cook(toy_folder, toy_folder / "task.py", budget=4, out=out)


def test_a_finished_run_is_told_as_its_result_says_and_left_as_it_was(finished):
    out, result = finished
    before = content(out)
    status = RunStatus.read(out)
    assert (status.stage, status.members_done, status.members) == ("finished", 6, 6)
    assert status.state == "finished"
    assert status.spent == pytest.approx(result.passes.soups, abs=1e-9)
    assert status.left == pytest.approx(4 - result.passes.soups, abs=1e-9)
    assert (status.started, status.complete) == (result.passes.started, len(result.evaluations))
    assert (status.best.score, status.best.stderr) == (result.best.score, result.best.stderr)
    assert status.best_single.score == result.best_single.score
    assert content(out) == before


def test_a_run_given_more_budget_and_stopped_goes_on_from_there(finished, tmp_path):
    out, result = finished
    shutil.copytree(out, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run", {})
    with directory:
        directory.record(directory.read()["settings"] | {"budget": 9})
    status = RunStatus.read(tmp_path / "run")
    assert status.left == pytest.approx(9 - result.passes.soups, abs=1e-9)
    assert status.state in ("stopped", "unfinished")
    assert status.stage != "finished"


@pytest.mark.clock
@pytest.mark.timeout(900)
@pytest.mark.long
@linux
def test_a_run_in_work_and_then_killed(toy_folder, tmp_path, commands):
    (tmp_path / "slow.py").write_text(SLOW)
    out = tmp_path / "run"
    process = commands.start(["cook", toy_folder, "--task", tmp_path / "slow.py", "--budget", 40, "--out", out])
    seen = []
    try:
        end = time.monotonic() + 200
        while time.monotonic() < end and process.poll() is None:
            if out.exists() and (found := _read(out)) is not None:
                seen.append(found)
                if found.stage == "search" and (found.spent or 0) > 2 and found.complete:
                    break
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before it was seen: {process.err}"
        last = seen[-1]
        assert (last.state, last.held, last.process) == ("working", True, process.pid)
        assert last.members_done == 6
        assert last.seconds_left > 0
        assert last.best.score >= last.best_single.score
        spent = [found.spent for found in seen if found.spent is not None]
        assert spent == sorted(spent)
        assert not any(found.problems for found in seen)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = content(out)
    status = RunStatus.read(out)
    assert (status.state, status.held) == ("stopped", False)
    assert status.seconds_left is None
    assert status.spent >= last.spent
    assert content(out) == before


def _read(out: Path) -> RunStatus | None:
    try:
        return RunStatus.read(out)
    except RunError:  # before anything is there
        return None


@pytest.mark.parametrize("name", ["run.json", "ledger.sqlite", "result.json"])
def test_damage_is_told_with_the_file_and_is_no_error(finished, tmp_path, name):
    out, _ = finished
    shutil.copytree(out, tmp_path / "run")
    path = tmp_path / "run" / name
    if name == "ledger.sqlite":  # a score that was never written so
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE evaluations SET score = score + 0.01 WHERE id = 1")
    else:
        raw = bytearray(path.read_bytes())
        for place in range(len(raw) // 3, len(raw) // 3 + 40):
            raw[place] ^= 0x15
        path.write_bytes(raw)
    status = RunStatus.read(tmp_path / "run")
    assert status.state == "damaged"
    assert name in status.problems[0]
    assert any(line.startswith("damaged:") for line in status_lines(status))


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        RunStatus.read(tmp_path)


@linux
def test_the_holder_of_a_lock(tmp_path):
    assert lock_holder(tmp_path / "run" / ".lock") == (False, None)
    with RunDirectory(tmp_path / "run", {}):
        assert lock_holder(tmp_path / "run" / ".lock") == (True, os.getpid())
        assert RunStatus.read(tmp_path / "run").state == "working"
    assert lock_holder(tmp_path / "run" / ".lock") == (False, None)


def test_a_change_that_a_kill_left_half_done_is_undone_in_the_copy_alone(tmp_path):
    path = tmp_path / "ledger.sqlite"
    program = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('CREATE TABLE t (x)')\n"
        "db.execute('INSERT INTO t VALUES (zeroblob(20000))')\n"
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN')\n"
        "db.execute('UPDATE t SET x = zeroblob(90000)')\n"
        "for k in range(50): db.execute('INSERT INTO t VALUES (zeroblob(9000))')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    journal = tmp_path / "ledger.sqlite-journal"
    assert journal.stat().st_size > 0
    before = content(tmp_path)
    with sqlite3.connect(":memory:") as db:
        db.deserialize(snapshot(path))
        assert db.execute("SELECT count(*), max(length(x)) FROM t").fetchone() == (1, 20000)
    assert content(tmp_path) == before


def test_the_command(finished, radin_command):
    out, result = finished
    found = json.loads(radin_command("status", out, "--json").stdout)
    assert found["best"]["score"] == result.best.score
    assert found["left"] == pytest.approx(4 - result.passes.soups, abs=1e-9)
    shown = radin_command("status", out)
    assert shown.returncode == 0
    assert f"accuracy {result.best.score:.4f} ± {result.best.stderr:.4f}" in shown.stdout
    assert "6 of 6 done" in shown.stdout
