"""What every source of true scores does alike: look on disk first, compute what is missing, keep it.

Axis names: members N, examples M.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from benchmarks.spending.known import Floats, Known
from numpy.typing import NDArray

from radin import Pool, RadinError, Recipe, Task
from radin.metrics import Metric

Indices = NDArray[np.intp]


class Scored(ABC):
    """A pool's members with their outputs over validation(), and the true per-example values of any recipe over them.

    outputs: of each member, (M, C). targets (M,). singles (N,): the members' scores. gram (N, N): inner products of
    their weights. calibration: examples that BatchNorm statistics are estimated on for each soup, 0 without BatchNorm.
    shifts: names of the task's further splits. passes: validation passes really made here, in examples over examples
    of validation; those known are free.
    """

    pool: Pool
    task: Task
    metric: Metric
    outputs: list[NDArray[np.float32]]
    targets: NDArray[np.int64]
    singles: Floats
    gram: Floats
    shifts: tuple[str, ...]
    passes: float = 0.0
    _known: Known

    @property
    @abstractmethod
    def calibration(self) -> int:
        """K: examples that BatchNorm statistics are estimated on for each soup; 0 without BatchNorm."""

    @property
    @abstractmethod
    def _calibration_print(self) -> str:
        """Of the calibration data; "none" without."""

    @abstractmethod
    def extent(self, split: str) -> tuple[str, int]:
        """The fingerprint of a split's data, and how many examples it has."""

    @abstractmethod
    def computed(self, recipe: Recipe, split: str, examples: Indices) -> Floats:
        """As ``values``, always computed."""

    @property
    def overhead(self) -> float:
        """K / M."""
        return self.calibration / len(self.targets)

    def score(self, recipe: Recipe, split: str) -> float:
        """The metric on the whole split; NaN when an output is not finite."""
        return float(self.values(recipe, split).mean())

    def values(self, recipe: Recipe, split: str, examples: Indices | None = None) -> Floats:
        """Per-example values of the soup on sorted ``examples`` of a split, by default all: from disk, else computed.

        A single member is taken as it is, BatchNorm untouched. NaN where the outputs are not finite.
        """
        data, count = self.extent(split)
        wanted = np.arange(count) if examples is None else np.asarray(examples, dtype=np.intp)
        identity = recipe.identity(self.pool.fingerprints)
        key = f"{data[:16]}-{self._calibration_print}-{self.metric.name}"
        mask, values = self._known.get(identity, split, key, count)
        missing = wanted[~mask[wanted]]
        if len(missing):
            values[missing] = self.computed(recipe, split, missing)
            new = np.zeros_like(mask)
            new[missing] = True
            self._known.add(identity, split, key, new, values)
            if split == "validation":
                self.passes += len(missing) / count
        return values[wanted]

    def _require_values(self) -> None:
        if self.metric.per_example is None:
            raise RadinError(f"metric {self.metric.name!r} has no value per example: parts of a pass mean nothing")
