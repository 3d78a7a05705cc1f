"""A device whose memory a batch does not fit in."""

import gc
import logging
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import toy
from radin import Task
from radin.data.batches import read
from radin.data.task import UserCodeError
from radin.engine.batchnorm import statistics
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.errors import RadinError
from radin.metrics import get

ACCURACY = get("accuracy")


class Small(nn.Sequential):
    """Has room for some examples only, and counts them."""

    room, seen, error = 30, 0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    def forward(self, x):
        if len(x) > self.room:
            raise self.error
        self.seen += len(x)
        return super().forward(x)


def small(pool, k=0, **how):
    found = type("Small", (Small,), how)(*toy.model())
    found.load_state_dict(pool.tensors(k))
    return found.eval().requires_grad_(False)


def plain(pool, k=0):
    found = toy.model()
    found.load_state_dict(pool.tensors(k))
    return found.eval().requires_grad_(False)


BATCHES = list(read(toy.batches(toy.VALIDATION), "validation()"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_outputs(toy_pool, caplog, error):
    models = [small(toy_pool, k, error=error) for k in range(2)]
    device = Device.create("cpu")
    with caplog.at_level(logging.WARNING, logger="radin"):
        found = [device.outputs(models, batch) for batch in BATCHES]
    for k in range(2):
        expected = [plain(toy_pool, k)(batch.inputs) for batch in BATCHES]
        torch.testing.assert_close(torch.cat([rows[k] for rows in found]), torch.cat(expected))
    assert [model.seen for model in models] == [600, 600]  # and no example is run twice
    assert device.fitting("outputs") == 25
    (note,) = device.notes
    assert caplog.messages == [note]
    assert note == (
        "a batch did not fit in the memory of device 'cpu'; batches of at most 25 examples are used for the outputs"
    )
    assert Device.create("cpu").notes == ()


def test_when_a_single_example_does_not_fit_that_is_said(toy_pool):
    with pytest.raises(RadinError, match=r"device 'cpu' has too little memory for a single example: use a device"):
        Device.create("cpu").outputs([small(toy_pool, room=0)], BATCHES[0])


def test_other_failures_of_the_model_stay_the_users(toy_pool):
    broken = small(toy_pool, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(UserCodeError, match="the model's forward failed with RuntimeError: mat1"):
        Device.create("cpu").outputs([broken], BATCHES[0])


def test_values_and_scores_do_not_change(toy_pool):
    task = Task(lambda: small(toy_pool), toy.batches(toy.VALIDATION))
    usual = Evaluator(Task(toy.model, task.validation), Device.create("cpu"), ACCURACY)
    evaluator = Evaluator(task, Device.create("cpu"), ACCURACY)
    expected = usual.score(plain(toy_pool), "validation", "run-0")
    model, _ = evaluator.prepare(toy_pool.tensors(0), "run-0", calibrate=False)
    found = evaluator.score(model, "validation", "run-0")
    assert found.data == expected.data
    assert np.array_equal(found.values, expected.values)
    examples = np.arange(0, 600, 7)
    values = evaluator.values(model, "validation", examples, expected_data=found.data)
    assert np.array_equal(values, expected.values[examples])
    assert evaluator.notes == evaluator.engine.notes != ()


def test_calibration_starts_again_in_smaller_batches(toy_pool):
    task = Task(lambda: small(toy_pool, room=60), toy.batches(toy.VALIDATION), calibration=toy.batches(toy.TRAINING))
    evaluator = Evaluator(task, Device.create("cpu"), ACCURACY)
    model, tensors = evaluator.prepare(toy_pool.tensors(0), "run-0", calibrate=True)
    fifty = Evaluator(
        Task(toy.model, task.validation, calibration=task.calibration), Device.create("cpu", batch_size=50), ACCURACY
    )
    expected, _ = fifty.prepare(toy_pool.tensors(0), "run-0", calibrate=True)
    for name, value in statistics(expected).items():
        torch.testing.assert_close(statistics(model)[name], value)
        torch.testing.assert_close(tensors[name], value)
    assert evaluator.engine.fitting("calibration") == 50
    assert evaluator.engine.fitting("outputs") is None
    assert "used for the calibration" in evaluator.notes[0]


def test_what_the_failed_batch_took_is_given_back_before_the_next_is_tried(toy_pool):
    taken, left = [], []

    class Filling(Small):
        def forward(self, x):
            left.append(sum(kept() is not None for kept in taken))
            activations = torch.zeros(len(x), 1000)
            taken.append(weakref.ref(activations))
            if len(x) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    models = [Filling(*plain(toy_pool)), Filling(*plain(toy_pool, 1))]
    gc.disable()  # no cycle of frames and errors may wait for the collector
    try:
        Device.create("cpu").outputs(models, BATCHES[0])
    finally:
        gc.enable()
    assert left == [0] * len(left)
    assert len(left) == 2 + 2 * 4  # of 100 and of 50 the first model's only, then four of 25 by both
