"""Search from scores alone: no outputs, so no estimate but the prior's, and new recipes after each evaluation.

The first recipe is the best one by the prior, the second the average of the four best members: safe, and unlike the
first, whose ratios follow scores that hold the luck of the validation set. Each later one has the largest expected
improvement over the best score known (Jones, Schonlau and Welch 1998), among recipes drawn anew around the best soups
told so far and then improved by small changes. What comes next depends on the problem and on what was told, on nothing
else. Axis names: members N, recipes S, evaluations n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radin.search.candidates import equal_weights, prefixes
from radin.search.prior import ScorePrior
from radin.search.simplex import projected
from radin.search.strategies.base import Asks, Floats, Open, Problem, Ticket, Wait
from radin.search.strategies.normal import expected_improvement
from radin.search.surrogate import Surrogate

_TRUSTS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the gain expected, for recipes from even to few members
_SECOND = 4
_STEPS = 500
_DRAWN = 1024
_BEST = 6
_ROUNDS = 4
_IMPROVED = 24
_CHANGES = 24
_ALL = 96  # members up to which each of them is changed
_TRACE = 0.01  # of the largest weight
_SAME = 1e-4  # recipes of which no weight differs by more


def search_scores(problem: Problem, prior: ScorePrior) -> Asks:
    """Ask about one whole soup after the other; the generator behind ``adaptive`` where there are no outputs.

    Where one is open, what is expected of it stands in for its score.
    """
    told: list[tuple[Floats, float]] = []
    pending: list[tuple[Floats, Ticket]] = []
    proposals = Proposals(problem, prior)
    while True:
        told += [(ratios, ticket.answer) for ratios, ticket in pending if ticket.done]
        pending = [(ratios, ticket) for ratios, ticket in pending if not ticket.done]
        proposed = proposals.next(told, [ratios for ratios, _ in pending])
        ticket = None if proposed is None else (yield Open(proposed))
        if proposed is not None and ticket is not None:
            pending.append((proposed, ticket))
        elif pending:
            yield Wait()
        else:
            return


class Proposals:
    """The next recipe, given what is known: a function of ``told`` and ``pending`` alone."""

    def __init__(self, problem: Problem, prior: ScorePrior) -> None:
        self._prior = prior
        self._members = np.flatnonzero(prior.usable)
        self._seed = problem.seed
        self._fixed = self._from_prior()
        self._even = np.zeros((1, problem.members))
        self._even[0, self._members[:_SECOND]] = 1.0
        self._best_single = float(problem.singles.max())

    def next(self, told: Sequence[tuple[Floats, float]], pending: Sequence[Floats] = ()) -> Floats | None:
        """Mixing ratios (N,) to evaluate next; None where fewer than two members can be mixed.

        ``told``: recipes and their utilities, not finite for a broken soup, which counts as the worst of all known.
        ``pending``: recipes whose utility is not known yet; they count as what is expected of them.
        """
        if len(self._members) < 2:
            return None
        size = self._prior.singles.size
        weights = np.array([row for row, _ in told]).reshape(-1, size)
        utilities = np.array([utility for _, utility in told], dtype=np.float64)
        finite = np.isfinite(utilities)
        worst = min(float(self._prior.singles[self._members].min()), *utilities[finite], np.inf)
        utilities[~finite] = worst
        best = max(self._best_single, float(utilities.max(initial=-np.inf)))
        if len(pending):
            waiting = np.array(pending).reshape(-1, size)
            guesses, _ = Surrogate(self._prior, weights, utilities).posterior(waiting)
            weights, utilities = np.concatenate([weights, waiting]), np.concatenate([utilities, guesses])
        if len(weights) == 1:
            even = self._fresh(self._even, weights)
            if len(even):
                second: Floats = even[0]
                return second
        surrogate = Surrogate(self._prior, weights, utilities)
        rng = np.random.default_rng([self._seed, len(weights)])
        rows = self._fresh(np.concatenate([self._fixed, self._drawn(surrogate, rng)]), weights)
        if not len(rows):
            return None
        for _ in range(_ROUNDS if len(weights) else 0):
            improved = _IMPROVED if len(self._members) <= _ALL else _IMPROVED // 2
            order = np.argsort(-self._value(surrogate, rows, best), kind="stable")[:improved]
            changed = [rows[order], *(self._changed(rows[k], rng) for k in order)]
            rows = self._fresh(np.concatenate(changed), weights)
        chosen: Floats = rows[np.argmax(self._value(surrogate, rows, best))]
        return chosen

    def _value(self, surrogate: Surrogate, rows: Floats, best: float) -> Floats:
        if not len(surrogate.ratios):
            return self._prior.promise(rows)
        mean, spread = surrogate.posterior(rows)
        return expected_improvement(mean - best, spread)

    def _from_prior(self) -> Floats:
        """The best recipes by the prior at several trusts in its gain, and the averages of the k best members."""
        usable = self._members
        if len(usable) < 2:
            return np.empty((0, self._prior.singles.size))
        rows = [self._highest(trust) for trust in _TRUSTS]
        result = np.zeros((len(rows) + len(usable) - 1, self._prior.singles.size))
        result[:, usable] = np.concatenate([rows, equal_weights(prefixes(len(usable))[1:])])
        return result

    def _highest(self, trust: float) -> Floats:
        """The usable members' ratios of the highest promise, the gain taken ``trust`` times: projected ascent."""
        usable = self._members
        singles = self._prior.singles[usable]
        pairs = trust * self._prior.pairs[np.ix_(usable, usable)]
        step = 1 / (2 * np.abs(pairs).sum(axis=1).max() + 1e-12 * max(1.0, float(np.abs(singles).max())))
        sizes = sorted({min(k, len(usable)) for k in (1, 3, 6, len(usable))})
        found = equal_weights(prefixes(len(usable))[np.array(sizes) - 1])
        for _ in range(_STEPS):
            found = projected(found + step * (singles + 2 * found @ pairs))
        values = found @ singles + ((found @ pairs) * found).sum(axis=1)
        best: Floats = found[values.argmax()]
        return best

    def _drawn(self, surrogate: Surrogate, rng: np.random.Generator) -> Floats:
        """Recipes around the best told and the prior's best, mixtures of two of them, and ones drawn at large."""
        told = surrogate.ratios[np.argsort(-surrogate.utilities, kind="stable")[:_BEST]]
        starts = np.concatenate([told, self._fixed])
        chosen = starts[rng.integers(0, min(len(starts), len(told) + len(_TRUSTS)), _DRAWN)]
        concentration = starts.shape[1] * rng.choice([1.0, 4.0, 16.0], (_DRAWN, 1))
        around = rng.standard_gamma(chosen * concentration)
        pairs = starts[rng.integers(0, len(starts), (_DRAWN // 2, 2))]
        share = rng.random((_DRAWN // 2, 1))
        mixed = share * pairs[:, 0] + (1 - share) * pairs[:, 1]
        large = np.zeros((_DRAWN, starts.shape[1]))
        inside = rng.random((_DRAWN, len(self._members))) < rng.random((_DRAWN, 1))
        large[:, self._members] = inside * rng.standard_gamma(2.0, inside.shape)
        near = [self._changed(row, rng) for row in starts[: max(len(told), 1)]]
        return np.concatenate([around, mixed, large, *near])

    def _changed(self, weights: Floats, rng: np.random.Generator) -> Floats:
        """Each member left out, added, halved or doubled; and some with all ratios changed a little.

        In a large pool the members with the largest ratios and, drawn anew each time, as many of the others.
        """
        usable = self._members
        if len(usable) > _ALL:
            largest = usable[np.argsort(-weights[usable], kind="stable")[: _ALL // 3]]
            usable = np.concatenate([largest, rng.choice(np.setdiff1d(usable, largest), _ALL // 3, replace=False)])
        alone = np.eye(len(weights))[usable]
        typical = 1 / max(1, int((weights > 0).sum()))
        without, more = weights * (1 - alone), weights + alone * np.maximum(weights, typical / 2)
        shaken = weights * np.exp(rng.choice([0.1, 0.3], (_CHANGES, 1)) * rng.standard_normal((_CHANGES, len(weights))))
        return np.concatenate([without, weights * (1 - alone / 2), more, weights + alone * typical, shaken])

    def _fresh(self, rows: Floats, told: Floats) -> Floats:
        """Distinct rows, their sum 1, of two members or more and without traces, that were not told."""
        rows = np.where(rows < _TRACE * rows.max(axis=1, keepdims=True), 0.0, rows)
        rows = rows[(rows > 0).sum(axis=1) > 1]
        rows = np.round(rows / rows.sum(axis=1, keepdims=True), 6)
        rows = rows / rows.sum(axis=1, keepdims=True)
        for row in told:
            rows = rows[np.abs(rows - row).max(axis=1) > _SAME]
        _, first = np.unique(rows, axis=0, return_index=True)
        return rows[np.sort(first)]
