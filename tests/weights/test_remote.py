"""Checkpoints behind URLs: copied once, fetched anew when they changed, and one message where a library is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save, save_file

import radin
from radin.cli.group import cli
from radin.errors import PoolError, RadinError
from radin.weights import Pool
from radin.weights.paths import look_for
from radin.weights.uploads import upload

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/pool", recursive=True)


def data(value: float) -> bytes:
    return save({"w": torch.full((4,), float(value))})


def values(pool: Pool) -> list[float]:
    return [pool.tensors(k)["w"][0].item() for k in range(len(pool))]


def test_files_patterns_and_folders(memory: Any) -> None:
    for name, value in (("a.safetensors", 1), ("b.safetensors", 2), ("deep/c/c.safetensors", 3)):
        memory.pipe(f"/pool/{name}", data(value))
    memory.pipe("/pool/optimizer.pt", b"x")
    pool = Pool.open(["memory://pool/b.safetensors", "memory://pool/a.safetensors"])
    assert values(pool) == [2.0, 1.0]
    assert pool.member_names == ("b", "a")
    assert values(Pool.open("memory://pool/*.safetensors")) == [1.0, 2.0]
    assert values(Pool.open("memory://pool")) == [1.0, 2.0]
    assert values(Pool.open("memory://pool/deep")) == [3.0]
    assert values(Pool.open("memory://pool/{b,a}.safetensors")) == [2.0, 1.0]
    with pytest.raises(PoolError, match=r"memory://pool/gone\.pt: no such file"):
        Pool.open("memory://pool/gone.pt")
    with pytest.raises(PoolError, match="no checkpoints found"):
        Pool.open("memory://pool/*.txt")


def test_a_changed_remote_is_fetched_anew_and_the_same_is_not(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/pool/a.safetensors", data(1))
    fetched: list[str] = []
    get = type(memory).get_file
    monkeypatch.setattr(type(memory), "get_file", lambda s, r, *a, **k: (fetched.append(r), get(s, r, *a, **k))[1])
    assert values(Pool.open("memory://pool/a.safetensors")) == [1.0]
    assert values(Pool.open("memory://pool/a.safetensors")) == [1.0]
    assert len(fetched) == 1
    memory.pipe("/pool/a.safetensors", data(5))
    assert values(Pool.open("memory://pool/a.safetensors")) == [5.0]
    assert len(fetched) == 2


def test_a_checkpoint_folder_comes_with_what_belongs_to_it(memory: Any, cache: Path) -> None:
    shards = {"model-1.safetensors": {"w": torch.ones(2)}, "model-2.safetensors": {"v": torch.zeros(2)}}
    for name, tensors in shards.items():
        memory.pipe(f"/pool/hf/{name}", save(tensors))
    index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    memory.pipe("/pool/hf/model.safetensors.index.json", json.dumps(index).encode())
    memory.pipe("/pool/hf/config.json", b"{}")
    memory.pipe("/pool/hf/pytorch_model.bin", b"the same weights again")
    memory.pipe("/pool/hf/optimizer.pt", b"x")
    pool = Pool.open("memory://pool/hf")
    assert pool.names == ("v", "w")
    assert sorted(path.name for path in pool[0].path.iterdir() if not path.name.startswith(".")) == [
        "config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    assert pool[0].path.is_relative_to(cache / "remote" / "memory")


def test_a_folder_as_a_file_url(tmp_path: Path) -> None:
    for k in (1, 2):
        (tmp_path / f"t{k}").mkdir()
        save_file({"w": torch.full((4,), float(k))}, tmp_path / f"t{k}" / "m.safetensors")
    found = look_for(f"file://{tmp_path}/t1")
    assert [path.name for path in found.paths] == ["m.safetensors"]
    assert values(Pool.open([f"file://{tmp_path}/t2/m.safetensors", f"file://{tmp_path}/t1"])) == [2.0, 1.0]


def test_no_path_leaves_the_cache_folder(memory: Any, cache: Path) -> None:
    memory.pipe("/pool/../../x/a.safetensors", data(1))
    found = look_for("memory://pool/../../x/a.safetensors").paths
    assert all(path.resolve().is_relative_to(cache.resolve()) for path in found)
    memory.rm("/pool/../../x", recursive=True)
    memory.pipe("/pool/x", b"")


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("s3://bucket/a.pt", "s3fs", "s3fs"),
        ("gs://bucket/a.pt", "gcsfs", "gcsfs"),
        ("hf://org/repo", "huggingface_hub", "huggingface_hub"),
        ("s3://bucket/a.pt", "fsspec", "fsspec s3fs"),
    ],
)
def test_a_missing_library_is_told_with_the_command_that_installs_it(url: str, module: str, package: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from radin.weights import Pool; Pool.open({url!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().splitlines()[-1] == (
        f"radin.errors.PoolError: {url}: needs a library that is not installed: pip install {package}"
    )


def test_an_unknown_protocol_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PoolError, match=r"no library for quux:// is known"):
        Pool.open("quux://a/b.pt")
    monkeypatch.setenv("RADIN_CACHE", "off")
    with pytest.raises(PoolError, match="RADIN_CACHE=off"):
        Pool.open("memory://pool/a.pt")


def test_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="bucket")
        for k in (1, 2):
            client.put_object(Bucket="bucket", Key=f"runs/{k}/best.safetensors", Body=data(k))
            client.put_object(Bucket="bucket", Key=f"runs/{k}/log.txt", Body=b"x")
        pool = Pool.open("s3://bucket/runs/*/best.safetensors")
        assert pool.member_names == ("1/best", "2/best")
        assert values(pool) == [1.0, 2.0]
        assert values(Pool.open("s3://bucket/runs")) == [1.0, 2.0]
        client.put_object(Bucket="bucket", Key="runs/2/best.safetensors", Body=data(7))
        assert values(Pool.open("s3://bucket/runs")) == [1.0, 7.0]
        with pytest.raises(PoolError, match=r"s3://nowhere/a\.pt: "):
            Pool.open("s3://nowhere/a.pt")
    finally:
        server.stop()


def test_a_folder_is_uploaded_with_its_index_last(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "soup"
    (folder / "more").mkdir(parents=True)
    for name in ("config.json", "model.safetensors.index.json", "model-1.safetensors", "more/vocab.txt"):
        (folder / name).write_text(name)
    order: list[str] = []
    put = type(memory).put_file
    monkeypatch.setattr(
        type(memory), "put_file", lambda self, local, path: (order.append(path), put(self, local, path))
    )
    upload(folder, "memory://pool/soup")
    assert [path.removeprefix("/pool/soup/") for path in order] == [
        "model-1.safetensors",
        "more/vocab.txt",
        "config.json",
        "model.safetensors.index.json",
    ]
    assert memory.cat_file("/pool/soup/more/vocab.txt") == b"more/vocab.txt"


def test_a_result_is_saved_to_a_url(memory: Any, toy_folder: Path, tmp_path: Path) -> None:
    task = toy_folder / "task.py"
    result = radin.cook(toy_folder, task, budget=2, out=tmp_path / "run", strategy="uniform")
    assert result.save("memory://pool/soup.safetensors") == "memory://pool/soup.safetensors"
    assert memory.cat_file("/pool/soup.safetensors") == result.soup.read_bytes()
    with pytest.raises(RadinError, match="must end in"):
        result.save("memory://pool/soup.pt")
    with pytest.raises(PoolError, match="nothing can be uploaded by http"):
        upload(result.soup, "https://example.org/soup.safetensors")


def test_the_commands_upload_what_they_made(memory: Any, toy_folder: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(toy_folder.glob("*.safetensors"))]
    out = str(tmp_path / "soup.safetensors")
    done = CliRunner().invoke(cli, ["average", *files, "-o", out, "--upload", "memory://pool/a.safetensors"])
    assert done.exit_code == 0, done.output
    assert "uploaded to memory://pool/a.safetensors" in done.output
    assert memory.cat_file("/pool/a.safetensors") == Path(out).read_bytes()
