"""Strategies that learn ratios, on a zoo whose gradients are known: what is asked, what it costs, what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radin import metrics, objectives
from radin.errors import RadinError
from radin.question import Answer, Gradient, Question, Rates, answer_from_values
from radin.recipe import Recipe
from radin.search import Search
from radin.search.account import Account
from radin.search.strategies.base import Gradients

GROUPS = {"one": (), "blocks": ("output",), "modules": ("output",)}
GROUP_OF = (0, 1, 0, 1)  # hidden weights, output weights, hidden bias, output bias
BUDGET = 8


def soup(zoo, recipe):
    """The four layers of a recipe's soup as leaves that have gradients."""
    rows = [recipe.weights, recipe.of("output.weight")]
    made = []
    for part, group in enumerate(GROUP_OF):
        total = sum(p * member[part] for p, member in zip(rows[group], zoo.layers, strict=True))
        made.append(torch.tensor(total, requires_grad=True))
    return made


def outputs(zoo, layers, examples):
    hidden, output, first, second = layers
    inputs = torch.tensor(zoo.inputs[examples])
    return (inputs @ hidden + first).relu() @ output + second


def gradient(zoo, question, sign=1.0):
    """What an engine would answer."""
    layers, asked = soup(zoo, question.recipe), question.gradient
    found = objectives.value(
        asked.objective,
        metrics.get("accuracy"),
        outputs(zoo, layers, question.examples),
        torch.tensor(zoo.targets[question.examples]),
    )
    found.backward()
    result = np.full((1 + len(asked.groups), len(zoo.layers)), np.nan)
    for k in question.recipe.members:
        result[:, k] = 0
        for part, group in enumerate(GROUP_OF):
            row = group if asked.groups else 0
            result[row, k] += sign * float((layers[part].grad.numpy() * zoo.layers[k][part]).sum())
    return Answer(float(found.detach()), float("nan"), len(question.examples), 0.0, gradient=result)


def values(zoo, recipe, examples=None):
    with torch.no_grad():
        rows = outputs(zoo, soup(zoo, recipe), np.arange(len(zoo.targets)))
    right = metrics.get("accuracy").per_example(rows.numpy(), zoo.targets)
    return right if examples is None else right[examples]


def start(zoo, strategy="learned", budget=BUDGET, seed=0, **more):
    more = {"parts": True, "gradients": GROUPS, "gram": zoo.gram(), "keys": zoo.keys(), **more}
    return Search(zoo.outputs, zoo.targets, strategy=strategy, budget=budget, seed=seed, **more)


def play(search, zoo, sign=1.0, answer=None):
    """Ask and tell to the end; all questions."""
    asked = []
    while (question := search.ask()) is not None:
        assert search.spent + search.account.reserved <= search.budget + 1e-9
        asked.append(question)
        found = answer(question) if answer is not None else None
        if found is None and question.gradient is not None:
            found = gradient(zoo, question, sign)
        search.tell(question, values(zoo, question.recipe, question.examples) if found is None else found)
    return asked


def learning(asked):
    """The gradients by which ratios were learned."""
    return [question for question in asked if question.gradient is not None]


def essence(questions):
    return [(q.recipe, q.gradient, None if q.examples is None else q.examples.tolist()) for q in questions]


@pytest.fixture(scope="module")
def plain(zoo):
    search = start(zoo)
    return search, play(search, zoo)


def test_half_is_searched_with_then_gradients_over_all_examples_once_and_one_evaluation(zoo, plain):
    search, asked = plain
    slopes = learning(asked)
    first = asked.index(slopes[0])
    assert asked[first : first + len(slopes)] == slopes
    assert len(slopes) == 12
    assert all(q.gradient == Gradient("cross-entropy, free temperature") for q in slopes)
    passes = sum(3 * len(q.examples) / len(zoo.targets) for q in slopes)
    assert passes == pytest.approx(search.account.gradients[1])
    assert search.account.gradients[0] == 12
    assert 2.8 < passes <= BUDGET / 2 + 0.6
    last = asked[first + len(slopes)]
    assert last.gradient is None
    assert len(last.examples) == len(zoo.targets)
    assert last.recipe.members == slopes[0].recipe.members
    # each step of a round is over other examples
    together = np.concatenate([q.examples for q in slopes])
    assert len(set(together.tolist())) == len(together)
    assert all((np.diff(q.examples) > 0).all() for q in slopes)


def test_it_begins_at_the_best_soup_and_climbs(zoo, plain):
    search, asked = plain
    slopes = learning(asked)
    before = asked[: asked.index(slopes[0])]
    whole = {q.recipe for q in before if search.account.scores.get(q.recipe) is not None}
    best = max(whole, key=lambda recipe: search.account.scores[recipe])
    assert slopes[0].recipe.weights == pytest.approx(best.weights, abs=1e-12)
    learned = asked[asked.index(slopes[-1]) + 1].recipe
    everything = np.arange(len(zoo.targets))
    asked_of = [Question(recipe, everything, gradient=slopes[0].gradient) for recipe in (best, learned)]
    objective = [gradient(zoo, question).score for question in asked_of]
    assert objective[1] > objective[0] + 0.001


@pytest.mark.parametrize("strategy", ["learned", "learned-by-layer"])
def test_uphill_or_downhill_it_is_never_below_what_it_began_with(zoo, strategy):
    for sign in (1.0, -1.0):
        search = start(zoo, strategy, budget=24)
        asked = play(search, zoo, sign)
        first = asked.index(learning(asked)[0])
        done = {q.recipe for q in asked[:first]}
        begun = max(score for recipe, score in search.account.scores.items() if recipe in done)
        assert search.best[1] >= max(begun, search.singles.max())
        assert search.spent <= 24 + 1e-9
        rounds = [k for k in range(1, len(asked)) if asked[k].gradient and not asked[k - 1].gradient]
        if sign < 0:  # two rounds found nothing; then it searches on
            starts = [asked[k].recipe for k in rounds]
            assert len(rounds) == 2
            assert starts[0] == starts[1]
            assert asked[-1].gradient is None
            assert search.spent > 23


def test_by_layer_gives_each_group_its_own(zoo):
    search = start(zoo, "learned-by-layer")
    asked = play(search, zoo)
    slopes = learning(asked)
    assert all(q.gradient.groups == ("output",) for q in slopes)
    assert slopes[0].recipe.groups == ()
    assert [group.name for group in slopes[-1].recipe.groups] == ["output"]
    learned = asked[asked.index(slopes[-1]) + 1].recipe
    assert learned.groups
    assert learned.groups[0].weights != learned.weights


@pytest.mark.parametrize("strategy", ["learned", "learned-by-layer"])
def test_the_order_of_members_changes_nothing(zoo, strategy):
    order = np.random.default_rng(1).permutation(len(zoo.layers)).tolist()
    moved = zoo.permuted(order)
    first, second = play(start(zoo, strategy), zoo), play(start(moved, strategy), moved)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        back = one.recipe.permuted(order)
        assert other.recipe.weights == pytest.approx(back.weights, abs=1e-9)
        assert [group.name for group in other.recipe.groups] == [group.name for group in back.groups]
        assert np.array_equal(one.examples, other.examples)


def test_the_same_seed_the_same_questions_and_another_seed_other_examples(zoo, plain):
    assert essence(play(start(zoo), zoo)) == essence(plain[1])
    assert essence(play(start(zoo, seed=1), zoo)) != essence(plain[1])


def test_resumes_after_any_tell(zoo, plain):
    search, asked = plain
    for done in (0, 5, len(asked) - 8, len(asked) - 1):
        again = start(zoo)
        told = []
        for _ in range(done):
            mine = again.ask()
            told.append(mine)
            slope = gradient(zoo, mine) if mine.gradient else values(zoo, mine.recipe, mine.examples)
            again.tell(mine, slope)
        assert essence([*told, *play(again, zoo)]) == essence(asked)
        assert again.best == search.best


def test_what_an_earlier_session_was_told_is_not_asked_again(zoo, plain):
    _, asked = plain
    again = start(zoo)
    for question in asked:
        if question.gradient is not None:
            again.tell(
                Question(question.recipe, question.examples, gradient=question.gradient), gradient(zoo, question)
            )
    before = again.spent
    assert before == pytest.approx(sum(3 * len(q.examples) / len(zoo.targets) for q in asked if q.gradient))
    assert not any(question.gradient for question in play(again, zoo)[:-1] if question in asked)


@pytest.mark.parametrize("name", ["learned", "learned-by-layer"])
def test_without_gradients_it_asks_what_adaptive_asks(zoo, name):
    mine = play(start(zoo, name, gradients=None, budget=4), zoo)
    assert essence(mine) == essence(play(start(zoo, "adaptive", gradients=None, budget=4), zoo))
    assert essence(play(start(zoo, name, metric="ece", parts=False, budget=2), zoo, answer=lambda q: 0.1)) != []


def test_a_gradient_that_fails_or_is_not_finite_ends_the_learning_alone(zoo, plain):
    def broken(question):
        return Answer(float("nan"), float("nan"), 1, 0.0, gradient=np.full((1, 10), np.nan))

    search = start(zoo)
    asked = play(search, zoo, answer=lambda question: broken(question) if question.gradient else None)
    assert len(learning(asked)) == 1
    assert search.best[1] >= search.singles.max()
    search = start(zoo)
    dropped = 0
    while (question := search.ask()) is not None:
        if question.gradient is not None:
            search.drop(question)
            dropped += 1
        else:
            search.tell(question, values(zoo, question.recipe, question.examples))
    assert dropped == 1
    assert search.account.gradients == (0, 0.0)
    assert search.spent > 7


def test_whole_soups_only_and_another_metric(zoo):
    search = start(zoo, metric="nll", parts=False, budget=8)
    seen = []
    while (question := search.ask()) is not None:
        seen.append(question)
        if question.gradient is None:
            search.tell(question, zoo.score(question.recipe, "nll"))
            continue
        assert question.gradient.objective == "cross-entropy"
        layers = soup(zoo, question.recipe)
        rows, targets = outputs(zoo, layers, question.examples), torch.tensor(zoo.targets[question.examples])
        found = objectives.value("cross-entropy", metrics.get("nll"), rows, targets)
        found.backward()
        products = [
            sum(float((layer.grad.numpy() * part).sum()) for layer, part in zip(layers, member, strict=True))
            for member in zoo.layers
        ]
        search.tell(question, Answer(float(found.detach()), 0.0, len(targets), 0.0, gradient=np.array([products])))
    first = seen.index(learning(seen)[0])
    assert first == 4
    assert search.best[1] < min(zoo.score(question.recipe, "nll") for question in seen[:first])


def test_what_gradients_cost():
    recipe, asked = Recipe.uniform(range(3), 3), Gradient("squared error")
    account = Account(10, Rates(100, 25))
    question = Question(recipe, np.arange(50), gradient=asked)
    assert account.cost(recipe, question.examples, asked) == pytest.approx(3 * 50 / 125)
    account.reserve(question)
    assert account.reserved == pytest.approx(1.2)
    assert list(account.unknown(recipe, np.arange(100))) == list(range(100))
    assert account.cost(recipe, np.arange(100)) == pytest.approx(1.0)  # it starts no soup
    answer = Answer(0.5, 0.0, 50, 0.0, gradient=np.zeros((1, 3)))
    account.charge(question, answer)
    account.charge(Question(recipe, np.arange(50), gradient=asked), answer)
    assert (account.spent, account.reserved, account.started) == (pytest.approx(1.2), 0, ())
    account.charge(Question(recipe, np.arange(100)), answer_from_values(np.ones(100), 0.0))
    assert account.spent == pytest.approx(2.2)
    assert account.scores == {recipe: 1.0}
    read = Gradients(("squared error",), {"one": ()}, 100, 0.2, 0.1)
    assert read.cost(50) == pytest.approx(0.8 * (0.1 + 0.9 * 1.5))
    assert read.cost(50) == pytest.approx(Account(1, Rates(100, 25, 0.1)).cost(recipe, np.arange(50), asked))
    assert read.examples(read.cost(50)) == 50


def test_a_gradient_of_another_shape_is_refused(zoo, plain):
    search = start(zoo)
    while (question := search.ask()).gradient is None:
        search.tell(question, values(zoo, question.recipe, question.examples))
    with pytest.raises(RadinError, match=r"tell an Answer whose gradient has shape \(1, 10\)"):
        search.tell(question, 0.5)
