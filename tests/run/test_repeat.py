"""A model that is not deterministic is found before anything runs; other outputs on resume are told from rounding."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import radin
import toy
from radin.checksums import sealed
from radin.engine.device import Device
from radin.errors import RunError, TaskError
from radin.run.repeat import difference, tolerance, undecided


class Noise(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x + self.size * torch.randn_like(x)


class Noisy(nn.Sequential):
    """The toy network with noise of some size added to its hidden layer, or to its outputs."""

    def __init__(self, size=0.01, *, own=False):
        super().__init__(*toy.model())
        self.own = size if own else 0.0
        self.noise = Noise(0.0 if own else size)

    def forward(self, x):
        for place, layer in enumerate(list(self)[:5]):
            x = layer(self.noise(x) if place == 2 else x)
        return x + self.own * torch.randn_like(x) if self.own else x


class DropoutLeftOn(nn.Sequential):
    def forward(self, x):
        x = self[2](self[1](self[0](x)))
        return self[4](nn.functional.dropout(x, 0.2))  # training=True by default


class AlwaysTraining(nn.Sequential):
    """Whose dropout ignores eval()."""

    def train(self, mode=True):
        super().train(mode)
        self[3].training = True
        return self


class Counting(nn.Sequential):
    """Gives something else every time it is called, with no random number."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (lambda: Noisy(), r"The first that gives other outputs for the same inputs is noise \(Noise\)\."),
        (lambda: Noisy(own=True), r"the same inputs is the forward of the model itself \(Noisy\)\."),
        (lambda: DropoutLeftOn(*toy.model()), r"The inputs of 4 \(Linear\) differ: what comes before it"),
        (lambda: AlwaysTraining(*toy.model()), r"in training mode though .* evaluation mode: 3 \(Dropout\)\."),
        (lambda: Counting(*toy.model()), r"the forward of the model itself \(Counting\)"),
    ],
)
def test_a_model_that_is_not_deterministic_is_named_before_anything_runs(toy_pool, toy_task, tmp_path, model, where):
    task = replace(toy_task, model=model)
    with pytest.raises(TaskError, match=where) as refused:
        radin.cook(toy_pool, task, budget=2, out=tmp_path / "run")
    said = str(refused.value)
    assert said.startswith(
        "the model is not deterministic: run twice on the first batch of validation(), run-0 gave two"
    )
    assert "where the largest output is" in said
    assert "F.dropout without training=self.training" in said
    assert not (tmp_path / "run").exists()
    from radin.diagnose.check import check_pool

    with pytest.raises(TaskError, match=where):
        check_pool(toy_pool, task, Device.create("cpu"), distances=False)


def test_a_layer_that_draws_and_uses_nothing_is_deterministic(toy_pool, toy_task, tmp_path):
    result = radin.cook(toy_pool, replace(toy_task, model=lambda: Noisy(0.0)), budget=1, out=tmp_path / "run")
    assert result.passes.soups == 1


class Scaled(nn.Sequential):
    """The toy network as if its code had been changed a little: another slope below zero."""

    slope = 0.0

    def forward(self, x):
        return self[4](nn.functional.leaky_relu(self[1](self[0](x)), self.slope))


def changed(slope):
    class Other(Scaled):
        pass

    Other.slope = slope
    return lambda: Other(*toy.model())


@pytest.mark.parametrize("keep", [True, False])
def test_a_small_change_of_the_model_is_refused_on_resume(toy_pool, toy_task, tmp_path, keep):
    """Of 1 % of the largest output, which the check used to let pass."""
    how = {"out": tmp_path / "run", "strategy": "greedy", "keep_outputs": keep}
    radin.cook(toy_pool, replace(toy_task, model=changed(0.0)), budget=1, **how)
    radin.cook(toy_pool, replace(toy_task, model=changed(0.0)), budget=1, **how)
    slope = 0.01 if keep else 0.3  # without outputs, only answers can be compared
    with pytest.raises(RunError, match=r"run-0 gives other outputs on the first batch .* began with: ") as refused:
        radin.cook(toy_pool, replace(toy_task, model=changed(slope)), budget=2, **how)
    assert "differ by up to" in str(refused.value) or "answers are others" in str(refused.value)


def test_the_change_was_one_of_less_than_two_percent(toy_pool):
    (x, _), *_ = toy.batches(toy.VALIDATION)
    outputs = []
    for slope in (0.0, 0.01):
        model = changed(slope)()
        model.load_state_dict(toy_pool.tensors(0))
        with torch.no_grad():
            outputs.append(model.eval()(x).numpy())
    assert 1e-3 < np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max() < 2e-2


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_another_number_of_threads_or_batch_size_is_the_same_model(toy_pool, toy_task, tmp_path, precision):
    how = {"out": tmp_path / "run", "strategy": "greedy", "precision": precision, "device": "cpu"}
    radin.cook(toy_pool, toy_task, budget=1, batch_size=100, **how)
    torch.set_num_threads(2)
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            result = radin.cook(toy_pool, toy_task, budget=2, batch_size=7, **how)
    finally:
        torch.set_num_threads(1)
    assert result.passes.soups <= 2


def test_outputs_kept_in_half_precision_are_the_same(toy_pool, toy_task, tmp_path):
    how = {"out": tmp_path / "run", "strategy": "greedy", "outputs_dtype": "float16"}
    radin.cook(toy_pool, toy_task, budget=1, **how)
    assert radin.cook(toy_pool, toy_task, budget=2, **how).passes.soups == 2


def test_outputs_of_another_device_may_differ_by_more(toy_pool, toy_task, tmp_path):
    """As GPUs that multiply float32 in TF32 make them; of an unknown device too."""
    how = {"out": tmp_path / "run", "strategy": "greedy"}
    radin.cook(toy_pool, replace(toy_task, model=changed(0.0)), budget=1, **how)
    path = tmp_path / "run" / "run.json"
    written = json.loads(path.read_text())
    assert written["settings"]["device"] == "cpu"
    near = replace(toy_task, model=changed(0.001))
    with pytest.raises(RunError, match="gives other outputs"):
        radin.cook(toy_pool, near, budget=1, **how)
    written["settings"]["device"] = "cuda, NVIDIA H100"
    path.write_text(json.dumps(sealed(written)))
    radin.cook(toy_pool, near, budget=1, **how)
    assert json.loads(path.read_text())["settings"]["device"] == "cuda, NVIDIA H100"


def test_differences_by_hand():
    before = np.array([[10.0, 0.0], [1.0, 0.9], [0.0, 3.0]])
    now = before + np.array([[0.0, 0.0], [-0.05, 0.06], [0.0, 0.0]])
    found = difference(before, now, 1e-3)
    assert (found.scale, found.answers, found.examples) == (10.0, 1, 3)
    assert found.largest == pytest.approx(0.06)
    assert str(found).endswith("differ by up to 0.06, where the largest output is 10, and 1 of 3 answers are others")
    assert difference(before, now, 0.01) is None
    assert difference(before, before * np.nan, 0.5) is not None
    assert difference(np.zeros((2, 1)), np.full((2, 1), 1e-9), 0.1) is not None
    assert difference(np.full((2, 1), 1e-6), np.full((2, 1), 1.01e-6), 1e-4) is not None  # small outputs count alike
    assert undecided(before, np.array([0, 1, 0]), 1, 0.01).tolist() == [False, True, False]
    assert undecided(np.array([[3.0, 2.0, 1.0, 0.99]]), np.array([2]), 3, 0.01).tolist() == [True]
    assert tolerance("float32") < tolerance("float32", stored="float16") < tolerance("float32", same_device=False)
