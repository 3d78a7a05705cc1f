"""The commands of docs/ready-tasks.md run as they stand, in a folder laid out as they expect it; no file by hand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import ready_made

pytestmark = pytest.mark.long

TEXT = (Path(__file__).parents[2] / "docs" / "ready-tasks.md").read_text(encoding="utf-8")
# What stands for what: a network of timm's own for tests is smaller than a ResNet-50.
SMALL = {"timm:resnet50": "timm:test_efficientnet,img_size=32", "10": "3"}


def commands(*words: str) -> list[list[str]]:
    """The page's radin commands with all these words in them, as a shell would split them."""
    lines = re.findall(r"^    radin (.*)$", TEXT, re.MULTILINE)
    return [shlex.split(line) for line in lines if all(word in line for word in words)]


def typed(arguments: list[str], folder: Path) -> list[str]:
    """Patterns expanded as the shell does."""
    found: list[str] = []
    for argument in (SMALL.get(argument, argument) for argument in arguments):
        found += (
            sorted(str(path.relative_to(folder)) for path in folder.glob(argument)) if "*" in argument else [argument]
        )
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("pictures-docs")
    data = ready_made.pictures(folder / "pictures")
    for k, path in enumerate(ready_made.timm_members(folder / "made", "test_efficientnet", 3, data)):
        (folder / "runs" / f"run-{k}").mkdir(parents=True)
        shutil.move(path, folder / "runs" / f"run-{k}" / "model_best.pth.tar")
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("reviews-docs")
    ready_made.trained_members(folder / "runs", ready_made.reviews(folder / "train.csv", 160, 0))
    ready_made.reviews(folder / "validation.csv", 150, 1)
    ready_made.reviews(folder / "test.csv", 120, 2)
    return folder


def opened(library: str, names: dict[str, Any]) -> Any:
    """What the page's line of Python for that library gives, on the small models."""
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (line,) = [line for line in block.splitlines() if line.startswith(library)]
    return eval(line.replace('"resnet50", num_classes=10', '"test_efficientnet", num_classes=3'), names)


def test_the_command_for_timm(pictures: Path, radin_command, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    (command,) = commands("cook", "--model timm:")
    done = radin_command(*typed(command, pictures), "--json", cwd=pictures)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["passes"]["members"] == 3
    monkeypatch.chdir(pictures)
    assert opened("timm", {"timm": timm}).num_classes == 3


def test_the_commands_for_transformers(reviews: Path, radin_command, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    (cook,) = commands("cook", "--model hf")
    done = radin_command(*typed(cook, reviews), "--json", cwd=reviews)
    assert done.returncode == 0, done.stderr
    straight = json.loads(done.stdout)
    monkeypatch.chdir(reviews)
    assert opened("transformers", {"transformers": transformers}).num_labels == 2

    (printed,) = commands("task", "--model hf")
    assert radin_command(*typed(printed, reviews), cwd=reviews).returncode == 0
    (by_file,) = commands("cook", "--task task.py")
    again = ["run-2" if argument == "run" else argument for argument in typed(by_file, reviews)]
    done = radin_command(*again, "--json", cwd=reviews)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"]["score"] == pytest.approx(straight["best"]["score"], abs=1e-12)
