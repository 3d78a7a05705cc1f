"""Very large pools: searched as if only the best members were there, with recipes over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from radin import metrics
from radin.estimate import estimator
from radin.question import Answer
from radin.recipe import Recipe
from radin.search import Search, leading

MEMBERS, LEADING = 30, 12


def made(kind="classes"):
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.5, 2.0, MEMBERS)[:, None, None]
    if kind == "values":
        targets = rng.normal(size=(60, 2))
        return (targets + noise * rng.normal(size=(MEMBERS, 60, 2))).astype(np.float32), targets
    targets = rng.integers(0, 4, 120)
    start = rng.normal(size=(120, 4))
    start[np.arange(120), targets] += 1.5
    return (start + noise * rng.normal(size=(MEMBERS, 120, 4))).astype(np.float32), targets


def answered(search, wide):
    """Every question with its recipe by ``wide``, all answered by what the recipe and the example say."""
    asked = []
    while (question := search.ask()) is not None:
        weights = wide(question.recipe)
        examples = None if question.examples is None else tuple(question.examples.tolist())
        asked.append((weights, examples))
        rng = np.random.default_rng([int(1e6 * w) for w in weights])
        right = (rng.random(search.account.rates.examples or 120) < 0.7 + 0.1 * max(weights)).astype(float)
        if question.gradient is not None:
            mixed = np.where(np.array(question.recipe.weights) > 0, 0.1 * np.array(question.recipe.weights), np.nan)
            gradient = np.tile(mixed, (1 + len(question.gradient.groups), 1))
            search.tell(question, Answer(0.5, 0.1, len(right), 1.0, gradient=gradient))
        elif not search.account.rates.examples:
            search.tell(question, float(right.mean()))
        else:
            search.tell(question, right if question.examples is None else right[question.examples])
    return asked


@pytest.mark.parametrize(
    ("strategy", "given"),
    [("adaptive", "outputs"), ("adaptive", "estimator"), ("adaptive", "hidden"), ("learned-by-layer", "outputs")],
)
def test_what_is_asked_is_what_the_best_members_alone_would_be_asked_about(monkeypatch, strategy, given):
    outputs, targets = made()
    singles = np.array([metrics.get("accuracy").value(mine, targets) for mine in outputs])
    points = np.random.default_rng(1).normal(size=(MEMBERS, 20))
    best = sorted(range(MEMBERS), key=lambda k: (-singles[k], f"{k:02}"))[:LEADING]
    asked = []
    for some in (list(range(MEMBERS)), best):
        monkeypatch.setattr(leading, "LEADING", LEADING if len(some) == MEMBERS else 256)
        more = {"keys": [f"{k:02}" for k in some], "singles": singles[some], "gram": points[some] @ points[some].T}
        if given == "estimator":
            more["estimator"] = estimator(outputs[some], targets, metrics.get("accuracy"))
        known = (None, None) if given == "hidden" else (outputs[some], targets)
        search = Search(
            *known,
            strategy=strategy,
            options={"count": 64, "keep": 32} if strategy == "adaptive" else None,
            budget=6,
            parts=given != "hidden",
            gradients={"one": (), "modules": ("a", "b")} if given != "hidden" else None,
            **more,
        )

        def wide(recipe, some=some):
            row = [0.0] * MEMBERS
            for place, weight in zip(some, recipe.weights, strict=True):
                row[place] = weight
            return tuple(row)

        asked.append(answered(search, wide))
    assert len(asked[0]) > 4
    everyone = (1 / MEMBERS,) * MEMBERS
    assert [one for one in asked[0] if one[0] != everyone] == asked[1]
    assert all(sum(weights[k] for k in best) == pytest.approx(1) for weights, _ in asked[0])


def test_members_that_tie_and_a_metric_by_values_are_searched_among_too(monkeypatch):
    outputs, targets = made("values")
    outputs[5:9] = outputs[4]
    monkeypatch.setattr(leading, "LEADING", LEADING)
    search = Search(
        outputs, targets, metric="mse", budget=3, options={"count": 64}, keys=[f"{k:02}" for k in range(MEMBERS)]
    )
    singles = [float(((mine - targets) ** 2).mean()) for mine in outputs]
    best = set(sorted(range(MEMBERS), key=lambda k: (singles[k], k))[:LEADING])
    asked = 0
    while (question := search.ask()) is not None:
        assert best.issuperset(question.recipe.members)
        averaged = np.tensordot(np.array(question.recipe.weights), outputs.astype(np.float64), 1)
        expected = float(((averaged - targets) ** 2).mean())
        assert search.estimate([question.recipe])[0] == pytest.approx(expected)
        search.tell(question, expected)
        asked += 1
    assert asked == 3


def test_distances_are_made_of_those_members_alone(monkeypatch):
    outputs, targets = made()
    monkeypatch.setattr(leading, "LEADING", LEADING)
    points = np.random.default_rng(1).normal(size=(MEMBERS, 20))
    wanted = []

    def gram(some):
        wanted.append(some.tolist())
        return points[some] @ points[some].T

    more = {"keys": [f"{k:02}" for k in range(MEMBERS)], "budget": 4, "options": {"count": 64}}
    whole = Search(outputs, targets, gram=points @ points.T, **more)
    some = Search(outputs, targets, gram=gram, **more)
    assert len(wanted) == 1
    assert len(wanted[0]) == LEADING
    assert answered(some, lambda r: r.weights) == answered(whole, lambda r: r.weights)


def test_a_pool_no_larger_than_that_is_searched_as_a_whole(monkeypatch):
    outputs, targets = made()
    problem = Search(outputs, targets, strategy="best", budget=0).problem
    monkeypatch.setattr(leading, "LEADING", MEMBERS)
    assert leading.leading(problem) is None
    monkeypatch.setattr(leading, "LEADING", MEMBERS - 1)
    assert leading.leading(problem).tolist() == list(range(MEMBERS - 1))


def test_ratios_by_group_are_over_all_members_too():
    def asks():
        recipe = Recipe.by_group({"a": (0.5, 0.5), "b": (0.25, 0.75)}, {"a.w": 1, "b.w": 3})
        assert (yield recipe) == "answered"

    wide = leading.over_all(asks(), np.array([1, 3]), 4)
    recipe = next(wide)
    assert recipe.of("a.w") == (0.0, 0.5, 0.0, 0.5)
    assert recipe.of("b.w") == (0.0, 0.25, 0.0, 0.75)
    with pytest.raises(StopIteration):
        wide.send("answered")


@pytest.mark.parametrize("metric", ["accuracy", "top2", "balanced_accuracy"])
def test_margins_of_some_members_are_those_compiled_of_their_outputs_alone(metric):
    outputs, targets = made()
    outputs[:, :5] = -np.abs(outputs[:, :5])  # some examples that all have wrong, and some that these have right
    some = [7, 3, 20, 11]
    few = estimator(outputs, targets, metrics.get(metric)).among(some)
    alone = estimator(outputs[some], targets, metrics.get(metric))
    ratios = np.random.default_rng(0).dirichlet(np.ones(4), 40)
    np.testing.assert_array_equal(few.scores(ratios), alone.scores(ratios))
    if metric != "top2":
        np.testing.assert_array_equal(few.example_margins(ratios), alone.example_margins(ratios))
        assert few.work == alone.work
