"""Compiled margins on disk, members added, left out and reordered, and damaged input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_outputs import counts, make, right_counts, subsets, uniform

from radin.errors import OutputsError
from radin.estimate.accuracy import AccuracyEstimator
from radin.estimate.extend import update_margins
from radin.estimate.margins import MarginCompiler, compile_margins
from radin.estimate.reading import Reader
from radin.estimate.store import Keys, load_margins, save_margins


class Counting:
    """An (M, C) array that counts the rows read from it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.rows = array, array.shape, array.dtype, 0

    def __getitem__(self, rows):
        self.rows += len(range(*rows.indices(self.shape[0])))
        return self.array[rows]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.permutations(range(6)),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([0.3, 1.5, 4.0]),
    st.booleans(),
)
def test_updating_gives_what_compiling_does(seed, order, before, after, noise, integers):
    outputs, targets = make(members=6, examples=60, classes=8, noise=noise, seed=seed)
    if integers:
        outputs = np.round(outputs)
    first, second = order[:before], sorted(order[-after:])
    old = compile_margins(Reader(outputs[first]), targets, extendable=True)
    known = [first.index(k) if k in first else None for k in second]
    new = update_margins(old, Reader(outputs[second]), known)
    masks = subsets(after, 40, seed)
    expected = right_counts(outputs[second], targets, masks)
    assert (counts(AccuracyEstimator(new), uniform(masks)) == expected).all()
    # And once more, from the updated form to all members: its record of redundant pairs must still be true.
    known = [second.index(k) if k in second else None for k in range(6)]
    third = update_margins(new, Reader(outputs), known)
    whole = compile_margins(Reader(outputs), targets)
    for name in ("example", "rival", "logits", "allowed"):
        np.testing.assert_array_equal(getattr(third, name), getattr(whole, name))


def test_adding_a_member_reads_little_of_the_others():
    outputs, targets = make(members=40, examples=500, classes=50, noise=0.4)
    old = compile_margins(Reader(outputs[:39]), targets, extendable=True)
    sources = [Counting(array) for array in outputs]
    update_margins(old, Reader(sources), [*range(39), None])
    assert sources[-1].rows == 500
    assert sources[0].rows < 100


@pytest.mark.parametrize("extendable", [True, False])
def test_what_is_saved_is_loaded(tmp_path, extendable):
    outputs, targets = make(dtype=np.float16)
    margins = compile_margins(Reader(outputs), targets, extendable=extendable)
    keys = Keys.of([f"sha{k}" for k in range(9)], "data")
    save_margins(margins, tmp_path / "deep" / "margins.safetensors", keys)
    loaded, loaded_keys = load_margins(tmp_path / "deep" / "margins.safetensors")
    assert loaded_keys == keys
    assert (loaded.dropped is not None) == extendable
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["margins.safetensors"]
    weights = uniform(subsets(9, 100))
    assert (AccuracyEstimator(loaded).scores(weights) == AccuracyEstimator(margins).scores(weights)).all()


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    outputs, targets = make()
    path = tmp_path / "margins.safetensors"
    save_margins(compile_margins(Reader(outputs), targets), path, Keys.of(["a"] * 9, "data"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(OutputsError, match=r"margins.safetensors is damaged.*content does not match its checksum"):
        load_margins(path)
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(OutputsError, match="holds no compiled margins: it has no checksum"):
        load_margins(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_name_the_member(bad, dtype):
    outputs, targets = make(dtype=dtype)
    outputs[4, 321, 7] = bad
    names = [f"run{k}.pt" for k in range(9)]
    message = r"run4.pt: its outputs hold NaN or infinity, first at example 321"
    with pytest.raises(OutputsError, match=message):
        compile_margins(Reader(outputs, names), targets)
    compiler = MarginCompiler(9, 30, names=names)
    compiler.add(outputs[:, :300], targets[:300])
    with pytest.raises(OutputsError, match=message):
        compiler.add(outputs[:, 300:], targets[300:])


def test_blocks_of_another_shape_are_refused():
    with pytest.raises(OutputsError, match=r"shape \(9, 5, 30\)"):
        MarginCompiler(9, 30).add(np.zeros((8, 5, 30), np.float32), np.zeros(5, int))
    with pytest.raises(OutputsError, match="there are no examples"):
        MarginCompiler(9, 30).finish()


def test_huge_finite_logits_are_no_error():
    outputs = np.array([[[3e38, -3e38], [3e38, 3e38]]], np.float32)
    margins = compile_margins(Reader(outputs), np.array([0, 1]))
    assert AccuracyEstimator(margins).scores(np.array([[1.0]])) == 0.5
