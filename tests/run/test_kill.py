"""A run killed with SIGKILL at any moment continues, spends nothing twice, and ends with the same result."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toy
from radin.weights import read_recipe

pytestmark = [pytest.mark.long, pytest.mark.clock, pytest.mark.timeout(900)]

# Every batch and forward takes a little while, so that kills fall into outputs and parts of soups, not start-up only.
SLOW_TASK = """
import time
import toy
import torch
class Slow(torch.nn.Sequential):
    def forward(self, x):
        time.sleep(0.005)
        return super().forward(x)
def model(): return Slow(*toy.model())
def _slow(batches):
    for batch in batches:
        time.sleep(0.01)
        yield batch
def validation(): return _slow(toy.batches(toy.VALIDATION, 20))
def test(): return toy.batches(toy.TEST)
def calibration(): return toy.batches(toy.TRAINING)
"""


def cook(folder: Path, out: Path) -> list[object]:
    return ["cook", folder, "--task", folder / "slow.py", "--budget", 6, "--out", out, "--members-at-once", 3]


def essence(out: Path) -> dict:
    found = json.loads((out / "result.json").read_text())
    evaluations = [(e["recipe"], e["score"], e["stderr"]) for e in found["evaluations"]]
    return {
        "best": found["best"]["recipe"],
        "passes": found["passes"],
        "evaluations": evaluations,
        "test": found["test"],
    }


@pytest.fixture(scope="module")
def pool(tmp_path_factory, commands):
    folder = tmp_path_factory.mktemp("kill")
    toy.build(folder)
    (folder / "slow.py").write_text(SLOW_TASK)
    started = time.monotonic()
    process = commands.start(cook(folder, folder / "straight"))
    assert process.wait() == 0, process.err
    return folder, time.monotonic() - started


def test_killed_at_random_moments(pool, tmp_path, commands):
    folder, whole_time = pool
    moments = random.Random(0)
    out = tmp_path / "run"
    kills = 0
    while True:
        process = commands.start(cook(folder, out))
        patience = moments.uniform(0.3, 1.0) * whole_time if kills < 2 else 240
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert code == 0, process.err
        if kills:
            break
        shutil.rmtree(out)  # the machine is quicker now than it was for the first run
        whole_time *= 0.7
    assert essence(out) == essence(folder / "straight")
    soup, straight = (load_file(run / "soup.safetensors") for run in (out, folder / "straight"))
    assert soup.keys() == straight.keys()
    assert all(torch.equal(soup[name], straight[name]) for name in soup)
    assert read_recipe(out / "soup.safetensors") == essence(out)["best"]
    assert not list(out.rglob("*.partial"))
