"""Ratios learned by gradient: search first, then climb from the best soup found, and keep only what scores higher.

A share of the budget is spent as ``adaptive`` does. From the best soup evaluated, the ratios of its own members (so
outliers are out) then follow the gradient of a smooth objective of the soup itself: by a softmax, so that they stay on
the simplex and none has a floor, in few large steps of Adam with cosine decay, each over its own examples drawn without
replacement. After each round the learned soup gets a pass of its own. Where it is not better than where the round
began, that is where the next one begins, with half the rate; after two such rounds what is left is searched with. So
nothing is lost but passes: whatever is returned is the best by its true score.

Where ``affine`` allows it, ratios move freely instead, their sum kept by taking the mean off each step, as far as a
trust region around the members goes.

Axis names: members N, those learned n, groups of tensors G.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np

from radin.recipe import Group, Recipe
from radin.search.strategies.adaptive import adaptive
from radin.search.strategies.base import (
    Ask,
    Asks,
    Floats,
    Gradients,
    Indices,
    Open,
    Problem,
    Ratios,
    Slice,
    Slope,
    Ticket,
    Wait,
    strategy,
)

_LEAST = 4  # passes: of these two find a start, one evaluates what was learned, and one is left to learn by
_ROUND = 4.0  # passes that a round takes: three for the gradients over all examples once, one for the evaluation
_STEPS = 16  # of a round
_FEW = 64  # examples that a step is over at least
_MANY = 4000  # examples from which on counting right answers, softened, is sure enough to learn by
_LEAST_RATIO, _MOST_RATIO = -1.0, 2.0  # affine ratios: from one member past another by as much as they are apart
_FAILURES = 2  # rounds in a row that find nothing, after which no more is learned
_MOMENTA = (0.9, 0.99)  # of gradient and its square; the latter forgets faster than in long trainings


@strategy("learned", geometry=True, gradients=True, leads=True)
def learned(
    problem: Problem,
    *,
    rate: Annotated[float, "how far a step changes the logarithm of a ratio"] = 0.1,
    search: Annotated[float, "share of the budget that is searched with before, from 0 to 1"] = 0.5,
    affine: Annotated[bool, "whether ratios may be negative, down to -1 and up to 2"] = False,
) -> Asks:
    """Search with half of the budget, then learn the ratios of the best soup by gradient, one for each member."""
    yield from _learned(problem, "one", rate, search, affine)


@strategy("learned-by-layer", geometry=True, gradients=True, leads=True)
def learned_by_layer(
    problem: Problem,
    *,
    groups: Annotated[Literal["modules", "blocks"], "which tensors have ratios of their own"] = "modules",
    rate: Annotated[float, "how far a step changes the logarithm of a ratio"] = 0.2,
    search: Annotated[float, "share of the budget that is searched with before, from 0 to 1"] = 0.5,
    affine: Annotated[bool, "whether ratios may be negative, down to -1 and up to 2"] = False,
) -> Asks:
    """Search with half of the budget, then learn ratios by gradient, of their own for each module or block."""
    yield from _learned(problem, groups, rate, search, affine)


def _learned(problem: Problem, level: str, rate: float, share: float, affine: bool) -> Asks:
    gradients = problem.gradients
    if gradients is None or problem.budget < _LEAST:
        yield from adaptive(problem)
        return
    objective = gradients.objectives[0 if gradients.count >= _MANY else -1]
    found = _Found(problem)
    yield from found.search(problem.budget * (1 - min(max(share, 0.0), 1.0)))
    if found.ratios is not None:
        groups = gradients.groups[level]
        ways = (_Affine if affine else _Softmax)(np.flatnonzero(found.ratios), problem.members, groups)
        yield from _climb(problem, gradients, objective, ways, found.ratios, found.utility, rate)
    if problem.left() >= 1:
        yield from adaptive(problem)


class _Found:
    """The best soup that ``adaptive`` has evaluated in full, with its utility; or that was known before."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.ratios: Floats | None = None
        self.utility = -np.inf

    def search(self, reserve: float) -> Asks:
        """Ask what adaptive asks while ``reserve`` passes are left."""
        asks = adaptive(self._problem)
        reply: Any = None
        opened: list[tuple[Floats | Slice, Ticket]] = []
        while True:
            try:
                asked = asks.send(reply)
            except StopIteration:
                break
            if isinstance(asked, Open):
                asked = Open(asked.ask, asked.reserve + reserve)
            elif isinstance(asked, Slice):
                asked = replace(asked, reserve=asked.reserve + reserve)
            reply = yield asked
            if isinstance(asked, Open) and isinstance(reply, Ticket) and not isinstance(asked.ask, Recipe):
                opened.append((asked.ask, reply))
        everyone = np.full(self._problem.members, 1.0 / self._problem.members)
        uniform = yield Open(everyone, np.inf)  # not to be paid for, yet it may be known
        if uniform is not None:
            opened.append((everyone, uniform))
        for ask, ticket in opened:
            self._take(ask, ticket)

    def _take(self, ask: Floats | Slice, ticket: Ticket) -> None:
        ratios, answer = (ask.ratios, ticket.answer) if isinstance(ask, Slice) else (ask, ticket.answer)
        examples = self._problem.examples
        if isinstance(ratios, Recipe) or (ratios > 0).sum() < 2 or not ticket.done or answer is None:
            return
        if isinstance(ask, Slice) and (examples is None or len(ask.examples) < examples.count):
            return
        utility = float(np.mean(answer))
        if np.isfinite(utility) and utility > self.utility:
            self.ratios, self.utility = ratios, utility


def _climb(
    problem: Problem,
    gradients: Gradients,
    objective: str,
    ways: _Softmax,
    start: Floats,
    utility: float,
    rate: float,
) -> Asks:
    """Rounds of learning and evaluation from ``start`` (N,), whose soup has this utility."""
    here = ways.at(start)
    rng = np.random.default_rng(problem.seed)
    failures = 0
    while failures < _FAILURES and problem.left() > 1:
        left = problem.left()
        passes = left / max(1, round(left / _ROUND)) - 1
        there, step = here, _Adam(here.shape)
        batches = _batches(gradients, passes, rng)
        for done, examples in enumerate(batches):
            reply = yield Slope(ways.soup(there), examples, objective, ways.groups, reserve=1.0)
            if reply is None or not np.isfinite(reply[0]):
                break
            cosine = 0.5 * (1 + np.cos(np.pi * done / len(batches)))
            there = ways.moved(there, reply[1], step, rate * cosine)
        if there is here:
            return
        reached = yield from _evaluated(ways.soup(there))
        if not reached > utility and problem.left() >= 1 and problem.left() < 1 + gradients.cost(_FEW):
            there = (here + there) / 2  # no passes to learn by are left, but one to see whether half of it is better
            reached = yield from _evaluated(ways.soup(there))
        if reached > utility:
            here, utility, failures = there, reached, 0
        else:
            rate, failures = rate / 2, failures + 1


def _evaluated(soup: Ratios) -> Generator[Ask, Any, float]:
    """The utility of a soup, by a pass of its own; -inf where there is none left."""
    ticket = yield Open(soup)
    while ticket is not None and not ticket.done:
        yield Wait()
    return -np.inf if ticket is None else float(ticket.answer)


def _batches(gradients: Gradients, passes: float, rng: np.random.Generator) -> list[Indices]:
    """The examples of each step of a round, ascending; drawn, since neighbours may be of one class."""
    steps = _STEPS
    while steps > 1 and gradients.examples(passes / steps) < min(_FEW, gradients.count):
        steps -= 1
    size = gradients.examples(passes / steps)
    if not size:
        return []
    fresh, found = np.empty(0, np.intp), []
    for _ in range(steps):
        if len(fresh) < size:
            fresh = rng.permutation(gradients.count)
        found.append(np.sort(fresh[:size]))
        fresh = fresh[size:]
    return found


class _Adam:
    """The direction of a step uphill, from gradients (1 + G, n): see Kingma and Ba 2015."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._mean, self._square, self._steps = np.zeros(shape), np.zeros(shape), 0

    def __call__(self, gradient: Floats) -> Floats:
        first, second = _MOMENTA
        self._steps += 1
        self._mean += (1 - first) * (gradient - self._mean)
        self._square += (1 - second) * (gradient**2 - self._square)
        mean, square = self._mean / (1 - first**self._steps), self._square / (1 - second**self._steps)
        result: Floats = mean / np.maximum(np.sqrt(square), 1e-30)
        return result


class _Softmax:
    """Ratios on the simplex, by their logarithms: points are (1 + G, n), those outside of groups first."""

    affine = False

    def __init__(self, members: Indices, count: int, groups: tuple[str, ...]) -> None:
        """members (n,): those whose ratios are learned, of ``count``."""
        self._members, self._count, self.groups = members, count, groups

    def at(self, start: Floats) -> Floats:
        """The point of ratios (N,) that are the same in all groups."""
        return np.tile(np.log(start[self._members]), (1 + len(self.groups), 1))

    def ratios(self, point: Floats) -> Floats:
        """(1 + G, n) ratios, each row of sum 1."""
        shares = np.exp(point - point.max(axis=1, keepdims=True))
        result: Floats = shares / shares.sum(axis=1, keepdims=True)
        return result

    def moved(self, point: Floats, gradient: Floats, step: _Adam, rate: float) -> Floats:
        """The point after a step of this rate. gradient (1 + G, N): by the ratios."""
        ratios = self.ratios(point)
        known = np.where(ratios > 0, gradient[:, self._members], 0.0)
        by_logarithm = ratios * (known - (ratios * known).sum(axis=1, keepdims=True))
        return point + rate * step(by_logarithm)

    def soup(self, point: Floats) -> Ratios:
        """The ratios of all members, by group where there are groups."""
        rows = np.zeros((len(point), self._count))
        rows[:, self._members] = self.ratios(point)
        plain: Floats = rows[0]
        if not self.groups and not self.affine:
            return plain
        first, *own = [tuple(row) for row in rows.tolist()]
        groups = (Group(name, row, self.affine) for name, row in zip(self.groups, own, strict=True))
        return Recipe(first, groups=tuple(groups), affine=self.affine)


class _Affine(_Softmax):
    """Ratios of sum 1 that may be negative: the points are the ratios themselves.

    A rate is in shares of the mean ratio, 1 / n, so that it means about what it does by logarithms.
    """

    affine = True

    def at(self, start: Floats) -> Floats:
        """The point of ratios (N,) that are the same in all groups."""
        return np.tile(start[self._members], (1 + len(self.groups), 1))

    def ratios(self, point: Floats) -> Floats:
        """The point."""
        return point

    def moved(self, point: Floats, gradient: Floats, step: _Adam, rate: float) -> Floats:
        """The point after a step of this rate, or as far that way, row by row, as the trust region goes."""
        known = np.nan_to_num(gradient[:, self._members])  # a ratio that is 0 in every group has none
        way = step(known - known.mean(axis=1, keepdims=True))
        way = rate / len(self._members) * (way - way.mean(axis=1, keepdims=True))
        room = np.where(way > 0, _MOST_RATIO - point, point - _LEAST_RATIO)
        share = np.min(room / np.maximum(np.abs(way), 1e-30), axis=1, keepdims=True)
        result: Floats = point + np.clip(share, 0.0, 1.0) * way
        return result
