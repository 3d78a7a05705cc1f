"""Recipes with ratios of their own for groups of tensors: one form, one identity, a JSON form that comes back."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radin.errors import RadinError
from radin.recipe import Group, Recipe

PRINTS = ["a" * 64, "b" * 64, "c" * 64]
NAMES = ["one", "two", "three"]
HALF = (0.5, 0.5, 0.0)
LAST = (0.0, 0.0, 1.0)


def ratios(size):
    shares = st.lists(st.integers(0, 8), min_size=size, max_size=size).filter(any)
    return shares.map(lambda found: tuple(share / sum(found) for share in found))


def recipes(size=3):
    names = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(".".join)
    groups = st.dictionaries(names, ratios(size), max_size=5)
    return st.builds(lambda w, g: Recipe(w, groups=tuple(Group(*item) for item in g.items())), ratios(size), groups)


TENSORS = [".".join([*["a", "b", "a", "b"][start:stop], "weight"]) for start in range(4) for stop in range(start, 5)]


@given(recipes())
@settings(deadline=None)
def test_json_comes_back_as_it_was_in_a_pool_of_any_order(recipe):
    value = json.loads(json.dumps(recipe.to_json(NAMES, PRINTS)))
    assert Recipe.from_json(value, PRINTS) == recipe
    order = [2, 0, 1]
    elsewhere = Recipe.from_json(value, [PRINTS[k] for k in order])
    assert elsewhere == recipe.permuted(order)
    assert elsewhere.identity([PRINTS[k] for k in order]) == recipe.identity(PRINTS)


@given(recipes(), st.randoms())
@settings(deadline=None)
def test_the_order_of_groups_and_groups_without_effect_change_nothing(recipe, random):
    more = [Group(name, recipe.of(name)) for name in ("a.a.a.a", "b.b.b.b", "c")]
    groups = [*recipe.groups, *more]
    random.shuffle(groups)
    same = Recipe(recipe.weights, groups=tuple(groups))
    assert same == recipe
    assert hash(same) == hash(recipe)
    assert same.identity(PRINTS) == recipe.identity(PRINTS)


@given(recipes())
@settings(deadline=None)
def test_a_tensor_has_the_ratios_of_the_longest_name_over_it(recipe):
    for tensor in TENSORS:
        over = [group for group in recipe.groups if f"{tensor}.".startswith(f"{group.name}.")]
        expected = max(over, key=lambda group: len(group.name)).weights if over else recipe.weights
        assert recipe.of(tensor) == expected
    everywhere = {
        k for weights in [recipe.weights, *(g.weights for g in recipe.groups)] for k in range(3) if weights[k]
    }
    assert recipe.members == tuple(sorted(everywhere))


def test_a_name_ends_at_a_dot():
    recipe = Recipe(HALF, groups=(Group("layer.1", LAST),))
    assert recipe.of("layer.1.weight") == recipe.of("layer.1") == LAST
    assert recipe.of("layer.10.weight") == recipe.of("layer") == HALF
    assert recipe.group_of("layer.1.weight") == "layer.1"
    assert recipe.group_of("head.bias") is None


def test_nested_groups_drop_what_says_nothing():
    inner = Group("a.b", HALF)
    assert Recipe(HALF, groups=(inner,)).groups == ()
    nested = Recipe(HALF, groups=(Group("a", LAST), inner))
    assert [group.name for group in nested.groups] == ["a", "a.b"], "it takes back what a gives"
    assert Recipe(HALF, groups=(Group("a", LAST), Group("a.b", LAST))).groups == (Group("a", LAST),)


def test_plain_recipes_have_the_identity_and_json_of_before():
    recipe = Recipe((0.25, 0.0, 0.75))
    assert recipe.identity(PRINTS) == "938101ed45fc69677cc38f5b817cc0d02feedf7b9b0b07f51231266ac1210f4b"
    assert recipe.to_json(NAMES, PRINTS) == {
        "members": [
            {"name": "one", "fingerprint": PRINTS[0], "weight": 0.25},
            {"name": "three", "fingerprint": PRINTS[2], "weight": 0.75},
        ]
    }
    assert repr(recipe) == "Recipe(weights=(0.25, 0.0, 0.75))"


def test_groups_make_another_recipe_of_it():
    plain, grouped = Recipe(HALF), Recipe(HALF, groups=(Group("head", LAST),))
    assert plain != grouped
    assert plain.identity(PRINTS) != grouped.identity(PRINTS)
    moved = Recipe(HALF, groups=(Group("body", LAST),))
    assert moved.identity(PRINTS) != grouped.identity(PRINTS)
    assert grouped.members == (0, 1, 2)
    assert not grouped.is_uniform
    assert not grouped.is_single
    assert grouped.describe(NAMES) == (
        "one 0.5 (0 to 0.5), two 0.5 (0 to 0.5), three 0 (0 to 1); ratios of their own in 1 group of tensors"
    )


def test_one_member_everywhere_is_that_member():
    alone = Recipe((0.0, 1.0, 0.0), groups=(Group("head", (0.0, 1 - 1e-8, 0.0)),))
    assert alone == Recipe.single(1, 3)
    assert alone.is_single


def test_by_group_takes_the_mean_by_elements_for_the_rest():
    sizes = {"body.weight": 30, "head.weight": 8, "head.bias": 2, "scale": 100}
    recipe = Recipe.by_group({"body": HALF, "head": LAST}, sizes)
    assert recipe.weights == pytest.approx((0.375, 0.375, 0.25), abs=1e-15)
    assert recipe.of("scale") == recipe.weights
    assert recipe.of("head.bias") == LAST
    third = (1 / 3, 1 / 3, 1 / 3)
    assert Recipe.by_group({"body": third, "head": third}, sizes) == Recipe(third)
    with pytest.raises(RadinError, match="group tail names no tensor"):
        Recipe.by_group({"body": HALF, "tail": LAST}, sizes)


def test_normalized_does_so_in_every_group():
    recipe = Recipe.normalized([1, 1, 0], {"head": [0, 0, 5]})
    assert recipe == Recipe(HALF, groups=(Group("head", LAST),))


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ((("head", (0.5, 0.5)),), "the group head has 2 mixing ratios, the recipe 3"),
        ((("head", (1.5, -0.5, 0.0)),), "ratio 1 in the group head is -0.5"),
        ((("head", (0.5, 0.1, 0.0)),), "these in the group head sum to 0.6"),
        ((("head", LAST), ("head", HALF)), "two groups of tensors are named head"),
        ((("head.", LAST),), "without a dot at either end; got 'head.'"),
        ((("", LAST),), "a group of tensors is named as a module is"),
    ],
)
def test_what_cannot_be_a_group_is_refused(groups, says):
    with pytest.raises(RadinError, match=says):
        Recipe(HALF, groups=tuple(Group(*group) for group in groups))


@pytest.mark.parametrize(
    "groups",
    [
        {"head": [0.5, 0.5]},
        ["head"],
        [{"name": 3, "weights": [0.5, 0.5]}],
        [{"name": "head", "weights": [1.0]}],
        [{"name": "head", "weights": [float("nan"), 1.0]}],
        [{"name": "head", "weights": [10**400, 1.0]}],
        [{"name": "head", "weights": ["1", 0]}],
        [{"name": "head"}],
    ],
)
def test_json_of_another_shape_is_refused(groups):
    value = {**Recipe(HALF).to_json(NAMES, PRINTS), "groups": groups}
    with pytest.raises(RadinError, match="each with 2 weights"):
        Recipe.from_json(value, PRINTS)


@pytest.mark.parametrize("reestimated", [False, True])
def test_a_member_alone_is_the_recipe_that_its_ratios_make(reestimated):
    alone, checked = Recipe.single(2, 4, reestimated=reestimated), Recipe((0.0, 0.0, 1.0, 0.0), reestimated)
    assert alone == checked
    assert hash(alone) == hash(checked)
    assert (alone.members, alone.groups, alone.is_single) == (checked.members, checked.groups, checked.is_single)
    assert pickle.loads(pickle.dumps(alone)) == checked
    assert alone.identity("abcd") == checked.identity("abcd")
    assert alone != Recipe.single(2, 4, reestimated=not reestimated)
    assert alone != Recipe.single(1, 4, reestimated=reestimated)
    assert alone != "a recipe"
    for outside in (-1, 4):
        with pytest.raises(RadinError, match=r"index in 0\.\.3"):
            Recipe.single(outside, 4)
