"""Evaluating some examples of a split: their values, how many are run, and what is read."""

import numpy as np
import pytest
import torch
from torch import nn

from radin import Task
from radin.data.batches import DataFingerprint, read
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.errors import TaskError

INPUTS = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(1))
EXAMPLES = np.array([0, 3, 4, 17, 18, 19, 33, 49])


class Counting(nn.Linear):
    """Counts the examples that it is given."""

    seen = 0

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


def batches(size=7):
    return list(zip(INPUTS.split(size), LABELS.split(size), strict=True))


def fingerprint():
    data = DataFingerprint()
    for batch in read(batches(), ""):
        data.update(batch)
    return data.hexdigest()


@pytest.fixture
def readings():
    return []


@pytest.fixture
def evaluator(readings):
    def validation():
        readings.append(1)
        return batches()

    task = Task(lambda: Counting(4, 3), validation)
    return Evaluator(task, Device.create("cpu", batch_size=5), task.get_metric())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Counting(4, 3).requires_grad_(False)


@pytest.mark.parametrize("held", [True, False])
def test_values_are_those_of_the_whole_and_only_these_are_run(evaluator, model, readings, held):
    if not held:
        evaluator = Evaluator(evaluator.task, evaluator.engine, evaluator.metric, held_share=1e-9)
    whole = (model(INPUTS).argmax(1) == LABELS).double().numpy()
    model.seen = 0
    for _ in range(3):
        found = evaluator.values(model, "validation", EXAMPLES, expected_data=fingerprint())
        assert np.array_equal(found, whole[EXAMPLES])
    assert model.seen == 3 * len(EXAMPLES)
    assert len(readings) == (1 if held else 3)
    everything = evaluator.values(model, "validation", np.arange(50), expected_data=fingerprint())
    assert np.array_equal(everything, whole)


def test_other_data_is_refused_and_not_held(evaluator, model, readings):
    for _ in range(2):
        with pytest.raises(TaskError, match=r"validation\(\) gave other data than before"):
            evaluator.values(model, "validation", EXAMPLES, expected_data="0" * 64)
    assert len(readings) == 2


def test_outputs_that_are_not_finite_make_every_value_nan(evaluator, model):
    class Broken(Counting):
        def forward(self, x):
            outputs = super().forward(x)
            outputs[torch.all(x == INPUTS[17], dim=1)] = torch.inf
            return outputs

    broken = Broken(4, 3).requires_grad_(False)
    assert np.isnan(evaluator.values(broken, "validation", EXAMPLES, expected_data=fingerprint())).all()
    others = EXAMPLES[EXAMPLES != 17]
    assert np.isfinite(evaluator.values(broken, "validation", others, expected_data=fingerprint())).all()


def test_a_model_that_changes_its_inputs_changes_no_data(evaluator):
    class InPlace(Counting):
        def forward(self, x):
            return super().forward(x.mul_(0.5))

    torch.manual_seed(0)
    model = InPlace(4, 3).requires_grad_(False)
    first, second = (
        evaluator.values(model, "validation", np.arange(50), expected_data=fingerprint()) for _ in range(2)
    )
    assert np.array_equal(first, second)
    assert 0 < first.mean() < 1


def test_calibration_examples_are_counted_without_a_model():
    task = Task(nn.Linear(4, 3), batches(), calibration=batches(9)[:3])
    engine = Device.create("cpu")
    assert Evaluator(task, engine, task.get_metric()).calibration_examples() == 27
    task = Task(nn.Linear(4, 3), batches())
    assert Evaluator(task, engine, task.get_metric()).calibration_examples() == 0
