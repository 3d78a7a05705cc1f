"""Spend each evaluation where it promises most, by a model of truth minus estimate that learns as truth arrives.

The estimate of a recipe p (the score of its averaged outputs) is a good guess of its soup's score and a biased one:
the more the members are spread, the more averaging weights loses against averaging outputs. Truth minus estimate is
modelled as a Gaussian process over recipes: two linear trends that vanish for single members, where the estimate is
the truth, and a remainder that is alike for soups that lie close together in weight space. Before anything is evaluated
a soup is expected to lose a share of what averaging outputs gains over its members, more where the members' outputs
are nonlinear in the weights between them; each evaluation then corrects the ranking of what is near.

Where soups may be evaluated on some examples only, many are started, on the examples where the answer may change, few
are continued, and the best is evaluated on all, by all workers together. Where several questions may be open, the
prediction for each stands in for its answer; where so many that small slices would be answered faster than they can be
asked, small ones are left out, and where the budget allows few passes for each, soups are evaluated whole. Each step is
the one with the largest knowledge gradient (Frazier, Powell and Dayanik 2008) for what it costs.

Axis names: members N, candidates K, evaluations n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np

from radin.search.candidates import equal_weights, monte_carlo, prefixes
from radin.search.leading import leading, over_all
from radin.search.screening import estimated, screened
from radin.search.sources import ALL, SubsetMemory, best_recipes, default_sources
from radin.search.strategies.base import Asks, Examples, Floats, Indices, Open, Problem, Slice, Ticket, Wait, strategy
from radin.search.strategies.normal import expected_improvement, normal_below
from radin.search.strategies.process import Nonlinear, Posterior, Prior, Process, expected
from radin.search.strategies.scores_only import search_scores
from radin.search.strategies.slices import LEVELS, SOFTENING, Slices, contested, reading_of

_ANCHORS = 8  # of each size, and how many sizes are told apart in a large pool
_SIZES = 32
_PLENTY = 1024  # candidates, where their number need not be watched
_ROWS = 64
_TINY = 1e-18  # of variances, which are divided by
_WORTH = 0.005  # of a pass, for each question that may be open: the least that a question should be worth
_ROUNDS = 4  # passes for each of many questions that may be open, below which soups are evaluated whole
_LEAST_REST = 0.02  # of the examples: what each of several workers evaluates of the last soup at least
_SINGLES = 256  # members that are candidates by themselves: those that tell most of what soups score

_State = tuple[list[int], Floats, Floats, Floats]
_REFITTED = 8  # answers after which a process with open evaluations is fitted anew; see ``_Beliefs``


@strategy("adaptive", geometry=True, leads=True)
def adaptive(
    problem: Problem,
    *,
    count: Annotated[int, "recipes that each random source of candidates draws", 1] = 4096,
    keep: Annotated[int, "candidates kept, best estimates first, beside the anchors of every size", 1] = 384,
    finish: Annotated[int, "soups evaluated on all examples in the end, where soups are started on some"] = 1,
) -> Asks:
    """Rank recipes of every source, unequal ratios too, and correct the ranking by each soup evaluated."""
    if (some := leading(problem)) is not None and problem.among is not None:
        few = adaptive(problem.among(some), count=count, keep=max(keep, problem.budget), finish=finish)
        yield from over_all(few, some, problem.members)
        return
    if problem.prior is not None:
        yield from search_scores(problem, problem.prior)
        return
    rough, nonlinear = screened(problem), Nonlinear.of(problem)
    remembered = SubsetMemory(rough.estimate)
    by_expected = replace(rough, estimate=lambda rows: expected(problem, rows, remembered(rows), nonlinear))
    weights = candidates(by_expected, count, keep, problem.affords)
    estimates = estimated(problem, weights)
    usable = np.isfinite(estimates)
    weights, estimates = weights[usable], estimates[usable]
    if problem.examples is not None:
        estimates = softened(problem.examples, weights, estimates)
    process, least = Process.of(problem, weights, estimates), least_slice(problem)
    if problem.examples is None or least is None:
        yield from _whole(problem, weights, process)
    else:
        yield from _by_slices(
            _Race(problem.examples, weights, process, min(finish, problem.budget), least), problem.slots
        )


def least_slice(problem: Problem) -> float | None:
    """The share of the examples that a slice should add at least; None: soups are to be evaluated whole.

    Many workers answer small slices faster than the driver finds and records the next ones. And with few passes for
    each of them, they wait longest while the last soups are evaluated on the rest of the examples.
    """
    least = _WORTH * problem.slots
    if least <= LEVELS[0]:
        return 0.0
    return None if least > LEVELS[-1] or problem.budget < _ROUNDS * problem.slots else least


def _whole(problem: Problem, weights: Floats, process: Process) -> Asks:
    """Evaluate whole soups; where one is open, its predicted score stands in for it."""
    open_ = (weights > 0).sum(axis=1) > 1
    seen: list[int] = []
    truth: list[float] = []
    pending: dict[int, Ticket] = {}
    beliefs = _Beliefs(_Model(process))
    while open_.any() or pending:
        for candidate in [k for k, ticket in pending.items() if ticket.done]:
            utility = pending.pop(candidate).answer
            if np.isfinite(utility):
                seen.append(candidate)
                truth.append(utility)
                beliefs.told(candidate, 0.0, utility)
            else:
                beliefs.forget()
        if not open_.any():
            yield Wait()
            continue
        mean, variance = beliefs.given(seen, np.array(truth), np.zeros(len(seen)), dict.fromkeys(pending, 0.0))
        best = max([problem.singles.max(), *truth])
        value = expected_improvement(mean - best, np.sqrt(variance)) if seen or pending else mean
        chosen = int(np.flatnonzero(open_)[np.argmax(value[open_])])
        ticket = yield Open(weights[chosen])
        if ticket is not None:
            open_[chosen] = False
            pending[chosen] = ticket
            beliefs.opened(chosen, 0.0)
        elif pending:
            yield Wait()
        else:
            return


def _by_slices(race: _Race, slots: int) -> Asks:
    """Start many soups on slices, continue the promising ones, evaluate the best on all examples.

    ``slots``: how many questions may be open; in the end as many share the rest of the examples, rather than wait.
    """
    while True:
        candidate = race.next()
        if candidate is None:
            if not race.pending:
                break
            yield Wait()
        else:
            ticket = yield Open(race.question(candidate))
            if ticket is not None:
                race.opened(candidate, ticket)
            elif race.is_new(candidate):
                race.may_start = False
            else:
                break
        race.collect()
    while True:
        candidate = race.leader(among_pending=False)
        if candidate is None or not race.finishing >= race.pending.keys():
            if not race.pending:
                return
            yield Wait()
        else:
            ticket = None
            for part in race.all_of(candidate, slots):
                ticket = yield Open(part)
                if ticket is None:
                    break
            if ticket is not None:
                race.finishing.add(candidate)
                race.opened(candidate, ticket)
            else:
                race.leave_unfinished(candidate)
        race.collect()


class _Race:
    """Which soup to evaluate on its next slice, and which on all examples."""

    def __init__(self, examples: Examples, weights: Floats, process: Process, finish: int, least: float = 0.0) -> None:
        """``finish``: how many soups there must be passes left for to evaluate on all examples.

        ``least``: the share of the examples that a slice should add.
        """
        self.weights = weights
        self._examples = examples
        self._finish = finish
        self._believed = _Beliefs(_Model(process))
        self._slices = Slices(examples.count, contested(examples, weights[0]), least)
        self._singles = (weights > 0).sum(axis=1) == 1
        self._broken = np.zeros(len(weights), dtype=np.bool_)
        self._over_budget: set[int] = set()
        self._unknown = (0.1 * process.scale) ** 2
        self._observed: dict[int, tuple[float, float]] = {}  # what is believed of each is made of these
        self._levels = np.zeros(len(weights), dtype=int)
        self._observations: tuple[list[int], Floats, Floats] | None = None
        self._state: _State | None = None
        self.may_start = True
        """Whether the budget allows to start another soup."""
        self.pending: dict[int, Ticket] = {}
        """Soups asked about and not answered."""
        self.finishing: set[int] = set()
        """Those of them, and earlier ones, that were asked about on all examples."""

    def is_new(self, candidate: int) -> bool:
        """Whether nothing of this soup is known."""
        return not self._level(candidate)

    def _level(self, candidate: int) -> int:
        return int(self._levels[candidate])

    def collect(self) -> None:
        """Take in what has been answered."""
        answered = [k for k, ticket in self.pending.items() if ticket.done]
        for candidate in answered:
            values = self.pending.pop(candidate).answer
            if candidate in self.finishing:
                self._finished(candidate, values)
            else:
                self._continued(candidate, values)
        if answered:
            self._slices.changed()
            self._observations = None
            for candidate in answered:
                reading = self._slices.readings.get(candidate)
                self._levels[candidate] = 0 if reading is None else reading.level
                self._learned(candidate)
        self._state = None

    def opened(self, candidate: int, ticket: Ticket) -> None:
        """A soup was asked about; where others are open, what it will say is expected from here on."""
        self.pending[candidate] = ticket
        self._believed.opened(candidate, self._adds(candidate))

    def _learned(self, candidate: int) -> None:
        """What an answer adds to what is believed: of a soup that was known before, its news alone."""
        before = self._observed.get(candidate)
        now = self._slices.observed(candidate)
        if now is None:
            self._believed.forget()
            return
        (value, noise), self._observed[candidate] = now, now
        if before is None:
            self._believed.told(candidate, noise, value)
        elif noise < before[1]:
            more = _remaining(before[1], noise)
            own = more * (value / max(noise, _TINY) - before[0] / before[1]) if noise > _TINY else value
            self._believed.told(candidate, more, own)
        else:
            self._believed.forget()

    def _adds(self, candidate: int) -> float:
        """The variance of what is open about a soup, as if it was evaluated anew."""
        noise = 0.0 if candidate in self.finishing else self._expected(self._level(candidate))
        before = self._observed.get(candidate)
        return noise if before is None else _remaining(before[1], noise)

    def next(self) -> int | None:
        """The soup whose next slice has the largest knowledge gradient for its cost; None when nothing is left."""
        last = len(self._slices.sizes)
        level = self._levels
        open_ = (level < last) & ~self._singles & ~self._broken
        open_[list(self._slices.complete)] = False
        open_[list(self.pending)] = False
        if not self.may_start:
            open_ &= level > 0
        if not open_.any():
            return None
        seen, noise, mean, variance = self._beliefs()
        if not seen:
            return int(np.flatnonzero(open_)[np.argmax(mean[open_])])
        # What is known of a soup without its own slices, and what it will be known to after one more.
        own = np.full(len(level), np.inf)
        own[seen] = noise
        alone = np.maximum(1 / np.maximum(variance, _TINY) - 1 / np.maximum(own, _TINY), _TINY)
        coming = np.array([self._expected(k) for k in range(last)])
        after = 1 / (alone + 1 / np.maximum(coming[np.minimum(level, last - 1)], _TINY))
        learned = np.sqrt(np.maximum(variance - after, 0.0))
        passes = np.array([0.0, *(self._examples.cost(size) for size in self._slices.sizes)])
        cost = passes[np.minimum(level + 1, last)] - passes[np.minimum(level, last)]
        cost += np.where(level > 0, self._examples.again, 0.0)
        started = level > 0
        started[list(self.pending)] = True
        gap = np.abs(mean - _best_other(mean, self._singles | started))
        value = expected_improvement(-gap, learned) / np.where(open_, cost, 1.0)
        return int(np.flatnonzero(open_)[np.argmax(value[open_])])

    def _expected(self, level: int) -> float:
        """The variance to expect of a soup's accuracy once slice number ``level`` is known."""
        return self._slices.expected_variance(level, self._unknown / 4**level)

    def _beliefs(self) -> _State:
        """The soups started, the variance of what is known of each, and every candidate's mean and variance.

        Where a slice is open, its predicted result stands in for it.
        """
        if self._state is None:
            if self._observations is None:
                self._observations = self._slices.observations()
            seen, found, noise = self._observations
            if not self._believed.holds(len(seen)):  # computed anew: later answers are added to this
                self._observed = dict(zip(seen, zip(found.tolist(), noise.tolist(), strict=True), strict=True))
            mean, variance = self._believed.given(
                seen, found, noise, {candidate: self._adds(candidate) for candidate in self.pending}
            )
            if self.pending:
                place = {candidate: i for i, candidate in enumerate(seen)}
                new = [k for k in self.pending if k not in place]
                seen, noise = [*seen, *new], np.concatenate([noise, np.zeros(len(new))])
                place |= {candidate: len(place) + i for i, candidate in enumerate(new)}
                for candidate in self.pending:
                    finishing = candidate in self.finishing
                    noise[place[candidate]] = 0.0 if finishing else self._expected(self._level(candidate))
            self._state = (seen, noise, mean, variance)
        return self._state

    def question(self, candidate: int) -> Slice:
        """The next slice of this soup, if the best so far, or this one, can still be evaluated on the rest after it.

        Where several are to be evaluated so, each is taken to cost as much.
        """
        slices = self._slices
        if candidate not in slices.readings:
            slices.readings[candidate] = reading_of(self._examples, self.weights[candidate])
        reading = slices.readings[candidate]
        size = slices.sizes[reading.level]
        reserve = self._rest(size)
        ahead = self.leader()
        if ahead is not None and ahead != candidate:
            reserve = max(reserve, self._rest(slices.sizes[self._level(ahead) - 1]))
        for other in self.pending:
            reserve = max(reserve, self._rest(slices.sizes[self._level(other)]))
        return Slice(self.weights[candidate], reading.order[:size], self._finish * reserve)

    def _rest(self, size: int) -> float:
        """Passes that the other examples cost."""
        if size == self._examples.count:
            return 0.0
        return self._examples.cost(self._examples.count) - self._examples.cost(size) + self._examples.again

    def _continued(self, candidate: int, values: Floats) -> None:
        """Take in a soup's correctness (m,) on its next slice."""
        if np.isfinite(values).all():
            self._slices.readings[candidate].add(values)
        else:
            self._leave_out(candidate)

    def leader(self, *, among_pending: bool = True) -> int | None:
        """The best of the soups started that can still be evaluated on all examples; None when there is none."""
        seen, _, mean, _ = self._beliefs()
        left = [k for k in seen if self._levels[k] and k not in self._slices.complete and k not in self._over_budget]
        if not among_pending:
            left = [k for k in left if k not in self.pending]
        if not left:
            return None
        return max(left, key=lambda k: mean[k])

    def all_of(self, candidate: int, slots: int = 1) -> list[Slice]:
        """All examples of this soup, in parts for as many workers: each slice adds its part to those before it.

        The first is only asked about if the budget allows all. In one, where every question makes all data be read.
        """
        count, ratios = self._examples.count, self.weights[candidate]
        known, rest = np.split(self._slices.readings[candidate].order, [self._slices.sizes[self._level(candidate) - 1]])
        parts = 1 if self._examples.again else min(slots, int(len(rest) / (_LEAST_REST * count)))
        found = []
        for end in np.linspace(0, len(rest), max(1, parts) + 1).astype(int)[1:-1]:
            some = np.concatenate([known, np.sort(rest)[:end]])
            found.append(Slice(ratios, some, self._examples.cost(count) - self._examples.cost(len(some))))
        return [*found, Slice(ratios, np.arange(count), 0.0)]

    def leave_unfinished(self, candidate: int) -> None:
        """The budget does not reach for the rest of this soup.

        Then another may be nearer to its end: the slice asked last can make one lead for which nothing was kept back.
        """
        self._over_budget.add(candidate)

    def _finished(self, candidate: int, values: Floats) -> None:
        """Take in a soup's correctness (M,) on all examples."""
        if np.isfinite(values).all():
            self._slices.complete[candidate] = float(values.mean())
        else:
            self._leave_out(candidate)

    def _leave_out(self, candidate: int) -> None:
        """A soup whose outputs are not finite."""
        self._broken[candidate] = True
        del self._slices.readings[candidate]


class _Model:
    """A process whose prior is chosen anew each time the evaluations have grown by half."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._prior = Prior()
        self._next = 2

    def posterior(self, seen: list[int], truth: Floats, noise: Floats) -> Posterior:
        """See ``Process.posterior``."""
        if len(seen) >= self._next:
            self._prior = self._process.likeliest(seen, truth, noise)
            self._next = len(seen) + max(1, len(seen) // 2)
        return Posterior(self._process, seen, truth, noise, self._prior)


class _Beliefs:
    """Means and variances given what was told and what is open.

    Where nothing is open they are made anew for every answer. Where many questions are, that would take longer the more
    is known: they are added to, and made anew when answers have grown by an eighth, or by half as many as are open.
    """

    def __init__(self, model: _Model) -> None:
        self._model = model
        self._told: Posterior | None = None  # its means hold
        self._all: Posterior | None = None  # and these variances, with what is open; None: nothing is
        self._next = 0

    def holds(self, seen: int) -> bool:
        """Whether what is believed is still added to, so many soups being known."""
        return self._told is not None and self._all is not None and seen < self._next

    def given(self, seen: list[int], truth: Floats, noise: Floats, open_: Mapping[int, float]) -> tuple[Floats, Floats]:
        """Means and variances (K,). ``open_``: the variance of what each open evaluation will say."""
        if not self.holds(len(seen)):
            self._told = self._model.posterior(seen, truth, noise)
            self._next = len(seen) + max(_REFITTED, len(seen) // 8, len(open_) // 2)
            self._all = self._told.copy() if open_ else None
            for candidate, variance in open_.items():
                assert self._all is not None
                self._all.add(candidate, variance)
        assert self._told is not None
        return self._told.mean, (self._told if self._all is None else self._all).variance

    def told(self, candidate: int, noise: float, truth: float) -> None:
        """An answer; it was open, so the variances count it already."""
        if self._told is not None and self._all is not None:
            self._told.add(candidate, noise, truth)

    def opened(self, candidate: int, noise: float) -> None:
        """A question; what is told before it is asked about again is counted with the next answer."""
        if self._told is not None and self._all is not None:
            self._all.add(candidate, noise)

    def forget(self) -> None:
        """Begin anew with the next answer."""
        self._told = self._all = None


def _remaining(before: float, now: float) -> float:
    """The variance of an evaluation that takes what is known from one variance to a smaller one."""
    return 1 / max(1 / max(now, _TINY) - 1 / max(before, _TINY), _TINY)


def _best_other(mean: Floats, among: np.ndarray) -> Floats:
    """For each candidate the highest mean among the others of ``among``, (K,)."""
    inside = np.flatnonzero(among)
    ranked = inside[np.argsort(-mean[inside], kind="stable")]
    result = np.full(len(mean), mean[ranked[0]])
    result[ranked[0]] = mean[ranked[1]] if len(ranked) > 1 else -np.inf
    return result


def softened(examples: Examples, weights: Floats, estimates: Floats) -> Floats:
    """The estimates with answers counted by how sure they are: an even margin counts half, (K,).

    Counting right answers tells no narrow one from a clear one; a small change of the ratios does.
    """
    result = estimates.copy()
    # Margins of many recipes at once, as many as take 32 MiB, since making the rows that they come from takes longest.
    together = _ROWS * max(1, (1 << 22) // (_ROWS * examples.count))
    for first in range(0, len(weights), together):
        if examples.answers is not None:
            counted = examples.answers(weights[first : first + together], SOFTENING)[1].mean(axis=1)
            result[first : first + len(counted)] = counted
            continue
        many = examples.margins(weights[first : first + together])
        for start in range(0, len(many), _ROWS):
            margins = many[start : start + _ROWS]
            finite = np.isfinite(margins)
            typical = np.abs(margins[finite]).mean() if finite.any() else 1.0
            counted = normal_below(np.clip(margins / (SOFTENING * (typical or 1.0)), -6, 6)).mean(axis=1)
            result[first + start : first + start + len(margins)] = counted
    mixed = (weights > 0).sum(axis=1) > 1
    result[mixed] += estimates[mixed].mean() - result[mixed].mean() if mixed.any() else 0.0
    result[~mixed] = estimates[~mixed]
    return result


def candidates(problem: Problem, count: int, keep: int, most: int = 0) -> Floats:
    """Distinct recipes (K, N): members alone, the best by estimate of every source, and anchors of every size.

    ``problem.estimate`` says what counts as best. ``most``: of soups, where estimating each takes long.

    Equal ratios and unequal ones get half of ``keep`` each, since unequal ones exploit the estimate's errors; of
    recipes that lie close together the best by estimate stands for all. The anchors keep the set diverse: the prefixes
    of the members sorted best first, and the best few random subsets of each size. Where the estimate is wrong for
    whole regions, some candidate lies outside them. In a large pool sizes next to each other count as one.
    """
    members = problem.members
    anchors, first, sizes = _ANCHORS, members - 1, members if members <= ALL else _SIZES
    if 0 < most < _PLENTY:  # half of them the best, an eighth prefixes, the others random subsets
        keep, first, anchors, sizes = min(keep, most // 2), most // 8, 2, most // 8
    names = default_sources(members, count)
    found = without_traces(best_recipes(problem, names, count=count, keep=8 * keep).weights)
    equal = [name for name in names if name in ("top-k", "random", "all", "local")]
    subsets = best_recipes(problem, equal, count=count, keep=8 * keep).weights
    best_first = equal_weights(prefixes(members)[1:])
    rows = [
        np.eye(min(members, _SINGLES), members),  # the best, as members are sorted
        thinned(subsets, keep // 2),
        thinned(found, keep // 2),
        best_first[_spread(len(best_first), first)],
    ]
    if members > 2:
        drawn = equal_weights(monte_carlo(members, count, (2, members - 1), np.random.default_rng(problem.seed), False))
        estimates, group = problem.estimate(drawn), (drawn > 0).sum(axis=1) - 2
        if members - 2 > sizes:
            group = np.searchsorted(_spread(members - 2, sizes), group, side="right")
        for one in np.unique(group):
            of_size = np.flatnonzero(group == one)
            rows.append(drawn[of_size[np.argsort(-estimates[of_size], kind="stable")[:anchors]]])
    everything = np.concatenate(rows)
    _, places = np.unique(np.round(everything, 12), axis=0, return_index=True)
    return everything[np.sort(places)]


def _spread(count: int, most: int) -> Indices:
    """At most ``most`` of the numbers 0 to ``count`` - 1, denser at the start; all where they are no more."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, most).astype(np.intp)) - 1


def without_traces(weights: Floats) -> Floats:
    """Recipes (K, N) without the members whose weight is below a hundredth of the largest: they change no answer."""
    result = np.where(weights < 0.01 * weights.max(axis=1, keepdims=True), 0.0, weights)
    changed = ((result == 0) & (weights > 0)).any(axis=1)
    result[changed] /= result[changed].sum(axis=1, keepdims=True)
    return result


def thinned(weights: Floats, keep: int) -> Floats:
    """``keep`` of these recipes (K, N), the first ones that are not close to one before; close is found by halving."""
    low, high, chosen = 0.0, 2.0, weights[:keep]
    for _ in range(10):
        radius = (low + high) / 2
        found = _apart(weights, radius, keep)
        if len(found) < keep:
            high = radius
        else:
            low, chosen = radius, found
    return chosen


def _apart(weights: Floats, radius: float, keep: int) -> Floats:
    """The first ``keep`` recipes of which no two share more than 1 - radius / 2 of their weight."""
    chosen: list[int] = []
    left = np.arange(len(weights))
    while len(left) and len(chosen) < keep:
        chosen.append(int(left[0]))
        first = weights[left[0]]
        if len(first) <= ALL:
            apart = np.abs(weights[left] - first).sum(axis=1)
        else:  # what they do not share, which only the members of the first can tell
            mixed = np.flatnonzero(first)
            apart = 2 - 2 * np.minimum(weights[np.ix_(left, mixed)], first[mixed]).sum(axis=1)
        left = left[apart > radius]
    return weights[chosen]
