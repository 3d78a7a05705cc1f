"""Negative log-likelihood of averaged probabilities, from the targets' log-probabilities alone.

Of a large vocabulary only log p_k(target) is kept. The probability that averaged logits give a target needs all
logits; the average of probabilities does not: sum_k w_k p_k(target) is exact. So recipes are scored by the mixture.

Axis names: members N, positions P, recipes S, positions in a block b.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from radin.errors import RadinError
from radin.estimate.dense import as_weights, check_targets
from radin.estimate.reading import Array, Floats, Outputs, Reader
from radin.metrics import Metric
from radin.positions import SMALLEST, UNCOUNTED

_BLOCK = 4096  # positions scored together
_RECIPES = 256
_RESIDENT_BYTES = 256 * 2**20


class MixtureEstimator:
    """Token negative log-likelihood, or perplexity, of the mixture of the members' probabilities."""

    def __init__(self, outputs: Outputs, targets: Array, metric: Metric, *, names: Sequence[str] | None = None) -> None:
        """outputs (N, P, 1), targets (P, 2). Raises OutputsError or TaskError when they do not fit."""
        self._reader = Reader(outputs, names)
        labels = check_targets(targets, self._reader, metric)
        self._counts = labels[:, 0] != UNCOUNTED
        self._metric = metric
        self.members, self.examples = self._reader.members, metric.examples(labels)
        self._resident: list[tuple[Floats, Floats]] | None = None
        if 8 * self.members * self._reader.examples <= _RESIDENT_BYTES:
            self._resident = list(self._read())

    def _read(self) -> Iterator[tuple[Floats, Floats]]:
        """Probabilities (b, N) of counted positions, each in units of its largest, and the logs of those units (b,)."""
        for lo in range(0, self._reader.examples, _BLOCK):
            hi = min(lo + _BLOCK, self._reader.examples)
            logs = self._reader.block(lo, hi)[:, self._counts[lo:hi], 0].T
            logs = np.maximum(logs, SMALLEST)
            unit = logs.max(axis=1, initial=SMALLEST)
            yield np.ascontiguousarray(np.exp(logs - unit[:, None])), unit

    def _blocks(self) -> Iterator[tuple[Floats, Floats]]:
        return iter(self._resident) if self._resident is not None else self._read()

    def scores(self, weights: Array) -> Floats:
        """Weights (S, N), rows p >= 0 with sum 1, -> (S,)."""
        rows = as_weights(weights, self.members)
        total = np.zeros(len(rows))
        for block, unit in self._blocks():
            for lo in range(0, len(rows), _RECIPES):
                mixed = block @ rows[lo : lo + _RECIPES].T
                total[lo : lo + _RECIPES] -= np.log(np.maximum(mixed, 1e-300)).sum(axis=0) + unit.sum()
        count = float(self._counts.sum())
        assert self._metric.from_totals is not None
        return np.array([self._metric.from_totals(np.array([loss, count])) for loss in total])

    def value_and_gradient(self, weights: Array) -> tuple[float, Floats]:
        """The negative log-likelihood per position at weights (N,) of any scale above zero, and its gradient (N,).

        It is convex: minus the logarithm of a linear function.
        """
        row = np.asarray(weights, dtype=np.float64)
        if row.shape != (self.members,):
            raise RadinError(f"mixing weights must be {self.members} numbers; they have shape {row.shape}")
        value, gradient = 0.0, np.zeros(self.members)
        for block, unit in self._blocks():
            mixed = np.maximum(block @ row, 1e-300)
            value -= float(np.log(mixed).sum() + unit.sum())
            gradient -= (1 / mixed) @ block
        count = max(float(self._counts.sum()), 1.0)
        return value / count, gradient / count
