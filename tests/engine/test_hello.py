"""Whether a worker elsewhere has the same code and files, said before it is given any work."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import radin
import toy
from radin.engine.crew import Plan
from radin.engine.hello import Hello, import_places
from radin.errors import CheckpointError, RadinError


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    toy.build(tmp_path / "pool", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Plan(radin.Pool.open(tmp_path / "pool"), str(tmp_path / "pool" / "task.py"))


def met(asked: Hello) -> Hello:
    """As it comes back from a worker."""
    return pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(asked)).answer("node-7")))


def test_the_same_is_taken(plan):
    asked = Hello.here(plan)
    found = met(asked)
    asked.require(found)
    assert found.files == {}
    assert list(asked.code) == [plan.source]


@pytest.mark.parametrize(
    ("name", "there"), [("radin", "0.0.9"), ("Python", "3.10.2"), ("torch", "2.1.0+cu121")], ids=lambda text: text[:6]
)
def test_another_version_is_named_with_its_node(plan, name, there):
    asked = Hello.here(plan)
    found = met(asked)
    with pytest.raises(RadinError, match=f"node-7 has {name} {there.replace('+', '.')}, this machine has"):
        asked.require(replace(found, versions={**found.versions, name: there}))


def test_small_differences_of_versions_are_none(plan):
    asked = Hello.here(plan)
    found = met(asked)
    torch = found.versions["torch"].split("+")[0] + "+cu999"
    python = ".".join(found.versions["Python"].split(".")[:2]) + ".99"
    asked.require(replace(found, versions={**found.versions, "torch": torch, "Python": python}))


def test_a_member_that_is_not_there_is_named_with_its_node(plan):
    asked = Hello.here(plan)
    plan.pool[1].path.unlink()
    message = r"node-7 cannot see .*run-1.safetensors: members must be on storage that all nodes share"
    with pytest.raises(RadinError, match=message):
        asked.require(met(asked))


def test_another_file_of_the_same_name_is_noticed(plan):
    asked = Hello.here(plan)
    os.utime(plan.pool[0].path, ns=(0, 0))
    with pytest.raises(RadinError, match=r"node-7 has another file as .*run-0.safetensors"):
        asked.require(met(asked))


def test_another_task_file_is_noticed(plan):
    asked = Hello.here(plan)
    Path(plan.source).write_text("raise SystemExit")
    with pytest.raises(RadinError, match=r"task.py is another file on node-7"):
        asked.require(met(asked))


def test_a_programs_files_are_code_too(plan, tmp_path):
    (tmp_path / "score.sh").write_text("echo 1")
    asked = Hello.here(replace(plan, source=radin.Command("sh ./score.sh {soup}")))
    asked.require(met(asked))
    (tmp_path / "score.sh").unlink()
    with pytest.raises(RadinError, match=r"node-7 cannot see .*score.sh"):
        asked.require(met(asked))


def test_a_folder_that_is_not_there_is_named(plan, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = replace(Hello.here(plan), folder=str(tmp_path / "gone"))
    with pytest.raises(RadinError, match=r"node-7 cannot see the folder .*gone"):
        asked.require(met(asked))


def test_copies_of_urls_are_fetched_where_they_lack(tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("RADIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    files = MemoryFileSystem()
    for path in toy.build(tmp_path / "pool", 2):
        files.pipe_file(f"/bucket/a run/{path.name}", path.read_bytes())
    pool = radin.Pool.open("memory://bucket/a run/*.safetensors")
    asked = Hello.here(Plan(pool, radin.Command("true {soup}")))
    assert list(asked.urls.values()) == [f"memory://bucket/a run/run-{k}.safetensors" for k in range(2)]
    shutil.rmtree(tmp_path / "cache")
    asked.require(met(asked))
    assert pickle.loads(pickle.dumps(pool)).tensors(1).keys() == pool.tensors(1).keys()
    shutil.rmtree(tmp_path / "cache")
    files.rm("/bucket/a run/run-1.safetensors")
    with pytest.raises(RadinError, match=r"node-7 cannot see .*run-1.safetensors(?s:.*)could not be copied there"):
        asked.require(met(asked))


def test_a_member_elsewhere_is_known_by_its_content(plan, tmp_path):
    there = pickle.loads(pickle.dumps(plan.pool))[0]
    status = there.path.stat()
    assert there._seen == plan.pool[0]._seen  # states travel
    shutil.copy(there.path, tmp_path / "copy")  # another inode, as on another node
    os.replace(tmp_path / "copy", there.path)
    os.utime(there.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    there.require_unchanged()
    content = bytearray(there.path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "copy").write_bytes(content)
    os.replace(tmp_path / "copy", there.path)
    os.utime(there.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match="other weights"):
        there.require_unchanged()


def test_workers_import_from_where_the_driver_does(plan, monkeypatch, tmp_path):
    (tmp_path / "first").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    sys.path += [str(tmp_path / "gone"), str(tmp_path)]
    places = import_places()
    assert places[0] == str(tmp_path / "first")
    assert places[-1] == str(tmp_path)
    assert not any("site-packages" in place or place.endswith("gone") for place in places)
    asked = Hello.here(plan)
    del sys.path[-1]
    met(asked)
    assert sys.path[-1] == str(tmp_path)
