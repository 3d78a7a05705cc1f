"""A metric that is a function of the user's may take long: how often it is called, and that its choice is as good."""

from __future__ import annotations

import numpy as np
import pytest
from asking import ask

from radin import metrics
from radin.search import Search, rank
from radin.search.screening import FITTED, RANKED
from radin.search.strategies import names


class Counted:
    """Cohen's kappa, which is no mean over examples, and how often it was asked."""

    __name__ = "kappa"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs, targets) -> float:
        self.calls += 1
        guesses, truth = outputs.numpy().argmax(axis=1), targets.numpy()
        chance = (np.bincount(guesses, minlength=10) / len(truth)) @ (np.bincount(truth, minlength=10) / len(truth))
        return float(((guesses == truth).mean() - chance) / (1 - chance))


@pytest.mark.parametrize("name", [name for name in names() if name != "paper"])
def test_a_search_calls_a_function_a_bounded_number_of_times(zoo, name):
    kappa = Counted()
    search = Search(zoo.outputs, zoo.targets, metric=metrics.get(kappa, True), strategy=name, budget=6)
    while (recipe := ask(search)) is not None:
        search.tell(recipe, zoo.score(recipe))
    searches = name in ("adaptive", "learned", "learned-by-layer")  # without gradients the latter do as the first
    assert kappa.calls <= len(zoo.outputs) + (FITTED + RANKED if searches else 0)


def test_the_paper_s_procedure_calls_it_once_for_each_candidate(zoo):
    kappa = Counted()
    Search(zoo.outputs, zoo.targets, metric=metrics.get(kappa, True), strategy="paper", budget=6)
    assert kappa.calls <= len(zoo.outputs) + 201


def test_rank_calls_it_a_bounded_number_of_times_and_gives_its_own_values(zoo):
    kappa = Counted()
    listed = rank(zoo.outputs, zoo.targets, metrics.get(kappa, True), top=5)
    assert kappa.calls <= len(zoo.outputs) + FITTED + RANKED
    for entry in listed:
        averaged = np.tensordot(np.array(entry.recipe.weights), zoo.outputs, 1)
        assert entry.estimate == pytest.approx(metrics.get(Counted(), True).value(averaged, zoo.targets), abs=1e-12)
    assert [entry.estimate for entry in listed] == sorted((entry.estimate for entry in listed), reverse=True)


@pytest.mark.parametrize(("metric", "tolerance"), [("brier", 0.002), ("mae", 0.02), ("ece", 0.005)])
def test_what_is_ranked_first_by_something_cheap_is_among_the_best_of_thousands(zoo, metric, tolerance):
    targets = np.eye(10)[zoo.targets] * 6 if metric == "mae" else zoo.targets
    best = rank(zoo.outputs, targets, metric, top=1)[0].estimate
    chosen = metrics.get(metric)
    rng = np.random.default_rng(0)
    drawn = [rng.dirichlet(np.full(10, alpha)) for alpha in (0.1, 0.3, 1.0) for _ in range(1000)]
    values = [chosen.value(np.tensordot(p, zoo.outputs, 1), targets) for p in drawn]
    assert best <= min(values) + tolerance


def test_progress_says_what_runs_and_how_much_of_it_is_left(zoo):
    seen = []
    kappa = Counted()
    Search(
        zoo.outputs, zoo.targets, metric=metrics.get(kappa, True), budget=3, progress=lambda *step: seen.append(step)
    )
    stages = {what: total for what, _, total in seen}
    assert all(what.startswith("estimating ") and what.endswith(" recipes with kappa") for what in stages)
    assert all(f"estimating {total} recipes" in what for what, total in stages.items())
    assert {done for what, done, total in seen if done == total}
    assert len(seen) > 4


def test_a_standard_error_calls_it_few_times():
    kappa = Counted()
    rng = np.random.default_rng(0)
    metrics.get(kappa, True).standard_error(rng.normal(size=(200, 10)), rng.integers(0, 10, 200))
    assert kappa.calls == metrics.BOOTSTRAP_CALLS == 20
