"""Search: ask for a recipe, evaluate its soup anywhere, tell its score; the best so far is always known.

Axis names: members N, examples M, classes C, recipes S.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radin import metrics
from radin.errors import OutputsError, RadinError
from radin.estimate import Estimator, Outputs
from radin.estimate import estimator as build_estimator
from radin.estimate.reading import Array, ArrayLike2D, FileArray, Reader, not_finite
from radin.metrics import Metric
from radin.recipe import Recipe
from radin.search.prior import ScorePrior
from radin.search.simplex import minimise, quadratic_minimum
from radin.search.strategies import base
from radin.search.strategies.base import Examples, Floats, Indices, Problem, Slice

_ROUNDING = 1e-9  # of passes, which are sums of shares
_SAMPLE = 1 << 25  # outputs of all members together that are compared


@dataclass(frozen=True, eq=False)
class Part:
    """Examples of a soup to evaluate: ``recipe``, and ``examples`` (m,), ascending indices, none known yet."""

    recipe: Recipe
    examples: Indices


class Search:
    """Choose which soups to evaluate, within a budget.

        search = Search(outputs, targets, metric="accuracy", budget=10)
        while (recipe := search.ask()) is not None:
            search.tell(recipe, score_of_its_soup)
        recipe, score = search.best

    ``outputs``: (N, M, C), or one (M, C) array per member, in memory or in a file. ``targets``: one per example.
    ``metric``: a name, or a Metric; scores are in its natural units, its direction is known to the search.
    ``options``: the strategy's own settings. ``budget``: soups evaluated in all, those told from an earlier
    run included.
    ``keys``: one string per member that names its content; decides ties, default the hash of the member's
    outputs.
    ``names``: what messages call the members.
    ``estimator``: scores recipes over the members in the order given here; built from the outputs if not
    given. ``singles`` (N,): the members' own scores, where they are known. With these and keys ``outputs`` may
    be None: then no convex fit can be had. Without an estimator either, soups are searched from the members'
    scores and distances alone, whole soups only, and ``targets`` may be left out. ``gram`` (N, N): inner products
    of the members' weights, for strategies that use their distances.

    ``parts``: let the strategy evaluate soups on some of the examples (accuracy only; for other metrics each part is a
    whole soup). ``ask_part`` and ``tell_part`` then take the place of ``ask`` and ``tell``:

        while (part := search.ask_part()) is not None:
            search.tell_part(part, [one value per example of part.examples])

    and the budget is in passes: a soup costs its share of the examples. ``overhead``: what beginning a soup costs
    besides, as examples per validation example (those over which BatchNorm statistics are estimated again).

    The answers depend on the members' content, not on their order. To resume, build the same search and tell
    it what was evaluated; the next recipe asked is the one that would have been next.

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
        gram: Floats | None = None,
        parts: bool = False,
        overhead: float = 0.0,
        device: str = "cpu",
    ) -> None:
        self.metric = metrics.get(metric)
        self.strategy = base.get(strategy)
        self.settings = self.strategy.settings(options)
        self.budget = _checked_budget(budget, at_least=1 if self.strategy.spends else 0)
        self._targets = np.empty(0) if targets is None else np.asarray(targets)
        self._device = device
        self._outputs: list[ArrayLike2D] = []
        self._names: Sequence[str] = names or ()
        if outputs is not None:
            reader = Reader(_arrays(outputs), names)
            self._outputs, self._names = reader.sources, reader.names
            if len(self._targets) != reader.examples:
                raise OutputsError(
                    f"there are {len(self._targets)} targets for {reader.examples} examples in the outputs"
                )
            self.metric.check(self._targets, reader.classes)
        elif singles is None or keys is None:
            raise RadinError("without outputs, a search needs the singles' scores and keys")
        hidden = outputs is None and estimator is None
        if hidden and parts:
            raise RadinError("without outputs, a search asks for whole soups only; leave out parts")
        if hidden and self.strategy.outputs:
            raise RadinError(
                f"strategy {self.strategy.name!r} ranks soups by the members' outputs, and there are none; "
                f"without outputs, choose among: {', '.join(base.names(without_outputs=True))}"
            )
        self.singles: Floats = self._own_scores() if singles is None else np.asarray(singles, dtype=np.float64)
        """Scores of the members alone, (N,)."""
        members = len(self._outputs) or len(self.singles)
        for what, given in (("keys", keys), ("singles", self.singles)):
            if given is not None and len(given) != members:
                raise RadinError(f"{what} must be one per member; got {len(given)} for {members} members")
        utilities = np.array([self.metric.utility(float(score)) for score in self.singles])
        if np.isneginf(utilities).all():
            raise RadinError(f"no member has a usable {self.metric.name}: all {members} scores are {self.singles[0]}")

        # order[i]: the given index of canonical member i; position[k]: the canonical index of given member k.
        self._order = canonical_order(utilities, self._outputs, keys)
        self._position = np.argsort(self._order)
        self._estimator = estimator
        self._estimator_is_canonical = False
        self._told: dict[Recipe, float] = {}
        self.parts = parts
        self._overhead = overhead / (1 + overhead)
        self._values: dict[Recipe, Floats] = {}
        self._examples_told = 0
        canonical_gram = None if gram is None else np.asarray(gram)[np.ix_(self._order, self._order)]
        self._prior = ScorePrior.of(utilities[self._order], canonical_gram) if hidden else None
        self._known = {Recipe.single(k, members): float(u) for k, u in enumerate(utilities)}
        self.problem = Problem(
            members,
            utilities[self._order],
            self._estimated,
            self.budget,
            seed,
            fit=self._fit if self._outputs and self.metric.targets in ("classes", "values") else None,
            gram=canonical_gram,
            output_distances=(lambda: self._output_distances) if self._outputs else None,
            examples=Examples(len(self._targets), self._overhead, self._margins)
            if parts and self.metric.family == "accuracy" and self.metric.top == 1
            else None,
            prior=self._prior,
        )
        """What the strategy sees: members in canonical order, utilities."""
        self._running = self.strategy.run(self.problem, **self.settings)
        self._next = self._advance(None)

    def ask(self) -> Recipe | None:
        """The recipe to evaluate next; None when the budget is spent or nothing is left.

        Asked again before it is told, the answer is the same. No recipe is asked whose score is known.
        """
        if self.parts:
            raise RadinError("a search by parts is asked with ask_part() and told with tell_part()")
        part = self._question()
        return None if part is None else part.recipe

    def ask_part(self) -> Part | None:
        """The soup and the examples to evaluate next; None when the budget is spent or nothing is left."""
        if not self.parts:
            raise RadinError("this search asks for whole soups; build it with parts=True to ask for parts")
        return self._question()

    def _question(self) -> Part | None:
        """Answer the strategy from what is known, until it asks what is not."""
        while self._next is not None:
            recipe, asked = self._next
            part, answer = self._missing(recipe, asked)
            if part is None:
                self._next = self._advance(answer)
                continue
            reserve = asked.reserve if asked is not None else 0.0
            if self.spent + self._cost(part) + reserve <= self.budget + _ROUNDING:
                return part
            if asked is None:
                return None
            self._next = self._advance(None)
        return None

    def _missing(self, recipe: Recipe, asked: Slice | None) -> tuple[Part | None, float | Floats | None]:
        """What must be evaluated to answer, or None and the answer."""
        values = self._values.get(recipe)
        if asked is None or recipe.is_single:
            if recipe in self._known:
                return None, self._known[recipe]
            examples = np.arange(len(self._targets)) if values is None else np.flatnonzero(np.isnan(values))
            return Part(recipe, examples), None
        if recipe in self._known and (values is None or not np.isfinite(self._known[recipe])):
            return None, np.full(len(asked.examples), np.nan)
        wanted = asked.examples if values is None else asked.examples[np.isnan(values[asked.examples])]
        if len(wanted):
            return Part(recipe, np.sort(wanted)), None
        assert values is not None
        found = values[asked.examples]
        return None, found if self.metric.higher_is_better else -found

    def _cost(self, part: Part) -> float:
        """Passes that a part costs."""
        if not self.parts:
            return 1.0
        begins = 0.0 if part.recipe in self._values else self._overhead
        return begins + (1 - self._overhead) * len(part.examples) / len(self._targets)

    def tell(self, recipe: Recipe, score: float) -> None:
        """Record the score of a recipe's soup, in the metric's own units; NaN counts as worst.

        A recipe that was not asked may be told too: it is one evaluation spent, and is not asked again. A
        single member keeps the score its outputs gave. Raises RadinError for another pool's recipe, or a
        second, different score.
        """
        self._check(recipe)
        if recipe.is_single:
            return
        utility = self.metric.utility(float(score))
        if self._known.setdefault(recipe, utility) != utility:
            raise RadinError(f"this recipe was told {self._told[recipe]} before, now {score}; a recipe has one score")
        self._told.setdefault(recipe, float(score))

    def tell_part(self, part: Part, values: ArrayLike) -> None:
        """Record a soup's values of the metric on some examples, (m,); all of them make its score.

        A part that was not asked may be told too; examples known already keep their values. NaN says that the soup's
        outputs are not finite: its score is then the worst. Raises RadinError for another pool's recipe or another
        number of values.
        """
        self._check(part.recipe)
        told = np.asarray(values, dtype=np.float64)
        if told.shape != part.examples.shape:
            raise RadinError(f"expected one value for each of {len(part.examples)} examples; got shape {told.shape}")
        if part.recipe.is_single:
            return
        known = self._values.setdefault(part.recipe, np.full(len(self._targets), np.nan))
        new = np.isnan(known[part.examples])
        self._examples_told += int(new.sum())
        known[part.examples[new]] = told[new]
        if np.isnan(told).any():
            self.tell(part.recipe, float("nan"))
        elif not np.isnan(known).any():
            self.tell(part.recipe, float(known.mean()))

    def _check(self, recipe: Recipe) -> None:
        if len(recipe.weights) != len(self._order):
            raise RadinError(
                f"the recipe has {len(recipe.weights)} mixing weights, the pool {len(self._order)} members"
            )

    @property
    def spent(self) -> float:
        """Passes: soups evaluated, and the shares of those evaluated on some examples."""
        if not self.parts:
            return len(self._told)
        whole = sum(recipe not in self._values for recipe in self._told)
        share = self._examples_told / len(self._targets)
        return whole + self._overhead * len(self._values) + (1 - self._overhead) * share

    @property
    def evaluations(self) -> list[tuple[Recipe, float]]:
        """The soups evaluated and their scores, in the order in which they were told."""
        return list(self._told.items())

    @property
    def best(self) -> tuple[Recipe, float]:
        """The best recipe known and its score.

        Of equal scores the single member comes first, then the soup told first; the soup told last where the
        strategy's option ``accept`` is "ties", since it then keeps what it tried last.
        """
        first = int(self._order[0])
        best, score = Recipe.single(first, len(self._order)), float(self.singles[first])
        ties = self.settings.get("accept") == "ties"
        for recipe, told in self._told.items():
            gain = self._known[recipe] - self._known[best]
            if gain > 0 or (gain == 0 and ties and not best.is_single):
                best, score = recipe, told
        return best, score

    def estimate(self, recipes: Iterable[Recipe]) -> Floats:
        """Estimated scores of recipes, (S,), in the metric's own units: those of their averaged outputs.

        Without outputs, those that the members' scores and distances lead one to expect.
        """
        weights = np.array([recipe.weights for recipe in recipes], dtype=np.float64)
        if not len(weights):
            return np.empty(0)
        return self._scores(weights[:, self._order])

    def _scores(self, weights: Floats) -> Floats:
        """Estimated scores of weights (S, N) over the canonical order."""
        if self._prior is not None:
            expected = self._prior.estimate(weights)
            return expected if self.metric.higher_is_better else -expected
        if self._estimator is None:
            # Built in canonical order, so that rounding too does not depend on the order given.
            self._estimator = build_estimator(**self._canonical(), metric=self.metric, device=self._device)
            self._estimator_is_canonical = True
        given = weights if self._estimator_is_canonical else weights[:, self._position]
        return np.asarray(self._estimator.scores(np.ascontiguousarray(given)), dtype=np.float64)

    def _own_scores(self) -> Floats:
        sources = zip(self._names, self._outputs, strict=True)
        return np.array([self.metric.value(_whole(name, source), self._targets) for name, source in sources])

    def _canonical(self) -> dict[str, Any]:
        return {
            "outputs": [self._outputs[k] for k in self._order],
            "targets": self._targets,
            "names": [self._names[k] for k in self._order],
        }

    def _fit(self) -> Floats:
        """The mixing weights, in canonical order, whose averaged outputs have the least cross-entropy or squared error.

        Cross-entropy to a duality gap of 1e-10, squared error by its closed form.
        """
        # These need torch, which a search by other ways does not.
        from radin.estimate import LossEstimator, QuadraticEstimator

        if self.metric.targets == "classes":
            loss = LossEstimator(**self._canonical(), metric=metrics.get("nll"))
            return minimise(loss.value_and_gradient, len(self._order)).weights
        metric = self.metric if self.metric.family in ("mse", "r2") else metrics.get("mse")
        gram = QuadraticEstimator(**self._canonical(), metric=metric).gram
        return quadratic_minimum(2 * gram, np.zeros(len(gram)))

    @cached_property
    def _output_distances(self) -> Floats:
        """(N, N) root mean square differences of the members' outputs over a sample of the examples.

        For classes, what is added to all logits of an example alike does not count.
        """
        examples, columns = self._outputs[0].shape
        few = max(1, min(examples, 2048, _SAMPLE // (columns * len(self._outputs))))
        rows = np.unique(np.linspace(0, examples - 1, few).astype(int))
        sample = []
        for k in self._order:
            mine = _rows(self._outputs[k], rows)
            sample.append(
                (mine - mine.mean(axis=1, keepdims=True) if self.metric.targets == "classes" else mine).ravel()
            )
        flat = np.stack(sample)
        flat -= flat.mean(axis=0)
        products = (flat @ flat.T).astype(np.float64)
        squares = np.diag(products)
        squared = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
        result: Floats = np.sqrt(squared / len(rows))
        return result

    def _estimated(self, weights: Floats) -> Floats:
        scores = self._scores(weights)
        utilities = scores if self.metric.higher_is_better else -scores
        return np.where(np.isnan(utilities), -np.inf, utilities)

    def _margins(self, weights: Floats) -> Floats:
        """By how much the averaged outputs are right on each example, (S, M); weights (S, N) in canonical order."""
        from radin.estimate import AccuracyEstimator

        self._scores(weights[:1])  # builds the estimator where none was given
        if not isinstance(self._estimator, AccuracyEstimator):
            raise RadinError("evaluating parts of the examples needs an estimator of accuracy")
        return self._estimator.example_margins(weights if self._estimator_is_canonical else weights[:, self._position])

    def _advance(self, answer: float | Floats | None) -> tuple[Recipe, Slice | None] | None:
        """Send the strategy the answer; what it asks next, in the members' given order, and the slice if it is one."""
        try:
            asked = self._running.send(answer)
        except StopIteration:
            return None
        if isinstance(asked, Slice):
            return self.recipe(asked.weights), asked
        return self.recipe(asked), None

    def recipe(self, weights: Floats) -> Recipe:
        """The recipe, over the members in the order given, of weights (N,) over the problem's canonical order."""
        recipe = Recipe(tuple(float(w) for w in weights[self._position]))
        return Recipe.single(recipe.members[0], len(weights)) if recipe.is_single else recipe


def canonical_order(
    utilities: Floats, outputs: Sequence[ArrayLike2D], keys: Sequence[str] | None = None
) -> NDArray[np.intp]:
    """Members best first, equal ones by their keys; without keys, by the SHA-256 of their outputs.

    Returns (N,): the index, in the order given, of each canonical member.
    """

    def key(k: int) -> str:
        # Hashing a large pool takes a while, so only members that tie are hashed.
        if keys is not None:
            return keys[k]
        if np.count_nonzero(utilities == utilities[k]) == 1:
            return ""
        rows = outputs[k][0 : outputs[k].shape[0]]
        return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()

    order = sorted(range(len(utilities)), key=lambda k: (-utilities[k], key(k)))
    return np.array(order, dtype=np.intp)


def _checked_budget(budget: int, at_least: int) -> int:
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer):
        raise RadinError(f"budget must be a whole number of soup evaluations; got {budget!r}")
    if budget < at_least:
        raise RadinError(f"budget must be at least {at_least}; got {budget}")
    return int(budget)


def _arrays(outputs: Outputs) -> list[ArrayLike2D]:
    """One (M, C) array per member; arrays that live in files stay there."""
    arrays: list[ArrayLike2D] = []
    for member in outputs:
        if isinstance(member, FileArray):
            arrays.append(member)
            continue
        array = member if isinstance(member, np.ndarray) else np.asarray(member)
        arrays.append(array[:, None] if array.ndim == 1 else array)
    return arrays


def _rows(source: ArrayLike2D, rows: Indices) -> Floats:
    """Some rows of one member's outputs, read in blocks where they are in a file."""
    if isinstance(source, np.ndarray):
        return source[rows].astype(np.float32)
    blocks = []
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        first, last = int(part[0]), int(part[-1]) + 1
        blocks.append(np.asarray(source[first:last])[part - first].astype(np.float32))
    return np.concatenate(blocks)


def _whole(name: str, source: ArrayLike2D) -> Array:
    """All outputs of a member, in memory. Raises OutputsError at NaN or infinity."""
    outputs = np.asarray(source[0 : source.shape[0]])
    if not np.isfinite(outputs).all():
        raise not_finite(name, outputs, 0)
    return outputs
