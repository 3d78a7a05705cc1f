"""Accuracy and mean IoU over positions, from the margins of the positions on which recipes differ alone.

Most pixels and tokens are right, or wrong, whatever the recipe: of these only counts are kept, so that memory goes with
the contested positions and not with all. Axis names: members N, examples M, positions P, contested positions E, classes
C, recipes S.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from radin.errors import OutputsError, TaskError
from radin.estimate.accuracy import AccuracyEstimator, full_precision, has_float64
from radin.estimate.classes import MacroF1Estimator
from radin.estimate.dense import as_weights
from radin.estimate.margins import MarginCompiler, Margins, compile_pairs, join_margins
from radin.estimate.pairs import Pairs, scan
from radin.estimate.pruning import Purpose
from radin.estimate.reading import Array, Floats, Reader
from radin.estimate.store import Keys, load_arrays, save_arrays
from radin.metrics import Metric
from radin.positions import UNCOUNTED, starts

_TOGETHER = 1 << 20  # positions, or numbers of positions and recipes, that are worked on together
_KIND = "positions"


@dataclass(frozen=True)
class PositionMargins:
    """Outputs by position compiled to what decides.

    ``margins``: of the contested positions, E. ``owner`` (E,): the example, from 0, that each belongs to. ``right``
    (M,): of each example, positions that every recipe has right; ``counts`` (M,): positions that count. ``sure`` (C,):
    positions that count and are in no margins, by class; for the purpose "class" all of them are right. ``labels``: a
    hash of the targets.
    """

    margins: Margins
    owner: Array
    right: Array
    counts: Array
    sure: Array
    labels: str

    @property
    def examples(self) -> int:
        """How many examples, M."""
        return len(self.counts)

    def reordered(self, order: Sequence[int]) -> PositionMargins:
        """The same over reordered members: new member i is the old ``order[i]``."""
        return replace(self, margins=self.margins.reordered(order))


def purpose_of(metric: Metric) -> Purpose:
    """What margins have to decide for a metric by position."""
    return "class" if metric.family == "mean_iou" else "right"


def compile_positions(reader: Reader, targets: Array, purpose: Purpose) -> PositionMargins:
    """Compile all members' outputs (P, C), reading each once. targets (P, 2)."""
    counted = targets[:, 0] != UNCOUNTED
    labels = np.maximum(targets[:, 0], 0)

    def then(pairs: Pairs) -> tuple[Margins, Array, Array]:
        part = compile_pairs(pairs, reader.classes, 1, purpose, False)
        return _contested(part, counted[pairs.first : pairs.first + len(pairs.targets)])

    return _joined(list(scan(reader, range(reader.members), labels, then)), targets)


class PositionCompiler:
    """Compiles outputs batch by batch while they are made, as MarginCompiler does."""

    def __init__(self, members: int, classes: int, purpose: Purpose, names: Sequence[str] | None = None) -> None:
        self._about = (members, classes, purpose, names)
        self._parts: list[tuple[Margins, Array, Array]] = []
        self._targets: list[Array] = []

    def add(self, block: Array, targets: Array) -> None:
        """The next examples: block (N, p, C) floating point, targets (p, 2). Raises as ``MarginCompiler.add``."""
        members, classes, purpose, names = self._about
        compiler = MarginCompiler(members, classes, purpose=purpose, names=names)
        compiler.add(block, np.maximum(targets[:, 0], 0))
        self._parts.append(_contested(compiler.finish(), targets[:, 0] != UNCOUNTED))
        self._targets.append(targets)

    def finish(self) -> PositionMargins:
        """The compiled form of all batches added. Raises OutputsError when there was none."""
        if not self._parts:
            raise OutputsError("no outputs were added: there are no examples")
        return _joined(self._parts, np.concatenate(self._targets))


def _contested(part: Margins, counted: Array) -> tuple[Margins, Array, Array]:
    """The margins of the positions on which recipes may differ; which positions these are, and which surely right."""
    rows = np.zeros(part.examples, np.bool_)
    rows[part.example] = True
    kept = rows & (part.allowed >= 0) & counted
    return part.of_examples(kept), kept, ~rows & counted


def _joined(parts: Sequence[tuple[Margins, Array, Array]], targets: Array) -> PositionMargins:
    margins = join_margins(part for part, _, _ in parts)
    kept, right = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    first = starts(targets)
    counted = targets[:, 0] != UNCOUNTED
    sure = np.zeros(margins.classes, np.int64)
    for lo in range(0, len(targets), _TOGETHER):  # arrays of all positions would be the largest thing there is
        part = slice(lo, lo + _TOGETHER)
        sure += np.bincount(targets[part, 0][counted[part] & ~kept[part]], minlength=margins.classes)
    return PositionMargins(
        margins,
        (np.searchsorted(first, np.flatnonzero(kept), side="right") - 1).astype(np.int32),
        np.add.reduceat(right, first, dtype=np.int64),
        np.add.reduceat(counted, first, dtype=np.int64),
        sure,
        _digest(targets),
    )


def _digest(targets: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(targets).data).hexdigest()


def cached_positions(
    reader: Reader, targets: Array, purpose: Purpose, path: Path, keys: Keys, told: Callable[[str], None] | None
) -> PositionMargins:
    """Compiled outputs by position from the file, or made and kept there.

    They are made again where other members are asked about, or another purpose, and where the file is damaged
    (``told`` is given a sentence). Raises OutputsError when it belongs to other data.
    """
    found = None
    try:
        found, old = load_positions(path)
    except OutputsError as error:  # not there, damaged, or margins of a metric that is not by position
        if told is not None and path.exists():
            told(f"made again: {error}")
    if found is not None:
        if old.data != keys.data or found.margins.classes != reader.classes:
            raise OutputsError(
                f"{path} was compiled from other data (data {old.data[:12]}, {found.margins.classes} classes; now "
                f"{keys.data[:12]} and {reader.classes}). Delete it to compile these outputs."
            )
        same = found.margins.purpose == purpose and found.labels == _digest(targets)
        if same and set(old.members) == set(keys.members):
            return found.reordered([old.members.index(key) for key in keys.members])
    compiled = compile_positions(reader, targets, purpose)
    save_positions(compiled, path, keys)
    return compiled


def save_positions(compiled: PositionMargins, path: Path, keys: Keys) -> None:
    """Write the compiled form to a safetensors file, whole or not at all."""
    more = {name: getattr(compiled, name) for name in ("owner", "right", "counts", "sure")}
    save_arrays(compiled.margins, path, keys, more, {"kind": _KIND, "labels": compiled.labels})


def load_positions(path: Path) -> tuple[PositionMargins, Keys]:
    """Read a compiled form and what it belongs to. Raises OutputsError when the file is damaged or something else."""
    margins, keys, more, about = load_arrays(path)
    owner, right, counts, sure = (more.get(name, np.empty(0)) for name in ("owner", "right", "counts", "sure"))
    whole = all(array.ndim == 1 and array.dtype.kind in "iu" for array in (owner, right, counts, sure))
    fits = len(owner) == margins.examples and len(right) == len(counts) and len(sure) == margins.classes
    if about.get("kind") != _KIND or not whole or not fits or (len(owner) and not 0 <= owner.min() <= owner.max()):
        raise OutputsError(f"{path} holds no margins by position")
    if (len(owner) and owner.max() >= len(counts)) or (right > counts).any():
        raise OutputsError(f"{path} is damaged, or holds no margins by position: its numbers are out of range")
    return PositionMargins(margins, owner, right, counts, sure, str(about.get("labels"))), keys


def position_estimator(
    compiled: PositionMargins, metric: Metric, device: str = "cpu"
) -> AccuracyEstimator | MacroF1Estimator:
    """The estimator over compiled outputs by position. Raises TaskError when no position counts."""
    if not compiled.counts.any():
        raise TaskError(f"metric {metric.name!r}: no position counts: all targets are {metric.ignore_index}")
    device = device if has_float64(device) else "cpu"
    if metric.family == "mean_iou":
        found = MacroF1Estimator(compiled.margins, device=device, of=metric.family, others=compiled.sure)
        found.examples = compiled.examples
        return found
    return PositionAccuracy(compiled, device=device)


class PositionAccuracy(AccuracyEstimator):
    """The share of positions that averaged outputs have right, over all examples together."""

    def __init__(self, compiled: PositionMargins, *, device: str = "cpu") -> None:
        super().__init__(compiled.margins, device=device)
        self.compiled, self.examples = compiled, compiled.examples
        self._base += float(compiled.right.sum())
        self._scale = int(compiled.counts.sum())

    def among(self, members: Sequence[int]) -> AccuracyEstimator:
        """The same of recipes of some members alone, in this order."""
        return PositionAccuracy(self.compiled.reordered(members), device=str(self._device))

    def screened(self, probes: Floats, order: Sequence[int] | None = None) -> AccuracyEstimator:
        """The same without the rows that decide nothing for recipes like these."""
        few = self._few_rows(probes, order)
        return PositionAccuracy(replace(self.compiled, margins=few), device=str(self._device))

    @torch.inference_mode()
    def answers(self, weights: Floats, softening: float) -> tuple[Floats, Floats, Floats]:
        """Of each example (S, M): positions right, those counted by how sure they are, and those that may change.

        ``weights`` (S, N). A position of margin m is right by Phi(m / s), and may change by Phi(-|m| / s), s being
        ``softening`` times the typical margin of all members' average.
        """
        rows = as_weights(weights, self.members)
        shape = (len(rows), self.examples)
        right, soft, unsure = np.empty(shape), np.empty(shape), np.empty(shape)
        step = max(1, _TOGETHER // max(1024, self.examples))
        scale = softening * self._typical
        with full_precision():
            for lo in range(0, len(rows), step):
                part = slice(lo, lo + step)
                right[part], soft[part], unsure[part] = self._answers(rows[part], scale)
        return right, soft, unsure

    @cached_property
    def _typical(self) -> float:
        """The mean margin, without its sign, of the average of all members, over contested positions; 1 for none."""
        total, count = 0.0, 0
        for _, first in self.least_margins(np.full((1, self.members), 1 / self.members)):
            total, count = total + float(first.abs().sum()), count + first.numel()
        return total / count if total else 1.0

    def _answers(self, rows: Floats, scale: float) -> tuple[Floats, Floats, Floats]:
        right = torch.from_numpy(self.compiled.right).to(self._device, torch.float64)[:, None].repeat(1, len(rows))
        soft, unsure = right.clone(), torch.zeros_like(right)
        for position, first in self.least_margins(rows):
            owner = torch.from_numpy(self.compiled.owner[position].astype(np.int64)).to(self._device)
            right.index_add_(0, owner, (first > 0).double())
            counted = torch.special.ndtr(first / scale)
            soft.index_add_(0, owner, counted)
            unsure.index_add_(0, owner, torch.minimum(counted, 1 - counted))
        return right.T.cpu().numpy(), soft.T.cpu().numpy(), unsure.T.cpu().numpy()
