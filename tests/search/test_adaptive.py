"""The adaptive strategy's parts against independent references: plain algebra, quadrature, and a made-up truth."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from radin.recipe import Recipe
from radin.search import Search
from radin.search.strategies.adaptive import Process, candidates, expected_improvement


@pytest.fixture
def search(zoo):
    gram = np.diag(np.linspace(1, 3, 10))
    return Search(
        zoo.outputs, zoo.targets, strategy="adaptive", budget=6, gram=gram, options={"count": 256, "keep": 32}
    )


@pytest.fixture
def process(search):
    problem = search.problem
    weights = candidates(problem, 256, 32)
    known = np.flatnonzero((weights > 0).sum(axis=1) == 1)
    return weights, Process.of(problem, weights, problem.estimate(weights), known)


@pytest.mark.parametrize(("mean", "deviation", "best"), [(0.5, 0.1, 0.45), (0.5, 0.1, 0.7), (0.2, 0.01, 0.2)])
def test_expected_improvement_is_the_integral(mean, deviation, best):
    expected, _ = quad(lambda u: (u - best) * norm.pdf(u, mean, deviation), best, mean + 12 * deviation)
    found = expected_improvement(np.array([mean]), np.array([deviation]), best)[0]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_candidates_are_distinct_recipes_with_every_member_alone_and_every_size(search):
    weights = candidates(search.problem, 256, 32)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights >= 0).all()
    assert len(np.unique(np.round(weights, 12), axis=0)) == len(weights)
    sizes = (weights > 0).sum(axis=1)
    assert np.count_nonzero(sizes == 1) == 10
    assert set(sizes) == set(range(1, 11))


def test_single_members_are_known_exactly(process, search):
    weights, model = process
    mean, deviation = model.posterior([], np.array([]))
    singles = search.problem.singles[weights[model.known].argmax(axis=1)]
    np.testing.assert_allclose(mean[model.known], singles, atol=1e-12)
    assert (deviation[model.known] < 0.1 * deviation.max()).all()


def test_the_posterior_is_that_of_plain_algebra(process):
    _, model = process
    seen, truth = [20, 30], np.array([0.9, 0.91])
    at = np.concatenate([model.known, seen])
    residual = np.concatenate([np.zeros(10), truth - model.expected[seen]])
    linear = 0.25**2 * model.trends @ model.trends.T
    prior = model.scale**2 * (linear + 0.2**2 * np.exp(-0.5 * model.distances))
    inverse = np.linalg.inv(prior[np.ix_(at, at)] + model.scale**2 * 0.02**2 * np.eye(len(at)))
    _, mean, variance = model._fit(at, residual, 0.25, 0.2, 1.0)
    np.testing.assert_allclose(mean, prior[:, at] @ inverse @ residual, atol=1e-9)
    np.testing.assert_allclose(variance, np.diag(prior - prior[:, at] @ inverse @ prior[at]), atol=1e-9)


def test_it_learns_that_spread_members_make_bad_soups(zoo):
    """Truth falls short of the estimate by the dispersion: the paper's ranking cannot see that."""
    far = np.diag(np.where(np.arange(10) % 2, 9.0, 0.01))

    def play(strategy, budget, **more):
        search = Search(zoo.outputs, zoo.targets, strategy=strategy, budget=budget, **more)
        while (recipe := search.ask()) is not None:
            p = np.array(recipe.weights)
            dispersion = p @ np.diag(far) - p @ far @ p
            search.tell(recipe, float(search.estimate([recipe])[0]) - 0.05 * dispersion)
        return search

    assert play("adaptive", 8, gram=far).best[1] > play("radin", 8).best[1]


def test_unequal_ratios_are_among_what_it_asks(search, zoo):
    asked = []
    while (recipe := search.ask()) is not None:
        asked.append(recipe)
        search.tell(recipe, zoo.score(recipe))
    assert any(not recipe.is_uniform for recipe in asked)
    assert all(isinstance(recipe, Recipe) for recipe in asked)
