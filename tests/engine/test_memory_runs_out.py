"""Memory that runs out: smaller batches, fewer members at once, the same results, and a word about it."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import radin
import toy
from radin.engine import device as devices
from radin.engine.device import Device, TooLittleMemoryError
from radin.engine.forward import OutOfMemoryError, lacks_memory
from radin.engine.load import load_weights
from radin.errors import RadinError

ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "host": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 8.00 GiB for an array"),
    "c++": RuntimeError("std::bad_alloc"),
}


def narrow(room: int, error: Exception, outside: bool = False):
    """A toy model that has room for so many examples in a batch."""

    class Narrow(torch.nn.Sequential):
        def forward(self, x):
            if len(x) > room:
                raise error
            return super().forward(x)

    return lambda: Narrow(*toy.model())


@pytest.mark.parametrize("kind", [*ERRORS])
def test_a_whole_run_in_smaller_batches_has_the_same_result(toy_pool, toy_task, tmp_path, kind):
    """Members, soups, calibration, test: all of them meet the error."""
    task = replace(toy_task, calibration=None)
    plain = radin.cook(toy_pool, task, budget=3, out=tmp_path / "plain")
    halved = radin.cook(toy_pool, replace(task, model=narrow(30, ERRORS[kind])), budget=3, out=tmp_path / "halved")
    assert halved.best.recipe == plain.best.recipe
    assert halved.best.score == plain.best.score
    assert [e.score for e in halved.evaluations] == [e.score for e in plain.evaluations]
    assert halved.best.splits == plain.best.splits
    said = "batches of at most 25 examples are used for the outputs"
    assert any(said in note for note in halved.notes)
    assert not any("did not fit" in note for note in plain.notes)


def test_calibration_too(toy_pool, toy_task, tmp_path):
    result = radin.cook(toy_pool, replace(toy_task, model=narrow(30, MemoryError())), budget=2, out=tmp_path / "run")
    assert any("at most 25 examples are used for the calibration" in note for note in result.notes)


@pytest.mark.parametrize("error", [TooLittleMemoryError("x"), OutOfMemoryError(3, "x")])
def test_errors_of_memory_cross_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert not lacks_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize("where", ["loading", "running"])
def test_fewer_members_at_once_where_not_all_fit(toy_pool, toy_task, tmp_path, monkeypatch, where):
    """Two models and their batches fit beside each other, a third does not."""
    plain = radin.cook(toy_pool, toy_task, budget=2, out=tmp_path / "plain")
    held: list[int] = []
    from radin.outputs import collect

    place, outputs = collect._place, Device._outputs

    def count(task, pool, members, engine):
        held[:] = [0]
        return place(task, pool, members, engine)

    def load(model, tensors, name):
        held[0] += 1
        if where == "loading" and held[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        load_weights(model, tensors, name)

    def run(self, models, batch, rows):
        if where == "running" and len(models) > 2:
            raise OutOfMemoryError(batch.size, "CUDA out of memory")
        return outputs(self, models, batch, rows)

    monkeypatch.setattr(collect, "_place", count)
    monkeypatch.setattr(collect, "load_weights", load)
    monkeypatch.setattr(devices.Device, "_outputs", run)
    found = radin.cook(toy_pool, toy_task, budget=2, out=tmp_path / "run", members_at_once=6)
    assert found.best.score == plain.best.score
    assert found.best.recipe == plain.best.recipe
    assert any("the members' outputs were made 1 at a time" in note for note in found.notes)  # 6, 3, 1
    assert not any("examples are used for the outputs" in note for note in found.notes)


def test_at_a_single_example_it_is_one_message(toy_pool, toy_task, tmp_path):
    with pytest.raises(RadinError, match="too little memory for a single example"):
        radin.cook(toy_pool, replace(toy_task, model=narrow(0, MemoryError())), budget=2, out=tmp_path / "run")


WORKERS = (
    toy.TASK
    + """
import multiprocessing
class Narrow(torch.nn.Sequential):
    def forward(self, x):
        if len(x) > 30 and multiprocessing.parent_process() is not None:
            raise MemoryError
        return super().forward(x)
def model(): return Narrow(*toy.model())
"""
)


def test_worker_processes_say_it_too(toy_folder, toy_pool, tmp_path):
    (tmp_path / "task.py").write_text(WORKERS)
    result = radin.cook(toy_pool, tmp_path / "task.py", budget=2, out=tmp_path / "run", workers=2)
    assert any(re.search("of at most [0-9]+ examples are used for the outputs", note) for note in result.notes)


# One process, three runs. The limits count from where the first one has ended: what it imports, its threads' stacks and
# arenas and the buffers that it reads with have their addresses by then, so that batches alone decide what fits.
LIMITED = """
import os, resource, sys, torch, radin.cli
torch.set_num_threads(1)
folder, *arguments = sys.argv[1:]
codes = []
for name, limit in (("free", 0), ("tight", TIGHT), ("none", 64 * 2**10)):
    for number in (1, 2):
        os.dup2(os.open(f"{folder}/{name}.{number}", os.O_WRONLY | os.O_CREAT), number)
    if name == "tight":
        pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (pages + limit, -1))
    sys.argv = ["radin", *arguments, "--out", f"{folder}/{name}"]
    try:
        radin.cli.main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
open(f"{folder}/codes", "w").write(repr(codes))
"""

HUNGRY = (
    toy.TASK
    + """
class Hungry(torch.nn.Sequential):
    def forward(self, x):
        torch.empty(len(x), SIZE, dtype=torch.uint8)  # addresses, which the limit counts, and no memory until written
        return super().forward(x)
def model(): return Hungry(*toy.model())
"""
)


@pytest.mark.clock
@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS binds here")
def test_a_real_limit_of_memory(toy_folder, tmp_path):
    """A batch of 100 takes 1,600 MB and there are 1,200: half of it fits and leaves 400 for all else."""
    (tmp_path / "task.py").write_text(HUNGRY.replace("SIZE", str(16 * 2**20)))
    files = sorted(toy_folder.glob("*.safetensors"))[:3]
    arguments = ("cook", *files, "--task", tmp_path / "task.py", "--budget", 2, "--device", "cpu", "--json")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}
    code = LIMITED.replace("TIGHT", str(1200 * 2**20))
    subprocess.run([sys.executable, "-c", code, *map(str, (tmp_path, *arguments))], env=environment, check=True)
    said = {name: (tmp_path / f"{name}.2").read_text() for name in ("free", "tight", "none")}
    assert (tmp_path / "codes").read_text() == "[0, 0, 2]", said
    found, expected = (json.loads((tmp_path / f"{name}.1").read_text()) for name in ("tight", "free"))
    assert any("at most 50 examples are used for the outputs" in note for note in found["notes"])
    assert not any("did not fit" in note for note in expected["notes"])
    assert found["best"]["score"] == expected["best"]["score"]
    assert found["best"]["recipe"] == expected["best"]["recipe"]
    assert "memory" in said["none"].splitlines()[-1]
    assert "fault of radin's" not in said["none"]
    assert np.isfinite(found["best"]["score"])
