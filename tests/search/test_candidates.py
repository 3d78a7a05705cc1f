"""Random and exhaustive subsets, against counting and loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from radin.errors import RadinError
from radin.recipe import Recipe
from radin.search import candidates
from radin.search.candidates import count_subsets, distinct, equal_weights, exhaustive, monte_carlo, prefixes, subsets


def as_sets(masks):
    return [frozenset(np.flatnonzero(mask).tolist()) for mask in masks]


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 12), st.integers(1, 300), st.integers(0, 1000), st.booleans())
def test_drawn_subsets_are_distinct_and_of_the_right_sizes(members, count, seed, uniform):
    drawn = as_sets(monte_carlo(members, count, (2, members - 1), np.random.default_rng(seed), uniform))
    if uniform:
        assert drawn.pop(0) == frozenset(range(members))
    assert len(drawn) == len(set(drawn)) == min(count, 2**members - members - 2)
    assert all(2 <= len(subset) <= members - 1 for subset in drawn)


def test_fewer_draws_are_the_start_of_more():
    few = monte_carlo(24, 50, (2, 23), np.random.default_rng(5))
    many = monte_carlo(24, 9000, (2, 23), np.random.default_rng(5))
    assert (many[:50] == few).all()
    assert len(many) == 9000


def test_sizes_are_uniform_and_so_are_the_members():
    drawn = monte_carlo(30, 4000, (5, 25), np.random.default_rng(0))
    sizes = np.bincount(drawn.sum(axis=1), minlength=26)[5:]
    assert chisquare(sizes).pvalue > 0.001
    # Each member is in half of the subsets, for sizes symmetric about half of the members.
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize(("members", "low", "high"), [(1, 2, 1), (2, 2, 2), (6, 2, 6), (9, 3, 5), (9, 1, 9)])
def test_exhaustive_lists_every_subset_once_in_order(members, low, high):
    blocks = list(exhaustive(members, low, high))
    listed = [s for block in blocks for s in as_sets(block)]
    expected = [frozenset(c) for size in range(low, high + 1) for c in combinations(range(members), size)]
    assert listed == expected
    assert len(listed) == count_subsets(members, low, high)


def test_exhaustive_goes_to_20_members_in_small_blocks():
    total = 0
    for block in exhaustive(20):
        assert block.shape[0] <= 65536
        total += len(block)
    assert total == 2**20 - 21
    with pytest.raises(RadinError, match="21 members have 2097130 subsets of size 2 to 21, too many to list"):
        exhaustive(21)


def test_equal_weights_are_the_uniform_recipes():
    masks = monte_carlo(13, 500, (2, 12), np.random.default_rng(0), True)
    for mask, row in zip(masks, equal_weights(masks), strict=True):
        assert Recipe(tuple(row)) == Recipe.uniform(np.flatnonzero(mask).tolist(), 13)


def test_prefixes_are_the_best_members():
    assert as_sets(prefixes(4)) == [frozenset(range(k)) for k in (1, 2, 3, 4)]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_distinct_keeps_first_appearances_in_order(columns, rows, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((rows, columns)) < 0.5
    values = rng.integers(0, 2, (rows, columns)) * -0.5
    for array in (masks, values):
        seen = {}
        for index, row in enumerate(array.tolist()):
            seen.setdefault(tuple(0.0 if v == 0 else v for v in row), index)
        assert distinct(array).tolist() == sorted(seen.values())


def test_subsets_takes_all_when_there_are_no_more_than_asked():
    rng = np.random.default_rng(0)
    assert len(subsets(7, 200, rng, None, True)) == 2**7 - 7 - 1
    assert len(subsets(8, 200, rng, None, True)) == 201
    assert as_sets(subsets(2, 200, rng, None, True)) == [frozenset({0, 1})]
    assert len(subsets(2, 200, rng, None, False)) == 0
    assert len(subsets(1, 200, rng, None, True)) == 0
    assert as_sets(subsets(3, 200, rng, (2, 3), True))[0] == frozenset({0, 1, 2})
    assert len(subsets(3, 200, rng, (2, 3), True)) == 4


def test_counting_subsets_ends_where_there_are_more_than_matter():
    assert count_subsets(12, 2, 11) == 2**12 - 14
    assert count_subsets(12, 2, 11, most=2**12 - 14) == 2**12 - 14
    assert 100 < count_subsets(12, 2, 11, most=100) < 2**12 - 14


def test_subsets_of_a_large_pool_are_those_of_whole_blocks_made_in_parts(monkeypatch):
    whole = monte_carlo(130, 5000, (2, 129), np.random.default_rng(0))
    monkeypatch.setattr(candidates, "_NUMBERS_AT_ONCE", 130 * 999)
    np.testing.assert_array_equal(monte_carlo(130, 5000, (2, 129), np.random.default_rng(0)), whole)
    np.testing.assert_array_equal(monte_carlo(130, 1200, (2, 129), np.random.default_rng(0)), whole[:1200])


@pytest.mark.parametrize("members", [4, 130])
def test_the_smallest_numbers_of_a_draw_are_marked_as_a_stable_sort_would(members):
    rng = np.random.default_rng(0)
    numbers, sizes = rng.integers(0, members, (200, members)) / members, rng.integers(1, members + 1, 200)
    masks = np.zeros(numbers.shape, dtype=np.bool_)
    candidates._mark_smallest(masks, numbers, sizes)
    order = np.argsort(numbers, axis=1, kind="stable")
    for mask, row, size in zip(masks, order, sizes, strict=True):
        assert np.flatnonzero(mask).tolist() == sorted(row[:size].tolist())
