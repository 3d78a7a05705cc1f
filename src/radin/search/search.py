"""Search: ask a question, have it answered anywhere, tell the answer; the best so far is always known.

Axis names: members N, examples M, classes C, recipes S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from radin import metrics
from radin.checks import whole_number
from radin.errors import RadinError
from radin.estimate import Estimator, Outputs
from radin.estimate.reading import Array
from radin.metrics import Metric
from radin.objectives import objectives
from radin.progress import Progress, silent
from radin.question import Answer, Floats, Gradient, Indices, Question, Rates, answer_from_values
from radin.recipe import Recipe
from radin.search.account import Account, Asked, asked_of
from radin.search.members import Members
from radin.search.strategies import base
from radin.search.strategies.base import (
    Examples,
    Gradients,
    Open,
    Problem,
    Slice,
    Slope,
    Ticket,
    Wait,
)


class Search:
    """Choose which soups to evaluate, within a budget.

        search = Search(outputs, targets, metric="accuracy", budget=10)
        while (question := search.ask()) is not None:
            search.tell(question, score_of_the_soup_of(question.recipe))
        recipe, score = search.best

    Several questions may be open: ``ask`` again before telling. None means that there is nothing to ask now; once no
    question is open, that the search has ended. Their cost is set aside, so the budget is never exceeded.

    ``outputs``: (N, M, C), or one (M, C) array per member, in memory or in a file. ``targets``: one per example.
    ``metric``: a name, or a Metric; scores are in its natural units, its direction is known to the search.
    ``options``: the strategy's own settings. ``budget``: passes spent on soups in all, those told from an earlier run
    included.
    ``keys``: one string per member that names its content; decides ties, default the hash of the member's
    outputs.
    ``names``: what messages call the members.
    ``estimator``: scores recipes over the members in the order given here; built from the outputs if not
    given. ``singles`` (N,): the members' own scores, where they are known. With these, and keys, ``outputs`` may be
    None: then no convex fit can be had; and without an estimator either, soups are searched from the members' scores
    and distances alone, whole soups only. ``gram`` (N, N): inner products of the members' weights, for strategies
    that use their distances; or a function that makes them for some members, (n,) indices -> (n, n), which is called
    where a strategy looks at some of them alone.

    ``parts``: let the strategy ask about some of the examples (accuracy only; for other metrics every question is about
    all). Questions then carry ``examples``, ascending indices, and are told one value for each:

        while (question := search.ask()) is not None:
            search.tell(question, [one value per example of question.examples])

    A soup then costs its share of the examples.

    ``gradients``: groups of tensors by name, from coarse to fine, where questions may ask for a gradient by the ratios
    in them; these are told an Answer with one, and cost three times their examples.

    ``calibration``: K, how many examples starting a soup costs besides
    (those over which BatchNorm statistics are estimated again). ``account``: the budget and the memory that this search
    shares with others; ``among``: the examples, of all that the account knows, that the outputs are over.
    ``progress``: called with (what, done, total) while estimates that take long are made.

    ``slots``: how many questions are answered at once. What is asked may depend on it where it is large.

    ``seed``: of all that is drawn at random. ``device``: where estimates are made, "cpu" or a GPU.

    The answers depend on the members' content, not on their order. To resume, build the same search and tell
    it what was answered; the next question asked is the one that would have been next.

    Raises RadinError (OutputsError, TaskError for the outputs and targets) for anything that does not fit.
    """

    def __init__(
        self,
        outputs: Outputs | None,
        targets: Array | None = None,
        *,
        metric: str | Metric = "accuracy",
        strategy: str = "adaptive",
        budget: int,
        seed: int = 0,
        keys: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        estimator: Estimator | None = None,
        singles: Floats | None = None,
        gram: Floats | Callable[[Indices], Floats] | None = None,
        parts: bool = False,
        gradients: Mapping[str, tuple[str, ...]] | None = None,
        calibration: int = 0,
        account: Account | None = None,
        among: Indices | None = None,
        slots: int = 1,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self.metric = metrics.get(metric)
        self.strategy = base.get(strategy)
        self.settings = self.strategy.settings(options)
        self.budget = whole_number("budget", budget, 1 if self.strategy.spends else 0)
        seed = whole_number("seed", seed, 0, None)
        self.parts = parts
        self._members = members = Members(
            outputs,
            targets,
            self.metric,
            keys=keys,
            names=names,
            estimator=estimator,
            singles=singles,
            gram=gram,
            device=device,
        )
        if self.strategy.outputs and members.prior is not None:
            raise RadinError(
                f"strategy {strategy!r} ranks soups by the members' outputs, and there are none; "
                f"without outputs, choose among: {', '.join(base.names(without_outputs=True))}"
            )
        if parts and members.prior is not None:
            raise RadinError("without outputs, a search asks for whole soups only; leave out parts")
        examples = members.examples or (0 if estimator is None else estimator.examples)
        self.account = account or Account(self.budget, Rates(examples, calibration), self.metric.score)
        """What has been spent, what is open and what is known, of all soups."""
        rates = self.account.rates
        self._among = np.arange(rates.examples) if among is None else among
        # The budget is in passes over the examples that are searched on, the account's in passes over all.
        mine = Rates(len(self._among), rates.calibration, rates.reading)
        whole = rates.examples + rates.calibration
        self._unit = (mine.examples + mine.calibration) / whole if whole else 1.0
        self._told: dict[Recipe, float] = {}
        self._places: dict[Recipe, int] = {}  # in the order in which they were last asked about
        self._asks = 0
        self._no_gradient: set[Asked] = set()
        self._known: dict[Recipe, float] = {}  # of soups; see ``_utility``
        self._queue: list[Recipe] = []
        self._tickets: list[tuple[Ticket, Recipe, Slice | None]] = []
        self._news = False
        learned_by = objectives(self.metric) if mine.examples else ()
        positional = self.metric.family == "position_accuracy" and members.by_counts
        by_slices = parts and (positional or (self.metric.family == "accuracy" and self.metric.top == 1))
        self.problem = Problem(
            members.count,
            members.utilities[members.order],
            members.estimate,
            self.budget,
            seed,
            fit=members.fit
            if members.have_outputs and self.metric.targets in ("classes", "values", "positions")
            else None,
            gram=members.gram,
            output_distances=(lambda: members.output_distances) if members.have_outputs else None,
            examples=Examples(
                mine.examples,
                mine.overhead,
                members.margins,
                mine.reading,
                answers=members.answers if positional else None,
            )
            if by_slices
            else None,
            gradients=Gradients(learned_by, gradients, mine.examples, mine.overhead, mine.reading)
            if gradients is not None and learned_by
            else None,
            left=self._left,
            prior=members.prior,
            affords=members.affords,
            screen=members.screen if members.prior is None else None,
            metric=self.metric.name,
            progress=progress or silent,
            slots=whole_number("slots", slots, 1, None),
            among=self._of,
        )
        """What the strategy sees: members in canonical order, utilities."""
        self._running = self.strategy.run(self.problem, **self.settings)
        self._reply: Any = None
        self._replies = False
        self._asked: base.Ask | None = self._advance()

    def _of(self, some: Indices) -> Problem:
        """The strategy's problem with some of the members, (n,) in canonical order, and no others."""
        members, whole = self._members.among(some), self.problem
        examples = whole.examples
        if examples is not None:
            answers = None if examples.answers is None else members.answers
            examples = replace(examples, margins=members.margins, answers=answers)
        return replace(
            whole,
            members=members.count,
            singles=whole.singles[some],
            estimate=members.estimate,
            fit=None if whole.fit is None else members.fit,
            gram=members.gram,
            output_distances=None if whole.output_distances is None else (lambda: members.output_distances),
            examples=examples,
            prior=members.prior,
            affords=members.affords,
            screen=None if whole.screen is None else members.screen,
            among=None,
        )

    @property
    def singles(self) -> Floats:
        """Scores of the members alone, (N,)."""
        return self._members.singles

    def enqueue(self, recipe: Recipe) -> None:
        """Ask about this recipe before anything that the strategy asks, if it is not known and the budget allows."""
        self._check(recipe)
        self._queue.append(recipe)

    def ask(self) -> Question | None:
        """The next question; None when there is nothing to ask now: all is asked, or an open answer is waited for.

        The question is open from then on: what it costs is set aside. Nothing is asked whose answer is known or open.
        """
        while self._queue:
            question = self._question(self._queue.pop(0), None)
            if question is not None:
                return question
        while True:
            if self._replies:
                self._replies = False
                self._asked = self._advance()
            asked = self._asked
            if asked is None or (isinstance(asked, Wait) and self._tickets and not self._news):
                return None
            if isinstance(asked, Wait):
                self._news = False
                self._answer_with(None)
                continue
            if isinstance(asked, Slope):
                known, question = self._slope(asked)
                if known:
                    continue
                return question
            opens = isinstance(asked, Open)
            plain, reserve = (asked.ask, asked.reserve) if isinstance(asked, Open) else (asked, 0.0)
            part = plain if isinstance(plain, Slice) else None
            recipe = self._members.recipe(plain.ratios if isinstance(plain, Slice) else plain)
            known, answer = self._answer(recipe, part)
            if known:
                self._answer_with(Ticket(True, answer) if opens else answer)
                continue
            lacking = self._lacking(recipe, part)
            question = self._question(recipe, part, reserve)
            if lacking and question is None:
                # Not within the budget. Whoever asks about whole soups, one by one, has nothing else to ask.
                if part is None and not opens:
                    return None
                self._answer_with(None)
            elif opens:
                # The strategy continues when it is asked again: by then this may be answered.
                ticket = Ticket()
                self._tickets.append((ticket, recipe, part))
                self._answer_with(ticket)
            elif self.strategy.independent:
                self._answer_with(None)
            elif question is None:
                return None
            if question is not None:
                return question

    def _answer_with(self, reply: Any) -> None:
        """What the strategy is sent when it continues, at the next step of ``ask``."""
        self._reply, self._replies = reply, True

    def _slope(self, asked: Slope) -> tuple[bool, Question | None]:
        """Whether the strategy has its reply; else the question to ask, None while it is open."""
        examples = self._among[np.sort(asked.examples)]
        question = Question(
            self._members.recipe(asked.ratios), examples, gradient=Gradient(asked.objective, tuple(asked.groups))
        )
        key = asked_of(question)
        found = self.account.gradient(key)
        if found is not None and found.gradient is not None:
            self._answer_with((found.score, found.gradient[:, self._members.order]))
            return True, None
        if any(q.gradient is not None and asked_of(q) == key for q in self.account.open):
            return False, None
        cost = self.account.cost(question.recipe, examples, question.gradient) + asked.reserve * self._unit
        if key in self._no_gradient or not self._affords(cost):
            self._answer_with(None)
            return True, None
        self.account.reserve(question)
        return False, question

    @property
    def _limit(self) -> float:
        return min(self.account.budget, self.budget * self._unit)

    def _affords(self, cost: float) -> bool:
        return self.account.affords(cost, self._limit)

    def _left(self) -> float:
        """Passes over the examples that are searched on that the budget still allows."""
        return (self._limit - self.account.spent - self.account.reserved) / self._unit

    def _question(self, recipe: Recipe, part: Slice | None, reserve: float = 0.0) -> Question | None:
        """Open a question about what is lacking, if anything is and the budget allows it."""
        if self._utility(recipe) is not None or not self._lacking(recipe, part):
            return None
        asked = self._unknown(recipe, part) if self.parts else None
        reserve += part.reserve if part is not None else 0.0
        cost = self.account.cost(recipe, asked) + reserve * self._unit
        if not self._affords(cost):
            return None
        question = Question(recipe, asked)
        self.account.reserve(question)
        self._place(recipe)
        return question

    def _place(self, recipe: Recipe) -> None:
        self._asks += 1
        self._places[recipe] = self._asks

    def _lacking(self, recipe: Recipe, part: Slice | None) -> bool:
        """Whether something of what is asked is neither known nor asked about already."""
        if self.parts:
            return len(self._unknown(recipe, part)) > 0
        return not any(question.recipe == recipe and question.gradient is None for question in self.account.open)

    def _unknown(self, recipe: Recipe, part: Slice | None) -> Indices:
        """Those of the examples asked that are neither known nor open, ascending, as the account counts them."""
        wanted = self._among if part is None or recipe.is_single else self._among[np.sort(part.examples)]
        return self.account.unknown(recipe, wanted)

    def _utility(self, recipe: Recipe) -> float | None:
        """What is known of a soup, or of a member alone, on all examples."""
        if recipe.is_single:
            return float(self._members.utilities[recipe.members[0]])
        return self._known.get(recipe)

    def _answer(self, recipe: Recipe, part: Slice | None) -> tuple[bool, float | Floats | None]:
        """Whether the answer is known, and it."""
        known = self._utility(recipe)
        if part is None or recipe.is_single:
            return known is not None, known
        values = self.account.values(recipe)[self._among[part.examples]]
        if known is not None and (np.isnan(values).any() or not np.isfinite(known)):
            return True, np.full(len(part.examples), np.nan)
        if np.isnan(values).any():
            return False, None
        if values.ndim > 1:
            values = self._members.shares(values)
        return True, values if self.metric.higher_is_better else -values

    def tell(self, asked: Question | Recipe, answer: Answer | float | ArrayLike) -> None:
        """Record an answer: a soup's score in the metric's own units, one value per example asked, or an Answer.

        What was not asked may be told too: it costs as if it had been, and is not asked again. NaN says that the soup's
        outputs are not finite: it counts as worst. A single member keeps the score its outputs gave. Raises RadinError
        for another pool's recipe, another number of values, or a second, different score.
        """
        question = asked if isinstance(asked, Question) else self._open_about(asked)
        recipe = question.recipe
        self._check(recipe)
        if question.gradient is not None:
            self._tell_gradient(question, question.gradient, answer)
            return
        found = self._as_answer(question, answer)
        if recipe in self._told and found.values is None and question.examples is None:
            before = self._told[recipe]
            if found.score != before and not (np.isnan(found.score) and np.isnan(before)):
                raise RadinError(f"this recipe was told {before} before, now {found.score}; a recipe has one score")
        self.account.charge(question, found)
        self._learn(recipe, found)

    def _tell_gradient(self, question: Question, asked: Gradient, answer: Answer | float | ArrayLike) -> None:
        shape = (1 + len(asked.groups), self._members.count)
        if not isinstance(answer, Answer) or answer.gradient is None or answer.gradient.shape != shape:
            raise RadinError(f"this question asks for a gradient: tell an Answer whose gradient has shape {shape}")
        self.account.charge(question, answer)

    def _open_about(self, recipe: Recipe) -> Question:
        found = [q for q in self.account.open if q.recipe == recipe and q.examples is None and q.gradient is None]
        return found[0] if found else Question(recipe)

    def _as_answer(self, question: Question, answer: Answer | float | ArrayLike) -> Answer:
        count = self.account.rates.examples if question.examples is None else len(question.examples)
        if not isinstance(answer, Answer):
            told = np.asarray(answer, dtype=np.float64)
            if told.ndim:
                if told.shape != (count,):
                    raise RadinError(f"expected one value for each of {count} examples; got shape {told.shape}")
                return answer_from_values(told, 0.0)
            answer = Answer(float(told), float("nan"), 0, 0.0)
        if question.examples is not None and answer.values is None and np.isfinite(answer.score):
            raise RadinError(f"this question is about {count} examples: tell one value for each")
        return answer

    def _learn(self, recipe: Recipe, answer: Answer) -> None:
        """What an answer means for the scores on the examples that are searched on, and for open tickets."""
        if not recipe.is_single and recipe not in self._told:
            score = answer.score if np.isnan(answer.score) else self._score(recipe)
            if score is not None:
                self._told[recipe] = score
                if recipe not in self._places:
                    self._place(recipe)
                self._known[recipe] = self._members.utility(score)
        self._deliver(recipe)

    def _score(self, recipe: Recipe) -> float | None:
        values = self.account.values(recipe)[self._among]
        if len(values) and not np.isnan(values).any():
            return self.metric.score(values)
        return self.account.scores.get(recipe)

    def drop(self, question: Question) -> None:
        """No answer will come: give back what was set aside, and ask about this recipe no more."""
        self.account.release(question)
        if question.gradient is not None:
            self._no_gradient.add(asked_of(question))
            return
        self._known.setdefault(question.recipe, -np.inf)
        self._deliver(question.recipe)

    def _deliver(self, about: Recipe) -> None:
        """Answer the open tickets about a soup, as far as what is known of it now answers them."""
        left = []
        for ticket, recipe, part in self._tickets:
            if recipe == about:
                ticket.done, ticket.answer = self._answer(recipe, part)
            if ticket.done:
                self._news = True
            else:
                left.append((ticket, recipe, part))
        self._tickets = left

    def _check(self, recipe: Recipe) -> None:
        if len(recipe.weights) != self._members.count:
            raise RadinError(
                f"the recipe has {len(recipe.weights)} mixing ratios, the pool {self._members.count} members"
            )

    @property
    def spent(self) -> float:
        """Passes: soups evaluated, and the shares of those evaluated on some examples."""
        return self.account.spent

    @property
    def open(self) -> tuple[Question, ...]:
        """Questions asked and not answered."""
        return self.account.open

    @property
    def evaluations(self) -> list[tuple[Recipe, float]]:
        """The soups fully evaluated and their scores, in the order in which they were told."""
        return list(self._told.items())

    @property
    def best(self) -> tuple[Recipe, float]:
        """The best recipe known and its score.

        Of equal scores the single member comes first, then the soup asked about first, in whatever order the answers
        came; the one asked about last where the strategy's option ``accept`` is "ties", since it then keeps what it
        tried last.
        """
        first = int(self._members.order[0])
        best, score = Recipe.single(first, self._members.count), float(self.singles[first])
        utility = float(self._members.utilities[first])
        ties = self.settings.get("accept") == "ties"
        for recipe in sorted(self._told, key=self._places.__getitem__):
            told = self._told[recipe]
            gain = self._known[recipe] - utility
            if gain > 0 or (gain == 0 and ties and not best.is_single):
                best, score, utility = recipe, told, self._known[recipe]
        return best, score

    def estimate(self, recipes: Iterable[Recipe]) -> Floats:
        """Estimated scores of recipes, (S,), in the metric's own units: those of their averaged outputs.

        Without outputs, those that the members' scores and distances lead one to expect. NaN for a recipe with groups:
        which outputs would be averaged is not defined where layers are mixed differently. And for an affine one where
        outputs are not at hand, or are probabilities, which negative ratios make none of.
        """
        asked = list(recipes)
        found = np.full(len(asked), np.nan)
        for affine, scores in ((False, self._members.scores), (True, self._members.affine_scores)):
            places = [k for k, recipe in enumerate(asked) if not recipe.groups and recipe.affine == affine]
            if places:
                ratios = np.array([asked[k].weights for k in places], dtype=np.float64)
                found[places] = scores(ratios[:, self._members.order])
        return found

    def score(self, utility: float) -> float:
        """The score, in the metric's own units, that has a utility of the problem's."""
        return self._members.score(utility)

    def recipe(self, ratios: Floats | Recipe) -> Recipe:
        """The recipe, over the members in the order given, of ratios (N,) or a recipe over the canonical order."""
        return self._members.recipe(ratios)

    def _advance(self) -> base.Ask | None:
        """Send the strategy the reply; what it asks next."""
        reply, self._reply = self._reply, None
        try:
            return self._running.send(reply)
        except StopIteration:
            return None
