"""The account: the only budget, and the only memory of what soups scored.

Axis names: examples M.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from radin.question import GRADIENT_PASSES, Answer, Floats, Gradient, Indices, Question, Rates
from radin.recipe import Recipe

_ROUNDING = 1e-9  # of passes, which are sums of shares

Asked = tuple[Recipe, Gradient, bytes]
"""What gradients are known by: a soup, what is asked, and the bytes of the examples' indices."""


class Account:
    """Passes spent on soups, passes that open questions will cost, and every soup's values and score.

    A pass is M + K examples (``Rates``). A soup costs K when it is started, and then each example that it is evaluated
    on; where any question makes all data be read, also that. A gradient costs three times its examples, and starts no
    soup: BatchNorm layers work on each batch's statistics. Single members cost nothing here: their passes are the same
    for every search. ``budget``: passes in total, over all sessions of a run.
    """

    def __init__(self, budget: float, rates: Rates, score: Callable[[Floats], float] | None = None) -> None:
        """``score``: of numbers per example (m,) or (m, K), as ``Metric.score``; None: their mean."""
        self.budget = budget
        self.rates = rates
        self._score = score or (lambda values: float(values.mean()))
        self._open: dict[Question, float] = {}
        self._values: dict[Recipe, Floats] = {}
        self._scores: dict[Recipe, float] = {}
        self._started: dict[Recipe, None] = {}
        self._seen = self._readings = self._whole = 0
        self._gradients: dict[Asked, Answer] = {}
        self._gradient_passes = 0.0

    @property
    def spent(self) -> float:
        """Passes that answered questions have cost."""
        rates = self.rates
        passes = float(self._whole)
        if rates.examples:
            examples = rates.reading * self._readings + (1 - rates.reading) * self._seen / rates.examples
            passes += rates.overhead * len(self._values) + (1 - rates.overhead) * examples
        return passes + self._gradient_passes

    @property
    def gradients(self) -> tuple[int, float]:
        """How many gradients were answered, and the passes that they have cost, which are among those spent."""
        return len(self._gradients), self._gradient_passes

    @property
    def reserved(self) -> float:
        """Passes that open questions will cost."""
        return sum(self._open.values())

    @property
    def open(self) -> tuple[Question, ...]:
        """Questions asked and not answered, in the order in which they were asked."""
        return tuple(self._open)

    @property
    def started(self) -> tuple[Recipe, ...]:
        """Soups evaluated on any example, in the order in which they were first told."""
        return tuple(self._started)

    @property
    def scores(self) -> dict[Recipe, float]:
        """Soups whose score is known: fully evaluated, or NaN; in the order in which that was told."""
        return dict(self._scores)

    def cost(self, recipe: Recipe, examples: Indices | None, gradient: Gradient | None = None) -> float:
        """Passes that these examples of a soup cost, none of them known or open; None: a whole pass. Or a gradient."""
        rates = self.rates
        if gradient is not None:
            share = 1.0 if examples is None else len(examples) / max(rates.examples, 1)
            return (1 - rates.overhead) * (rates.reading + (1 - rates.reading) * GRADIENT_PASSES * share)
        if examples is None:
            return 1.0
        starts = recipe not in self._values and not any(q.recipe == recipe for q in self._open if q.gradient is None)
        share = rates.reading + (1 - rates.reading) * len(examples) / rates.examples
        return (rates.overhead if starts else 0.0) + (1 - rates.overhead) * share

    def affords(self, cost: float, limit: float | None = None) -> bool:
        """Whether ``cost`` more passes stay within the budget (or ``limit``), open questions counted."""
        return self.spent + self.reserved + cost <= (self.budget if limit is None else limit) + _ROUNDING

    def values(self, recipe: Recipe) -> Floats:
        """A soup's values on validation, (M,), or by position its totals (M, K); NaN where they are not known."""
        found = self._values.get(recipe)
        return np.full(self.rates.examples, np.nan) if found is None else found.copy()

    def unknown(self, recipe: Recipe, among: Indices) -> Indices:
        """Those of some examples on which a soup was neither evaluated nor is asked about."""
        found = self._values.get(recipe)
        left = among if found is None else among[_unknown(found[among])]
        for question in self._open:
            if question.recipe == recipe and question.gradient is None:
                left = left[:0] if question.examples is None else left[~np.isin(left, question.examples)]
        return left

    def reserve(self, question: Question) -> None:
        """Set aside what the question costs until it is answered or dropped."""
        self._open[question] = self.cost(question.recipe, question.examples, question.gradient)

    def gradient(self, asked: Asked) -> Answer | None:
        """A gradient that is known, with the objective's value as its score; else None."""
        return self._gradients.get(asked)

    def release(self, question: Question) -> None:
        """Give back what was set aside: no answer will come."""
        self._open.pop(question, None)

    def charge(self, question: Question, answer: Answer) -> None:
        """Charge an answer to the budget. Examples known already keep their values; NaN makes the soup's score NaN."""
        self.release(question)
        recipe = question.recipe
        if question.gradient is not None:
            if (key := asked_of(question)) not in self._gradients:
                self._gradients[key] = answer
                self._gradient_passes += self.cost(recipe, question.examples, question.gradient)
            return
        if recipe.is_single or recipe in self._scores:
            return
        self._started.setdefault(recipe)
        if question.examples is None and (answer.values is None or not self.rates.examples):
            self._whole += recipe not in self._values
            self._scores[recipe] = answer.score
            return
        examples = np.arange(self.rates.examples) if question.examples is None else question.examples
        told = answer.numbers
        if told is None:  # outputs that are not finite
            told = np.full((len(examples), *self._values.get(recipe, np.empty(0)).shape[1:]), np.nan)
        known = self._values.setdefault(recipe, np.full((self.rates.examples, *told.shape[1:]), np.nan))
        new = _unknown(known[examples])
        self._seen += int(new.sum())
        self._readings += 1
        known[examples[new]] = told[new]
        if np.isnan(told).any():
            self._scores[recipe] = float("nan")
        elif not np.isnan(known).any():
            self._scores[recipe] = self._score(known)


def asked_of(question: Question) -> Asked:
    """What the gradient that a question asks for is known by."""
    assert question.gradient is not None
    examples = b"" if question.examples is None else np.asarray(question.examples, dtype=np.int64).tobytes()
    return question.recipe, question.gradient, examples


def _unknown(values: Floats) -> NDArray[np.bool_]:
    """Which examples (m,) have NaN among their values, (m,) or (m, K)."""
    return np.asarray(np.isnan(values.reshape(len(values), -1)).any(axis=1))
