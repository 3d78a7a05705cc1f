"""Worker processes: the same scores, the budget, what a kill loses, what a dead worker loses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

import radin
import toy
from radin import Task
from radin.engine.device import Device
from radin.engine.local import LocalEngine
from radin.errors import RadinError, TaskError
from radin.question import Question
from radin.recipe import Recipe
from radin.run.ledger import Ledger

SLOW_TASK = """
import time
import toy
import torch
class Slow(torch.nn.Sequential):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)
def model(): return Slow(*toy.model())
def validation(): return toy.batches(toy.VALIDATION, 20)
def calibration(): return toy.batches(slice(0, 100), 20)
"""


def questions(out):
    ledger = Ledger(out / "ledger.sqlite", read_only=True)
    found = ledger.questions()
    ledger.close()
    return found


def left_by_a_kill(out, folder):
    """A copy of the run's ledger in which what SQLite was writing is undone, as the next to write in it would."""
    for path in out.glob("ledger.sqlite*"):
        shutil.copy(path, folder)
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        db.execute("SELECT count(*) FROM sqlite_master")
    return folder


def check_ledger(out, budget):
    """No example of a soup asked twice, and the budget kept."""
    seen: dict[str, set[int]] = {}
    for asked in questions(out):
        examples = set(asked.examples.tolist())
        assert not seen.setdefault(asked.identity, set()) & examples
        seen[asked.identity] |= examples
    spent = (sum(map(len, seen.values())) + 100 * len(seen)) / 700
    assert spent <= budget + 1e-9
    return spent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("workers")
    toy.build(made)
    (made / "slow.py").write_text(SLOW_TASK)
    return made


def test_workers_score_as_this_process_does(toy_folder, tmp_path):
    task = toy_folder / "task.py"
    one = radin.cook(toy_folder, task, budget=4, out=tmp_path / "one", strategy="paper", device="cpu")
    two = radin.cook(toy_folder, task, budget=4, out=tmp_path / "two", strategy="paper", device="cpu", workers=2)
    assert {(e.recipe, e.score) for e in two.evaluations} == {(e.recipe, e.score) for e in one.evaluations}
    assert two.best.recipe == one.best.recipe
    assert two.best.splits == one.best.splits
    held, expected = (load_file(tmp_path / name / "soup.safetensors") for name in ("two", "one"))
    assert all(torch.equal(held[name], expected[name]) for name in expected)
    assert not [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def test_a_task_that_cannot_be_sent_is_said_so(toy_pool, toy_task, tmp_path):
    with pytest.raises(TaskError, match=r"cannot be sent to worker processes .*give it as a file or a module"):
        radin.cook(toy_pool, toy_task, budget=2, out=tmp_path / "run", strategy="top-k", workers=2)
    with pytest.raises(RadinError, match=r"workers, the number of processes .* must be at least 1; got 0"):
        radin.cook(toy_pool, toy_task, budget=2, out=tmp_path / "other", workers=0)


def test_an_error_in_a_worker_comes_with_its_own_traceback(toy_folder, tmp_path):
    (tmp_path / "task.py").write_text(
        "import os, toy, torch\n"
        "class Fussy(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if os.getpid() != OWNER: raise ValueError('not in here')\n"
        "        return super().forward(x)\n"
        f"OWNER = {os.getpid()}\n"
        "def model(): return Fussy(*toy.model())\n"
        "def validation(): return toy.batches(toy.VALIDATION)\n"
    )
    with pytest.raises(radin.RadinError, match="the model's forward failed with ValueError: not in here") as failed:
        radin.cook(toy_folder, tmp_path / "task.py", budget=2, out=tmp_path / "run", strategy="top-k", workers=2)
    assert "in forward" in failed.value.traceback


def test_workers_may_read_by_processes_of_their_own(toy_folder, tmp_path):
    (tmp_path / "task.py").write_text(
        "import toy, torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "model = toy.model\n"
        "def validation():\n"
        "    x, y = (torch.cat(parts) for parts in zip(*toy.batches(toy.VALIDATION), strict=True))\n"
        "    return DataLoader(TensorDataset(x, y), batch_size=100, num_workers=1)\n"
    )
    how = {"budget": 2, "strategy": "top-k", "device": "cpu"}
    result = radin.cook(toy_folder, tmp_path / "task.py", out=tmp_path / "run", workers=2, **how)
    assert result.passes.soups == 2


def test_workers_that_see_other_data_are_found_out(toy_folder, tmp_path):
    (tmp_path / "task.py").write_text(
        "import os, toy\n"
        "model = toy.model\n"
        "def validation(): return toy.batches(toy.VALIDATION)\n"
        "def test(): return [(x + int.from_bytes(os.urandom(3)), y) for x, y in toy.batches(toy.TEST)]\n"
    )
    how = {"budget": 2, "strategy": "top-k", "device": "cpu", "workers": 2}
    with pytest.raises(TaskError, match=r"test.. gave other data than before"):
        radin.cook(toy_folder, tmp_path / "task.py", out=tmp_path / "run", **how)


def test_an_answer_that_comes_with_an_error_is_kept(toy_folder, toy_pool):
    """Both workers are done before anyone asks, one of them in vain."""
    task = toy_folder / "task.py"
    with LocalEngine(toy_pool, Task.load(task), Device.create("cpu"), spec=task, workers=2) as engine:
        engine.data["test"] = "0" * 64
        good, bad = Question(Recipe.single(0, 6)), Question(Recipe.single(1, 6), None, "test")
        engine.submit(bad)
        engine.submit(good)
        pipes = [worker.pipe for worker in engine._crew._processes]
        assert all(pipe.poll(120) for pipe in pipes)
        ((question, answer),) = engine.wait()
        assert question is good
        assert answer.score > 0
        with pytest.raises(TaskError, match=r"test.. gave other data than before"):
            engine.wait()


def test_statistics_from_workers_keep_no_files_open(toy_folder, toy_pool):
    task = toy_folder / "task.py"
    with LocalEngine(toy_pool, Task.load(task), Device.create("cpu"), spec=task, workers=2) as engine:
        open_files = []
        for k in range(1, 4):
            for j in range(1, 3):
                engine.submit(Question(Recipe.normalized([1, k, j, 0, 0, 0])))
            while engine.wait():
                pass
            open_files.append(psutil.Process().num_fds())
    assert open_files[-1] == open_files[0]


def cook(folder, out, budget=4):
    command = ["cook", folder, "--task", folder / "slow.py", "--budget", budget, "--out", out]
    return [*command, "--jobs", 2, "-O", "count=256", "-O", "keep=48"]


def wait_for(condition, process, patience=200.0):
    until = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, process.err
        assert time.monotonic() < until
        time.sleep(0.02)


def workers_of(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.clock
@pytest.mark.timeout(900)
@pytest.mark.long
def test_killed_with_two_questions_open_it_loses_at_most_those(folder, tmp_path, commands):
    out, moments, told = tmp_path / "run", random.Random(0), 0
    for number in range(2):
        process = commands.start(cook(folder, out))
        goal = told + moments.randint(1, 4)
        wait_for(
            lambda goal=goal: (
                (out / "ledger.sqlite").exists()
                and len([q for q in _peek(out) if q.told is not None]) >= goal
                and len([q for q in _peek(out) if q.told is None]) == 2
            ),
            process,
        )
        helpers = workers_of(process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = tmp_path / f"left-{number}"
        left.mkdir()
        asked = questions(left_by_a_kill(out, left))
        told = len([q for q in asked if q.told is not None])
        assert told >= goal
        assert len(asked) - told <= 2
        check_ledger(left, 4)
        _, alive = psutil.wait_procs(helpers, timeout=30)
        assert not alive, "workers end with the process that they work for"
    process = commands.start(cook(folder, out))
    assert process.wait() == 0, process.err
    found = json.loads((out / "result.json").read_text())
    assert found["passes"]["soups"] == pytest.approx(check_ledger(out, 4), abs=1e-8)
    assert found["best"]["score"] >= found["best_single"]["score"]
    assert not [q for q in questions(out) if q.told is None]


def _peek(out):
    try:
        return questions(out)
    except radin.RunError:  # not there yet, or just being written
        return []


@pytest.mark.clock
@pytest.mark.timeout(900)
@pytest.mark.long
def test_a_dead_worker_gives_its_question_to_another(folder, tmp_path, commands):
    process = commands.start(cook(folder, tmp_path / "run"))
    wait_for(lambda: len(workers_of(process)) == 2 and len(_peek(tmp_path / "run")) >= 4, process)
    workers_of(process)[0].send_signal(signal.SIGKILL)
    assert process.wait() == 0, process.err
    assert all(q.told is not None and q.error is None for q in questions(tmp_path / "run"))
    check_ledger(tmp_path / "run", 4)


@pytest.mark.clock
@pytest.mark.timeout(900)
@pytest.mark.long
def test_interrupted_it_ends_with_its_workers_and_says_how_to_go_on(folder, tmp_path, commands):
    process = commands.start(cook(folder, tmp_path / "run"))
    wait_for(lambda: len(workers_of(process)) == 2 and len(_peek(tmp_path / "run")) >= 3, process)
    helpers = workers_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "the same command continues from here" in process.err
    _, alive = psutil.wait_procs(helpers, timeout=30)
    assert not alive


def test_soups_continue_with_the_statistics_they_were_started_with(toy_folder, tmp_path):
    """On whichever worker: the values of parts, put together, are those of the whole soup."""
    task = toy_folder / "task.py"
    how = {"options": {"count": 256, "keep": 48}, "device": "cpu"}
    result = radin.cook(toy_folder, task, budget=3, out=tmp_path / "run", workers=2, **how)
    best = next(e for e in result.evaluations if e.recipe == result.best.recipe) if result.evaluations else None
    assert best is not None
    model = toy.model().eval()
    model.load_state_dict(load_file(tmp_path / "run" / "soup.safetensors"))
    with torch.no_grad():
        hits = torch.cat([model(x).argmax(1) == y for x, y in toy.batches(toy.VALIDATION)]).numpy()
    assert np.isclose(hits.mean(), result.best.score)


def test_one_model_object_serves_all_soups(toy_pool, toy_task, tmp_path):
    built = []

    def model():
        built.append(1)
        return toy.model()

    radin.cook(toy_pool, replace(toy_task, model=model), budget=6, out=tmp_path / "run", strategy="top-k")
    # one in preflight, one for each member's outputs, one for all soups and all evaluations on test
    assert len(built) == 1 + 6 + 1
