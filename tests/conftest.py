"""Fixtures that several rooms share: the toy pool, and the demo pool built once on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import forking
import torchvision_on_cpu
import toy
from radin import Pool, Task

torchvision_on_cpu.install()

# The toy networks are far too small to share out, and test workers run side by side.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# Every Python that tests start makes torchvision importable too: see sitecustomize.py.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

# Started in the background, by a shell or with nohup, this process would ignore interrupts, and radin notices that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ALL_LONG = re.compile(r"^pytestmark = \[?pytest\.mark\.long\b", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rerun-clock", action="store_true", help="run a failed test once more if it is marked as clock")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out modules without a test of the part that is asked for: some import for seconds."""
    part = config.getoption("markexpr")
    if part not in ("long", "not long") or not re.fullmatch(r"test_\w+\.py", collection_path.name):
        return None
    text = collection_path.read_text(encoding="utf-8")
    unasked = "mark.long" not in text if part == "long" else _ALL_LONG.search(text) is not None
    return True if unasked else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.getoption("rerun_clock") and item.get_closest_marker("clock"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.build(folder)
    return folder


@pytest.fixture(scope="session")
def toy_pool(toy_folder: Path) -> Pool:
    return Pool.open(toy_folder)


@pytest.fixture
def toy_task() -> Task:
    return Task(
        model=toy.model,
        validation=lambda: toy.batches(toy.VALIDATION),
        test=lambda: toy.batches(toy.TEST),
        calibration=lambda: toy.batches(toy.TRAINING),
    )


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forking.Commands]:
    """The command line in processes of their own: run(["check", path]), or start(["cook", ...]) and then wait or kill.

    Where processes can be forked they are forks of one that has imported torch, which takes seconds.
    """
    made = forking.Commands(_with_tests_on_path(), tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def radin_command(commands: forking.Commands) -> Any:
    """Run the command line to its end: radin_command("check", path, ...) -> CompletedProcess.

    ``started=True``: as a user starts it, imports and all.
    """
    environment = _with_tests_on_path()

    def run(*arguments: object, cwd: Path | None = None, started: bool = False) -> subprocess.CompletedProcess[str]:
        if not started:
            return commands.run(arguments, cwd)
        command = [sys.executable, "-m", "radin", *map(str, arguments)]
        whole = os.environ | environment
        return subprocess.run(command, capture_output=True, text=True, env=whole, cwd=cwd, check=False)

    return run


def _with_tests_on_path() -> dict[str, str]:
    places = [str(Path(toy.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(places)}
