"""What a command says on a terminal before torch is there, and that it says nothing anywhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch says so and fails."""
    (tmp_path / "torch.py").write_text("import sys\nsys.stderr.write('TORCH')\nraise RuntimeError('no torch here')\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def said(arguments: list[str], environment: dict[str, str]) -> str:
    """What a command writes to a terminal."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "radin", *arguments], stdout=subprocess.DEVNULL, stderr=terminal, env=environment
    )
    os.close(terminal)
    text = b""
    while True:
        try:
            more = os.read(controller, 4096)
        except OSError:  # how Linux says that nobody has it open any more
            break
        if not more:
            break
        text += more
    os.close(controller)
    process.wait()
    return text.decode()


COMMANDS = [
    ["average", "a.pt", "b.pt", "-o", "soup.pt"],
    ["cook", "a.pt", "b.pt", "--eval", "./score.sh {soup}", "--budget", "2", "--out", "run"],
    ["check", "a.pt", "b.pt"],
    ["doctor", "a.pt", "b.pt"],
    ["evaluate", "a.pt", "--task", "task.py"],
    ["export", "run", "--mergekit", "linear.yml"],
    ["task", "a.pt", "--model", "hf", "--data", "csv:x.csv"],
    ["report", "run"],
    ["cache"],
    ["metrics"],
    ["strategies"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_starting_is_said_before_torch_is_imported_and_taken_away(arguments, without_torch):
    text = said(arguments, without_torch)
    assert text.startswith("radin: starting ...TORCH\r\x1b[K")
    assert "reading checkpoints" not in text


def test_elsewhere_nothing_is_said(without_torch):
    done = subprocess.run(
        [sys.executable, "-m", "radin", *COMMANDS[0]], capture_output=True, text=True, env=without_torch, check=False
    )
    assert done.stderr.startswith("TORCH")
    assert "starting" not in done.stderr
