"""The suite that is shipped for engines: radin's own pass it, and engines with one fault each do not."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import radin
import toy
from radin import Command, Engine, Pool, Recipe, Task
from radin.engine.command import CommandEngine
from radin.engine.device import Device
from radin.engine.local import LocalEngine
from radin.question import Answer, answer_from_values
from radin.testing import ENGINE_CHECKS, EngineCase, check_engine

PROGRAM = """
import sys
import numpy as np
from safetensors.numpy import load_file
tensors, data = load_file(sys.argv[1]), np.load(sys.argv[2])
right = (data["x"] @ tensors["w"]).argmax(1) == data["y"]
print(float(right.mean()))
"""


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Three linear models of one layer on digits, and the digits: what a small program can score in no time."""
    folder = tmp_path_factory.mktemp("linear")
    inputs, targets = (torch.cat(parts).numpy() for parts in zip(*toy.batches(slice(0, 300)), strict=True))
    np.savez(folder / "data.npz", x=inputs, y=targets)
    (folder / "score.py").write_text(PROGRAM)
    rng = np.random.default_rng(0)
    ideal = np.linalg.lstsq(inputs, np.eye(10)[targets], rcond=None)[0]
    for k in range(3):
        weights = torch.tensor(ideal + 0.05 * rng.normal(size=ideal.shape), dtype=torch.float32)
        radin.save({"w": weights}, folder / f"run-{k}.safetensors")
    return folder


@pytest.fixture(scope="module")
def cases(toy_folder, linear, tmp_path_factory):
    """By name, an EngineCase."""
    pool = Pool.open(toy_folder)
    task = Task.load(toy_folder / "task.py")
    small = Pool.open(linear)
    data = np.load(linear / "data.npz")
    plain = Task(toy.model, lambda: toy.batches(toy.VALIDATION))

    def accuracy(path):
        return float(((data["x"] @ load_file(path)["w"].numpy()).argmax(1) == data["y"]).mean())

    def accuracy_of_the_toy(path):
        model = toy.model().eval()
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            right = [(model(x).argmax(1) == y).double() for x, y in toy.batches(toy.VALIDATION)]
        return float(torch.cat(right).mean())

    command = Command(f"{sys.executable} {linear / 'score.py'} {{soup}} {linear / 'data.npz'}", jobs=2)
    return {
        "this process": EngineCase(
            lambda: LocalEngine(pool, task, Device.create("cpu")), len(pool), accuracy_of_the_toy
        ),
        "no calibration": EngineCase(
            lambda: LocalEngine(pool, plain, Device.create("cpu")), len(pool), accuracy_of_the_toy
        ),
        "a program": EngineCase(
            lambda: CommandEngine(small, command, tmp_path_factory.mktemp("scratch")), len(small), accuracy
        ),
        "a table": EngineCase(lambda: Table(small, data, accuracy), len(small), accuracy),
    }


class Table(Engine):
    """Answers at once, by numpy; one question at a time."""

    parts = True

    def __init__(self, pool, data, read):
        self.pool, self.data, self.read, self.open = pool, data, read, []
        self.metric = radin.Metric("accuracy", higher_is_better=True, targets="any", value=lambda o, t: 0.0)

    def identity(self):
        return {"pool": list(self.pool.fingerprints)}

    def submit(self, question):
        self.open.append(question)

    def wait(self, timeout=None):
        return [(question, self.answer(question)) for question in [self.open.pop()]] if self.open else []

    def answer(self, question) -> Answer:
        weights = radin.average(self.pool, question.recipe)["w"].numpy()
        right = ((self.data["x"] @ weights).argmax(1) == self.data["y"]).astype(float)
        return answer_from_values(right if question.examples is None else right[question.examples], 0.0)

    def write(self, recipe: Recipe, path):
        radin.save(radin.average(self.pool, recipe), path)

    def close(self):
        self.open.clear()


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", ["this process", "no calibration", "a program", "a table"])
def test_radin_s_engines(cases, name, check):
    check(cases[name])


class Forgets(Table):
    def identity(self):
        return {}


class Repeats(Table):
    def wait(self, timeout=None):
        kept = list(self.open)
        found = super().wait(timeout)
        self.open = kept
        return found


class Drifts(Table):
    def answer(self, question):
        self.asked = getattr(self, "asked", 0) + 1
        answer = super().answer(question)
        return replace(answer, score=answer.score + 0.01 * self.asked)


class Shuffles(Table):
    def answer(self, question):
        answer = super().answer(question)
        if question.examples is None:
            return answer
        return replace(answer, values=1 - answer.values)


class WritesAnother(Table):
    def write(self, recipe, path):
        super().write(Recipe.single(0, len(recipe.weights)), path)


class LeavesFiles(Table):
    def write(self, recipe, path):
        super().write(recipe, path)
        path.with_suffix(".tmp").touch()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Forgets, r"identity\(\) is empty"),
        (Repeats, r"wait\(\) once all is answered"),
        (Drifts, "the score of one soup, asked again: expected"),
        (Shuffles, "other values than among all examples"),
        (WritesAnother, "the score of the soup that was written: expected"),
        (LeavesFiles, r"what write\(\) left: expected \['soup.safetensors'\]; got .*tmp"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_fault_is_found_out(linear, cases, engine, message):
    pool, data, read = Pool.open(linear), np.load(linear / "data.npz"), cases["a table"].read
    with pytest.raises(AssertionError, match=message):
        check_engine(EngineCase(lambda: engine(pool, data, read), 3, read))
