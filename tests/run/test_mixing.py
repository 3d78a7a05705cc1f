"""A resumed run mixes nothing: whatever could change an answer is compared, and the refusal says what changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import radin
import toy
from radin.errors import RadinError, RunError, TaskError
from radin.run.directory import RunDirectory


def cook(pool, task, out, budget=2, **more):
    return radin.cook(pool, task, budget=budget, out=out, strategy="greedy", **more)


def written(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def run(toy_pool, toy_task, tmp_path):
    """A run, and what every refusal must leave as it was."""
    task = replace(toy_task, shifts={"dark": [(x * 0.5, y) for x, y in toy.batches(toy.TEST)]})
    cook(toy_pool, task, tmp_path / "run")
    before = written(tmp_path / "run")
    yield task, tmp_path / "run"
    assert written(tmp_path / "run") == before


FINGERPRINTS = r"\(was [0-9a-f]{12}, now [0-9a-f]{12}\)"


def test_other_test_labels(run, toy_pool):
    task, out = run
    wrong = replace(task, test=lambda: [(x, (y + 1) % 10) for x, y in toy.batches(toy.TEST)])
    with pytest.raises(RunError, match=f"belongs to another run: test data {FINGERPRINTS}"):
        cook(toy_pool, wrong, out, budget=4)


def test_another_shift(run, toy_pool):
    task, out = run
    other = replace(task, shifts={"dark": [(x * 0.4, y) for x, y in toy.batches(toy.TEST)]})
    with pytest.raises(RunError, match=f"shifts/dark data {FINGERPRINTS}"):
        cook(toy_pool, other, out, budget=4)


def test_other_calibration_data_of_the_same_number(run, toy_pool):
    task, out = run
    other = replace(task, calibration=lambda: [(x.flip(1), y) for x, y in toy.batches(toy.TRAINING)])
    with pytest.raises(RunError, match=f"calibration data {FINGERPRINTS}"):
        cook(toy_pool, other, out, budget=4)


def test_another_function_of_the_same_name(toy_pool, toy_task, tmp_path):
    def make(wanted):
        def score(outputs, targets):
            return ((outputs.argmax(1) == targets) == wanted).double().mean()

        return replace(toy_task, metric=score, higher_is_better=True)

    first = cook(toy_pool, make(True), tmp_path / "run")
    with pytest.raises(RunError, match="the metric's code"):
        cook(toy_pool, make(False), tmp_path / "run", budget=4)
    again = cook(toy_pool, make(True), tmp_path / "run")
    assert again.best == first.best


def test_integers_from_another_member(run, toy_pool):
    task, out = run
    said = "integers from .was 'the member with the largest ratio', now 'run-3'."
    with pytest.raises(RunError, match=said):
        cook(toy_pool, task, out, budget=4, integers_from="run-3")


def test_another_precision(run, toy_pool):
    task, out = run
    with pytest.raises(RunError, match=r"precision .was 'float32', now 'bfloat16'."):
        cook(toy_pool, task, out, budget=4, precision="bfloat16")


def test_the_halves(run, toy_pool):
    task, out = run
    with pytest.raises(RunError, match=r"halves .was 'one set for both', now 'searched and chosen on halves"):
        cook(toy_pool, task, out, budget=4, choose_on_half=True)


def test_all_that_changed_is_said_at_once(run, toy_pool):
    task, out = run
    with pytest.raises(RunError) as refused:
        cook(toy_pool, replace(task, metric="nll"), out, budget=4, precision="float16")
    for said in ("metric (was 'accuracy', now 'nll')", "higher_is_better (was True, now False)", "precision"):
        assert said in str(refused.value)


def test_a_test_set_that_comes_later_is_looked_at_and_then_bound(toy_pool, toy_task, tmp_path):
    out = tmp_path / "run"
    without = replace(toy_task, test=None)
    assert cook(toy_pool, without, out).best.splits == {}
    assert cook(toy_pool, toy_task, out).best.splits.keys() == {"test"}
    assert cook(toy_pool, without, out).best.splits.keys() == {"test"}
    wrong = replace(toy_task, test=lambda: toy.batches(slice(1300, 1700)))
    with pytest.raises(RunError, match="test data"):
        cook(toy_pool, wrong, out)


def test_other_validation_data(run, toy_pool):
    task, out = run
    moved = replace(task, validation=lambda: [(x, y.flip(0)) for x, y in toy.batches(toy.VALIDATION)])
    with pytest.raises(TaskError, match=r"validation.. gave other data than before"):
        cook(toy_pool, moved, out, budget=4)


def test_a_script_that_changed(toy_pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "score.sh"
    script.write_text("echo 0.5 # $1\n")
    cook(toy_pool, radin.Command("sh score.sh {soup}"), tmp_path / "run")
    script.write_text("echo 0.6 # $1\n")
    with pytest.raises(RunError, match=f"the file score.sh {FINGERPRINTS}"):
        cook(toy_pool, radin.Command("sh score.sh {soup}"), tmp_path / "run", budget=3)
    script.write_text("echo 0.5 # $1\n")
    with pytest.raises(RunError, match=r"the command .was 'sh score.sh {soup}', now 'sh score.sh {soup} --fast'"):
        cook(toy_pool, radin.Command("sh score.sh {soup} --fast"), tmp_path / "run", budget=3)
    with pytest.raises(RunError, match=r"better scores .was 'higher', now 'lower'."):
        cook(toy_pool, radin.Command("sh score.sh {soup}", higher_is_better=False), tmp_path / "run", budget=3)
    assert cook(toy_pool, radin.Command("sh score.sh {soup}", jobs=2), tmp_path / "run", budget=3).passes.soups == 3


def test_passes_by_members_are_those_that_were_made(toy_pool, toy_task, tmp_path):
    shared = tmp_path / "outputs"
    assert cook(toy_pool, toy_task, tmp_path / "first", outputs=shared).passes.members == 6
    assert cook(toy_pool, toy_task, tmp_path / "second", outputs=shared).passes.members == 0
    assert cook(toy_pool, toy_task, tmp_path / "first", outputs=shared).passes.members == 6
    found = json.loads((tmp_path / "second" / "result.json").read_text())["passes"]
    assert (found["members"], found["total"]) == (0, found["soups"] + found["reestimated"])


@pytest.mark.parametrize("keep", [True, False])
def test_killed_before_validation_is_bound(toy_pool, toy_task, tmp_path, monkeypatch, keep):
    """The members' scores are in the ledger by then: the run counts their passes, and takes no other data."""
    bind = RunDirectory.bind

    def killed(directory, name, *rest):
        if name == "validation":
            raise KeyboardInterrupt
        bind(directory, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "bind", killed)
        with pytest.raises(KeyboardInterrupt):
            cook(toy_pool, toy_task, tmp_path / "run", keep_outputs=keep)
    moved = replace(toy_task, validation=lambda: [(x, y.flip(0)) for x, y in toy.batches(toy.VALIDATION)])
    with pytest.raises(RadinError, match=r"validation.. gave other data than before|code or the data changed"):
        cook(toy_pool, moved, tmp_path / "run", keep_outputs=keep)
    assert cook(toy_pool, toy_task, tmp_path / "run", keep_outputs=keep).passes.members == 6


def test_data_by_index_are_read_as_the_search_asks(toy_pool, toy_task, tmp_path):
    """A map-style dataset: validation is read once for the members, then only what is asked about."""
    inputs, targets = (torch.cat(parts) for parts in zip(*toy.batches(toy.VALIDATION), strict=True))

    class Counted(torch.utils.data.Dataset):
        def __init__(self):
            self.read = 0

        def __len__(self):
            return len(inputs)

        def __getitem__(self, index):
            self.read += 1
            return inputs[index], targets[index]

    data = Counted()
    task = replace(toy_task, validation=lambda: data, test=None, calibration=None)
    options = {"options": {"count": 256, "keep": 48}}
    result = radin.cook(toy_pool, task, budget=3, out=tmp_path / "run", **options)
    assert result.passes.started > len(result.evaluations)
    first_batches = 4 * 64  # preflight: read twice, and by index
    assert data.read <= len(inputs) + result.passes.soups * len(inputs) + first_batches
    listed = replace(task, validation=lambda: [(inputs, targets)])
    plain = radin.cook(toy_pool, listed, budget=3, out=tmp_path / "plain", **options)
    assert [(e.recipe, e.score) for e in plain.evaluations] == [(e.recipe, e.score) for e in result.evaluations]
