"""Where a command prints: closed, broken, narrow, of another encoding, without a home; and names made to mislead."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import toy

RADIN = f"{sys.executable} -m radin"


def shell(line: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(toy.__file__).parent), *map(os.path.abspath, filter(None, sys.path))])
    env = os.environ | {"PYTHONPATH": paths} | environment
    env = {name: value for name, value in env.items() if value != "unset"}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("{radin} check {pool} >&-", {}),
        ("{radin} check {pool} 2>&-", {}),
        ("{radin} check {pool} <&- >&- 2>&-", {}),
        ("{radin} check {pool} --json 2>&-", {}),
        (
            "{radin} metrics",
            {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        ),
        (
            "{radin} evaluate {pool}/run-0.safetensors --task {pool}/task.py",
            {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        ),
        ("{radin} check {pool}", {"COLUMNS": "20", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}),
        ("{radin} strategies", {"COLUMNS": "1", "FORCE_COLOR": "1"}),
        ("{radin} check {pool}", {"HOME": "unset", "RADIN_CACHE": "unset", "XDG_CACHE_HOME": "unset"}),
    ],
)
def test_no_surrounding_makes_a_traceback(toy_folder, tmp_path, line, environment):
    done = shell(line.format(radin=RADIN, pool=toy_folder), cwd=tmp_path, **environment)
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert "Exception" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_working_directory_that_was_removed_is_said(toy_folder, tmp_path):
    done = shell(f"mkdir gone; cd gone; rmdir ../gone; {RADIN} check {toy_folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "radin: the working directory was removed; change to one that is there\n"


@pytest.mark.parametrize("how", ["| head -1", "| true", "2>&1 | true"])
def test_a_reader_that_goes_away_is_no_fault(toy_folder, how):
    done = shell(f"{RADIN} strategies {how}; echo ${{PIPESTATUS[0]}} >&2")
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception" not in done.stderr
    assert done.stderr.strip() in ("0", "141")
    broken = shell(f"{RADIN} check {toy_folder} {how}; echo ${{PIPESTATUS[0]}} >&2")
    assert "Traceback" not in broken.stderr
    assert broken.stderr.strip().splitlines()[-1] in ("0", "141")


HOSTILE = "m{k}\x1b[31m\x9b2J\u202e\u200b\nradin: all is well [bold red]x \x7f\r"
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


@pytest.fixture(scope="module")
def hostile(toy_folder, tmp_path_factory) -> Path:
    """The toy pool under names that would clear a terminal."""
    folder = tmp_path_factory.mktemp("hostile") / "pool\x1b]0;title\x07\u2066"
    folder.mkdir()
    for k in range(4):
        path = folder / f"{HOSTILE.format(k=k)}.safetensors"
        path.write_bytes((toy_folder / f"run-{k}.safetensors").read_bytes())
    (folder / "copy\x1b.safetensors").write_bytes((toy_folder / "run-0.safetensors").read_bytes())
    (folder / "task.py").write_text(toy.TASK + 'def shifts(): return {"[red]s\\x1b": toy.batches(toy.TEST)}\n')
    return folder


def plain(done: subprocess.CompletedProcess[bytes]) -> str:
    """What was printed; nothing in it may move a cursor."""
    text = (done.stdout + done.stderr).decode("utf-8", "surrogateescape")
    assert not RAW.search(text), RAW.search(text)
    assert not re.search("^radin: all is well", text, re.MULTILINE)
    assert "Traceback" not in text, text
    return text


def test_hostile_names_of_files_reach_no_terminal_raw(hostile, tmp_path, monkeypatch, capfdbinary):
    from radin.cli import main

    def radin(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "argv", ["radin", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(sys.argv, ended.value.code, *capfdbinary.readouterr())

    files = [str(path) for path in sorted(hostile.glob("*.safetensors"))]
    task, run = hostile / "task.py", tmp_path / "run\x1b"
    cook = ("cook", hostile, "--task", task, "--budget", 2, "--out", run)
    for number, (arguments, code) in enumerate(
        [
            (cook, 0),
            ((*cook, "--json"), 0),
            (("report", run), 0),
            (("check", hostile, "--task", task), 0),
            (("doctor", hostile, "--task", task, "--run", run), 0),
            (("evaluate", files[1], "--task", task, "--split", "shifts/[red]s\x1b"), 0),
            (("average", hostile, "-o", tmp_path / "a\x1b.safetensors"), 0),
            (("average", *files[1:3], "--ratios", "1,2", "-o", tmp_path / "b\x1b.safetensors"), 0),
            (("average", *files[1:3], "--ratios", "x\x1b=2", "-o", tmp_path / "c.safetensors"), 2),
            (("average", *files[1:3], "--integers-from", "x\x1b", "-o", tmp_path / "c.safetensors"), 2),
            (("average", hostile, "-o", tmp_path / "a\x1b.safetensors"), 2),
            (("rank", "--outputs", run / "outputs"), 0),
            (("rank", "--outputs", run / "outputs\x1b"), 2),
            (("check", hostile / "none\x1b.pt"), 2),
            (("check", hostile / "none\x1b*.pt"), 2),
            (("check", hostile, "--task", hostile / "none\x1b.py"), 2),
            (("check", hostile, "--task", "none\x1b"), 2),
            (("evaluate", hostile, "--task", task, "--split", "a\x1b"), 2),
            (("report", hostile), 2),
            (("doctor", hostile, "--run", hostile), 2),
            (("cook", hostile, "--task", task, "--budget", 2, "--out", hostile), 2),
            (("cook", *files[:3], "--task", task, "--budget", 2, "--out", run), 2),
            (("cook", hostile, "--eval", "echo \x1b {soup}; exit 3", "--budget", 2, "--out", tmp_path / "e"), 2),
            (("check", "--bogus\x1b\u202e", hostile), 2),
            (("radish\x1b",), 2),
        ]
    ):
        done = radin(*arguments)
        text = plain(done)
        assert done.returncode == code, (number, arguments[0], text)
        assert text
    for name in ("result.json", "run.json", "recipe.json"):
        assert not RAW.search((run / name).read_text())
    notebook = json.loads(radin("report", run, "--json").stdout)
    assert len({m["name"] for m in notebook["uniform"]["recipe"]["members"]}) == 4


def test_the_page_of_a_result_escapes_them_too(hostile, tmp_path):
    import radin

    result = radin.cook(hostile, hostile / "task.py", budget=2, out=tmp_path / "run")
    for text in (result._repr_html_(), str(result), result.best.recipe._repr_html_()):
        assert not RAW.search(text)
    assert "[red]s\\x1b" in str(result)


def test_hostile_names_of_tensors_and_shards(toy_folder, radin_command, tmp_path):
    names = "w\x1b[2J\nradin: all is well\u202e"
    for k in range(2):
        save_file({names: torch.full((3,), float(k)), "same": torch.ones(2 + k)}, tmp_path / f"{k}.safetensors")
    done = radin_command("check", tmp_path)
    assert done.returncode == 2
    assert not RAW.search(done.stderr + done.stdout)
    for k in range(2):
        save_file({names: torch.full((3 + k,), float(k))}, tmp_path / f"{k}.safetensors")
    done = radin_command("check", tmp_path)
    assert done.returncode == 2
    assert not RAW.search(done.stderr)
    assert r"w\x1b[2J\nradin: all is well\u202e" in done.stderr
    save_file({names: torch.tensor([1.0, float("nan")])}, tmp_path / "0.safetensors")
    save_file({names: torch.tensor([1.0, 2.0])}, tmp_path / "1.safetensors")
    done = radin_command("check", tmp_path)
    assert done.returncode == 2
    assert not RAW.search(done.stderr)
    assert not re.search("^radin: all is well", done.stderr, re.MULTILINE)
    folder = tmp_path / "sharded"
    folder.mkdir()
    weights = load_file(toy_folder / "run-0.safetensors")
    save_file(weights, folder / "model\x1b.safetensors")
    index = {"weight_map": dict.fromkeys([*weights, names], "model\x1b.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = radin_command("check", folder)
    assert done.returncode == 2
    assert not RAW.search(done.stderr)


def test_a_name_that_is_not_utf8_is_said_of_what_is_read_and_what_is_written(toy_folder, tmp_path):
    """The libraries that read and write checkpoints take no other names."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}
    other = os.fsencode(tmp_path) + b"/\xff\x1b"
    with open(other + b".pt", "wb") as file:
        file.write(b"any")
    pool, task = os.fsencode(toy_folder), os.fsencode(toy_folder / "task.py")
    for arguments in (
        [b"check", other + b".pt"],
        [b"average", pool, b"-o", other + b".safetensors"],
        [b"cook", pool, b"--task", task, b"--budget", b"1", b"--out", other],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "radin", *arguments], capture_output=True, env=environment, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "is not UTF-8" in plain(done)
        assert r"\udcff\x1b" in plain(done)


def test_a_name_that_no_file_can_have_is_one_message(toy_folder, radin_command, tmp_path):
    long = tmp_path / ("x" * 300)
    for command in (
        ["report", long],
        ["average", toy_folder, "-o", f"{long}.pt"],
        ["cook", toy_folder, "--task", toy_folder / "task.py", "--budget", 1, "--out", long],
        ["rank", "--outputs", long],
        ["doctor", toy_folder, "--run", long],
    ):
        done = radin_command(*command)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert sum(line.startswith("radin: ") for line in done.stderr.splitlines()) == 1
