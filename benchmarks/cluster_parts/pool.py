"""A pool that exists only as outputs, of any number of members, and soups whose scores follow from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from radin import Recipe

_DIRECTIONS = 6  # in which all members differ
_WEIGHTS = 64


class Listed(list):  # type: ignore[type-arg]
    """Members by name and content, as much of a ``radin.Pool`` as a session needs."""

    bytes = 0

    def __init__(self, count: int) -> None:
        super().__init__(SimpleNamespace(name=f"member-{k:05}") for k in range(count))
        self.fingerprints = tuple(hashlib.sha256(str(k).encode()).hexdigest() for k in range(count))


@dataclass(frozen=True, eq=False)
class SimulatedPool:
    """``outputs`` (N, M, C) of members around a common start, ``targets`` (M,) and points (N, W) in weight space.

    A soup's outputs are the averaged ones, moved off the more the more its members are spread: by normal noise that its
    recipe decides.
    """

    outputs: np.ndarray
    targets: np.ndarray
    points: np.ndarray

    @classmethod
    def made(cls, members: int, examples: int = 500, classes: int = 5, seed: int = 0) -> SimulatedPool:
        """Single members get about 0.7 to 0.9 right."""
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, classes, examples)
        start = rng.normal(size=(examples, classes)).astype(np.float32)
        start[np.arange(examples), targets] += 2 * rng.normal(size=examples) + 4.5
        directions = rng.normal(size=(_DIRECTIONS, examples, classes)).astype(np.float32)
        outputs = np.empty((members, examples, classes), np.float32)
        mixed = 0.4 * rng.normal(size=(members, _DIRECTIONS)).astype(np.float32)
        spread = (0.3 + 0.7 * rng.random(members)).astype(np.float32)
        for k, mine in enumerate(outputs):
            mine[:] = start + np.tensordot(mixed[k], directions, 1)
            mine += spread[k] * rng.standard_normal(start.shape, dtype=np.float32)
        points = np.concatenate([mixed, spread[:, None] * rng.normal(size=(members, _WEIGHTS))], axis=1)
        return cls(outputs, targets, points)

    @cached_property
    def gram(self) -> np.ndarray:
        """Inner products of the members' weights, (N, N)."""
        return self.points @ self.points.T

    @cached_property
    def listed(self) -> Any:
        """The members as a session knows them."""
        return Listed(len(self.outputs))

    @cached_property
    def _known(self) -> dict[Recipe, np.ndarray]:
        return {}

    def values(self, recipe: Recipe) -> np.ndarray:
        """Which examples the soup gets right, (M,)."""
        if recipe not in self._known:
            ratios = np.array([recipe.weights[k] for k in recipe.members], np.float32)
            mixed = np.tensordot(ratios, self.outputs[list(recipe.members)], 1)
            if recipe.size > 1:
                seed = int(recipe.identity(self.listed.fingerprints)[:12], 16)
                mixed = mixed + 0.3 * (1 - float(ratios @ ratios)) * np.random.default_rng(seed).normal(
                    size=mixed.shape
                )
            self._known[recipe] = (mixed.argmax(axis=1) == self.targets).astype(np.float64)
        return self._known[recipe]
