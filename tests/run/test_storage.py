"""What the operating system refuses is said as what it is, and the same command goes on when the cause is mended."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import radin
import toy
from radin.errors import StorageError
from radin.files import storage_error, told
from radin.run.ledger import Ledger

COOK = """
import os, resource, sys
from pathlib import Path
import radin, radin.cli, torch
kind, limit = sys.argv[1], int(sys.argv[2])
import radin.run.cooking, radin.engine.local  # what is imported later opens files too
if kind == "size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv[1:3] = []
if kind == "nobody":
    try:
        radin.cli.main()  # imports all that another user may not be able to read
    except SystemExit:
        os.setuid(65534)
radin.cli.main()
"""


FEW_FILES = """
import os, resource
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + {0}, used + {0}))
"""


def arguments(folder: Path, out: Path) -> list[object]:
    return ["cook", folder, "--task", folder / "task.py", "--budget", 2, "--strategy", "paper", "--out", out]


def cook(folder: Path, out: Path, kind: str, limit: int = 0) -> subprocess.CompletedProcess[str]:
    """In a process that is started, with pipes: what it prints must not be a file that may not grow."""
    places = [str(Path(toy.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "RADIN_CACHE": "off"}
    command = [sys.executable, "-c", COOK, kind, str(limit), *map(str, arguments(folder, out))]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one message."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "not a radin" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("radin: ")]
    assert "nothing that was finished is lost" in message
    return message


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize("limit", [100, 4_000, 20_000])
def test_files_that_may_not_grow_are_named_and_the_run_goes_on(toy_folder, tmp_path, commands, limit):
    message = refused(cook(toy_folder, tmp_path / "run", "size", limit))
    assert str(tmp_path / "run") in message
    assert "files may not become so large here" in message or "input/output error" in message  # SQLite's words
    assert commands.run(arguments(toy_folder, tmp_path / "run")).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_too_few_open_files_are_said_with_the_limit(toy_folder, tmp_path, commands):
    for limit in (1, 2):
        message = refused(commands.run(arguments(toy_folder, tmp_path / "run"), before=FEW_FILES.format(limit)))
        assert "too many files are open" in message or "no permission" in message
    assert commands.run(arguments(toy_folder, tmp_path / "run")).returncode == 0


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root may become another user")
def test_a_folder_without_permission_is_said_to_be_one(toy_folder, tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    for path in toy_folder.iterdir():
        path.chmod(0o644)
    for path in [toy_folder, tmp_path, *tmp_path.parents, *toy_folder.parents]:
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    message = refused(cook(toy_folder, tmp_path / "open" / "run", "nobody"))
    assert "permission" in message


def test_a_full_disk_while_outputs_are_made(toy_pool, toy_task, tmp_path, monkeypatch):
    from radin.outputs.store import PendingOutputs

    append, left = PendingOutputs.append, [3]

    def full(self, outputs, data):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, outputs, data)

    with monkeypatch.context() as patch:
        patch.setattr(PendingOutputs, "append", full)
        with pytest.raises(StorageError, match=r"outputs cannot be written: no space is left on the disk \(.* free\)"):
            radin.cook(toy_pool, toy_task, budget=1, out=tmp_path / "run")
    assert radin.cook(toy_pool, toy_task, budget=1, out=tmp_path / "run").passes.soups == 1


def test_every_cause_has_a_sentence(tmp_path):
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EMFILE, errno.EIO, errno.ENXIO):
        message = str(storage_error(OSError(number, os.strerror(number)), tmp_path / "x", needs=5))
        assert message.startswith(f"{tmp_path / 'x'} cannot be written: ")
        assert message.endswith("give the same command again: nothing that was finished is lost.")
    with (
        pytest.raises(StorageError, match="x cannot be read: the disk gave an input/output error"),
        told(tmp_path / "x", doing="read"),
    ):
        raise RuntimeError("Error: I/O error: Input/output error (os error 5)")
    with pytest.raises(RuntimeError, match="mine"), told(tmp_path):
        raise RuntimeError("mine")


def test_why_sqlite_cannot_open_its_journal_is_found_out(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(StorageError, match="cannot be written: it is not there, or its folder is gone"):
        ledger.start_session({})
    (tmp_path / "moved").rename(tmp_path / "run")
    ledger.start_session({})
    open_ = os.open

    def too_many(path, flags, *more):
        if str(path).endswith("-journal"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return open_(path, flags, *more)

    monkeypatch.setattr(os, "open", too_many)
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    assert "too many files are open; this process may have" in str(ledger._failed(error))
    monkeypatch.undo()
    assert "SQLite could not open it, or its journal" in str(ledger._failed(error))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["ledger.sqlite"]
