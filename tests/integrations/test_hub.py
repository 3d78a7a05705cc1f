"""--push-to-hub with the hub's calls replaced: what would be uploaded, and what is said when it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file

import radin
from radin.cli.group import cli


@pytest.fixture
def members(tmp_path) -> Path:
    for k in range(2):
        (tmp_path / f"pool/run{k}").mkdir(parents=True)
        save_file({"w": torch.full((3,), float(k))}, tmp_path / f"pool/run{k}/model.safetensors")
        (tmp_path / f"pool/run{k}/config.json").write_text('{"model_type": "bert"}')
    return tmp_path / "pool"


@pytest.fixture
def calls(monkeypatch) -> list[Any]:
    found: list[Any] = []

    class Made(str):
        repo_id = "me/soup"

    def create_repo(self: Any, repo_id: str, **more: Any) -> Made:
        found.append(("create", repo_id, more))
        return Made("https://huggingface.co/me/soup")

    def upload_folder(self: Any, *, repo_id: str, folder_path: Path, **more: Any) -> None:
        found.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return found


def invoke(*words: object) -> Any:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_folder_is_uploaded_whole_into_a_private_repository(members, tmp_path, calls):
    run = invoke("average", members, "-o", tmp_path / "soup", "--push-to-hub", "soup")
    assert run.exit_code == 0, run.output
    assert "pushed to https://huggingface.co/me/soup" in run.output
    assert calls == [
        ("create", "soup", {"private": True, "exist_ok": True}),
        ("upload", "me/soup", ["README.md", "config.json", "model.safetensors", "radin.json"]),
    ]


def test_cook_pushes_its_soup(members, tmp_path, calls):
    task = "import torch\nclass Model(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    task += (
        "        self.w = torch.nn.Parameter(torch.zeros(3))\n    def forward(self, x):\n        return x + self.w\n"
    )
    task += "model = Model\ndef validation(): return [(torch.eye(3), torch.arange(3))]\n"
    (tmp_path / "task.py").write_text(task)
    words = ["cook", members, "--task", tmp_path / "task.py", "--budget", 2, "--out", tmp_path / "run"]
    run = invoke(*words, "--push-to-hub", "me/soup")
    assert run.exit_code == 0, run.output
    assert calls[1] == ("upload", "me/soup", ["README.md", "config.json", "model.safetensors", "radin.json"])


@pytest.mark.parametrize("error", [ConnectionError("no network"), RuntimeError("401 unauthorized")])
def test_what_the_hub_refuses_is_one_message_and_the_folder_stays(members, tmp_path, calls, monkeypatch, error):
    def fail(*words: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_repo", fail)
    run = invoke("average", members, "-o", tmp_path / "soup", "--push-to-hub", "me/soup")
    assert isinstance(run.exception, radin.RadinError)
    assert str(error) in str(run.exception)
    assert f"The soup is whole in {tmp_path / 'soup'}" in str(run.exception)
    assert torch.equal(load_file(tmp_path / "soup/model.safetensors")["w"], torch.full((3,), 0.5))


def test_what_cannot_be_pushed_is_said_before_anything_is_done(members, tmp_path, calls, monkeypatch):
    run = invoke("average", members, "-o", tmp_path / "soup", "--push-to-hub", "no such name")
    assert isinstance(run.exception, radin.RadinError)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    run = invoke("average", members, "-o", tmp_path / "soup", "--push-to-hub", "me/soup")
    assert "pip install huggingface_hub" in str(run.exception)
    assert not (tmp_path / "soup").exists()
    assert not calls


def test_the_librarys_own_error_where_nothing_answers_is_one_message(members, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(HfApi.__init__, "__defaults__", ("http://127.0.0.1:9", *HfApi.__init__.__defaults__[1:]))
    run = invoke("average", members, "-o", tmp_path / "soup", "--push-to-hub", "me/soup")
    assert isinstance(run.exception, radin.RadinError), run.output
    assert str(run.exception).startswith("could not push to me/soup: ")
    assert (tmp_path / "soup/model.safetensors").exists()
