"""How often data are read: by index, from memory, or whole for every slice."""

import logging

import numpy as np
import pytest
import torch
from made_data import Digits, Sentences, Stream, digits, padded
from torch import nn
from torch.utils.data import DataLoader, default_collate

import toy
from radin import Task
from radin.data.readings import Readings
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.errors import TaskError
from radin.memory import free_memory
from radin.metrics import get
from radin.outputs.collect import collect_outputs, stream_outputs
from radin.outputs.store import OutputStore

EXAMPLES = np.array([0, 3, 4, 17, 18, 19, 33, 49, 299, 598, 599])
ACCURACY = get("accuracy")


def evaluator_of(source, batch_size=None, **more):
    task = Task(toy.model, lambda: source)
    return Evaluator(task, Device.create("cpu", batch_size=batch_size), ACCURACY, **more)


def collected(evaluator, pool, folder):
    found = collect_outputs(
        evaluator.task, pool, OutputStore(folder), evaluator.engine, ACCURACY, readings=evaluator.readings
    )
    model, _ = evaluator.prepare(pool.tensors(0), "run-0", calibrate=False)
    return found, model


@pytest.mark.parametrize("workers", [0, 2])
def test_slices_by_index_touch_their_own_examples_and_equal_those_in_order(toy_pool, tmp_path, workers):
    data = Digits()
    loader = DataLoader(data, batch_size=50, num_workers=workers, collate_fn=lambda batch: default_collate(batch))
    evaluator, plain = evaluator_of(loader, batch_size=20), evaluator_of(toy.batches(toy.VALIDATION))
    assert evaluator.way() == "reading"
    found, model = collected(evaluator, toy_pool, tmp_path)
    assert data.counts() == [1] * 600
    assert evaluator.way() == "index"
    assert evaluator.reading_share() == 0
    for examples in (EXAMPLES, np.arange(600), np.array([599])):
        mine = evaluator.values(model, "validation", examples, expected_data=found.data)
        touched = np.array(data.counts())
        assert touched.sum() == len(examples)
        assert touched[examples].all()
        assert np.array_equal(mine, plain.values(model, "validation", examples, expected_data=found.data))
    assert evaluator.score(model, "validation", "run-0").data == found.data


@pytest.mark.parametrize("streamed", [False, True])
def test_the_members_reading_holds_an_iterable(toy_pool, tmp_path, streamed):
    stream = Stream()
    evaluator = evaluator_of(DataLoader(stream, batch_size=50), batch_size=20)
    if streamed:
        blocks = []
        data, _ = stream_outputs(
            evaluator.task,
            toy_pool,
            evaluator.engine,
            ACCURACY,
            lambda block, labels: blocks.append(block),
            readings=evaluator.readings,
        )
        model, _ = evaluator.prepare(toy_pool.tensors(0), "run-0", calibrate=False)
    else:
        found, model = collected(evaluator, toy_pool, tmp_path)
        data = found.data
    assert evaluator.way() == "held"
    assert evaluator.reading_share() == 0
    expected = evaluator_of(Digits()).score(model, "validation", "run-0")
    for _ in range(3):
        values = evaluator.values(model, "validation", EXAMPLES, expected_data=data)
        assert np.array_equal(values, expected.values[EXAMPLES])
        assert evaluator.score(model, "validation", "run-0", expected_data=data).score == expected.score
    assert stream.readings == 1
    assert not evaluator.notes


def test_past_the_share_each_slice_is_one_reading_and_that_is_said_once(toy_pool, tmp_path, caplog):
    stream = Stream()
    evaluator = evaluator_of(DataLoader(stream, batch_size=50), held_share=1e-9)
    with caplog.at_level(logging.WARNING, logger="radin"):
        found, model = collected(evaluator, toy_pool, tmp_path)
        assert evaluator.way() == "reading"
        for count in (2, 3, 4):
            evaluator.values(model, "validation", EXAMPLES, expected_data=found.data)
            assert stream.readings == count
    (note,) = evaluator.notes
    assert note == caplog.messages[0]
    assert len(caplog.messages) == 1
    assert note.startswith("validation() is not kept in memory, for it takes more than")
    assert "every slice of it reads all of it" in note


def test_groups_of_members_share_what_is_held(toy_pool, tmp_path):
    stream = Stream()
    task = Task(toy.model, lambda: DataLoader(stream, batch_size=50))
    engine = Device.create("cpu", members_at_once=2)
    evaluator = Evaluator(task, engine, ACCURACY)
    found, _ = collected(evaluator, toy_pool, tmp_path / "held")
    assert stream.readings == 1
    plain = collect_outputs(task, toy_pool, OutputStore(tmp_path / "read"), engine, ACCURACY)
    assert stream.readings == 4
    assert all(np.array_equal(a, b) for a, b in zip(found.outputs, plain.outputs, strict=True))
    assert found.data == plain.data


def test_all_splits_together_stay_below_the_share():
    task = Task(toy.model, toy.batches(toy.VALIDATION), test=toy.batches(toy.TEST))
    size = sum(t.numel() * t.element_size() for batch in toy.batches(toy.VALIDATION) for t in batch)
    readings = Readings(task, share=1.2 * size / free_memory())
    for split in ("validation", "test"):
        list(readings.whole(split))
    assert [readings.way(split) for split in ("validation", "test")] == ["held", "reading"]


def test_a_collate_function_that_changes_the_number_is_read_in_order(toy_pool, tmp_path):
    def both_signs(examples):
        inputs, targets = default_collate(examples)
        return torch.stack([inputs, -inputs], 1).flatten(0, 1), targets.repeat_interleave(2)

    data = Digits()
    evaluator = evaluator_of(DataLoader(data, batch_size=50, collate_fn=both_signs))
    found, model = collected(evaluator, toy_pool, tmp_path)
    assert len(found.targets) == 1200
    assert evaluator.way() == "reading"
    whole = evaluator.score(model, "validation", "run-0", expected_data=found.data)
    assert evaluator.way() == "held"
    values = evaluator.values(model, "validation", EXAMPLES * 2 + 1, expected_data=found.data)
    assert np.array_equal(values, whole.values[EXAMPLES * 2 + 1])


def test_other_targets_by_index_are_refused(toy_pool, tmp_path):
    class Moving(Digits):
        def __getitem__(self, index):
            inputs, target = super().__getitem__(index)
            return inputs, target if self.asked[index] == 1 else (target + 1) % 10

    evaluator = evaluator_of(Moving(), batch_size=50)
    found, model = collected(evaluator, toy_pool, tmp_path)
    with pytest.raises(TaskError, match="gave other targets when some examples were read by index"):
        evaluator.values(model, "validation", EXAMPLES, expected_data=found.data)


def test_text_padded_otherwise_gives_the_same_values():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

        def forward(self, ids, mask):
            return self.head((self.embed(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    torch.manual_seed(0)
    model = Bag().requires_grad_(False)
    loader = DataLoader(Sentences(), batch_size=8, collate_fn=padded)
    by_index, in_order = (
        Evaluator(Task(Bag, source), Device.create("cpu"), ACCURACY) for source in (loader, list(loader))
    )
    whole = by_index.score(model, "validation", "a model")
    assert in_order.score(model, "validation", "a model").data == whole.data
    assert (by_index.way(), in_order.way()) == ("index", "held")
    for examples in (np.arange(1, 60, 5), np.array([59]), np.arange(60)):
        for evaluator in (by_index, in_order):
            values = evaluator.values(model, "validation", examples, expected_data=whole.data)
            assert np.array_equal(values, whole.values[examples])


def test_the_share_of_reading_is_what_the_clock_says(toy_pool, tmp_path, monkeypatch):
    """By a clock that moves only where the data are read and where a model runs: no busy machine changes it."""
    passed = [100.0]
    monkeypatch.setattr("radin.data.readings.time.monotonic", lambda: passed[0])

    class Slow(nn.Sequential):
        def forward(self, x):
            passed[0] += 0.03
            return super().forward(x)

    def batches():
        for batch in toy.batches(toy.VALIDATION):
            passed[0] += 0.01
            yield batch

    task = Task(lambda: Slow(*toy.model()), batches)
    evaluator = Evaluator(task, Device.create("cpu"), ACCURACY, held_share=1e-9)
    assert evaluator.reading_share() == 1  # nothing is known: a slice is charged a pass
    assert evaluator.reading_share("test") == 1
    found, model = collected(evaluator, toy_pool, tmp_path)
    assert evaluator.reading_share() == 0.25  # though six members shared the reading
    evaluator.values(model, "validation", EXAMPLES, expected_data=found.data)
    assert evaluator.reading_share() == 0.25
    again = Evaluator(task, Device.create("cpu"), ACCURACY, held_share=1e-9)
    collected(again, toy_pool, tmp_path)  # all outputs are there, no model runs
    assert again.reading_share() == 1
    assert again.reading_share("validation", seconds_per_batch=0.03) == 0.25
    assert again.reading_share("validation", seconds_per_batch=0.02) == 0.33  # to two digits


def test_calibration_is_counted_without_reading_where_its_number_is_sure():
    data = Digits()
    for source, asked in ((data, 0), (DataLoader(data, 7, collate_fn=lambda b: default_collate(b)), 600)):
        task = Task(toy.model, toy.batches(toy.VALIDATION), calibration=source)
        assert Evaluator(task, Device.create("cpu"), ACCURACY).calibration_examples() == 600
        assert sum(data.counts()) == asked


def test_datasets_and_lists_have_one_fingerprint():
    inputs, targets = digits()
    found = set()
    for source in (Digits(), Stream, toy.batches(toy.VALIDATION), [(inputs, targets)]):
        readings = Readings(Task(toy.model, DataLoader(Stream(), 9) if source is Stream else source))
        list(readings.whole("validation"))
        found.add(readings.fingerprint("validation"))
    assert len(found) == 1
