"""A recipe: mixing ratios over the pool. The value that every room of radin passes on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from radin.errors import RadinError

_SUM_TOLERANCE = 1e-6
_LARGE = 1e100


@dataclass(frozen=True)
class Recipe:
    """Mixing ratios p over the members of a pool: p >= 0, sum 1.

    ``weights`` has one float per member, in the pool's order. ``reestimated``: of one member alone, that its BatchNorm
    statistics are estimated again, as those of every soup are; a member as it is has it False, and so has a soup. Two
    recipes are equal when both are.
    """

    weights: tuple[float, ...]
    reestimated: bool = False

    def __post_init__(self) -> None:
        """Raises RadinError when a ratio is negative or not finite, or when they do not sum to 1."""
        if not self.weights:
            raise RadinError("a recipe needs at least one mixing ratio; got none")
        for index, weight in enumerate(self.weights):
            if not math.isfinite(weight) or weight < 0:
                raise RadinError(
                    f"mixing ratios must be finite and not negative; ratio {index} is {weight}. "
                    "Task arithmetic with negative ratios is not a soup."
                )
        total = math.fsum(self.weights) if max(self.weights) <= 2 else max(self.weights)
        if abs(total - 1.0) > _SUM_TOLERANCE:
            raise RadinError(f"mixing ratios must sum to 1; these sum to {total:.6g}. Use Recipe.normalized.")
        if self.reestimated and self.size != 1:
            raise RadinError(f"only a member alone can be marked as re-estimated; this recipe has {self.size} members")

    @classmethod
    def normalized(cls, weights: Iterable[float]) -> Recipe:
        """The recipe proportional to ``weights`` (any non-negative numbers, not all zero)."""
        values = [float(w) for w in weights]
        for index, value in enumerate(values):
            if not math.isfinite(value) or value < 0:
                raise RadinError(f"mixing ratios must be finite and not negative; ratio {index} is {value}")
        largest = max(values, default=0.0)
        if largest <= 0:
            raise RadinError("mixing ratios must have a positive sum; " + ("all are 0" if values else "got none"))
        if largest > _LARGE:  # their sum could be infinite
            values = [value / largest for value in values]
        total = math.fsum(values)
        return cls(tuple(v / total for v in values))

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
        return cls(cls.uniform([member], pool_size).weights, reestimated)

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the members with a positive ratio, ascending."""
        return tuple(k for k, weight in enumerate(self.weights) if weight > 0)

    @property
    def size(self) -> int:
        """How many members have a positive ratio."""
        return len(self.members)

    @property
    def is_single(self) -> bool:
        """Whether it is one member as it is, its BatchNorm statistics its own."""
        return self.size == 1 and not self.reestimated

    @property
    def is_uniform(self) -> bool:
        """Whether all its members have the same ratio."""
        return len({self.weights[k] for k in self.members}) == 1

    def permuted(self, order: Sequence[int]) -> Recipe:
        """The same recipe over a reordered pool: new position i holds the old member ``order[i]``."""
        return Recipe(tuple(self.weights[k] for k in order), self.reestimated)

    def identity(self, fingerprints: Sequence[str]) -> str:
        """A hash of which contents are mixed in which ratio: the same in any order of the members, in any pool."""
        parts = sorted((fingerprints[k], self.weights[k].hex()) for k in self.members)
        what = (parts, "re-estimated") if self.reestimated else parts
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def describe(self, names: Sequence[str] | None = None) -> str:
        """Its members with their ratios: "a 0.25, c 0.75", or by index without names: "#0 0.25, #2 0.75"."""
        text = ", ".join(f"{names[k] if names else f'#{k}'} {self.weights[k]:.3g}" for k in self.members)
        return f"{text}, BatchNorm statistics re-estimated" if self.reestimated else text

    def __repr__(self) -> str:
        return f"Recipe(weights={self.weights}{', reestimated=True' if self.reestimated else ''})"

    def __str__(self) -> str:
        return self.describe()

    def _repr_html_(self) -> str:
        from radin.report.html import recipe_html

        return recipe_html(self)

    def to_json(self, names: Sequence[str], fingerprints: Sequence[str]) -> dict[str, Any]:
        """A JSON form that stands on its own: each member's name, content fingerprint and ratio ("weight").

        And "reestimated": true, of a member alone with its BatchNorm statistics estimated again.
        """
        members = [{"name": names[k], "fingerprint": fingerprints[k], "weight": self.weights[k]} for k in self.members]
        return {"members": members, **({"reestimated": True} if self.reestimated else {})}

    @classmethod
    def from_json(cls, value: dict[str, Any], fingerprints: Sequence[str]) -> Recipe:
        """The recipe over a pool with these fingerprints. Raises RadinError if a member is not in the pool.

        So too for a value of another shape: nothing is known of it.
        """
        position = {fingerprint: k for k, fingerprint in enumerate(fingerprints)}
        weights = [0.0] * len(fingerprints)
        for member in _members(value):
            if member["fingerprint"] not in position:
                raise RadinError(
                    f"the recipe names {member['name']} ({member['fingerprint'][:12]}), which is not in this pool; "
                    "one written before fingerprints were BLAKE3 knows members by other ones: give its ratios instead"
                )
            weights[position[member["fingerprint"]]] = float(member["weight"])
        return cls(tuple(weights), value.get("reestimated") is True)


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
