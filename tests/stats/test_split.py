"""Validation in two halves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radin.errors import TaskError
from radin.stats.split import split_halves


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(0, 3))
def test_halves_are_even_by_class_and_in_total(targets, seed):
    labels = np.array(targets)
    search, choose = split_halves(labels, seed)
    assert sorted([*search, *choose]) == list(range(len(labels)))
    assert 0 <= len(search) - len(choose) <= 1
    for label in range(6):
        assert abs(int((labels[search] == label).sum()) - int((labels[choose] == label).sum())) <= 1


def test_halves_are_random_seeded_and_sorted():
    search, choose = split_halves(1000, seed=1)
    again, _ = split_halves(1000, seed=1)
    other, _ = split_halves(1000, seed=2)
    assert (search == again).all()
    assert (search == np.sort(search)).all()
    assert 180 < len(np.intersect1d(search, other)) < 320
    assert (np.diff(choose) > 0).all()
    real, _ = split_halves(np.linspace(0, 1, 1000), seed=1)
    assert (real == search).all()
    with pytest.raises(TaskError, match="takes two"):
        split_halves(np.array([3]))
