"""The plain reference: average the outputs in float64, then the metric. Any metric, in blocks.

Axis names: members N, examples M, classes C, recipes S.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from radin.errors import RadinError, TaskError
from radin.estimate.reading import Array, Floats, Outputs, Reader
from radin.metrics import Metric
from radin.positions import starts

BLOCK_BYTES = 32 * 2**20
RECIPE_BYTES = 64 * 2**20
SUM_TOLERANCE = 1e-6


def as_weights(weights: Array, members: int, *, affine: bool = False) -> Floats:
    """Mixing weights as (S, N) float64. Raises RadinError unless each row is p >= 0 with sum 1 (within 1e-6).

    affine: they may be negative.
    """
    rows = np.ascontiguousarray(weights, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != members:
        raise RadinError(f"mixing weights must have shape (recipes, {members}); they have {rows.shape}")
    # One comparison catches NaN too: it fails every comparison.
    if len(rows) and not ((affine or rows.min() >= 0) and np.abs(rows.sum(axis=1) - 1).max() <= SUM_TOLERANCE):
        raise RadinError("mixing weights must be finite, not negative, and sum to 1 in each row")
    return rows


def check_targets(targets: Array, reader: Reader, metric: Metric) -> Array:
    """The targets as an array. Raises TaskError when they do not fit the metric or the outputs."""
    labels = np.asarray(targets)
    metric.check(labels, reader.classes)
    if len(labels) != reader.examples:
        raise TaskError(f"there are {len(labels)} targets but outputs for {reader.examples} examples")
    return labels


class DenseEstimator:
    """The metric of the averaged outputs, computed in float64 with no shortcut.

    A metric that is a mean, or a summary, of few numbers per example takes blocks of examples: the outputs are read
    once for all recipes of a call. Any other metric gets the averaged outputs whole, (M, C) in float64, with as many
    recipes per reading as fit 64 MiB.
    """

    def __init__(
        self,
        outputs: Outputs,
        targets: Array,
        metric: Metric,
        *,
        names: Sequence[str] | None = None,
        affine: bool = False,
    ) -> None:
        """outputs (N, M, C), targets (M, ...). affine: scores negative mixing weights too, which others cannot.

        Raises OutputsError or TaskError when they do not fit.
        """
        self._affine = affine
        self._reader = Reader(outputs, names)
        self._targets = check_targets(targets, self._reader, metric)
        self._metric = metric
        self.members, self.examples = self._reader.members, metric.examples(self._targets)

    def scores(self, weights: Array) -> Floats:
        """The metric of each recipe's averaged outputs: weights (S, N) -> (S,)."""
        rows = as_weights(weights, self.members, affine=self._affine)
        if self._metric.totals is not None:
            return self._totals(rows)
        if self._metric.per_example is not None:
            return self._means(rows)
        width = self._reader.classes
        if self._metric.summary is not None:
            width = self._metric.summary(np.zeros((1, width)), self._targets[:1]).shape[1]
        step = max(1, RECIPE_BYTES // (8 * self.examples * width))
        parts = [self._whole(rows[lo : lo + step]) for lo in range(0, len(rows), step)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _means(self, rows: Floats) -> Floats:
        totals = np.zeros(len(rows))
        assert self._metric.per_example is not None
        for lo, hi in self._reader.blocks(BLOCK_BYTES):
            block, targets = self._reader.block(lo, hi), self._targets[lo:hi]
            for index, outputs in enumerate(pooled(block, rows)):
                totals[index] += self._metric.per_example(outputs, targets).sum()
        return totals / self.examples

    def _totals(self, rows: Floats) -> Floats:
        """By position, in blocks that end where an example does."""
        totals, score = self._metric.totals, self._metric.from_totals
        assert totals is not None
        assert score is not None
        edges = np.append(starts(self._targets), len(self._targets))
        step = max(1, BLOCK_BYTES // (8 * self._reader.members * self._reader.classes))
        sums: list[Floats] = []
        lo = 0
        while lo < len(self._targets):
            end = int(edges[np.searchsorted(edges, lo + step, side="right") - 1])
            hi = end if end > lo else int(edges[np.searchsorted(edges, lo, side="right")])
            block, targets = self._reader.block(lo, hi), self._targets[lo:hi]
            found = [totals(outputs, targets).sum(axis=0) for outputs in pooled(block, rows)]
            sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
            lo = hi
        return np.array([score(each) for each in sums])

    def _whole(self, rows: Floats) -> Floats:
        summary, score = self._metric.summary, self._metric.from_summary
        parts: list[list[Array]] = [[] for _ in rows]
        for lo, hi in self._reader.blocks(BLOCK_BYTES):
            block, targets = self._reader.block(lo, hi), self._targets[lo:hi]
            for part, outputs in zip(parts, pooled(block, rows), strict=True):
                part.append(outputs if summary is None else summary(outputs, targets))
        value = self._metric.value if score is None else score
        return np.array([value(np.concatenate(part), self._targets) for part in parts])


def pooled(block: Floats, rows: Floats) -> Iterator[Floats]:
    """The averaged outputs of each recipe: block (N, b, C), rows (S, N) -> S times (b, C)."""
    members, examples, classes = block.shape
    # As many at once as the block holds members: together they take no more than it does.
    for lo in range(0, len(rows), members):
        yield from (rows[lo : lo + members] @ block.reshape(members, -1)).reshape(-1, examples, classes)
