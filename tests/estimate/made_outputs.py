"""Outputs made for the tests of estimates, and their dense float64 counts."""

from __future__ import annotations

import numpy as np


def make(members=9, examples=700, classes=30, noise=0.7, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, examples)
    shared = rng.normal(size=(examples, classes))
    shared[np.arange(examples), targets] += 2.5
    return (shared + noise * rng.normal(size=(members, examples, classes))).astype(dtype), targets


def subsets(members, count, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, members)) < rng.random((count, 1))
    masks[~masks.any(axis=1), 0] = True
    return masks


def right_counts(outputs, targets, masks):
    """How many examples the float64 sums of the subsets' logits get right."""
    sums = np.tensordot(masks.astype(np.float64), outputs.astype(np.float64), 1)
    return (sums.argmax(axis=2) == targets).sum(axis=1)


def uniform(masks):
    return masks / masks.sum(axis=1, keepdims=True)


def counts(estimator, weights):
    return np.rint(estimator.scores(weights) * estimator.examples).astype(int)
