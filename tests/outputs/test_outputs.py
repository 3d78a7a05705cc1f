import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import toy
from radin import metrics
from radin.engine.device import Device
from radin.errors import OutputsError, TaskError
from radin.outputs import store as outputs_module
from radin.outputs.collect import collect_outputs
from radin.outputs.store import OutputStore, StoredOutputs

ACCURACY = metrics.get("accuracy")


def collect(task, pool, folder, engine=None, dtype="float32", **more):
    engine = engine or Device.create("cpu")
    store = OutputStore(folder, precision=engine.precision, dtype=dtype)
    return collect_outputs(task, pool, store, engine, ACCURACY, **more)


def expected(pool, k):
    model = toy.model().eval()
    model.load_state_dict(pool.tensors(k))
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in toy.batches(toy.VALIDATION)]).numpy()


def test_outputs_are_the_members_own(toy_pool, toy_task, tmp_path):
    found = collect(toy_task, toy_pool, tmp_path)
    assert found.passes == 6
    assert found.targets.tolist() == torch.cat([y for _, y in toy.batches(toy.VALIDATION)]).tolist()
    for k in range(6):
        np.testing.assert_allclose(found.outputs[k], expected(toy_pool, k), atol=1e-6)


def test_the_loader_is_read_once_for_all_members_and_not_by_models_when_cached(toy_pool, toy_task, tmp_path):
    readings = []

    def validation():
        readings.append(1)
        return toy.batches(toy.VALIDATION)

    task = replace(toy_task, validation=validation)
    assert collect(task, toy_pool, tmp_path).passes == 6
    assert len(readings) == 1
    assert collect(task, toy_pool, tmp_path).passes == 0
    assert len(readings) == 2


@pytest.mark.parametrize(
    "engine", [{"members_at_once": 2}, {"batch_size": 7}, {"members_at_once": 1, "batch_size": 64}]
)
def test_neither_groups_nor_batch_size_change_the_outputs(toy_pool, toy_task, tmp_path, engine):
    plain = collect(toy_task, toy_pool, tmp_path / "plain")
    other = collect(toy_task, toy_pool, tmp_path / "other", Device.create("cpu", **engine))
    assert plain.data == other.data
    for a, b in zip(plain.outputs, other.outputs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_float16_storage_halves_the_file(toy_pool, toy_task, tmp_path):
    found = collect(toy_task, toy_pool, tmp_path, dtype="float16")
    assert found.outputs[0].dtype == np.float16
    np.testing.assert_allclose(found.outputs[0], expected(toy_pool, 0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("resumed_batch", [100, 60, 70])
def test_a_reading_that_died_goes_on_where_its_rows_are_safe(toy_pool, toy_task, tmp_path, monkeypatch, resumed_batch):
    monkeypatch.setattr(outputs_module, "_SAFE_EVERY", 0.0)
    whole = collect(toy_task, toy_pool, tmp_path / "whole")

    def dying():
        for index, batch in enumerate(toy.batches(toy.VALIDATION)):
            if index == 3:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        collect(replace(toy_task, validation=dying), toy_pool, tmp_path / "cut")
    rows = []

    class Counting(Device):
        def outputs(self, models, batch, rows_of=None):
            rows.append(batch.size)
            return super().outputs(models, batch, rows_of)

    task = replace(toy_task, validation=lambda: toy.batches(toy.VALIDATION, resumed_batch))
    found = collect(task, toy_pool, tmp_path / "cut", Counting(torch.device("cpu")))
    # 300 rows were safe; batches that do not end there (70) start the reading anew
    assert sum(rows) == (600 if resumed_batch == 70 else 300)
    assert found.data == whole.data
    for a, b in zip(whole.outputs, found.outputs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_rows_of_other_data_are_not_resumed(toy_pool, toy_task, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs_module, "_SAFE_EVERY", 0.0)

    def dying():
        yield from [(x + 1, y) for x, y in toy.batches(toy.VALIDATION)][:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(replace(toy_task, validation=dying), toy_pool, tmp_path)
    found = collect(toy_task, toy_pool, tmp_path)
    np.testing.assert_allclose(found.outputs[2], expected(toy_pool, 2), atol=1e-6)


def test_data_that_change_between_readings_are_refused(toy_pool, toy_task, tmp_path):
    count = iter(range(99))

    def validation():
        shift = float(next(count))
        return [(x + shift, y) for x, y in toy.batches(toy.VALIDATION)]

    task = replace(toy_task, validation=validation)
    with pytest.raises(TaskError, match=r"validation\(\) gave other data than before.*no shuffling"):
        collect(task, toy_pool, tmp_path, Device.create("cpu", members_at_once=3))


@pytest.mark.parametrize("where", [3, 40, 4000, 5000, -1, "cut"])
def test_a_damaged_outputs_file_is_named_and_made_again_and_no_other(toy_pool, toy_task, tmp_path, where):
    collect(toy_task, toy_pool, tmp_path)
    path = OutputStore(tmp_path).path(toy_pool[2].fingerprint)
    whole = path.read_bytes()
    if where == "cut":
        os.truncate(path, path.stat().st_size - 100)
    else:
        damaged = bytearray(whole)
        damaged[where] ^= 4
        path.write_bytes(damaged)
    with pytest.raises(OutputsError, match=f"{path.name} is not a whole outputs file"):
        StoredOutputs.open(path)
    found = collect(toy_task, toy_pool, tmp_path)
    assert found.passes == 1
    assert path.read_bytes() == whole


def test_outputs_of_other_weights_are_never_served(toy_pool, toy_task, tmp_path):
    collect(toy_task, toy_pool, tmp_path)
    store = OutputStore(tmp_path)
    os.replace(store.path(toy_pool[0].fingerprint), store.path(toy_pool[1].fingerprint))
    with pytest.raises(OutputsError, match="holds the outputs of other weights"):
        collect(toy_task, toy_pool, tmp_path)


def test_a_member_with_nan_outputs_is_named(toy_pool, toy_task, tmp_path):
    class Wrapped(torch.nn.Sequential):
        def __init__(self):
            super().__init__(*toy.model())

        def forward(self, x):
            return super().forward(x) / 0.0 * 0.0

    task = replace(toy_task, model=Wrapped)
    with pytest.raises(OutputsError, match="run-0: its outputs hold NaN or infinity, first for example 0"):
        collect(task, toy_pool, tmp_path)


def test_stored_outputs_know_whose_they_are(toy_pool, toy_task, tmp_path):
    found = collect(toy_task, toy_pool, tmp_path)
    stored = StoredOutputs.open(OutputStore(tmp_path).path(toy_pool[3].fingerprint))
    assert (stored.member, stored.data) == (toy_pool[3].fingerprint, found.data)
    assert stored.shape == (600, 10)
