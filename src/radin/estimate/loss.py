"""Cross-entropy of averaged outputs and its gradient, which is convex in the mixing weights.

Axis names: members N, examples M, classes C, recipes S, examples in a block b.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from radin.errors import RadinError
from radin.estimate.dense import as_weights, check_targets
from radin.estimate.reading import Array, Floats, Outputs, Reader
from radin.metrics import Metric

# Outputs up to this size in float64 stay in memory; larger ones are read again for every call.
RESIDENT_BYTES = 128 * 2**20
BLOCK_BYTES = 32 * 2**20


class LossEstimator:
    """Negative log-likelihood of averaged outputs, in float64, block by block."""

    def __init__(self, outputs: Outputs, targets: Array, metric: Metric, *, names: Sequence[str] | None = None) -> None:
        """outputs (N, M, C), targets (M,). Raises OutputsError or TaskError when they do not fit."""
        self._reader = Reader(outputs, names)
        self._targets = torch.from_numpy(check_targets(targets, self._reader, metric).astype(np.int64))
        self.members, self.examples = self._reader.members, self._reader.examples
        self._resident: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        if 8 * self.members * self.examples * self._reader.classes <= RESIDENT_BYTES:
            self._resident = list(self._read())

    def _read(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for lo, hi in self._reader.blocks(BLOCK_BYTES):
            yield torch.from_numpy(self._reader.block(lo, hi)), self._targets[lo:hi]

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Blocks of outputs (N, b, C) and targets (b,)."""
        return iter(self._resident) if self._resident is not None else self._read()

    @torch.inference_mode()
    def scores(self, weights: Array) -> Floats:
        """Weights (S, N), rows p >= 0 with sum 1, -> (S,)."""
        rows = torch.from_numpy(as_weights(weights, self.members))
        totals = torch.zeros(len(rows), dtype=torch.float64)
        for block, targets in self._blocks():
            members, examples, classes = block.shape
            step = max(1, BLOCK_BYTES // (8 * examples * classes))
            for lo in range(0, len(rows), step):
                pooled = (rows[lo : lo + step] @ block.reshape(members, -1)).reshape(-1, examples, classes)
                truth = pooled[:, torch.arange(examples), targets]
                totals[lo : lo + step] += (pooled.logsumexp(dim=2) - truth).sum(dim=1)
        result: Floats = totals.numpy() / self.examples
        return result

    @torch.inference_mode()
    def value_and_gradient(self, weights: Array) -> tuple[float, Floats]:
        """The loss at any finite weights (N,), on the simplex or not, and its gradient (N,) with respect to them.

        d/dp_k = mean over examples of sum_c (softmax(sum_k p_k y_k)_c - [c = t]) y_kc.
        """
        row = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float64))
        if row.shape != (self.members,) or not bool(row.isfinite().all()):
            raise RadinError(
                f"mixing weights must be {self.members} finite numbers; they have shape {tuple(row.shape)}"
            )
        value, gradient = 0.0, torch.zeros(self.members, dtype=torch.float64)
        for block, targets in self._blocks():
            members, examples, classes = block.shape
            flat = block.reshape(members, -1)
            logs = torch.log_softmax((row @ flat).reshape(examples, classes), dim=1)
            place = torch.arange(examples)
            value -= float(logs[place, targets].sum())
            slope = logs.exp_()
            slope[place, targets] -= 1
            gradient += flat @ slope.reshape(-1)
        return value / self.examples, gradient.numpy() / self.examples
