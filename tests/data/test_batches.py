import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radin.data.batches import DataFingerprint, read, rebatched, selected, size_in_bytes
from radin.data.task import UserCodeError
from radin.errors import TaskError


def digest(batches):
    data = DataFingerprint()
    for batch in read(batches, "validation()"):
        data.update(batch)
    return data.hexdigest()


def cut(inputs, targets, size):
    return list(zip(inputs.split(size), targets.split(size), strict=True))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))
def test_fingerprint_does_not_depend_on_the_batch_size(first, second, dtype):
    torch.manual_seed(0)
    inputs, targets = (torch.rand(20, 3) * 9).to(dtype), torch.arange(20)
    assert digest(cut(inputs, targets, first)) == digest(cut(inputs, targets, second))


def test_fingerprint_changes_with_order_content_targets_dtype_and_shape():
    inputs, targets = torch.rand(20, 4), torch.arange(20)
    order = torch.arange(20).flip(0)
    other = inputs.clone()
    other[19, 3] += 1e-6
    variants = [
        cut(inputs, targets, 5),
        cut(inputs[order], targets[order], 5),
        cut(other, targets, 5),
        cut(inputs, targets.flip(0), 5),
        cut(inputs.double(), targets, 5),
        cut(inputs.reshape(20, 2, 2), targets, 5),
        cut(inputs[:19], targets[:19], 5),
    ]
    assert len({digest(v) for v in variants}) == len(variants)


def test_mapping_batches_give_their_labels_as_targets():
    batch = next(read([{"input_ids": torch.ones(4, 7), "labels": torch.arange(4)}], "validation()"))
    assert set(batch.inputs) == {"input_ids"}
    assert batch.targets.tolist() == [0, 1, 2, 3]
    assert batch.size == 4


def test_rebatched_keeps_order_and_content():
    inputs, targets = torch.arange(10.0)[:, None], torch.arange(10)
    parts = list(rebatched(read(cut(inputs, targets, 7), "validation()"), 3))
    assert [p.size for p in parts] == [3, 3, 1, 3]
    assert torch.equal(torch.cat([p.inputs for p in parts]), inputs)
    assert torch.equal(torch.cat([p.targets for p in parts]), targets)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([5], r"validation\(\), batch 0: expected \(inputs, targets\) or a mapping with 'labels'; got int"),
        ([(torch.ones(3, 2), torch.ones(4))], r"same number of examples; got \[3, 4\]"),
        ([("text", torch.ones(4))], "the inputs hold no tensor; got str"),
    ],
)
def test_batches_of_another_form_are_refused(batches, message):
    with pytest.raises(TaskError, match=message):
        list(read(batches, "validation()"))


def test_a_failing_loader_shows_its_own_frames_only():
    def loader():
        yield torch.ones(2, 2), torch.ones(2)
        raise KeyError("the user's bug")

    with pytest.raises(UserCodeError) as caught:
        list(read(loader(), "validation()"))
    assert "in loader" in caught.value.traceback
    assert "batches.py" not in caught.value.traceback.replace("test_batches.py", "")


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.sets(st.integers(0, 29), min_size=1))
def test_selected_gives_the_rows_asked_in_batches_of_the_usual_size(size, chosen):
    inputs, targets = torch.arange(60.0).reshape(30, 2), torch.arange(30)
    examples = np.array(sorted(chosen))
    parts = list(selected(read(cut(inputs, targets, size), "validation()"), examples))
    assert torch.equal(torch.cat([p.inputs for p in parts]), inputs[examples])
    assert torch.equal(torch.cat([p.targets for p in parts]), targets[examples])
    assert [p.size for p in parts[:-1]] == [size] * (len(parts) - 1)
    assert 1 <= parts[-1].size <= size


def test_selected_picks_in_nested_inputs_and_joins_only_what_has_one_shape():
    def batch(first, length):
        rows = torch.arange(first, first + 4)
        ids = rows[:, None].expand(4, length)
        return {"ids": ids, "pair": (rows.double(), [rows]), "scale": torch.tensor(2.0), "labels": rows}

    batches = [batch(0, 5), batch(4, 5), batch(8, 7)]
    examples = np.array([1, 3, 6, 8, 11])
    first, second = selected(read(batches, "validation()"), examples)
    assert first.inputs["ids"].tolist() == [[1] * 5, [3] * 5, [6] * 5]
    assert first.inputs["pair"][0].tolist() == [1.0, 3.0, 6.0]
    assert first.inputs["pair"][1][0].tolist() == first.targets.tolist() == [1, 3, 6]
    assert first.inputs["scale"] == 2.0
    assert second.inputs["ids"].tolist() == [[8] * 7, [11] * 7]


def test_selected_rows_are_copies():
    inputs, targets = torch.zeros(6, 2), torch.arange(6)
    for part in selected(read(cut(inputs, targets, 3), "validation()"), np.arange(6)):
        part.inputs.add_(1)
    assert not inputs.any()


def test_size_in_bytes_counts_every_tensor():
    batch = next(read([{"a": torch.zeros(3, 2), "b": torch.zeros(3, dtype=torch.int16), "label": torch.arange(3)}], ""))
    assert size_in_bytes(batch) == 3 * 2 * 4 + 3 * 2 + 3 * 8
