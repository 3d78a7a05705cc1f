"""Macro-F1 and mean IoU of averaged outputs, exactly: the predicted class from the margins of the classes that can win.

Axis names: members N, examples M, classes C, recipes S, contested examples E, undecided pairs Q.
"""

from __future__ import annotations

import numpy as np
import torch

from radin.estimate.accuracy import (
    Block,
    block_recipes,
    contested,
    exact_at_once,
    exact_weights,
    full_precision,
    rounding_bound,
    run_all,
    shared_out,
)
from radin.estimate.dense import as_weights
from radin.estimate.margins import Margins
from radin.estimate.reading import Array, Floats


class MacroF1Estimator:
    """Macro-F1, or mean intersection over union, of averaged outputs over the classes that occur among targets or
    predictions.

    The predicted class is the one with the smallest p . (y_t - y_j), 0 for the true class itself; where the two
    smallest lie within float32's rounding error of each other, it is found in float64.
    """

    def __init__(
        self, margins: Margins, *, device: str = "cpu", of: str = "macro_f1", others: Array | None = None
    ) -> None:
        """``margins`` compiled for the purpose "class"; ``of``: "macro_f1" or "mean_iou".

        ``others`` (C,): of each class, how many examples more there are that every recipe predicts.
        """
        self._of = of
        self.members, self.examples, self.margins = margins.members, margins.examples, margins
        self._device, self._classes = torch.device(device), margins.classes
        self._contested = contested(margins, device, alike=True)
        self._tau = 2 * rounding_bound(self.members)
        self._target = torch.from_numpy(margins.targets[self._contested.example].astype(np.int64)).to(self._device)
        self._support = np.bincount(margins.targets, minlength=self._classes)
        self._sure = self._support - np.bincount(margins.targets[self._contested.example], minlength=self._classes)
        if others is not None:
            self._support, self._sure = self._support + others, self._sure + others

    def scores(self, weights: Array) -> Floats:
        """Weights (S, N), rows p >= 0 with sum 1, -> (S,)."""
        rows = as_weights(weights, self.members)
        scores = np.empty(len(rows))
        step = shared_out(len(rows), block_recipes(self._device) // 4, self._device)

        def run(lo: int) -> None:
            scores[lo : lo + step] = self._scores(rows[lo : lo + step])

        with full_precision():
            run_all(run, range(0, len(rows), step), self._device)
        return scores

    @torch.inference_mode()
    def _scores(self, rows: Floats) -> Floats:
        recipes = torch.from_numpy(rows).to(self._device, torch.float32).T.contiguous()
        exact = torch.from_numpy(exact_weights(rows)).to(self._device)
        guesses = torch.zeros(len(rows) * self._classes, dtype=torch.int64, device=self._device)
        hits = torch.zeros_like(guesses)
        offset = torch.arange(len(rows), device=self._device) * self._classes
        for block in self._contested.blocks:
            predicted = self._predict(block, block.scaled @ recipes, exact)
            place = predicted + offset
            guesses += torch.bincount(place.reshape(-1), minlength=len(guesses))
            right = predicted == self._targets_of(block)
            hits += torch.bincount(place[right], minlength=len(hits))
        counts = guesses.reshape(len(rows), -1).cpu().numpy() + self._sure
        right_counts = hits.reshape(len(rows), -1).cpu().numpy() + self._sure
        total = counts + self._support
        if self._of == "mean_iou":
            each = right_counts / np.maximum(total - right_counts, 1)
        else:
            each = 2 * right_counts / np.maximum(total, 1)
        result: Floats = each.sum(axis=1) / (total > 0).sum(axis=1)
        return result

    def _targets_of(self, block: Block) -> torch.Tensor:
        return self._target[block.first : block.first + block.examples, None]

    def _predict(self, block: Block, values: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        """The predicted class: values (R, S), exact weights (S, N) -> (E, S)."""
        first = values[: block.examples]
        best, second = first.clamp(max=0), first.clamp(min=0)
        winner = torch.where(first < 0, 0, -1)
        for level, (lo, hi) in enumerate(block.later_levels(), start=1):
            value, top, runner_up = values[lo:hi], best[: hi - lo], second[: hi - lo]
            torch.minimum(runner_up, torch.maximum(top, value), out=runner_up)
            winner[: hi - lo][value < top] = level
            torch.minimum(top, value, out=top)
        data = self._contested
        start = data.starts[block.first : block.first + block.examples, None]
        target = self._targets_of(block)
        predicted = torch.where(winner < 0, target, data.rival[start + winner.clamp(min=0)])
        example, recipe = torch.nonzero(second - best <= self._tau, as_tuple=True)
        at_once = exact_at_once(data, self.members)
        for these, those in zip(example.split(at_once), recipe.split(at_once), strict=True):
            predicted[these, those] = self._predict_exactly(these + block.first, exact[those])
        return predicted

    def _predict_exactly(self, example: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The predicted class of contested examples (Q,) for weights (Q, N) of any positive scale, in float64."""
        data = self._contested
        which, row = data.rows_of(example)
        value = (data.margins(example[which], row) * weights[which]).sum(dim=1)
        least = torch.zeros(len(example), dtype=value.dtype, device=value.device)
        least = least.scatter_reduce(0, which, value, "amin")
        winners = value == least[which]
        predicted = torch.where(least == 0, self._target[example], self._classes)
        return predicted.scatter_reduce(0, which[winners], data.rival[row[winners]], "amin")
