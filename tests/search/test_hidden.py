"""Search without outputs: the prior by its formulas, what is asked, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from asking import ask

from radin.errors import RadinError
from radin.question import Answer
from radin.recipe import Recipe
from radin.search import Search
from radin.search.prior import ScorePrior, far_is_bad, gain_scale, relative_distances
from radin.search.simplex import projected
from radin.search.strategies.normal import expected_improvement
from radin.search.strategies.scores_only import Proposals
from radin.search.surrogate import Surrogate


def start(singles, *, gram=None, strategy="adaptive", budget=6, **more):
    keys = [f"member {k}" for k in range(len(singles))]
    return Search(None, strategy=strategy, budget=budget, keys=keys, singles=np.array(singles), gram=gram, **more)


def play(search, score):
    asked = []
    while (recipe := ask(search)) is not None:
        asked.append(recipe)
        search.tell(recipe, score(recipe))
    return asked


def bowl(points, centre):
    """A quadratic landscape over points (N, 2): utility of any recipe, the members' own, and their gram matrix."""

    def score(recipe):
        return 0.9 - 0.1 * float(((np.array(recipe.weights) @ points - centre) ** 2).sum())

    members = len(points)
    return score, np.array([score(Recipe.single(k, members)) for k in range(members)]), points @ points.T


@pytest.fixture
def scattered():
    points = np.random.default_rng(0).normal(size=(9, 2))
    return bowl(points, np.zeros(2))


# The prior


def test_distances_are_relative_to_the_lower_quartile():
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [3.0, 4.0]])
    expected = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    found = relative_distances(points @ points.T, 4)
    np.testing.assert_allclose(found, expected / np.quantile([3, 3, 4, 4, 5, 5], 0.25), atol=1e-8)
    np.testing.assert_array_equal(relative_distances(None, 3), 1 - np.eye(3))


def test_distances_do_not_depend_on_the_origin():
    points = np.random.default_rng(0).normal(size=(6, 30))
    moved = points + 5.0
    np.testing.assert_allclose(
        relative_distances(points @ points.T, 6), relative_distances(moved @ moved.T, 6), atol=1e-6
    )


def test_identical_members_are_at_no_distance():
    assert not relative_distances(np.ones((4, 4)), 4).any()
    gram = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(relative_distances(gram, 3), [[0, 0, 1], [0, 0, 1], [1, 1, 0]])


def test_the_unit_of_gains():
    assert gain_scale(np.array([0.9, 0.8, 0.6])) == pytest.approx(0.1)
    assert gain_scale(np.array([0.9, 0.8, 0.6, -np.inf])) == pytest.approx(0.1)
    assert gain_scale(np.array([0.9, 0.9, 0.9, 0.1])) == pytest.approx(0.25 * np.std([0.9, 0.9, 0.9, 0.1]))
    assert gain_scale(np.array([0.8, 0.8])) == pytest.approx(0.008)
    assert gain_scale(np.zeros(3)) == pytest.approx(0.01)


def test_far_members_are_lost_where_they_are_the_bad_ones():
    line = np.array([0.0, 1.0, 2.0, 20.0, 40.0])
    distances = np.abs(line[:, None] - line[None])
    assert far_is_bad(np.array([0.9, 0.89, 0.88, 0.5, 0.3]), distances) == 1.0
    assert far_is_bad(np.array([0.3, 0.31, 0.32, 0.8, 0.9]), distances) == 0.0
    assert far_is_bad(np.array([0.9, 0.8, 0.3]), distances[:3, :3]) == 0.0
    assert far_is_bad(np.full(5, 0.8), distances) == 0.0
    assert far_is_bad(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), 1 - np.eye(5)) == 0.0


def test_the_promise_is_the_sum_over_members_and_pairs():
    singles = np.array([0.9, 0.85, 0.8, 0.7])
    prior = ScorePrior.of(singles, None)
    weights = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    scale = 0.9 - 0.825
    expected = [p @ singles + 2 * scale * (1 - (p**2).sum()) for p in weights]
    np.testing.assert_allclose(prior.promise(weights), expected)
    np.testing.assert_allclose(prior.promise(np.eye(4)), singles)


def test_the_promise_with_distances_by_its_formula():
    points = np.random.default_rng(1).normal(size=(7, 3)) * np.array([1, 1, 1, 1, 1, 4, 9])[:, None]
    singles = np.array([0.9, 0.88, 0.87, 0.86, 0.85, 0.84, 0.6])
    prior = ScorePrior.of(singles, points @ points.T)
    lost = far_is_bad(singles, prior.distances)
    assert 0 < lost <= 1
    p = np.random.default_rng(2).dirichlet(np.ones(7))
    total = float(p @ singles)
    for i in range(7):
        for j in range(7):
            if i != j:
                d = prior.distances[i, j]
                near, far, apart = min(d, 3.0), min(max((d - 1.5) / 1.5, 0.0), 2.0), min(10 * d, 1.0)
                total += 0.04 * p[i] * p[j] * (2 * (1 - lost) * near + lost * (1.25 * apart - 4 * far))
    assert prior.promise(p[None])[0] == pytest.approx(total)


def test_the_estimate_is_what_remains_of_the_promise():
    prior = ScorePrior.of(np.array([0.9, 0.85, 0.8, 0.7]), None)
    even, nearly = np.full(4, 0.25), np.array([0.95, 0.05, 0.0, 0.0])
    assert prior.estimate(even[None])[0] == pytest.approx(0.825 + 0.4 * (prior.promise(even[None])[0] - 0.825))
    mixed = (1 - 0.95**2 - 0.05**2) / 0.3
    share = 1 - 0.6 * mixed
    assert prior.estimate(nearly[None])[0] == pytest.approx(0.825 + share * (prior.promise(nearly[None])[0] - 0.825))
    np.testing.assert_allclose(prior.estimate(np.eye(4)), prior.singles)


def test_identical_members_gain_nothing():
    prior = ScorePrior.of(np.array([0.9, 0.9, 0.9]), np.ones((3, 3)))
    np.testing.assert_allclose(prior.estimate(np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])), 0.9)


def test_outliers_with_bad_scores_are_left_out_of_the_first_soup():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(8, 20)), rng.normal(size=(2, 20)) * 12])
    search = start([0.9, 0.89, 0.89, 0.88, 0.88, 0.87, 0.87, 0.86, 0.6, 0.5], gram=points @ points.T)
    recipe = ask(search)
    assert max(recipe.members) < 8
    assert len(recipe.members) >= 3


# The process


def test_the_process_knows_members_and_what_was_told():
    points = np.random.default_rng(0).normal(size=(6, 4))
    prior = ScorePrior.of(np.linspace(0.9, 0.8, 6), points @ points.T)
    told = np.array([[0.5, 0.5, 0, 0, 0, 0], [0, 0.25, 0.25, 0.25, 0.25, 0]])
    truth = prior.estimate(told) - 0.02
    before, wide = Surrogate(prior, np.empty((0, 6)), np.empty(0)).posterior(told)
    np.testing.assert_allclose(before, prior.estimate(told))
    mean, spread = Surrogate(prior, told, truth).posterior(told)
    np.testing.assert_allclose(mean, truth, atol=2e-3)
    assert (spread < 0.1 * wide).all()
    mean, spread = Surrogate(prior, told, truth).posterior(np.eye(6))
    np.testing.assert_allclose(mean, prior.singles, atol=1e-3)
    assert (spread < 0.02 * prior.scale).all()


def test_the_process_is_that_of_its_covariance():
    points = np.random.default_rng(0).normal(size=(5, 4))
    prior = ScorePrior.of(np.linspace(0.9, 0.8, 5), points @ points.T)
    size = Surrogate.deviations
    rows = np.random.default_rng(1).dirichlet(np.ones(5), 3)
    everything = np.concatenate([np.eye(5), rows])
    covariance = np.empty((8, 8))
    flat = points / np.linalg.norm(points[:1] - points[1:2]) * prior.distances[0, 1]
    for a in range(8):
        for b in range(8):
            p, q = everything[a], everything[b]
            trends = 0.0
            for deviation, term in ((size.near, prior.near), (size.apart, prior.apart), (size.far, prior.far)):
                trends += deviation**2 * (p @ term @ p) * (q @ term @ q)
            trends += size.mixed**2 * min(p @ prior.apart @ p / 0.3, 1) * min(q @ prior.apart @ q / 0.3, 1)
            trends += size.member**2 * (p @ q) * (p @ prior.apart @ p) * (q @ prior.apart @ q)
            apart = np.linalg.norm(p @ flat - q @ flat)
            covariance[a, b] = trends + size.remainder**2 * np.exp(-apart / size.length)
    seen, new = [0, 1, 2, 3, 4, 5, 6], 7
    noise = np.diag([1e-4] * 5 + [size.noise**2] * 2)
    off = np.array([0, 0, 0, 0, 0, 0.3, -0.2])
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)] + noise, covariance[seen, new])
    truth = prior.estimate(rows[:2]) + prior.scale * off[5:]
    mean, spread = Surrogate(prior, rows[:2], truth).posterior(rows[2:])
    assert mean[0] == pytest.approx(prior.estimate(rows[2:])[0] + prior.scale * gain @ off, rel=1e-6)
    variance = covariance[new, new] - gain @ covariance[seen, new]
    assert spread[0] == pytest.approx(prior.scale * np.sqrt(variance), rel=1e-5)


def test_expected_improvement_by_simulation():
    draws = np.random.default_rng(0).standard_normal(400_000)
    for lead, spread in ((-0.5, 1.0), (0.3, 0.2), (-2.0, 1.0)):
        found = expected_improvement(np.array([lead]), np.array([spread]))[0]
        assert found == pytest.approx(np.maximum(lead + spread * draws, 0).mean(), abs=4e-3)


def test_projection_onto_the_simplex():
    points = np.array([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0], [1.0, 1.0, -5.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(projected(points), [[0.2, 0.3, 0.5], [1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])


# The search


def test_finds_the_middle_of_a_bowl(scattered):
    score, singles, gram = scattered
    search = start(singles, gram=gram, budget=12)
    asked = play(search, score)
    assert len(asked) == search.spent == 12
    assert search.best[1] > 0.9 - 0.1 * (0.9 - singles.max())


@pytest.mark.parametrize("singles", [[0.8, 0.8, 0.8, 0.8], [0.0, 0.0, 0.0], [0.9, 0.7], [-3.0, -3.0]])
@pytest.mark.parametrize("gram", ["none", "identical", "apart"])
def test_equal_scores_identical_members_and_pairs(singles, gram):
    members = len(singles)
    given = {"none": None, "identical": np.ones((members, members)), "apart": np.eye(members)}[gram]
    search = start(singles, gram=given, budget=5)
    asked = play(search, lambda recipe: min(singles) - 0.1)
    assert len(asked) == len(set(asked)) == 5
    assert search.best[1] == max(singles)


def test_a_member_without_a_score_is_never_mixed(scattered):
    score, singles, gram = scattered
    broken = singles.copy()
    broken[[2, 5]] = np.nan
    search = start(broken, gram=gram, budget=8)
    asked = play(search, score)
    assert len(asked) == 8
    assert all(recipe.weights[2] == recipe.weights[5] == 0 for recipe in asked)
    assert np.isneginf(search.problem.prior.estimate(np.full((1, 9), 1 / 9)))[0]


@pytest.mark.parametrize("singles", [[0.8], [0.8, float("nan")]])
def test_one_usable_member_leaves_nothing_to_ask(singles):
    search = start(singles)
    assert ask(search) is None
    assert search.best == (Recipe.single(0, len(singles)), 0.8)


def test_what_is_told_changes_what_is_asked(scattered):
    _, singles, gram = scattered
    good, bad = start(singles, gram=gram), start(singles, gram=gram)
    first = ask(good)
    assert ask(bad) == first
    good.tell(first, 0.95)
    bad.tell(first, 0.1)
    even = ask(good)
    assert ask(bad) == even
    good.tell(even, 0.5)
    bad.tell(even, 0.5)
    near = np.abs(np.subtract(ask(good).weights, first.weights)).sum()
    assert near < np.abs(np.subtract(ask(bad).weights, first.weights)).sum()


def test_the_second_soup_is_the_average_of_the_four_best(scattered):
    score, singles, gram = scattered
    asked = play(start(singles, gram=gram, budget=2), score)
    assert asked[1] == Recipe.uniform(np.argsort(-singles)[:4].tolist(), 9)


def test_new_recipes_are_drawn_after_each_evaluation(scattered):
    score, singles, gram = scattered
    asked = play(start(singles, gram=gram, budget=8), score)
    best = max(asked[:3], key=score)
    assert any(0 < np.abs(np.subtract(recipe.weights, best.weights)).sum() < 0.5 for recipe in asked[3:])


def test_pending_recipes_are_not_proposed_again(scattered):
    _, singles, gram = scattered
    search = start(singles, gram=gram)
    proposals = Proposals(search.problem, search.problem.prior)
    waiting = []
    for _ in range(4):
        waiting.append(proposals.next([], waiting))
    assert len({tuple(row) for row in waiting}) == 4
    again = Proposals(search.problem, search.problem.prior).next([], waiting[:3])
    np.testing.assert_array_equal(again, waiting[3])


def test_estimates_are_in_the_metrics_own_units():
    search = start([0.3, 0.4, 0.5], metric="nll")
    even = Recipe.uniform(range(3), 3)
    assert search.estimate([Recipe.single(0, 3), even])[0] == pytest.approx(0.3)
    assert search.estimate([even])[0] == pytest.approx(0.4 - 0.4 * 2 * 0.1 * 2 / 3)


def test_a_strategy_that_needs_outputs_is_refused_with_the_others():
    with pytest.raises(RadinError) as refused:
        start([0.8, 0.7], strategy="paper")
    assert str(refused.value) == (
        "strategy 'paper' ranks soups by the members' outputs, and there are none; "
        "without outputs, choose among: adaptive, best, greedy, learned, learned-by-layer, pruned, random, top-k, "
        "uniform"
    )


def test_parts_are_refused():
    with pytest.raises(RadinError, match="without outputs, a search asks for whole soups only; leave out parts"):
        start([0.8, 0.7], parts=True)


@pytest.mark.parametrize("missing", ["singles", "keys"])
def test_without_scores_or_keys_there_is_nothing_to_go_by(missing):
    given = {"singles": np.array([0.8, 0.7]), "keys": ["a", "b"]}
    del given[missing]
    with pytest.raises(RadinError, match="without outputs, a search needs the singles' scores and keys"):
        Search(None, budget=3, **given)


def test_values_that_nobody_asked_for_count_as_one_score(scattered):
    """Without outputs nobody knows how many examples there are; an answer with values is a whole pass all the same."""
    score, singles, gram = scattered
    search = start(singles, gram=gram, budget=2)
    while (question := search.ask()) is not None:
        search.tell(question, Answer(score(question.recipe), 0.01, 3, 1.0, values=np.full(3, score(question.recipe))))
    assert search.spent == len(search.evaluations) == 2
    assert search.evaluations[0][1] == score(search.evaluations[0][0])
