"""Each strategy against its own definition, written out as loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from asking import ask

from radin.errors import RadinError
from radin.recipe import Recipe
from radin.search import Search
from radin.search.members import canonical_order
from radin.search.strategies import get

# Held-out accuracies of five of the 72 networks of Wortsman et al. 2022, "Model soups", counts over 26,000 images
# (individual_model_results.jsonl of the model-soups repository, MIT). Two of them tie.
MODEL_SOUPS = {"model_43": 21593, "model_44": 21554, "model_4": 20417, "model_5": 20417, "model_0": 20301}
EXAMPLES = 26000

KEYS = list("abcdefghij")  # members that tie come in the order given, as in a stable sort


def by_greedy(pool, scores, best_first, accept):
    """Recipe 1 of Model Soups, by its text; ``scores`` of a tuple of members."""
    ingredients = [best_first[0]]
    tried = []
    for member in best_first[1:]:
        soup = tuple(sorted([*ingredients, member]))
        tried.append(soup)
        if accept(scores(soup), scores(tuple(sorted(ingredients)))):
            ingredients.append(member)
    return tried, tuple(sorted(ingredients))


def asked_by(search, zoo):
    asked = []
    while (recipe := ask(search)) is not None:
        asked.append(recipe.members)
        search.tell(recipe, zoo.score(recipe))
    return asked


def best_first(zoo):
    singles = [zoo.score(Recipe.single(k, len(zoo.outputs))) for k in range(len(zoo.outputs))]
    return sorted(range(len(singles)), key=lambda k: -singles[k])


@pytest.mark.parametrize(
    ("accept", "rule"), [("strict", lambda new, old: new > old), ("ties", lambda new, old: new >= old)]
)
def test_greedy_is_recipe_1_of_model_soups(zoo, accept, rule):
    def scores(members):
        return zoo.score(Recipe.uniform(members, len(zoo.outputs)))

    tried, final = by_greedy(zoo, scores, best_first(zoo), rule)
    search = Search(zoo.outputs, zoo.targets, strategy="greedy", keys=KEYS, budget=99, options={"accept": accept})
    assert asked_by(search, zoo) == tried
    assert search.best[0].members == final


@pytest.mark.parametrize(("accept", "kept"), [("strict", (0, 1)), ("ties", (0, 1, 2))])
def test_greedy_at_an_equal_score(zoo, accept, kept):
    few = zoo.permuted(best_first(zoo)[:3])
    search = Search(few.outputs, few.targets, strategy="greedy", keys=KEYS[:3], budget=9, options={"accept": accept})
    for _ in range(2):
        search.tell(ask(search), 0.99)
    assert search.best[0].members == kept


def test_greedy_prefers_the_member_alone_to_a_soup_of_the_same_score(zoo):
    search = Search(zoo.outputs, zoo.targets, strategy="greedy", keys=KEYS, budget=1, options={"accept": "ties"})
    search.tell(ask(search), search.singles.max())
    assert search.best[0].is_single


def test_pruned_drops_the_worst_first_while_it_does_not_hurt(zoo):
    order = best_first(zoo)
    kept, tried = set(order), [tuple(sorted(order))]
    for member in reversed(order):
        without = tuple(sorted(kept - {member}))
        tried.append(without)
        if zoo.score(Recipe.uniform(without, 10)) >= zoo.score(Recipe.uniform(kept, 10)):
            kept = set(without)
    search = Search(zoo.outputs, zoo.targets, strategy="pruned", keys=KEYS, budget=99)
    assert asked_by(search, zoo) == tried
    if zoo.score(Recipe.uniform(kept, 10)) > search.singles.max():
        assert search.best[0].members == tuple(sorted(kept))
    else:
        assert search.best[0].members == (order[0],)


def test_pruned_goes_down_to_two_members_when_nothing_hurts(zoo):
    search = Search(zoo.outputs, zoo.targets, strategy="pruned", keys=KEYS, budget=99)
    sizes = []
    while (recipe := ask(search)) is not None:
        sizes.append(recipe.size)
        search.tell(recipe, 2.0)
    # From two equal soups down to the best member, whose score is known and worse.
    assert sizes == [10, 9, 8, 7, 6, 5, 4, 3, 2]


def test_top_k_averages_the_best_in_turn(zoo):
    order = best_first(zoo)
    search = Search(zoo.outputs, zoo.targets, strategy="top-k", keys=KEYS, budget=4)
    assert asked_by(search, zoo) == [tuple(sorted(order[:k])) for k in (2, 3, 4, 5)]
    one = Search(zoo.outputs, zoo.targets, strategy="top-k", keys=KEYS, budget=4, options={"k": 6})
    assert asked_by(one, zoo) == [tuple(sorted(order[:6]))]


def test_top_k_refuses_more_members_than_there_are(zoo):
    with pytest.raises(RadinError, match="option 'k' must be between 1 and 10, the number of members; got 11"):
        Search(zoo.outputs, zoo.targets, strategy="top-k", keys=KEYS, budget=4, options={"k": 11})


def test_uniform_is_exactly_the_uniform_recipe(zoo):
    search = Search(zoo.outputs, zoo.targets, strategy="uniform", budget=4)
    assert ask(search) == Recipe.uniform(range(10), 10)


def test_random_depends_on_the_seed_and_on_no_score(zoo):
    def recipes(seed, score):
        search = Search(zoo.outputs, zoo.targets, strategy="random", budget=5, seed=seed)
        while (recipe := ask(search)) is not None:
            search.tell(recipe, score)
        return [recipe for recipe, _ in search.evaluations]

    assert recipes(0, 0.1) == recipes(0, 0.9)
    assert recipes(0, 0.1) != recipes(1, 0.1)
    assert all(2 <= recipe.size <= 9 for recipe in recipes(0, 0.1))


def model_soups_outputs():
    """Two columns per image, right for exactly the published number of them; the ties are right on other images."""
    targets = np.zeros(EXAMPLES, dtype=np.int64)
    outputs = np.zeros((len(MODEL_SOUPS), EXAMPLES, 2), dtype=np.float32)
    for k, count in enumerate(MODEL_SOUPS.values()):
        right = np.roll(np.arange(EXAMPLES) < count, 1000 * k)
        outputs[k, :, 0], outputs[k, :, 1] = right, ~right
    return outputs, targets


def test_two_of_the_72_networks_tie_and_the_order_given_does_not_matter():
    outputs, targets = model_soups_outputs()
    keys = list(MODEL_SOUPS)
    for given_keys in (keys, None):
        seen = set()
        for order in itertools.permutations(range(5)):
            order = list(order)
            accuracy = (outputs[order].argmax(axis=2) == targets).mean(axis=1)
            shuffled = None if given_keys is None else [given_keys[k] for k in order]
            seen.add(tuple(keys[order[i]] for i in canonical_order(accuracy, outputs[order], shuffled)))
            if len(seen) > 1 or order[0] == 4:  # hashing all 120 orders takes long; one start is enough
                break
        assert len(seen) == 1
        (ranking,) = seen
        assert ranking[:2] == ("model_43", "model_44")
        assert ranking[4] == "model_0"
        if given_keys is not None:
            assert ranking[2:4] == ("model_4", "model_5")


def test_greedy_tries_the_tied_networks_in_the_same_order_however_they_are_listed():
    outputs, targets = model_soups_outputs()
    keys = list(MODEL_SOUPS)
    sequences = set()
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 3, 0, 1, 4], [3, 2, 4, 0, 1]):
        search = Search(outputs[order], targets, strategy="greedy", budget=4, keys=[keys[k] for k in order])
        sequence = []
        while (recipe := ask(search)) is not None:
            sequence.append(tuple(sorted(keys[order[i]] for i in recipe.members)))
            search.tell(recipe, 0.9 + 0.01 * len(sequence))
        sequences.add(tuple(sequence))
    assert sequences == {
        (
            ("model_43", "model_44"),
            ("model_4", "model_43", "model_44"),
            ("model_4", "model_43", "model_44", "model_5"),
            ("model_0", "model_4", "model_43", "model_44", "model_5"),
        )
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accept": "maybe"}, "expected 'strict' or 'ties'; got 'maybe'"),
        ({"accept": True}, "expected 'strict' or 'ties'; got True"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused(given, message):
    with pytest.raises(RadinError, match=message):
        get("greedy").settings(given)


def test_options_are_read_from_text_as_a_command_line_gives_them():
    settings = get("paper").settings({"candidates": "50", "prior": "1", "uniform": "false", "sizes": "[2, 5]"})
    assert settings == {"candidates": 50, "prior": 1.0, "uniform": False, "sizes": (2, 5)}
    with pytest.raises(RadinError, match=r"option 'candidates' .* expected int; got 'many'"):
        get("paper").settings({"candidates": "many"})
