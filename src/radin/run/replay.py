"""What a strategy would have chosen after each pass, from true scores that are known already."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radin.question import Answer, Question
from radin.recipe import Recipe
from radin.run.record import RunRecord
from radin.search.account import Account

BUDGETS = (1, 2, 4, 8, 16, 25)
"""The passes that Table 1 has columns for; the paper's are the first and the last."""


@dataclass(frozen=True)
class Method:
    """A way to spend the budget: a strategy with its options; ``outputs``: one that means nothing without outputs."""

    name: str
    strategy: str
    options: tuple[tuple[str, Any], ...] = ()
    outputs: bool = False


METHODS = (
    Method("uniform", "uniform"),
    Method("greedy", "greedy"),
    Method("pruned", "pruned"),
    Method("top-k", "top-k"),
    Method("paper, lambda 0", "paper", (("prior", 0.0),), outputs=True),
    Method("paper, lambda 1", "paper", (("prior", 1.0),), outputs=True),
)


@dataclass(frozen=True)
class Standing:
    """What was chosen once ``passes`` had been spent on soups, and its score on validation with its standard error."""

    passes: float
    recipe: Recipe
    score: float
    stderr: float


@dataclass(frozen=True, eq=False)
class Curve:
    """How a method's choice grew better. ``standings``: one where it changed, the best single member first, at 0.

    ends: passes up to which it is known; infinite where it would spend no more. missing: the soup whose true score it
    lacked there; None where none was lacking.
    """

    name: str
    standings: tuple[Standing, ...]
    ends: float
    missing: Recipe | None = None

    def at(self, budget: float) -> Standing | None:
        """What stood after ``budget`` passes; None where that is not known."""
        if budget > self.ends + 1e-9:
            return None
        return [standing for standing in self.standings if standing.passes <= budget + 1e-9][-1]


def methods(record: RunRecord) -> tuple[Method, ...]:
    """Those that can be replayed on this run."""
    return tuple(method for method in METHODS if record.estimator is not None or not method.outputs)


def replay(record: RunRecord, method: Method, scores: Mapping[Recipe, Answer], budget: int) -> Curve:
    """Run the strategy on the members, told the ``scores`` of soups, as far as these go and at most ``budget`` passes.

    It starts from what any soup has to beat in the run.
    """
    search = record.search(method.strategy, dict(method.options), budget)
    best = _Best(record)
    while (question := search.ask()) is not None:
        found = scores.get(question.recipe)
        if found is None:
            return Curve(method.name, tuple(best.standings), search.spent, question.recipe)
        search.tell(question, found.score)
        chosen, _ = search.best
        if not chosen.is_single:
            best.offer(search.spent, chosen, scores[chosen])
    # Where the budget is not spent, nothing was left to ask.
    ends = math.inf if search.spent < budget else float(budget)
    return Curve(method.name, tuple(best.standings), ends)


def own_curve(record: RunRecord) -> Curve:
    """How the run itself went: passes as it was charged for them, shares of a pass counted."""
    account, best = Account(math.inf, record.rates), _Best(record)
    for told in record.told:
        recipe = Recipe.from_json(told.recipe, record.fingerprints)
        if told.answer is None:
            continue
        account.charge(Question(recipe, told.examples), told.answer)
        if recipe in account.scores and recipe in record.scores:
            best.offer(account.spent, recipe, record.scores[recipe])
    name = f"this run ({record.settings.get('strategy', 'unknown')})"
    # A finished run had nothing left to ask within its budget.
    ends = max(account.spent, float(record.settings.get("budget", 0))) if record.finished else account.spent
    return Curve(name, tuple(best.standings), ends)


class _Best:
    """The best so far, from the reference on."""

    def __init__(self, record: RunRecord) -> None:
        recipe, found = record.reference
        self._utility = record.metric.utility
        self.standings = [Standing(0.0, recipe, found.score, found.stderr)]

    def offer(self, passes: float, recipe: Recipe, found: Answer) -> None:
        """Take a soup that is better, or that the method now keeps in place of one of the same score."""
        last = self.standings[-1]
        if self._utility(found.score) > self._utility(last.score):
            self.standings.append(Standing(float(passes), recipe, found.score, found.stderr))
