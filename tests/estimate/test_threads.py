"""Tasks on threads."""

from __future__ import annotations

import pytest
import torch

from radin.estimate.threads import map_on_threads


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_order_and_torch_keeps_its_threads(threads):
    before = torch.get_num_threads()
    assert list(map_on_threads(lambda x: x * x, range(50), threads)) == [x * x for x in range(50)]
    assert torch.get_num_threads() == before


def test_each_thread_computes_alone():
    assert set(map_on_threads(lambda _: torch.get_num_threads(), range(8), 2)) == {1}


def test_an_error_in_a_task_is_raised_and_torch_keeps_its_threads():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(map_on_threads(lambda x: 1 // x, [1, 0, 2], 2))
    assert torch.get_num_threads() == before
