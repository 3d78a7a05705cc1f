"""Gradients by mixing ratios: against finite differences of objectives written down once more, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

import radin
import toy
from radin import metrics
from radin.engine.device import Device
from radin.engine.local import LocalEngine
from radin.errors import TaskError
from radin.objectives import objectives
from radin.question import VALIDATION, Failure, Gradient, Question, Rates
from radin.recipe import Recipe

RATIOS = (0.3, 0.0, 0.25, 0.05, 0.4, 0.0)
USED = [0, 2, 3, 4]


def engine_of(pool, task, metric="accuracy", **more):
    if not isinstance(task, radin.Task):
        task = dataclasses.replace(radin.Task.load(task / "task.py"), metric=metric)
    engine = LocalEngine(pool, task, Device.create("cpu"), spec=more.pop("spec", None), **more)
    engine.bind(engine.fingerprint(VALIDATION)[0], Rates(600, 700))
    return engine


def ask(engine, objective, examples=None, groups=(), recipe=None):
    question = Question(recipe or Recipe(RATIOS), examples, gradient=Gradient(objective, groups))
    engine.submit(question)
    ((answered, answer),) = engine.wait()
    assert answered is question
    return answer


def softened(outputs, targets):
    truth = outputs[np.arange(len(targets)), targets]
    rivals = outputs.copy()
    rivals[np.arange(len(targets)), targets] = -np.inf
    margins = truth - rivals.max(axis=1)
    return (1 / (1 + np.exp(-margins / (0.1 * np.abs(margins).mean())))).mean()


def cooled(outputs, targets):
    found = minimize_scalar(
        lambda log: metrics.negative_log_likelihood(outputs / np.exp(log), targets).mean(),
        bounds=(-4, 6),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return -found.fun


WRITTEN = {
    "softened accuracy": softened,
    "cross-entropy, free temperature": cooled,
    "cross-entropy": lambda outputs, targets: -metrics.negative_log_likelihood(outputs, targets).mean(),
    "Brier score": lambda outputs, targets: -metrics.brier(outputs, targets).mean(),
}
METRICS = {"cross-entropy": "nll", "Brier score": "brier"}


def true_objective(pool, rows, groups, written, batches):
    """The objective of the soup with these ratios, (1 + groups, N), which need not sum to 1; all in float64."""
    model = toy.model().double()
    members = [pool.tensors(k) for k in range(len(pool))]
    state = {}
    for name, tensor in model.state_dict().items():
        held = [place for place, group in enumerate(groups, 1) if name.startswith(group + ".")]
        ratios = rows[held[0] if held else 0]
        total = sum(float(p) * member[name].double() for p, member in zip(ratios, members, strict=True))
        state[name] = total if tensor.is_floating_point() else tensor
    model.load_state_dict(state)
    model.eval()
    model[1].train()
    value = count = 0
    with torch.no_grad():
        for inputs, targets in batches:
            value += len(targets) * written(model(inputs.double()).numpy(), targets.numpy())
            count += len(targets)
    return value / count


@pytest.mark.parametrize("objective", list(WRITTEN))
@pytest.mark.parametrize("groups", [(), ("1", "4")], ids=["one set", "by group"])
def test_the_gradient_is_that_of_finite_differences(toy_pool, toy_folder, objective, groups):
    engine = engine_of(toy_pool, toy_folder, METRICS.get(objective, "accuracy"))
    answer = ask(engine, objective, groups=groups)
    batches, written = toy.batches(toy.VALIDATION), WRITTEN[objective]
    rows = np.tile(RATIOS, (1 + len(groups), 1))
    assert answer.score == pytest.approx(true_objective(toy_pool, rows, groups, written, batches), rel=1e-5)
    assert answer.gradient.shape == (1 + len(groups), 6)
    assert np.isnan(answer.gradient[:, [1, 5]]).all()
    step, expected = 1e-5, np.empty((1 + len(groups), len(USED)))
    for g in range(1 + len(groups)):
        for place, k in enumerate(USED):
            up, down = rows.copy(), rows.copy()
            up[g, k] += step
            down[g, k] -= step
            values = [true_objective(toy_pool, moved, groups, written, batches) for moved in (up, down)]
            expected[g, place] = (values[0] - values[1]) / (2 * step)
    assert answer.gradient[:, USED] == pytest.approx(expected, rel=1e-4, abs=1e-4 * np.abs(expected).max())


def test_some_examples_in_batches_of_any_size_and_nothing_is_changed(toy_pool, toy_folder):
    engine = engine_of(toy_pool, toy_folder)
    question = Question(Recipe(RATIOS))
    engine.submit(question)
    before = engine.wait()[0][1].score
    examples = np.arange(150, 370)
    answer = ask(engine, "softened accuracy", examples)
    assert answer.examples == 220
    inputs, targets = (torch.cat(parts)[150:370] for parts in zip(*toy.batches(toy.VALIDATION), strict=True))
    batches = list(zip(inputs.split(100), targets.split(100), strict=True))
    rows = np.array([RATIOS])
    assert answer.score == pytest.approx(true_objective(toy_pool, rows, (), softened, batches), rel=1e-5)
    engine.submit(question)
    assert engine.wait()[0][1].score == before


def test_memory_that_runs_out_starts_again_in_smaller_batches(toy_pool, toy_folder, monkeypatch):
    engine = engine_of(toy_pool, toy_folder, "nll")
    whole = ask(engine, "cross-entropy")
    from radin.engine import gradient

    real = gradient.objectives.value

    def value(objective, metric, outputs, targets):
        if len(outputs) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(objective, metric, outputs, targets)

    monkeypatch.setattr(gradient.objectives, "value", value)
    engine = engine_of(toy_pool, toy_folder, "nll")
    halves = ask(engine, "cross-entropy")
    assert any("batches of at most 50" in note for note in engine.notes)
    assert halves.examples == 600
    # other batches have other BatchNorm statistics, so it is near, and not the same
    assert halves.score == pytest.approx(whole.score, rel=0.1)


def test_worker_processes_give_the_same(toy_pool, toy_folder):
    alone = ask(engine_of(toy_pool, toy_folder), "softened accuracy", np.arange(100, 300), ("4",))
    with engine_of(toy_pool, toy_folder, workers=2, spec=toy_folder / "task.py") as engine:
        engine.data = dict(engine.data)
        other = ask(engine, "softened accuracy", np.arange(100, 300), ("4",))
    assert other.score == pytest.approx(alone.score, rel=1e-6)
    assert other.gradient[:, USED] == pytest.approx(alone.gradient[:, USED], rel=1e-4, abs=1e-6)


def test_a_model_without_a_graph_is_told_so(toy_pool, toy_folder):
    @torch.no_grad()
    def outputs(model, inputs):
        return model(inputs)

    task = dataclasses.replace(radin.Task.load(toy_folder / "task.py"), outputs=outputs)
    engine = engine_of(toy_pool, task)
    answer = ask(engine, "softened accuracy")
    assert isinstance(answer, Failure)  # soups can be scored all the same
    assert "works under torch.no_grad, or detaches" in answer.message


def test_each_metric_has_objectives_or_none():
    known = {name: objectives(metrics.get(name)) for name in metrics.names()}
    assert known["accuracy"] == ("softened accuracy", "cross-entropy, free temperature")
    assert known["mse"] == known["r2"] == ("squared error",)
    assert known["ece"] == known["multilabel_map"] == known["span_f1"] == ()
    mine = radin.Metric("mine", True, "any", lambda outputs, targets: 0.0)
    assert objectives(mine) == ()
    learned = radin.Metric("mine", True, "any", lambda outputs, targets: 0.0, loss=lambda o, t: (o.sum() - 1) ** 2)
    assert objectives(learned) == ("the metric's loss",)
    outputs = torch.ones(2, 3, requires_grad=True)
    from radin.objectives import value

    assert value("the metric's loss", learned, outputs, torch.zeros(2)).item() == -25.0
    with pytest.raises(TaskError, match="nothing can be learned for metric 'ece'"):
        value("softened accuracy", metrics.get("ece"), outputs, torch.zeros(2))


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "expected"),
    [
        ("mse", [[1.0, 2.0], [0.0, 0.0]], [[0.0, 2.0], [1.0, 1.0]], -0.75),
        ("mae", [[1.0], [3.0]], [0.0, 5.0], -1.5),
        ("token_nll", [[-0.5], [-1.5], [0.0]], [[3, 0], [2, 0], [-1, 1]], -1.0),
        # two examples of class 0, at margins 1 and -1, one of class 1 at 1: the mean size is 1
        ("balanced_accuracy", [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [0, 0, 1], None),
        ("top2", [[0.0, 1.0, 3.0], [2.0, 1.0, 0.0]], [0, 0], None),
    ],
)
def test_objectives_of_other_metrics(name, outputs, targets, expected):
    from radin.objectives import value

    metric = metrics.get(name)
    found = value(objectives(metric)[0], metric, torch.tensor(outputs, requires_grad=True), torch.tensor(targets))
    soft = 1 / (1 + np.exp(-10.0))
    if name == "balanced_accuracy":
        expected = ((soft + 1 - soft) / 2 + soft) / 2
    if name == "top2":  # below the second rival by 1, above it by 2: the mean size is 1.5
        expected = (1 / (1 + np.exp(10 / 1.5)) + 1 / (1 + np.exp(-20 / 1.5))) / 2
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
