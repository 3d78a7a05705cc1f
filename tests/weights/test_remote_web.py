"""Checkpoints on web servers and on a Hub, over real HTTP: progress, interruptions, changes, clearing the copies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from servers import Hub, Served, serving

from radin.cli.group import cli
from radin.errors import PoolError, RadinError
from radin.weights import Pool, copies
from radin.weights.paths import look_for

pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(file: Path, value: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((4,), float(value))}, file)


def values(given: Any) -> list[float]:
    pool = Pool.open(given)
    return [pool.tensors(k)["w"][0].item() for k in range(len(pool))]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for k in (1, 2):
        write(tmp_path / f"site/runs/{k}/best.safetensors", k)
    (tmp_path / "site/runs/1/log.txt").write_text("hello")
    return tmp_path / "site"


def test_files_folders_and_patterns_of_the_web(site: Path) -> None:
    pytest.importorskip("aiohttp")
    with serving(Served, site) as (address, asked):
        assert values(f"{address}/runs/2/best.safetensors") == [2.0]
        assert values(f"{address}/runs/2/best.safetensors?download=true") == [2.0]
        assert values(f"{address}/runs/") == [1.0, 2.0]
        assert values(f"{address}/runs/{{2,1}}/best.safetensors") == [2.0, 1.0]
        assert Pool.open(f"{address}/runs/").member_names == ("1/best", "2/best")
        gets = [path for method, path in asked if method == "GET" and path.endswith("best.safetensors")]
        assert sorted(gets) == ["/runs/1/best.safetensors", "/runs/2/best.safetensors"], "each is fetched once"
        write(site / "runs/2/best.safetensors", 9)  # as large as before: its time says that it is another
        os.utime(site / "runs/2/best.safetensors", (1, 1))
        assert values(f"{address}/runs/") == [1.0, 9.0]
        with pytest.raises(PoolError, match=r"/gone\.pt: no such file"):
            Pool.open(f"{address}/gone.pt")


def test_a_file_of_which_nothing_tells_whether_it_changed_is_fetched_each_time(site: Path) -> None:
    pytest.importorskip("aiohttp")

    class Silent(Served):
        def send_header(self, keyword: str, value: str) -> None:
            if keyword != "Last-Modified":
                super().send_header(keyword, value)

    with serving(Silent, site) as (address, asked):
        for value in (2, 7):
            write(site / "runs/2/best.safetensors", value)
            assert values(f"{address}/runs/2/best.safetensors") == [value]
        assert sum(method == "GET" for method, _ in asked) == 2


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    for k in (1, 2):
        write(folder / f"checkpoint-{k}/model.safetensors", k)
        (folder / f"checkpoint-{k}/config.json").write_text("{}")
        (folder / f"checkpoint-{k}/optimizer.pt").write_bytes(b"x")
    return folder


def test_a_repository_of_the_hub(hub: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    import fsspec.config

    with serving(Hub, hub) as (address, asked):
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": address})
        pool = Pool.open("hf://org/model")
        assert pool.member_names == ("checkpoint-1", "checkpoint-2")
        assert values("hf://org/model") == [1.0, 2.0]
        assert values("hf://org/model/checkpoint-2/model.safetensors") == [2.0]
        assert values("hf://org/model/checkpoint-*") == [1.0, 2.0]
        assert (pool[0].path / "config.json").read_text() == "{}"
        assert not (pool[0].path / "optimizer.pt").exists()
        fetched = [path for method, path in asked if method == "GET" and path.endswith("model.safetensors")]
        assert len(fetched) == 2
        write(hub / "checkpoint-1/model.safetensors", 5)
        assert values("hf://org/model") == [5.0, 2.0]
        with pytest.raises(PoolError, match=r"hf://org/none/m\.pt: "):
            Pool.open("hf://org/none/m.pt")


def test_how_far_copies_are_is_told(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(copies, "_SEEN_SECONDS", 0.01)
    torch.save({"w": torch.zeros(200_000)}, site / "large.pt")

    class Slow(Served):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            while part := source.read(100_000):
                outputfile.write(part)
                outputfile.flush()
                time.sleep(0.03)

    told: list[tuple[str, float, float | None]] = []
    with serving(Slow, site) as (address, _):
        look_for(f"{address}/large.pt", lambda *what: told.append(what))
        size = (site / "large.pt").stat().st_size
        assert {(what, total) for what, _, total in told} == {(f"copying {address}/large.pt", size)}
        done = [done for _, done, _ in told]
        assert done == sorted(done)
        assert done[-1] == size
        assert any(0 < part < size for part in done)
        count = len(told)
        look_for(f"{address}/large.pt", lambda *what: told.append(what))
        assert len(told) == count, "nothing was copied"


COPY = "import sys; from radin.weights.paths import look_for; look_for(sys.argv[1])"


@pytest.mark.clock
def test_an_interrupted_copy_is_not_taken_for_whole_and_is_swept_away(site: Path, cache: Path) -> None:
    pytest.importorskip("aiohttp")

    class Stuck(Served):
        stuck = True

        def copyfile(self, source: Any, outputfile: Any) -> None:
            outputfile.write(source.read(40))
            outputfile.flush()
            if Stuck.stuck:
                time.sleep(20)
            super().copyfile(source, outputfile)

    with serving(Stuck, site) as (address, _):
        url = f"{address}/runs/1/best.safetensors"
        process = subprocess.Popen([sys.executable, "-c", COPY, url], env=os.environ)
        until = time.monotonic() + 60
        while not list(cache.rglob(".best*.tmp")) and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(RadinError, match="in use by another process"):
            copies.clear(cache / "remote")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list(cache.rglob("best.safetensors"))
        Stuck.stuck = False
        assert values(url) == [1.0]
        assert not list(cache.rglob(".best*.tmp")), "what the killed one left is gone"
        assert copies.clear(cache / "remote") > 0


def test_less_than_was_announced_is_an_error_and_leaves_nothing(site: Path, cache: Path, monkeypatch: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/short/a.safetensors", b"whole" * 100)
    monkeypatch.setattr(type(memory), "get_file", lambda _, source, file, **more: Path(file).write_bytes(b"half"))
    with pytest.raises(PoolError, match=r"memory://short/a\.safetensors: 4 bytes came of 500; give the command again"):
        look_for("memory://short/a.safetensors")
    assert not [path for path in (cache / "remote/memory").rglob("*") if path.is_file()]
    memory.rm("/short", recursive=True)


def test_the_command_that_lists_and_clears(site: Path, cache: Path) -> None:
    pytest.importorskip("aiohttp")

    def radin(*words: str) -> dict[str, Any]:
        run = CliRunner().invoke(cli, ["cache", "--json", *words], catch_exceptions=False)
        assert run.exit_code == 0, run.output
        return dict(json.loads(run.stdout))

    assert radin()["copies"] == []
    with serving(Served, site) as (address, _):
        look_for(f"{address}/runs/")
        [place] = radin()["copies"]
        assert (place["place"], place["files"]) == (f"http://{address.removeprefix('http://')}/runs", 2)
        assert abs(place["used"] - time.time()) < 60
        said = CliRunner().invoke(cli, ["cache"]).stdout
        assert "2 files" in said
        assert radin("--clear")["cleared_bytes"] == place["bytes"]
        assert radin()["copies"] == []
        assert values(f"{address}/runs/") == [1.0, 2.0], "fetched anew"
