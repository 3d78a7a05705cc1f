"""Devices that are neither the CPU nor CUDA; torch's "meta" device, which computes nothing, stands for one."""

import numpy as np
import pytest
import torch
from made_outputs import make, subsets, uniform

from radin.estimate import estimator
from radin.estimate.accuracy import (
    BLOCK_RECIPES,
    BLOCK_ROWS,
    block_recipes,
    block_rows,
    contested,
    has_float64,
)
from radin.estimate.margins import compile_margins
from radin.estimate.reading import Reader
from radin.metrics import get


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "meta"])
def test_every_device_type_has_a_block_size(device):
    assert device not in BLOCK_ROWS
    assert device not in BLOCK_RECIPES
    assert block_rows(torch.device(device)) > 0
    assert block_recipes(torch.device(device)) > 0


def test_margins_are_arranged_on_a_device_of_another_type():
    found = contested(compile_margins(Reader(make()[0]), make()[1]), "meta")
    assert {block.scaled.device.type for block in found.blocks} == {"meta"}


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "balanced_accuracy"])
def test_where_a_device_has_no_float64_recipes_are_scored_on_the_cpu(metric):
    assert has_float64("cpu")
    assert not has_float64("meta")
    outputs, targets = make()
    weights = uniform(subsets(9, 50))
    found, expected = (
        estimator(outputs, targets, get(metric), device=device).scores(weights) for device in ("meta", "cpu")
    )
    assert np.array_equal(found, expected)
