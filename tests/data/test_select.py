"""What can be read by index, and that it is what a reading in order gives."""

import numpy as np
import pytest
import torch
from made_data import Digits, Sentences, Stream, padded
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

import toy
from radin import Pool, Task, metrics
from radin.data.batches import read
from radin.data.select import check_by_index, indexed
from radin.engine.device import Device
from radin.errors import TaskError
from radin.run.preflight import preflight

EXAMPLES = np.array([0, 3, 4, 17, 18, 19, 33, 49, 299, 598, 599])
DATA = TensorDataset(torch.arange(30.0)[:, None], torch.arange(30))


class Own(DataLoader):
    def __iter__(self):
        return reversed(list(super().__iter__()))


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(DATA, batch_size=4, shuffle=True),
        DataLoader(DATA, batch_size=4, sampler=RandomSampler(DATA)),
        DataLoader(DATA, batch_size=4, sampler=SequentialSampler(range(10))),
        DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 4, drop_last=False)),
        DataLoader(DATA, batch_size=None),
        DataLoader(Stream(), batch_size=4),
        Own(DATA, batch_size=4),
        toy.batches(toy.VALIDATION),
        iter(()),
    ],
)
def test_what_has_an_order_or_batches_of_its_own_is_not_read_by_index(source):
    assert indexed(source) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_only_the_examples_asked_are_touched(workers):
    data, seen = Digits(), []

    def doubled(examples):
        inputs, targets = torch.utils.data.default_collate(examples)
        return inputs * 2, targets

    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=doubled, persistent_workers=workers > 0)
    for batch in indexed(loader).read(EXAMPLES, "validation()"):
        seen.append(batch)
    assert [batch.size for batch in seen] == [4, 4, 3]
    assert torch.equal(torch.cat([b.inputs for b in seen]), data.inputs[EXAMPLES] * 2)
    assert torch.equal(torch.cat([b.targets for b in seen]), data.targets[EXAMPLES])
    assert np.flatnonzero(data.counts()).tolist() == EXAMPLES.tolist()


def test_a_dataset_gets_a_loader_of_the_batch_size_asked():
    task = Task(toy.model, Digits)
    assert [len(x) for x, _ in task.batches("validation")] == [64] * 9 + [24]
    assert [len(x) for x, _ in task.batches("validation", 250)] == [250, 250, 100]
    assert indexed(Task(toy.model, Digits()).batches("validation")).examples == 600
    with pytest.raises(TaskError, match=r"must return an iterable of \(inputs, targets\) batches, or a map-style"):
        Task(toy.model, Dataset()).batches("validation")
    assert isinstance(Task(toy.model, Stream).batches("validation"), IterableDataset)


def test_a_last_batch_that_is_dropped_is_counted_out():
    by_index = indexed(DataLoader(DATA, batch_size=4, drop_last=True))
    assert by_index.examples == sum(batch.size for batch in read(by_index.loader, "")) == 28


@pytest.mark.parametrize("source", [DataLoader(Digits(), 100), DataLoader(Sentences(), 8, collate_fn=padded)])
def test_data_that_do_not_change_pass(source):
    check_by_index(indexed(source), "validation()")


class Jittered(Digits):
    """Random augmentation with a seed of its own: two readings from the start are alike, by index they are not."""

    def __getitem__(self, index):
        if index == 0:
            self.draw = torch.Generator().manual_seed(0)
        inputs, target = super().__getitem__(index)
        draw = getattr(self, "draw", None)
        return inputs + torch.randn(64, generator=draw), target


def refused(pool, source):
    task = Task(toy.model, lambda: source)
    accuracy = metrics.get("accuracy")
    with pytest.raises(TaskError) as caught:
        preflight(task, pool.shapes, "run-0", lambda: pool.tensors(0), Device.create("cpu"), accuracy)
    return str(caught.value)


def test_random_augmentation_is_refused_before_anything_long(toy_pool: Pool):
    assert "gave other examples when read by index than when read in order" in refused(toy_pool, Jittered())


def test_a_shuffled_loader_is_refused_by_reading_twice(toy_pool: Pool):
    message = refused(toy_pool, DataLoader(Digits(), batch_size=50, shuffle=True))
    assert "two different first batches when read twice" in message


def test_a_collate_function_that_changes_the_number_is_not_compared():
    def twice(examples):
        inputs, targets = torch.utils.data.default_collate(examples)
        return torch.cat([inputs, -inputs]), torch.cat([targets, targets])

    check_by_index(indexed(DataLoader(DATA, 4, collate_fn=twice)), "validation()")
    check_by_index(indexed(DataLoader(DATA, 4, collate_fn=lambda examples: twice(examples[:2]))), "validation()")


def test_a_subset_of_a_dataset_is_read_by_index_too():
    data = Digits()
    by_index = indexed(DataLoader(Subset(data, range(100, 200)), batch_size=30))
    (batch,) = by_index.read(np.array([5, 7]), "validation()")
    assert torch.equal(batch.inputs, data.inputs[[105, 107]])
    assert np.flatnonzero(data.counts()).tolist() == [105, 107]
