"""A recipe: mixing ratios over the pool, for all tensors or by group. The value that every room of radin passes on."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from radin.errors import RadinError, printable

_SUM_TOLERANCE = 1e-6
_LARGE = 1e100
_FARTHEST = 100.0  # a ratio of an affine recipe: beyond that, rounding of the members is most of the sum
_HOW_AFFINE = (
    'A soup lies among its members; a recipe that is to go beyond them says so: affine=True, or "affine": true in its '
    "JSON file"
)
_MOST_GROUPS = 100_000  # in a file; a model has fewer modules
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class Group:
    """Mixing ratios of some tensors: of those named ``name``, or whose names start with it and a dot.

    ``name``: a module's or a tensor's, such as "encoder.layer.3". ``weights`` has one float per member, in the pool's
    order, as those of a recipe. ``affine``: as of a recipe.
    """

    name: str
    weights: tuple[float, ...]
    affine: bool = False

    def __post_init__(self) -> None:
        """Raises RadinError when the name can be none of a module, or for ratios that no recipe could have."""
        if not self.name.strip(".") or self.name != self.name.strip(".") or len(self.name) > _LONGEST_NAME:
            raise RadinError(
                "a group of tensors is named as a module is, encoder.layer.3, without a dot at either end; got "
                f"{printable(self.name[:_LONGEST_NAME])!r}"
            )
        _check(self.weights, f" in the group {printable(self.name)}", self.affine)
        object.__setattr__(self, "affine", _has_negative(self.weights))


@dataclass(frozen=True)
class Recipe:
    """Mixing ratios p over the members of a pool: sum 1, and p >= 0 unless the recipe is affine.

    ``weights`` has one float per member, in the pool's order. ``reestimated``: of one member alone, that its BatchNorm
    statistics are estimated again, as those of every soup are; a member as it is has it False, and so has a soup.
    ``groups``: tensors with ratios of their own; ``weights`` are those of every other tensor. Where several groups name
    a tensor, the longest name holds. They are kept in the order of their names, and one that gives its tensors what
    they had without it is dropped. ``affine``: that ratios may be negative, here and in groups, and beyond 1: what lies
    outside of the members' hull. Where none is, it is False, so a recipe without has one form. Two recipes are equal
    when all of these are.
    """

    weights: tuple[float, ...]
    reestimated: bool = False
    groups: tuple[Group, ...] = ()
    affine: bool = False

    def __post_init__(self) -> None:
        """Raises RadinError when a ratio is negative or not finite, or when they do not sum to 1.

        Negative ones are allowed where ``affine`` says so, none larger than 100. So too for groups of one name, or with
        another number of ratios.
        """
        _check(self.weights, "", self.affine)
        if self.groups:
            for group in self.groups:
                if group.affine and not self.affine:
                    _check(group.weights, f" in the group {printable(group.name)}", False)
            object.__setattr__(self, "groups", _canonical(self.weights, self.groups))
        if self.affine:
            below = _has_negative(self.weights) or any(group.affine for group in self.groups)
            object.__setattr__(self, "affine", below)
        if self.reestimated and self.size != 1:
            raise RadinError(f"only a member alone can be marked as re-estimated; this recipe has {self.size} members")

    @classmethod
    def normalized(
        cls,
        weights: Iterable[float],
        groups: Mapping[str, Iterable[float]] | None = None,
        *,
        affine: bool = False,
    ) -> Recipe:
        """The recipe proportional to ``weights`` (any non-negative numbers, not all zero), and so for each group.

        ``affine``: any numbers, of a sum above zero.
        """
        own = tuple(Group(name, _normalized(values, affine), affine) for name, values in (groups or {}).items())
        return cls(_normalized(weights, affine), groups=own, affine=affine)

    @classmethod
    def by_group(
        cls, groups: Mapping[str, Sequence[float]], sizes: Mapping[str, int], *, affine: bool = False
    ) -> Recipe:
        """Ratios by group, and for all other tensors their mean over the tensors that groups name.

        ``sizes``: elements of each tensor of the pool, tied ones once; the mean is by elements. Raises RadinError where
        groups name no tensor.
        """
        if not groups:
            raise RadinError("a recipe by group needs at least one group of tensors; got none")
        first = Recipe(tuple(next(iter(groups.values()))), affine=affine)
        own = _by_name(first.weights, (Group(name, tuple(values), affine) for name, values in groups.items()))
        held = Counter[str]()
        for name, size in sizes.items():
            if (group := group_of(own, name)) is not None:
                held[group] += size
        if idle := [name for name in own if name not in held]:
            raise RadinError(f"the group {printable(idle[0])} names no tensor of the pool's")
        if len({group.weights for group in own.values()}) == 1:
            return first  # no mean, which would round
        total = held.total() or 1
        mean = (
            math.fsum(size * own[name].weights[k] for name, size in held.items()) / total
            for k in range(len(first.weights))
        )
        return cls(_normalized(mean, affine), groups=tuple(own.values()), affine=affine)

    @classmethod
    def uniform(cls, members: Iterable[int], pool_size: int) -> Recipe:
        """The equal average of ``members`` (indices into a pool of ``pool_size``)."""
        chosen = set(members)
        if not chosen or min(chosen) < 0 or max(chosen) >= pool_size:
            raise RadinError(f"a uniform recipe needs member indices in 0..{pool_size - 1}; got {sorted(chosen)}")
        share = 1.0 / len(chosen)
        return cls(tuple(share if k in chosen else 0.0 for k in range(pool_size)))

    @classmethod
    def single(cls, member: int, pool_size: int, *, reestimated: bool = False) -> Recipe:
        """One member alone: as it is, or with its BatchNorm statistics estimated again."""
        if not 0 <= member < pool_size:
            raise RadinError(f"a recipe of one member needs an index in 0..{pool_size - 1}; got {member}")
        # Not checked ratio by ratio: of a pool of N members there are N such recipes of N ratios.
        recipe = cls.__new__(cls)
        weights = (0.0,) * member + (1.0,) + (0.0,) * (pool_size - member - 1)
        values = {"weights": weights, "reestimated": reestimated, "groups": (), "affine": False, "members": (member,)}
        for name, value in values.items():
            object.__setattr__(recipe, name, value)
        return recipe

    def __eq__(self, other: object) -> bool:
        """By ratios, mark and groups; most that differ are told apart by their hashes, not ratio by ratio."""
        if not isinstance(other, Recipe):
            return NotImplemented
        if self is other or self._hash != other._hash:
            return self is other
        return (self.weights, self.reestimated, self.groups) == (other.weights, other.reestimated, other.groups)

    def __hash__(self) -> int:
        """By the ratios outside of groups, once: a search looks recipes up again and again."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.weights, self.reestimated))  # of numbers alone, so it is the same in every process

    @cached_property
    def members(self) -> tuple[int, ...]:
        """Indices of the members with a ratio other than 0 anywhere, ascending."""
        if not self.groups:
            return tuple(k for k, ratio in enumerate(self.weights) if ratio)
        rows = [self.weights, *(group.weights for group in self.groups)]
        return tuple(k for k, ratios in enumerate(zip(*rows, strict=True)) if any(ratios))

    @property
    def size(self) -> int:
        """How many members have a ratio other than 0."""
        return len(self.members)

    @property
    def is_single(self) -> bool:
        """Whether it is one member as it is, its BatchNorm statistics its own."""
        return self.size == 1 and not self.reestimated

    @property
    def is_uniform(self) -> bool:
        """Whether all its members have the same ratio, in every tensor."""
        return not self.groups and len({self.weights[k] for k in self.members}) == 1

    def group_of(self, tensor: str) -> str | None:
        """The group whose ratios a tensor has, by its name in the pool; None where it has those of the rest."""
        return group_of(self._by_name, tensor)

    def of(self, tensor: str) -> tuple[float, ...]:
        """(N,) the ratios of one tensor, by its name in the pool."""
        group = self.group_of(tensor)
        return self.weights if group is None else self._by_name[group].weights

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def permuted(self, order: Sequence[int]) -> Recipe:
        """The same recipe over a reordered pool: new position i holds the old member ``order[i]``."""
        groups = (Group(group.name, tuple(group.weights[k] for k in order), group.affine) for group in self.groups)
        return Recipe(tuple(self.weights[k] for k in order), self.reestimated, tuple(groups), self.affine)

    def identity(self, fingerprints: Sequence[str]) -> str:
        """A hash of which contents are mixed in which ratio: the same in any order of the members, in any pool."""

        def parts(weights: Sequence[float]) -> list[tuple[str, str]]:
            return sorted((fingerprints[k], weights[k].hex()) for k in self.members if weights[k])

        what: object = parts(self.weights)
        if self.reestimated:
            what = (what, "re-estimated")
        elif self.groups:
            what = (what, [(group.name, parts(group.weights)) for group in self.groups])
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def ratio_text(self, member: int, digits: int) -> str:
        """A member's ratio outside of groups and, where it has others in them, the least and the most of all."""
        found = [self.weights[member], *(group.weights[member] for group in self.groups)]
        span = f" ({min(found):.{digits}g} to {max(found):.{digits}g})" if min(found) < max(found) else ""
        return f"{self.weights[member]:.{digits}g}{span}"

    def describe(self, names: Sequence[str] | None = None) -> str:
        """Its members with their ratios: "a 0.25, c 0.75", or by index without names: "#0 0.25, #2 0.75".

        With groups, each ratio is that of the other tensors, followed by the least and the most in any group.
        """
        text = ", ".join(f"{names[k] if names else f'#{k}'} {self.ratio_text(k, 3)}" for k in self.members)
        if self.groups:
            text += f"; ratios of their own in {len(self.groups)} group{'s' * (len(self.groups) > 1)} of tensors"
        return f"{text}, BatchNorm statistics re-estimated" if self.reestimated else text

    def __repr__(self) -> str:
        more = ", reestimated=True" if self.reestimated else ""
        more += f", groups={self.groups}" if self.groups else ""
        more += ", affine=True" if self.affine else ""
        return f"Recipe(weights={self.weights}{more})"

    def __str__(self) -> str:
        return self.describe()

    def _repr_html_(self) -> str:
        from radin.report.html import recipe_html

        return recipe_html(self)

    def to_json(self, names: Sequence[str], fingerprints: Sequence[str]) -> dict[str, Any]:
        """A JSON form that stands on its own: each member's name, content fingerprint and ratio ("weight").

        And "reestimated": true, of a member alone with its BatchNorm statistics estimated again; "groups", of a recipe
        with such: each one's name and "weights", in the order of "members"; and "affine": true, where any is negative.
        """
        used = self.members
        members = [{"name": names[k], "fingerprint": fingerprints[k], "weight": self.weights[k]} for k in used]
        groups = [{"name": group.name, "weights": [group.weights[k] for k in used]} for group in self.groups]
        return {
            "members": members,
            **({"reestimated": True} if self.reestimated else {}),
            **({"groups": groups} if groups else {}),
            **({"affine": True} if self.affine else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], fingerprints: Sequence[str]) -> Recipe:
        """The recipe over a pool with these fingerprints. Raises RadinError if a member is not in the pool.

        So too for a value of another shape: nothing is known of it.
        """
        position = {fingerprint: k for k, fingerprint in enumerate(fingerprints)}
        places = []
        members = _members(value)
        for member in members:
            if member["fingerprint"] not in position:
                raise RadinError(
                    f"the recipe names {member['name']} ({member['fingerprint'][:12]}), which is not in this pool; "
                    "one written before fingerprints were BLAKE3 knows members by other ones: give its ratios instead"
                )
            places.append(position[member["fingerprint"]])

        def placed(ratios: Sequence[float]) -> tuple[float, ...]:
            weights = [0.0] * len(fingerprints)
            for place, ratio in zip(places, ratios, strict=True):
                weights[place] = float(ratio)
            return tuple(weights)

        affine = value.get("affine") is True
        groups = (Group(name, placed(ratios), affine) for name, ratios in _groups(value, len(members)))
        return cls(placed([m["weight"] for m in members]), value.get("reestimated") is True, tuple(groups), affine)


def _has_negative(weights: Sequence[float]) -> bool:
    return min(weights) < 0


def _check(weights: Sequence[float], where: str, affine: bool) -> None:
    """Raises RadinError unless these can be the ratios of a soup. where: what to say of which they are."""
    if not weights:
        raise RadinError(f"a recipe needs at least one mixing ratio{where}; got none")
    if not all(map(math.isfinite, weights)) or (min(weights) < 0 and not affine):
        index, weight = next((i, w) for i, w in enumerate(weights) if not math.isfinite(w) or w < 0)
        raise RadinError(
            f"mixing ratios must be finite and not negative; ratio {index}{where} is {weight}. {_HOW_AFFINE}"
        )
    if affine and (farthest := max(map(abs, weights))) > _FARTHEST:
        index = next(i for i, w in enumerate(weights) if abs(w) == farthest)
        raise RadinError(
            f"mixing ratios of an affine recipe lie within {_FARTHEST:g} of 0; ratio {index}{where} is {weights[index]}"
        )
    total = math.fsum(weights) if affine or max(weights) <= 2 else max(weights)
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise RadinError(f"mixing ratios must sum to 1; these{where} sum to {total:.6g}. Use Recipe.normalized.")


def _normalized(weights: Iterable[float], affine: bool = False) -> tuple[float, ...]:
    """Ratios proportional to these. Raises RadinError where there are none such."""
    values = [float(w) for w in weights]
    for index, value in enumerate(values):
        if not math.isfinite(value) or (value < 0 and not affine):
            raise RadinError(f"mixing ratios must be finite and not negative; ratio {index} is {value}. {_HOW_AFFINE}")
    largest = max(map(abs, values), default=0.0)
    if largest <= 0:
        raise RadinError("mixing ratios must have a positive sum; " + ("all are 0" if values else "got none"))
    if min(values) < 0:
        values = [value / largest for value in values]
        if math.fsum(values) < 1 / _FARTHEST:
            raise RadinError(
                f"mixing ratios must have a positive sum, and none may be more than {_FARTHEST:g} times that; the "
                f"largest here is {largest:g}, the sum {largest * math.fsum(values):g}"
            )
    if largest > _LARGE:  # their sum could be infinite
        values = [value / largest for value in values]
    total = math.fsum(values)
    return tuple(v / total for v in values)


def _by_name(weights: Sequence[float], groups: Iterable[Group]) -> dict[str, Group]:
    """Groups by their names, in that order. Raises RadinError for two of one name, or other ratios than these many."""
    found: dict[str, Group] = {}
    for group in groups:
        if group.name in found:
            raise RadinError(f"two groups of tensors are named {printable(group.name)}; give one")
        if len(group.weights) != len(weights):
            raise RadinError(
                f"the group {printable(group.name)} has {len(group.weights)} mixing ratios, the recipe {len(weights)}"
            )
        found[group.name] = group
    return {name: found[name] for name in sorted(found)}


def group_of(names: Collection[str], tensor: str) -> str | None:
    """The longest of these names that is a tensor's own or a module's that it is in; None where it is in none."""
    name = tensor
    while name:
        if name in names:
            return name
        name = name.rpartition(".")[0]
    return None


def _canonical(weights: tuple[float, ...], groups: Iterable[Group]) -> tuple[Group, ...]:
    """In the order of their names, without those whose tensors would have the same ratios otherwise."""
    found = _by_name(weights, groups)
    rows = [weights, *(group.weights for group in found.values())]
    if sum(any(ratios) for ratios in zip(*rows, strict=True)) == 1:
        return ()  # one member alone, whatever rounding left in its ratios
    kept = []
    for name, group in found.items():
        around = group_of(found, name.rpartition(".")[0])
        if group.weights != (weights if around is None else found[around].weights):
            kept.append(group)
    return tuple(kept)


def _groups(value: dict[str, Any], members: int) -> list[tuple[str, list[float]]]:
    """The "groups" of a recipe's JSON form: names with a ratio per member. Raises RadinError for another shape."""
    groups = value.get("groups", [])
    whole = (
        isinstance(groups, list)
        and len(groups) <= _MOST_GROUPS
        and all(isinstance(group, dict) and isinstance(group.get("name"), str) for group in groups)
        and all(isinstance(ratios := group.get("weights"), list) and len(ratios) == members for group in groups)
        and all(isinstance(ratio, int | float) and abs(ratio) <= _LARGE for g in groups for ratio in g["weights"])
    )
    if not whole:
        raise RadinError(
            'these are no groups of a recipe: expected "groups": [{"name": "encoder.layer.3", "weights": [...]}, ...], '
            f"at most {_MOST_GROUPS:,}, each with {members} weights, one per entry of 'members' and in that order"
        )
    return [(group["name"], group["weights"]) for group in groups]


def _members(value: Any) -> list[dict[str, Any]]:
    """The "members" of a recipe's JSON form. Raises RadinError when they are not as ``to_json`` gives them."""
    members: Any = value.get("members") if isinstance(value, dict) else None
    kinds = {"name": str, "fingerprint": str, "weight": int | float}
    whole = isinstance(members, list) and all(
        isinstance(member, dict) and all(isinstance(member.get(key), kind) for key, kind in kinds.items())
        for member in members
    )
    if not whole:
        raise RadinError(
            'this is no recipe: expected {"members": [{"name": ..., "fingerprint": ..., "weight": ...}, ...]}'
        )
    found: list[dict[str, Any]] = members
    return found
