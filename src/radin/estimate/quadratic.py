"""Mean squared error and R^2 of averaged outputs in closed form: quadratic in the mixing weights.

With residuals r_k = y_k - t, the averaged outputs' residual is sum p_k r_k, so that the squared error is p'Gp with
one N x N matrix G of the residuals' products. Axis names: members N, examples M, columns C, recipes S.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radin.estimate.dense import BLOCK_BYTES, as_weights, check_targets
from radin.estimate.reading import Array, Floats, Outputs, Reader
from radin.metrics import Metric


class QuadraticEstimator:
    """Mean squared error (family "mse") or R^2 (family "r2", mean over columns) of averaged outputs.

    ``gram`` (N, N): on the simplex the squared error is p' gram p, and R^2 is 1 - p' gram p.
    """

    def __init__(self, outputs: Outputs, targets: Array, metric: Metric, *, names: Sequence[str] | None = None) -> None:
        """Read the outputs (N, M, C) once. Raises OutputsError or TaskError when they do not fit the targets."""
        reader = Reader(outputs, names)
        values = check_targets(targets, reader, metric).reshape(reader.examples, -1).astype(np.float64)
        self.members, self.examples = reader.members, reader.examples
        self._relative = metric.family == "r2"
        if self._relative:
            share = 1 / (((values - values.mean(axis=0)) ** 2).sum(axis=0) * reader.classes)
        else:
            share = np.full(reader.classes, 1 / values.size)
        self.gram = np.zeros((self.members, self.members))
        self._cross, self._square = np.zeros(self.members), 0.0
        for lo, hi in reader.blocks(BLOCK_BYTES):
            target = values[lo:hi]
            residual = (reader.block(lo, hi) - target).reshape(self.members, -1)
            weighted = residual * np.broadcast_to(share, target.shape).reshape(-1)
            self.gram += weighted @ residual.T
            self._cross += weighted @ target.reshape(-1)
            self._square += float((target**2 @ share).sum())

    def scores(self, weights: Array) -> Floats:
        """Weights (S, N), rows p >= 0 with sum 1, -> (S,)."""
        rows = as_weights(weights, self.members)
        # Rows may miss the sum 1 by rounding: the residual of p is then sum p_k r_k + (sum p - 1) t.
        excess = rows.sum(axis=1) - 1
        squared = np.einsum("sn,sn->s", rows @ self.gram, rows)
        squared += 2 * excess * (rows @ self._cross) + excess**2 * self._square
        result: Floats = 1 - squared if self._relative else squared
        return result
