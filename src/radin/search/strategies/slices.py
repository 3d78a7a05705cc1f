"""What a slice of the examples says of a soup's accuracy on all of them, also where each has many positions.

Averaging weights changes the answers that averaging outputs is least sure of: nearly all examples on which the two
differ have a small margin (the averaged outputs' true class less its best rival). So a slice is the examples with the
smallest margins, in absolute value. On the rest the answer of the averaged outputs stands in, as a control variate,
less what the slice leads one to expect: the soup's margin is taken to be that of the averaged outputs plus normal
noise, of the size that makes as many answers change inside the slice as were seen to change. Where an example is a
picture or a sequence, the slice is the examples with most positions that may change, and what changes in the others is
taken to be in the same proportion to that: a ratio estimate of the difference between the soup and averaged outputs.

Axis names: examples M, examples of a slice m.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from radin.search.strategies.base import Examples, Floats, Indices
from radin.search.strategies.normal import normal_below

# Slices, as shares of the examples: the first tells a soup that lies out of the basin from others, the last gives the
# score of one inside it almost exactly.
LEVELS = (0.1, 0.2, 0.35)
SOFTENING = 0.3  # of the typical margin: by so much answers of averaged weights differ from those of averaged outputs


class Reading:
    """One soup's slices: what is known of it so far, and what that makes of its accuracy on all examples."""

    def __init__(self, margins: Floats) -> None:
        """``margins`` (M,) of the averaged outputs."""
        self.order: Indices = np.argsort(np.abs(margins), kind="stable")
        """Examples, those most likely to change first."""
        self._margins = margins[self.order]
        self.estimates: list[float] = []
        """The accuracy expected after each slice."""
        self.variances: list[float] = []
        """How far, squared, it may be from the true one for want of the other examples."""

    @property
    def level(self) -> int:
        """How many slices are known."""
        return len(self.estimates)

    def add(self, values: Floats) -> None:
        """The next slice: correctness (m,) on the first m examples of ``order``."""
        examples = len(self._margins)
        inside, rest = np.split(self._margins, [len(values)])
        changed = float(np.abs(values - (inside > 0)).sum())
        noise = _noise(np.abs(inside), changed)
        right = normal_below(np.clip(rest / noise, -6, 6))
        self.estimates.append(float(values.sum() + right.sum()) / examples)
        self.variances.append(float((right * (1 - right)).sum()) / examples**2)


def _noise(sizes: Floats, changed: float) -> float:
    """The noise under which ``changed`` answers with margins of these sizes are expected to change."""
    target = min(max(changed, 0.5), 0.49 * len(sizes))
    low, high = 1e-9, 1e9
    for _ in range(40):
        middle = sqrt(low * high)
        if normal_below(-np.minimum(sizes / middle, 6)).sum() < target:
            low = middle
        else:
            high = middle
    return sqrt(low * high)


class PositionReading(Reading):
    """The same of a soup by position: of each example are known how much it adds, and how much of that may change."""

    def __init__(self, right: Floats, unsure: Floats) -> None:
        """``right``, ``unsure`` (M,) of the averaged outputs, as ``Examples.answers`` gives them."""
        super().__init__(-unsure)
        self.order = np.argsort(-unsure, kind="stable")
        self._right, self._unsure = right[self.order], unsure[self.order]

    def add(self, values: Floats) -> None:
        """The next slice: what the first m examples of ``order`` add to the score, (m,)."""
        count, examples = len(values), len(self._right)
        inside, outside = self._unsure[:count], float(self._unsure[count:].sum())
        changed, weight = values - self._right[:count], float(inside.sum())
        rate = float(changed.sum()) / weight if weight else 0.0
        spread = float(((changed - rate * inside) ** 2).sum()) / weight if weight else 0.0
        rest = float(self._right[count:].sum()) + rate * outside
        self.estimates.append((float(values.sum()) + rest) / examples)
        self.variances.append(spread * outside * (1 + (outside / weight if weight else 0.0)) / examples**2)


def reading_of(examples: Examples, ratios: Floats) -> Reading:
    """The reading of a soup, ratios (N,), of which no slice is known yet."""
    if examples.answers is None:
        return Reading(examples.margins(ratios[None])[0])
    right, _, unsure = examples.answers(ratios[None], SOFTENING)
    return PositionReading(right[0], unsure[0])


def contested(examples: Examples, ratios: Floats) -> int:
    """The number of examples in which an answer may change at all, by ratios (N,)."""
    if examples.answers is None:
        return int(np.isfinite(examples.margins(ratios[None])).sum())
    return int((examples.answers(ratios[None], SOFTENING)[2] > 0).sum())


class Slices:
    """The readings of all soups started, and how far those of each level have been from later ones."""

    def __init__(self, examples: int, contested: int, least: float = 0.0) -> None:
        """``contested``: examples on which the members do not all agree; no slice needs to hold more.

        ``least``: the share of the examples that a slice should add to the one before; those that add less are left
        out, except that there is one.
        """
        sizes = {min(max(1, round(share * examples)), max(contested, 1)) for share in LEVELS}
        found = sorted(sizes - {examples}) or [examples]
        kept: list[int] = []
        for size in found:
            if size - (kept[-1] if kept else 0) > least * examples - 1:  # sizes are rounded
                kept.append(size)
        self.sizes: tuple[int, ...] = tuple(kept or found[-1:])
        """Examples known after each slice."""
        self.readings: dict[int, Reading] = {}
        """By candidate."""
        self.complete: dict[int, float] = {}
        """True accuracies, by candidate, once all examples are known."""
        self._of_levels: tuple[list[float], list[tuple[int, float]]] | None = None
        self._variances: dict[int, float] = {}

    def changed(self) -> None:
        """To be called when a reading has one slice more, or a soup is complete."""
        self._of_levels = None
        self._variances.clear()

    def observations(self) -> tuple[list[int], Floats, Floats]:
        """Candidates started; the accuracy of each by its last slice, less the slices' usual error; its variance."""
        self.changed()
        candidates, found, variance = [], [], []
        for index in self.readings:
            if (observed := self.observed(index)) is not None:
                candidates.append(index)
                found.append(observed[0])
                variance.append(observed[1])
        return candidates, np.array(found), np.array(variance)

    def observed(self, candidate: int) -> tuple[float, float] | None:
        """The same of one candidate; None where nothing is known of it."""
        reading = self.readings.get(candidate)
        if reading is None or not reading.level:
            return None
        if (complete := self.complete.get(candidate)) is not None:
            return complete, 0.0
        bias, spread = self._errors()
        level = reading.level - 1
        return reading.estimates[-1] - bias[level], _pooled(reading.variances[-1], spread[level])

    def expected_variance(self, level: int, otherwise: float) -> float:
        """The variance to expect of a soup's accuracy after slice number ``level``."""
        if level not in self._variances:
            seen = [reading.variances[level] for reading in self.readings.values() if reading.level > level]
            self._variances[level] = _pooled(float(np.mean(seen)), self._errors()[1][level]) if seen else np.nan
        found = self._variances[level]
        return otherwise if np.isnan(found) else found

    def _errors(self) -> tuple[list[float], list[tuple[int, float]]]:
        """For each level: its estimates less the best known of the same soups, on average; how many, and how spread.

        The mean is shrunk towards zero, as if one soup without error had been seen.
        """
        if self._of_levels is not None:
            return self._of_levels
        bias, spread = [], []
        for level in range(len(self.sizes)):
            errors = []
            for index, reading in self.readings.items():
                if index in self.complete and reading.level > level:
                    errors.append(reading.estimates[level] - self.complete[index])
                elif reading.level > level + 1:
                    errors.append(reading.estimates[level] - reading.estimates[-1])
            mean = sum(errors) / (len(errors) + 1)
            bias.append(mean)
            spread.append((len(errors), float(np.mean([(e - mean) ** 2 for e in errors])) if errors else 0.0))
        self._of_levels = bias, spread
        return bias, spread


def _pooled(model: float, seen: tuple[int, float]) -> float:
    """The model's variance, doubled for what it leaves out, and that of the errors seen, by their number."""
    count, squared = seen
    return (3 * 2 * model + count * squared) / (3 + count)
