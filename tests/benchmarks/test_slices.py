"""The measurement of what a slice costs, on few images."""

import pytest
from benchmarks.engine_parts.slices import measure

pytestmark = [pytest.mark.long, pytest.mark.clock]


def test_a_slice_by_index_costs_less_than_one_in_order(tmp_path):
    found = measure(tmp_path, images=400, repeats=3)
    assert 0.3 < found.slice_cost_ratio < 3
    assert found.in_order > 2 * found.slice_cost_ratio
    assert found.in_order_with_model > 2 * found.with_model
    assert 0.3 < found.reading_share <= 1
