"""The adaptive strategy's parts against independent references: plain algebra, quadrature, and a made-up truth."""

import numpy as np
import pytest
from asking import ask
from scipy.integrate import quad
from scipy.stats import norm

from radin import metrics
from radin.recipe import Recipe
from radin.search import Search
from radin.search.strategies.adaptive import candidates, softened, thinned, without_traces
from radin.search.strategies.normal import expected_improvement, normal_below
from radin.search.strategies.process import Prior, Process, expected, nonlinearity
from radin.search.strategies.slices import Reading, Slices


@pytest.fixture
def search(zoo):
    gram = np.diag(np.linspace(1, 3, 10))
    return Search(
        zoo.outputs, zoo.targets, strategy="adaptive", budget=6, gram=gram, options={"count": 256, "keep": 32}
    )


@pytest.fixture
def by_parts(zoo):
    return Search(zoo.outputs, zoo.targets, strategy="best", budget=0, parts=True).problem


@pytest.fixture
def process(search):
    problem = search.problem
    weights = candidates(problem, 256, 32)
    return weights, Process.of(problem, weights, problem.estimate(weights))


@pytest.mark.parametrize(("lead", "spread"), [(-0.05, 0.1), (-0.2, 0.1), (0.0, 0.01)])
def test_the_knowledge_gradient_is_the_integral(lead, spread):
    expected, _ = quad(lambda u: u * norm.pdf(u, lead, spread), 0, lead + 12 * spread)
    assert expected_improvement(np.array([lead]), np.array([spread]))[0] == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_the_normal_distribution_is_that_of_scipy():
    z = np.linspace(-6, 6, 1001)
    np.testing.assert_allclose(normal_below(z), norm.cdf(z), rtol=1e-12)


def test_far_in_the_tail_an_improvement_is_small_and_never_negative():
    z = np.linspace(-38, 0, 4000)
    found = expected_improvement(z, np.ones(4000))
    assert (found >= 0).all()
    far = (z < -6) & (z > -30)
    phi = norm.pdf(z[far])
    # phi / z^2 (1 - 3 / z^2 + 15 / z^4 - ...): Mills' ratio, expanded
    np.testing.assert_allclose(found[far], phi / z[far] ** 2 * (1 - 3 / z[far] ** 2 + 15 / z[far] ** 4), rtol=3e-3)


def test_candidates_are_distinct_recipes_with_every_member_alone_and_every_size(search):
    weights = candidates(search.problem, 256, 32)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights >= 0).all()
    assert len(np.unique(np.round(weights, 12), axis=0)) == len(weights)
    sizes = (weights > 0).sum(axis=1)
    assert np.count_nonzero(sizes == 1) == 10
    assert set(sizes) == set(range(1, 11))


def test_traces_of_members_are_left_out_and_equal_ratios_are_not():
    equal = np.full((1, 300), 1 / 300)
    np.testing.assert_array_equal(without_traces(equal), equal)
    np.testing.assert_allclose(without_traces(np.array([[0.796, 0.2, 0.004]])), [[0.796 / 0.996, 0.2 / 0.996, 0.0]])


def test_thinning_keeps_the_first_and_those_far_from_it():
    cluster = np.array([[0.5 + i * 1e-3, 0.5 - i * 1e-3, 0.0] for i in range(50)])
    others = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
    kept = thinned(np.concatenate([cluster, others]), 3)
    np.testing.assert_array_equal(kept[0], cluster[0])
    np.testing.assert_array_equal(kept[1:], others)
    assert len(thinned(cluster[:2], 3)) == 2


def test_single_members_are_known_exactly(process, search):
    weights, model = process
    mean, variance = model.posterior([], np.array([]), np.array([]), Prior())
    singles = search.problem.singles[weights[model.known].argmax(axis=1)]
    np.testing.assert_allclose(mean[model.known], singles, atol=1e-12)
    assert (variance[model.known] < 0.01 * variance.max()).all()


def test_the_posterior_is_that_of_plain_algebra(process):
    _, model = process
    seen, truth, noise = [20, 30], np.array([0.9, 0.91]), np.array([1e-5, 0.0])
    prior = Prior(0.25, 0.4, 2.0)
    at = np.concatenate([model.known, seen])
    residual = np.concatenate([np.zeros(10), truth - model.expected[seen]])
    whole = model.scale**2 * (
        0.25**2 * model.trends @ model.trends.T + 0.4**2 * np.exp(-model.distances / 2)
    )  # fmt: skip
    own = model.scale**2 * 0.02**2 * np.eye(12) + np.diag([0.0] * 10 + [1e-5, 0.0])
    inverse = np.linalg.inv(whole[np.ix_(at, at)] + own)
    mean, variance = model.posterior(seen, truth, noise, prior)
    np.testing.assert_allclose(mean, model.expected + whole[:, at] @ inverse @ residual, atol=1e-9)
    np.testing.assert_allclose(variance, np.diag(whole - whole[:, at] @ inverse @ whole[at]), atol=1e-9)


def test_outputs_that_follow_weights_speak_for_no_nonlinearity_and_outputs_that_stopped_do(search):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(10, 5)) * np.geomspace(0.1, 10, 10)[:, None]
    gram = points @ points.T
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)

    def problem(moved):
        other = Search(np.zeros((10, 2, 2)), np.array([0, 1]), strategy="best", budget=0, gram=gram).problem
        return type(other)(**{**vars(other), "output_distances": lambda: moved, "gram": gram})

    weights = np.array([[0.5, 0.5] + [0] * 8, [0] * 8 + [0.5, 0.5], [1] + [0] * 9], dtype=float)
    np.testing.assert_array_equal(nonlinearity(problem(3 * apart), weights), 0)
    saturated = np.minimum(apart, 0.3)
    near, far, alone = nonlinearity(problem(saturated), weights)
    assert near < 1
    assert far > 100
    assert alone == 0


def test_a_soup_is_expected_to_lose_a_tenth_of_what_averaged_outputs_gain(zoo):
    problem = Search(zoo.outputs, zoo.targets, strategy="best", budget=0).problem
    weights = np.array([[0.5, 0.5] + [0] * 8, [0.1] * 10, [1] + [0] * 9], dtype=float)
    estimates = problem.estimate(weights)
    gain = estimates - weights @ problem.singles
    assert (gain[:2] > 0).all()
    np.testing.assert_allclose(expected(problem, weights, estimates), estimates - 0.1 * gain, atol=1e-12)
    assert expected(problem, weights, estimates)[2] == problem.singles[0]


def test_margins_are_those_of_the_averaged_outputs(by_parts, zoo):
    weights = np.random.default_rng(0).dirichlet(np.ones(10), 5)
    found = by_parts.examples.margins(weights)
    order = np.argsort([-s for s in by_parts.singles], kind="stable")
    assert len(order) == 10
    for p, row in zip(weights, found, strict=True):
        assert (row > 0).mean() == pytest.approx(by_parts.estimate(p[None])[0])
    finite = np.isfinite(found)
    assert finite.mean() > 0.05
    # A member alone, in canonical order the best: its own logits' margin wherever the pool does not agree.
    best = zoo.outputs[int(np.argmax([(o.argmax(1) == zoo.targets).mean() for o in zoo.outputs]))]
    rows = np.arange(len(zoo.targets))
    rivals = best.copy()
    rivals[rows, zoo.targets] = -np.inf
    expected = best[rows, zoo.targets] - rivals.max(axis=1)
    own = by_parts.examples.margins(np.eye(10)[:1])[0]
    changing = np.isfinite(own)
    assert (own[changing] >= expected[changing] - 1e-9).all()
    np.testing.assert_array_equal(own > 0, expected > 0)


def test_a_softened_estimate_prefers_clear_answers(by_parts):
    weights = np.random.default_rng(0).dirichlet(np.ones(10), 30)
    estimates = by_parts.estimate(weights)
    soft = softened(by_parts.examples, weights, estimates)
    assert soft.mean() == pytest.approx(estimates.mean())
    assert np.corrcoef(soft, estimates)[0, 1] > 0.3
    alone = np.eye(10)
    np.testing.assert_array_equal(softened(by_parts.examples, alone, by_parts.singles), by_parts.singles)


def test_slices_hold_nearly_all_answers_that_averaging_weights_changes(by_parts, zoo):
    """The reason for slices, on a real zoo: the third of the examples with the smallest margins has most changes."""
    search = Search(zoo.outputs, zoo.targets, strategy="best", budget=0, parts=True)
    inside = []
    for p in np.random.default_rng(0).dirichlet(np.ones(10), 20):
        margins = search.problem.examples.margins(p[None])[0]
        changed = (zoo.logits(search.recipe(p)).argmax(axis=1) == zoo.targets) != (margins > 0)
        reading = Reading(margins)
        first = reading.order[: round(0.35 * len(margins))]
        inside.append(changed[first].sum() / max(changed.sum(), 1))
    assert np.mean(inside) > 0.9


def test_a_reading_comes_close_to_the_true_accuracy_and_closer_with_each_slice(by_parts, zoo):
    search = Search(zoo.outputs, zoo.targets, strategy="best", budget=0, parts=True)
    errors, plain = [], []
    for p in np.random.default_rng(1).dirichlet(np.ones(10), 30):
        margins = search.problem.examples.margins(p[None])[0]
        values = (zoo.logits(search.recipe(p)).argmax(axis=1) == zoo.targets).astype(float)
        reading = Reading(margins)
        for share in (0.1, 0.2, 0.35):
            reading.add(values[reading.order[: round(share * len(values))]])
        errors.append(np.array(reading.estimates) - values.mean())
        plain.append((margins > 0).mean() - values.mean())
        assert reading.variances[0] >= reading.variances[-1]
    size = np.sqrt(np.mean(np.square(errors), axis=0))
    assert size[2] < size[0]
    assert size[2] < 0.25 * np.sqrt(np.mean(np.square(plain)))


def test_what_a_level_usually_gets_wrong_is_mended():
    slices = Slices(100, 100)
    margins = np.linspace(-1, 1, 100)
    for candidate, estimates in enumerate([[0.5, 0.4, 0.3], [0.6, 0.5], [0.7]]):
        reading = Reading(margins)
        reading.estimates, reading.variances = estimates, [1e-4] * len(estimates)
        slices.readings[candidate] = reading
    candidates, found, variance = slices.observations()
    assert candidates == [0, 1, 2]
    # First slices were 0.2 and 0.1 above the last of the same soup: a mean of 0.3 / 3, one soup without error added.
    assert found[2] == pytest.approx(0.7 - 0.1)
    assert found[1] == pytest.approx(0.5 - 0.1 / 2)
    assert found[0] == pytest.approx(0.3)
    slices.complete[0] = 0.25
    _, found, variance = slices.observations()
    assert (found[0], variance[0]) == (0.25, 0.0)
    assert (variance[1:] > 0).all()


def test_no_slice_is_larger_than_what_the_members_disagree_on():
    assert Slices(1000, 1000).sizes == (100, 200, 350)
    assert Slices(1000, 150).sizes == (100, 150)
    assert Slices(1000, 0).sizes == (1,)


def test_it_learns_that_spread_members_make_bad_soups(zoo):
    """Truth falls short of the estimate by the dispersion: the paper's ranking cannot see that."""
    far = np.diag(np.where(np.arange(10) % 2, 9.0, 0.01))

    def play(strategy, budget, **more):
        search = Search(zoo.outputs, zoo.targets, strategy=strategy, budget=budget, **more)
        while (recipe := ask(search)) is not None:
            p = np.array(recipe.weights)
            dispersion = p @ np.diag(far) - p @ far @ p
            search.tell(recipe, float(search.estimate([recipe])[0]) - 0.05 * dispersion)
        return search

    assert play("adaptive", 8, gram=far).best[1] > play("paper", 8).best[1]


def test_whatever_the_slices_say_some_soup_is_finished(zoo):
    """A slice can disappoint so much that a soup leads for whose other examples nothing was kept back."""
    for seed in (5, 6, 14, *range(21, 26)):
        rng = np.random.default_rng(seed)
        search = Search(zoo.outputs, zoo.targets, budget=2, parts=True, options={"count": 64, "keep": 12})
        while (part := search.ask()) is not None:
            right = (zoo.logits(part.recipe).argmax(axis=1) == zoo.targets)[part.examples]
            lost = rng.random(len(part.examples)) < rng.random() * 0.3
            search.tell(part, right & ~lost)
        assert search.evaluations
        assert search.spent <= 2 + 1e-9


def test_unequal_ratios_are_among_what_it_asks(search, zoo):
    asked = []
    while (recipe := ask(search)) is not None:
        asked.append(recipe)
        search.tell(recipe, zoo.score(recipe))
    assert any(not recipe.is_uniform for recipe in asked)
    assert all(isinstance(recipe, Recipe) for recipe in asked)


def test_members_without_a_usable_score_are_left_alone(zoo):
    def score(outputs, targets):
        if outputs.abs().max() > 1e3:
            return float("nan")
        return float((outputs.argmax(dim=1) == targets).float().mean())

    outputs = zoo.outputs.copy()
    outputs[3] *= 1e4
    metric = metrics.get(score, True)
    search = Search(outputs, zoo.targets, metric=metric, strategy="adaptive", budget=3)
    while (recipe := ask(search)) is not None:
        assert recipe.weights[3] < 0.1
        search.tell(recipe, zoo.score(recipe))
    assert search.spent == 3
