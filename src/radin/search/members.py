"""The members as a search knows them: in canonical order, with their scores, outputs and estimates.

Axis names: members N, examples M, classes C, recipes S.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from radin import metrics
from radin.errors import OutputsError, RadinError
from radin.estimate import Estimator, Outputs
from radin.estimate import estimator as build_estimator
from radin.estimate.dense import DenseEstimator
from radin.estimate.reading import Array, ArrayLike2D, FileArray, Reader, not_finite
from radin.metrics import Metric
from radin.positions import UNCOUNTED
from radin.question import Floats, Indices
from radin.recipe import Recipe
from radin.search.prior import ScorePrior
from radin.search.screening import RANKED, WORK, by_gains, probes
from radin.search.simplex import minimise, quadratic_minimum

if TYPE_CHECKING:
    from radin.estimate import AccuracyEstimator
    from radin.search.strategies.base import Problem

_SMALLEST, _LARGEST = 1e-12, 1e60  # scores that strategies are given as they are
_NUMBERS = 1 << 31  # outputs of all members that are averaged for estimates that take long
_LARGE_POOL = 96  # members up to which a convex fit is exact, over all examples
_FITTED = 1 << 23  # outputs of all members together that it is to
_SLOW = ("other", "nll", "macro_f1", "mean_iou", "mixture")  # families whose estimates take long in a large pool
_SAMPLE = 1 << 24  # outputs of all members together that are compared


class Members:
    """What is known of the members before any soup is evaluated. Arguments as in ``Search``.

    The order is canonical: best first, equal ones by their keys, so that no answer depends on the order in which a user
    lists them. Methods take and give mixing ratios over that order; ``recipe`` and ``canonical`` translate.
    """

    def __init__(
        self,
        outputs: Outputs | None,
        targets: Array | None,
        metric: Metric,
        *,
        keys: Sequence[str] | None,
        names: Sequence[str] | None,
        estimator: Estimator | None,
        singles: Floats | None,
        gram: Floats | Callable[[Indices], Floats] | None,
        device: str,
    ) -> None:
        self.metric = metric
        self._device = device
        self._estimator = estimator
        self._estimator_is_canonical = False
        self._outputs: list[ArrayLike2D] = []
        self._names: Sequence[str] = names or ()
        self.targets: Array = np.empty(0) if targets is None else np.asarray(targets)
        if outputs is not None:
            if not self.targets.ndim:
                raise OutputsError("the targets must be one for each example; got a single one")
            reader = Reader(_arrays(outputs), names)
            self._outputs, self._names = reader.sources, reader.names
            if len(self.targets) != reader.examples:
                raise OutputsError(
                    f"there are {len(self.targets)} targets for {reader.examples} examples in the outputs"
                )
            metric.check(self.targets, reader.classes)
        elif singles is None or keys is None:
            raise RadinError("without outputs, a search needs the singles' scores and keys")
        self.singles: Floats = self._own_scores() if singles is None else np.asarray(singles, dtype=np.float64)
        """Scores of the members alone, (N,), in the order given."""
        self.count = len(self._outputs) or len(self.singles)
        for what, given in (("keys", keys), ("singles", self.singles)):
            if given is not None and len(given) != self.count:
                raise RadinError(f"{what} must be one per member; got {len(given)} for {self.count} members")
        self._unit = _unit(self.singles)
        self.utilities = np.array([self.utility(float(score)) for score in self.singles])
        if np.isneginf(self.utilities).all():
            raise RadinError(f"no member has a usable {metric.name}: all {self.count} scores are {self.singles[0]}")
        # order[i]: the given index of canonical member i; position[k]: the canonical index of given member k.
        self.order = canonical_order(self.utilities, self._outputs, keys)
        self.position = np.argsort(self.order)
        self._gram_of = gram if callable(gram) else None
        self.gram = None if gram is None or callable(gram) else np.asarray(gram)[np.ix_(self.order, self.order)]
        """Inner products of the members' weights, (N, N), in canonical order; None also where only some's are made."""
        hidden = outputs is None and estimator is None
        self.prior = ScorePrior.of(self.utilities[self.order], self.gram) if hidden else None
        """What is expected of soups where there are no outputs; else None."""

    @property
    def examples(self) -> int:
        """How many examples the targets are of; 0 where there are none."""
        return self.metric.examples(self.targets) if len(self.targets) else 0

    @property
    def have_outputs(self) -> bool:
        """Whether the members' outputs are at hand, not only an estimator made from them."""
        return bool(self._outputs)

    @property
    def by_counts(self) -> bool:
        """Whether accuracy by position can be told apart by example: from targets, and outputs or their margins."""
        from radin.estimate import PositionAccuracy

        return bool(len(self.targets)) and (self._estimator is None or isinstance(self._estimator, PositionAccuracy))

    def utility(self, score: float) -> float:
        """A score with its sign set so that higher is better, -inf where it is not finite.

        In units of a power of two, where scores are so large or small that their squares are no numbers.
        """
        return self.metric.utility(score) / self._unit

    def score(self, utility: float) -> float:
        """The score that has this utility; NaN for one that is not finite."""
        if not np.isfinite(utility):
            return float("nan")
        return (utility if self.metric.higher_is_better else -utility) * self._unit

    def recipe(self, ratios: Floats | Recipe) -> Recipe:
        """The recipe, over the members in the order given, of ratios (N,) or a recipe over the canonical order."""
        if isinstance(ratios, Recipe):
            recipe = ratios.permuted(self.position.tolist())
        else:
            recipe = Recipe(tuple(np.asarray(ratios, dtype=np.float64)[self.position].tolist()))
        return Recipe.single(recipe.members[0], self.count) if recipe.is_single else recipe

    def among(self, some: Indices) -> Members:
        """Some of the members, (n,) in canonical order, as a search knows them that knows no others."""
        given = self.order[some]
        gram = None if self.gram is None else self.gram[np.ix_(some, some)]
        if self._gram_of is not None:
            gram = self._gram_of(given)
        return Members(
            [self._outputs[k] for k in given] if self._outputs else None,
            self.targets,
            self.metric,
            keys=[f"{place:09}" for place in range(len(given))],  # ties stay in the order that they have
            names=[self._names[k] for k in given] if self._names else None,
            estimator=self._estimator_of(some),
            singles=self.singles[given],
            gram=gram,
            device=self._device,
        )

    def _estimator_of(self, some: Indices) -> Estimator | None:
        """An estimator of recipes of some members, from the one given; None: it is made from their outputs."""
        from radin.estimate import AccuracyEstimator

        if self._estimator is None:
            return None
        places = some if self._estimator_is_canonical else self.order[some]
        if isinstance(self._estimator, AccuracyEstimator):
            return self._estimator.among(places.tolist())
        return None if self._outputs else _Among(self._estimator, places)

    def scores(self, ratios: Floats) -> Floats:
        """Estimated scores of ratios (S, N) over the canonical order, in the metric's units."""
        if self.prior is not None:
            expected = self.prior.estimate(ratios)
            return expected if self.metric.higher_is_better else -expected
        if self._estimator is None:
            # Built in canonical order, so that rounding too does not depend on the order given.
            self._estimator = build_estimator(**self._canonical(), metric=self.metric, device=self._device)
            self._estimator_is_canonical = True
        given = ratios if self._estimator_is_canonical else ratios[:, self.position]
        return np.asarray(self._estimator.scores(np.ascontiguousarray(given)), dtype=np.float64)

    def affine_scores(self, ratios: Floats) -> Floats:
        """As ``scores``, of ratios that may be negative; NaN where there are no outputs, or they are probabilities.

        From the outputs themselves: compiled margins leave out what no ratios of zero and more decide. NaN too where
        these do not give the best member's score, as those of a program may not.
        """
        unknown = np.full(len(ratios), np.nan)
        if not self._outputs or self.metric.target_only:
            return unknown
        rows = np.vstack([np.eye(1, self.count), ratios])
        found = DenseEstimator(**self._canonical(), metric=self.metric, affine=True).scores(rows)
        best = self.singles[self.order[0]]
        return found[1:] if np.isclose(found[0], best, rtol=1e-6, atol=1e-9) else unknown

    def estimate(self, ratios: Floats) -> Floats:
        """Utilities of the averaged outputs, (S,); higher is better, -inf for NaN."""
        scores = self.scores(ratios)
        utilities = (scores if self.metric.higher_is_better else -scores) / self._unit
        return np.where(np.isfinite(utilities), utilities, -np.inf)

    @property
    def affords(self) -> int:
        """How many recipes may be estimated where each takes long; 0 where thousands take no more than seconds."""
        family = self.metric.family
        if not self.have_outputs or self.count < 2 or family not in _SLOW:
            return 0
        if self.metric.opaque and family == "other":
            return RANKED
        numbers = self.count * int(np.prod(self._outputs[0].shape))
        cheap = family != "other" and numbers < (2 * WORK if family in ("nll", "mixture") else WORK)
        return 0 if cheap else int(np.clip(_NUMBERS // numbers, RANKED, 16 * RANKED))

    def screen(self, problem: Problem) -> Callable[[Floats], Floats] | None:
        """A cheap estimate of utilities of ratios in canonical order, (S, N) -> (S,); None where ``estimate`` is it."""
        from radin.estimate import AccuracyEstimator

        if self.affords:
            return by_gains(problem, self._accuracy(problem.seed) if self._have_classes() else None)
        self.scores(np.eye(1, self.count))  # builds the estimator where none was given
        if isinstance(self._estimator, AccuracyEstimator) and self._estimator.work >= WORK:
            return self._few_rows(self._estimator, self._estimator_is_canonical, problem.seed)
        return None

    def _have_classes(self) -> bool:
        targets, shape = self.targets, self._outputs[0].shape
        if self.metric.by_position:
            return shape[1] > 1
        plain = targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer) and len(shape) == 2 and shape[1] > 1
        return bool(plain) and int(targets.min()) >= 0 and int(targets.max()) < shape[1]

    def _accuracy(self, seed: int) -> Callable[[Floats], Floats]:
        """Accuracy of averaged outputs, whatever the metric."""
        from radin.estimate import AccuracyEstimator

        metric = metrics.get("token_accuracy" if self.metric.by_position else "accuracy")
        found = build_estimator(**self._canonical(), metric=metric, device=self._device)
        assert isinstance(found, AccuracyEstimator)
        return self._few_rows(found, True, seed) if found.work >= WORK else found.scores

    def _few_rows(self, estimator: AccuracyEstimator, canonical: bool, seed: int) -> Callable[[Floats], Floats]:
        order = None if canonical else [int(k) for k in self.order]
        return estimator.screened(probes(self.count, seed), order).scores

    def margins(self, ratios: Floats) -> Floats:
        """By how much the averaged outputs are right on each example, (S, M); ratios (S, N) in canonical order."""
        from radin.estimate import AccuracyEstimator

        self.scores(ratios[:1])  # builds the estimator where none was given
        if not isinstance(self._estimator, AccuracyEstimator):
            raise RadinError("evaluating parts of the examples needs an estimator of accuracy")
        return self._estimator.example_margins(ratios if self._estimator_is_canonical else ratios[:, self.position])

    def shares(self, totals: Floats) -> Floats:
        """What each of some examples adds to the score by position, (m,), so that the mean over all M is the score.

        totals (m, 2): what is counted in each, and of how many positions; how many all examples have is known.
        """
        result: Floats = totals[:, 0] * (self.examples / self._positions)
        return result

    @cached_property
    def _positions(self) -> int:
        return max(1, int(np.count_nonzero(self.targets[:, 0] != UNCOUNTED)))

    def answers(self, ratios: Floats, softening: float) -> tuple[Floats, Floats, Floats]:
        """Of each example what averaged outputs add to accuracy by position, (S, M), ratios (S, N) in canonical order.

        Counted plainly; by how sure each position is; and how much of it may change: see PositionAccuracy.answers.
        """
        from radin.estimate import PositionAccuracy

        self.scores(ratios[:1])  # builds the estimator where none was given
        assert isinstance(self._estimator, PositionAccuracy)
        given = ratios if self._estimator_is_canonical else ratios[:, self.position]
        unit = self.examples / self._positions
        right, soft, unsure = self._estimator.answers(given, softening)
        return right * unit, soft * unit, unsure * unit

    def fit(self) -> Floats:
        """The mixing ratios, in canonical order, whose averaged outputs have the least cross-entropy or squared error.

        Cross-entropy to a duality gap of 1e-10 (of a large pool 1e-6, and over evenly spaced examples), squared error
        by its closed form.
        """
        # These need torch, which a search by other ways does not.
        from radin.estimate import LossEstimator, MixtureEstimator, QuadraticEstimator

        if self.metric.target_only:
            mixture = MixtureEstimator(**self._canonical(), metric=self.metric)
            return minimise(mixture.value_and_gradient, self.count, tolerance=1e-6).weights
        if self.metric.by_position:
            loss = LossEstimator(**self._some_positions(), metric=metrics.get("nll"))
            return minimise(loss.value_and_gradient, self.count, tolerance=1e-6).weights
        if self.metric.targets == "classes":
            data, width = self._canonical(), self._outputs[0].shape[1] * self.count
            if self.count > _LARGE_POOL and width * len(self.targets) > _FITTED:
                few = np.unique(np.linspace(0, len(self.targets) - 1, max(1, _FITTED // width)).astype(int))
                data["outputs"] = [_rows(source, few).astype(np.float32) for source in data["outputs"]]
                data["targets"] = self.targets[few]
            loss = LossEstimator(**data, metric=metrics.get("nll"))
            tolerance = 1e-10 if self.count <= _LARGE_POOL else 1e-6
            return minimise(loss.value_and_gradient, self.count, tolerance=tolerance).weights
        metric = self.metric if self.metric.family in ("mse", "r2") else metrics.get("mse")
        gram = QuadraticEstimator(**self._canonical(), metric=metric).gram
        return quadratic_minimum(2 * gram, np.zeros(len(gram)))

    def _some_positions(self) -> dict[str, Any]:
        """Outputs at evenly spaced positions that count, as many as a fit takes, and their classes."""
        data, width = self._canonical(), self._outputs[0].shape[1] * self.count
        places = np.flatnonzero(self.targets[:, 0] != UNCOUNTED)
        few = places[np.unique(np.linspace(0, len(places) - 1, max(1, min(len(places), _FITTED // width))).astype(int))]
        data["outputs"] = [_rows(source, few).astype(np.float32) for source in data["outputs"]]
        data["targets"] = self.targets[few, 0].astype(np.int64)
        return data

    @property
    def _shifts_nothing(self) -> bool:
        """Whether what is added to all outputs of a row alike changes nothing."""
        return self.metric.targets == "classes" or (self.metric.by_position and not self.metric.target_only)

    @cached_property
    def output_distances(self) -> Floats:
        """(N, N) root mean square differences of the members' outputs over a sample of the examples.

        For classes, what is added to all logits of an example alike does not count.
        """
        examples, columns = self._outputs[0].shape
        few = max(1, min(examples, 2048, _SAMPLE // (columns * len(self._outputs))))
        rows = np.unique(np.linspace(0, examples - 1, few).astype(int))
        flat = np.empty((self.count, len(rows) * columns), np.float32)
        # Each member's in units of a power of two, so that no square is too large or too small for float32.
        powers = np.empty(self.count, np.int64)
        for index, k in enumerate(self.order):
            mine = _rows(self._outputs[k], rows)
            powers[index] = np.frexp(np.abs(mine).max(initial=0))[1]
            mine = np.ldexp(mine, -powers[index]).astype(np.float32)
            flat[index] = (mine - mine.mean(axis=1, keepdims=True) if self._shifts_nothing else mine).ravel()
        unit = powers.max()
        flat *= np.ldexp(np.float32(1), np.maximum(powers - unit, -126))[:, None]
        flat -= flat.mean(axis=0)
        products = (flat @ flat.T).astype(np.float64)
        squares = np.diag(products)
        squared = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
        result: Floats = np.ldexp(np.sqrt(squared / len(rows)), unit)
        return result

    def _own_scores(self) -> Floats:
        sources = zip(self._names, self._outputs, strict=True)
        return np.array([self.metric.value(_whole(name, source), self.targets) for name, source in sources])

    def _canonical(self) -> dict[str, Any]:
        return {
            "outputs": [self._outputs[k] for k in self.order],
            "targets": self.targets,
            "names": [self._names[k] for k in self.order],
        }


class _Among:
    """An estimator asked about some of its members alone."""

    def __init__(self, whole: Estimator, places: Indices) -> None:
        self.members, self.examples = len(places), whole.examples
        self._whole, self._places = whole, places

    def scores(self, weights: Array) -> Floats:
        """See Estimator; weights (S, n)."""
        rows = np.zeros((len(weights), self._whole.members))
        rows[:, self._places] = weights
        return self._whole.scores(rows)


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


def _unit(scores: Floats) -> float:
    """1, or for scores far from it the power of two next to the largest."""
    largest = float(np.abs(scores[np.isfinite(scores)]).max(initial=0.0))
    if not largest or _SMALLEST <= largest <= _LARGEST:
        return 1.0
    return float(np.ldexp(1.0, min(int(np.frexp(largest)[1]), 1023)))


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
        return source[rows].astype(np.float64)
    blocks = []
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        first, last = int(part[0]), int(part[-1]) + 1
        blocks.append(np.asarray(source[first:last])[part - first].astype(np.float64))
    return np.concatenate(blocks)


def _whole(name: str, source: ArrayLike2D) -> Array:
    """All outputs of a member, in memory. Raises OutputsError at NaN or infinity."""
    outputs = np.asarray(source[0 : source.shape[0]])
    if not np.isfinite(outputs).all():
        raise not_finite(name, outputs, 0)
    return outputs
