"""Ray: what is refused before anything starts, and whole runs on a cluster whose workers and nodes are killed.

The runs are those of tests/ray_runs.py, all on one cluster, in a process with a network of its own where that is
permitted: Ray listens on ports, and nothing of it is to reach beyond the test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import radin
import ray_runs
import toy
from radin.engine import ray_cluster
from radin.engine.ray_cluster import Ray, asked, room, there
from radin.engine.ray_crew import _why
from radin.errors import RadinError

NO_RAY = importlib.util.find_spec("ray") is None
needs_ray = pytest.mark.skipif(NO_RAY, reason="needs Ray: pip install ray")

RUNS = Path(ray_runs.__file__)
ALONE = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]


def test_without_ray_the_command_that_installs_it_is_said(monkeypatch, toy_folder, toy_pool, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RadinError, match=r"--engine ray needs Ray: pip install ray"):
        radin.cook(toy_pool, toy_folder / "task.py", budget=2, out=tmp_path / "run", engine=Ray())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"cpus_per_worker": 0}, r"cpus_per_worker must be a number from 0.01 on; got 0"),
        ({"gpus_per_worker": -1}, r"gpus_per_worker must be a number from 0 on; got -1"),
        ({"gpus_per_worker": 1.5}, r"gpus_per_worker must be a whole number, or a share of one GPU; got 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(RadinError, match=message):
        Ray(**settings)


@needs_ray
def test_an_address_where_nobody_listens_is_said_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(RadinError, match=rf"no Ray cluster at 127.0.0.1:{port}: Connection refused"):
        Ray(address=f"127.0.0.1:{port}").count()
    with pytest.raises(RadinError, match="'head' is no address of a Ray cluster: 'auto', 'host:port'"):
        Ray(address="head").count()
    assert time.monotonic() - started < 15


def test_how_many_workers_fit_and_how_it_is_said():
    nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
    assert [room(node, 2.0, 0.5) for node in nodes] == [8, 1, 8]
    assert [room(node, 1.0, 0.0) for node in nodes] == [16, 3, 16]
    assert asked(1.0, 0.5) == "1 CPU and 0.5 GPUs"
    assert there(nodes) == "2 nodes with 16 CPUs and 4 GPUs; 1 node with 3 CPUs and 4 GPUs"
    assert Ray()._shares(nodes) == (1.0, 1.0)
    assert Ray(workers=24)._shares(nodes) == (1.0, 0.5)
    assert Ray(workers=24, gpus_per_worker=0)._shares(nodes) == (1.0, 0)
    assert Ray(workers=24)._shares([{"CPU": 2.0}]) == (1.0, 0.0)


@needs_ray
def test_without_an_address_this_machine_is_counted(monkeypatch):
    monkeypatch.setattr(ray_cluster, "_this_machine", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert Ray().count() == 2
    assert Ray(gpus_per_worker=0.5).count() == 4
    assert Ray(gpus_per_worker=0, cpus_per_worker=2).count() == 4
    assert Ray(workers=5).count() == 5


def test_why_an_actor_is_gone_is_said_in_a_few_words():
    usual = "The actor died unexpectedly. Some causes: (1) the process was killed by the OOM killer due to high memory"
    assert _why(RuntimeError(usual)) == "its process ended"
    assert _why(RuntimeError("Worker killed: the node was running low on memory")) == "out of memory"
    assert "cannot import radin" in _why(RuntimeError("ModuleNotFoundError: No module named 'radin'"))


@pytest.fixture(scope="module")
def came(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each run."""
    if NO_RAY:
        pytest.skip("needs Ray: pip install ray")
    folder = tmp_path_factory.mktemp("ray")
    toy.build(folder / "pool")
    alone = ALONE if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0 else []
    log, out = folder / "log", folder / "out"
    with log.open("w") as file, out.open("w") as printed:
        subprocess.run(
            [*alone, sys.executable, str(RUNS), str(folder)],
            stdout=printed,
            stderr=file,
            timeout=900,
            check=False,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )
    if not (folder / "came.json").exists():
        pytest.fail(f"no cluster could be started: {log.read_text()[-3000:]}")
    return dict(json.loads((folder / "came.json").read_text()), folder=folder, printed=out.read_text())


@pytest.fixture(scope="module")
def here(came: dict[str, Any]) -> dict[str, Any]:
    """The same run on this machine, in one process."""
    folder: Path = came["folder"]
    source = ray_runs.task(folder / "here")
    pool = radin.Pool.open(folder / "pool")
    return ray_runs.found(
        radin.cook(pool, source, budget=3, strategy="paper", out=folder / "here" / "run"), folder / "here"
    )


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Winner, scores, all that was evaluated, and the soup's bytes."""
    assert "error" not in one, one["error"]
    names = ("recipe", "score", "splits", "evaluations", "soup")
    return {name: one[name] for name in names} == json.loads(json.dumps({name: other[name] for name in names}))


@pytest.mark.long
def test_a_cluster_gives_what_one_process_gives(came, here):
    assert same(came["same"], here)
    assert came["same"]["notes"] == here["notes"]
    assert 8 <= came["same"]["passes"] == came["same"]["models"] <= 6 + 1 + 3  # members, one re-estimated, soups: once


@pytest.mark.long
def test_a_program_is_run_by_the_workers(came):
    assert "error" not in came["program"], came["program"]["error"]
    passes = (came["folder"] / "program" / "passes").read_text().split()
    assert len(passes) >= 7  # members and soups
    assert len(set(passes)) == 1  # all by workers of one run
    assert passes[0] != "?"


@pytest.mark.long
def test_killed_workers_change_nothing(came, here):
    found = came["workers_die"]
    assert same(found, here)
    assert found["models"] == came["same"]["models"]
    assert found["passes"] <= came["same"]["passes"] + 3  # nothing is paid twice beyond what was in work
    died = [note for note in found["notes"] if "died (its process ended)" in note]
    assert all((came["folder"] / "workers_die" / f"was-{stage}").exists() for stage in ("outputs", "soups", "test"))
    assert len(died) >= 2  # of two that died on one node over the same there is one note
    assert any("over the outputs of run-" in note for note in died)
    assert any("over the outputs of run-" not in note for note in died)


@pytest.mark.long
def test_ray_prints_nothing_where_results_go(came):
    assert came["printed"] == ""


@pytest.mark.long
def test_killed_nodes_change_nothing(came, here):
    found = came["nodes_die"]
    assert same(found, here)
    assert found["killed"] == ["outputs", "soups", "test"]
    assert found["models"] == came["same"]["models"]
    assert found["passes"] <= came["same"]["passes"] + 3
    # Of the last ones another may have finished first, because they were late.
    assert any("over the outputs of" in note and "which another took up" in note for note in found["notes"])


@pytest.mark.long
def test_a_killed_driver_goes_on_without_a_cluster(came, here):
    found = came["driver_dies"]
    assert same(found, here)
    assert found["before"] >= 3
    assert found["kept"] == found["before"]
    assert "stopped\n" in (came["folder"] / "log").read_text()
    assert found["stopping"] < 30  # seconds; about two on a machine that does nothing else


@pytest.mark.long
def test_what_the_cluster_refuses_names_the_node(came):
    said = came["refusals"]
    assert "error" not in said, said.get("error")
    assert "(Ray node " in said["import"]
    assert "No module named 'a_library_that_only_the_driver_has'" in said["import"]
    assert "cannot see /home/only/here.safetensors: members must be on storage that all nodes share" in said["path"]
    assert "(Ray node " in said["path"]
    assert said["room"].startswith("a worker asks for 64 CPUs, and no node of the Ray cluster has as much")
    assert "no worker could be started within 2 seconds: each asks for 1 CPU; the cluster has" in said["busy"]
    assert "runs another version" in said["version"]
    assert "1.0.0" in said["version"]


@needs_ray
@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["nothing", "http"])
def test_something_else_that_listens_is_no_cluster(says, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def answer() -> None:
            held.append(server.accept()[0])
            held[0].sendall(says)

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RadinError, match=rf"what answers at {address} is no Ray cluster"):
            Ray(address=address).count()
    held[0].close()
