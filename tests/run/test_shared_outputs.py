"""Members' outputs in a folder behind a URL: what one run made the next takes, damaged or not, uploaded or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import radin
from radin.cli.group import cli
from radin.errors import PoolError, RadinError
from radin.outputs.files import open_array

fsspec = pytest.importorskip("fsspec")
URL = "memory://shared/outputs"
HOW: dict[str, Any] = {"budget": 2, "strategy": "top-k", "device": "cpu"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/shared"):
        files.rm("/shared", recursive=True)


def names(files: Any) -> set[str]:
    return {Path(path).name for path in files.find("/shared/outputs")}


def test_what_one_run_made_the_next_takes(toy_folder: Path, tmp_path: Path, memory: Any) -> None:
    task = toy_folder / "task.py"
    first = radin.cook(toy_folder, task, out=tmp_path / "first", outputs=URL, **HOW)
    made = {path.name for path in (tmp_path / "first" / "outputs").glob("*.safetensors")} - {"compiled.safetensors"}
    assert names(memory) == made
    assert len(made) == 1 + first.passes.members
    for name in made:
        assert memory.cat(f"/shared/outputs/{name}") == (tmp_path / "first" / "outputs" / name).read_bytes()
    second = radin.cook(toy_folder, task, out=tmp_path / "second", outputs=Path(URL), **HOW)
    assert (first.passes.members, second.passes.members) == (6, 0)
    assert (second.best.recipe, second.best.score) == (first.best.recipe, first.best.score)
    assert not [note for note in second.notes if "again" in note or "upload" in note]


def test_a_damaged_one_is_made_again_and_replaced(toy_folder: Path, tmp_path: Path, memory: Any) -> None:
    task = toy_folder / "task.py"
    first = radin.cook(toy_folder, task, out=tmp_path / "first", outputs=URL, **HOW)
    name = next(path for path in memory.find("/shared/outputs") if not path.endswith("targets.safetensors"))
    good = memory.cat(name)
    memory.pipe(name, good[:-4] + b"\0\0\0\1")
    second = radin.cook(toy_folder, task, out=tmp_path / "second", outputs=URL, **HOW)
    assert [note for note in second.notes if note.startswith("made again") and Path(name).name in note]
    assert memory.cat(name) == good
    assert second.best.score == first.best.score


def test_what_cannot_be_uploaded_is_here_and_the_next_session_tries_again(
    toy_folder: Path, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only key")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", denied)
        first = radin.cook(toy_folder, toy_folder / "task.py", out=tmp_path / "run", outputs=URL, **HOW)
    assert [note for note in first.notes if "not uploaded, but in " in note and "read-only key" in note]
    assert not memory.exists("/shared/outputs") or not names(memory)
    radin.cook(toy_folder, toy_folder / "task.py", out=tmp_path / "run", outputs=URL, **HOW)
    assert len(names(memory)) == 7


def test_outputs_saved_elsewhere_are_read_from_a_url(toy_folder: Path, tmp_path: Path, memory: Any) -> None:
    task = toy_folder / "task.py"
    run = radin.cook(toy_folder, task, out=tmp_path / "run", outputs=URL, **HOW)
    local = CliRunner().invoke(cli, ["rank", "--outputs", str(run.out / "outputs"), "--json", "--count", "50"])
    there = CliRunner().invoke(cli, ["rank", "--outputs", URL, "--json", "--count", "50"])
    assert there.exit_code == 0, there.output
    mine, theirs = json.loads(local.stdout), json.loads(there.stdout)
    assert [found["estimate"] for found in mine["recipes"]] == [found["estimate"] for found in theirs["recipes"]]
    assert mine["best_single"]["score"] == theirs["best_single"]["score"]
    member = next(path for path in memory.find("/shared/outputs") if not path.endswith("targets.safetensors"))
    assert np.array_equal(
        open_array(run.out / "outputs" / Path(member).name),
        open_array(tmp_path / "cache" / "remote" / "memory" / member.lstrip("/")),
    )


def test_what_is_wrong_with_the_url_is_said_before_anything_runs(toy_folder: Path, tmp_path: Path) -> None:
    task = toy_folder / "task.py"
    for url, kept, said in (
        ("https://example.org/outputs", True, "nothing can be uploaded by http"),
        ("unheard://of/outputs", True, "no library for unheard:// is known"),
        ("unheard:/of/outputs", True, "no library for unheard:// is known"),  # a slash too few
        ("memory://shared/outputs", False, "leave out --no-keep-outputs, or --outputs"),
    ):
        with pytest.raises(RadinError, match=said):
            radin.cook(toy_folder, task, out=tmp_path / "run", outputs=url, keep_outputs=kept, **HOW)
        assert not (tmp_path / "run").exists()


def test_on_s3_a_missing_bucket_is_said_and_a_folder_of_one_is_shared(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_of = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    import boto3

    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        task = toy_folder / "task.py"
        with pytest.raises(PoolError, match=r"s3://nowhere/outputs: there is no such bucket"):
            radin.cook(toy_folder, task, out=tmp_path / "run", outputs="s3://nowhere/outputs", **HOW)
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="bucket")
        for out, passes in (("one", 6), ("two", 0)):
            found = radin.cook(toy_folder, task, out=tmp_path / out, outputs="s3://bucket/deep/outputs", **HOW)
            assert found.passes.members == passes
            assert not [note for note in found.notes if "upload" in note]
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
