"""A small pool of real networks that numpy trains in a moment, with the true scores of its soups.

Axis names: members N, examples M, classes C.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from radin import metrics
from radin.question import Floats, Indices
from radin.recipe import Recipe

# (learning rate, steps): from gentle to rough, so that some members harm a soup.
_RUNS = ((0.1, 30), (0.2, 30), (0.4, 20), (0.1, 40), (0.8, 20), (0.2, 40), (1.6, 20), (0.1, 50), (3.0, 20), (0.5, 30))
_HIDDEN, _INPUTS, _CLASSES = 24, 20, 6
_NOISE = 1.6  # how far examples lie from the middle of their class: about a sixth are told wrongly


class SoupPool(Protocol):
    """What the checks need of a pool: members' outputs, and what their soups truly score."""

    @property
    def outputs(self) -> Floats:
        """Members' outputs on the validation examples, (N, M, C)."""

    @property
    def targets(self) -> Indices:
        """One class per example, (M,)."""

    def logits(self, recipe: Recipe) -> Floats:
        """Outputs of the soup itself, (M, C), not the averaged outputs."""

    def score(self, recipe: Recipe, metric: str = "accuracy") -> float:
        """The true score of a recipe's soup."""

    def singles(self, metric: str = "accuracy") -> Floats:
        """The members' own scores, (N,)."""

    def keys(self) -> list[str]:
        """One string per member that names its content."""

    def gram(self) -> Floats:
        """Inner products of the members' weights, (N, N)."""

    def permuted(self, order: list[int]) -> Self:
        """The pool of the members in another order, or of some of them."""


@dataclass(frozen=True, eq=False)
class MadePool:
    """Networks of one hidden layer, as a SoupPool: ``layers`` holds each member's two weights and two biases."""

    outputs: Floats
    targets: Indices
    inputs: Floats
    layers: list[list[Floats]]
    _made: dict[tuple[Recipe, str], float] = field(default_factory=dict)

    def logits(self, recipe: Recipe) -> Floats:
        """Outputs of the soup itself, (M, C)."""
        parts = range(len(self.layers[0]))
        soup = [
            np.sum([p * member[k] for p, member in zip(recipe.weights, self.layers, strict=True)], 0) for k in parts
        ]
        return _forward(soup, self.inputs)[1]

    def score(self, recipe: Recipe, metric: str = "accuracy") -> float:
        """The true score of a recipe's soup."""
        key = (recipe, metric)
        if key not in self._made:
            self._made[key] = metrics.get(metric).value(self.logits(recipe), self.targets)
        return self._made[key]

    def singles(self, metric: str = "accuracy") -> Floats:
        """The members' own scores, (N,)."""
        count = len(self.layers)
        return np.array([self.score(Recipe.single(k, count), metric) for k in range(count)])

    def keys(self) -> list[str]:
        """A hash of each member's outputs."""
        return [hashlib.sha256(np.ascontiguousarray(own).data).hexdigest() for own in self.outputs]

    def gram(self) -> Floats:
        """Inner products (N, N), each by itself, so that no order of members rounds otherwise."""
        flat = [np.concatenate([part.ravel() for part in member]) for member in self.layers]
        return np.array([[one @ other for other in flat] for one in flat])

    def permuted(self, order: list[int]) -> MadePool:
        """The same pool in another order, or some of its members."""
        return MadePool(self.outputs[order], self.targets, self.inputs, [self.layers[k] for k in order])


def make_pool(seed: int = 0) -> MadePool:
    """Ten networks fine-tuned from one initialisation, M = 600 examples of C = 6 classes."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(_CLASSES, _INPUTS))
    labels = rng.integers(0, _CLASSES, 1600)
    inputs = middles[labels] + _NOISE * rng.normal(size=(len(labels), _INPUTS))
    start = [
        rng.normal(size=(_INPUTS, _HIDDEN)) / np.sqrt(_INPUTS),
        rng.normal(size=(_HIDDEN, _CLASSES)) / np.sqrt(_HIDDEN),
        np.zeros(_HIDDEN),
        np.zeros(_CLASSES),
    ]
    start = _trained(start, inputs[:200], labels[:200], 0.3, 40, rng)
    layers = []
    for rate, steps in _RUNS:  # each sees its own few examples: what averaging is good for
        own = rng.choice(np.arange(200, 1000), 120, replace=False)
        layers.append(_trained(start, inputs[own], labels[own], rate, steps, rng))
    outputs = np.stack([_forward(member, inputs[1000:])[1] for member in layers])
    return MadePool(outputs, labels[1000:], inputs[1000:], layers)


def _forward(layers: list[Floats], inputs: Floats) -> tuple[Floats, Floats]:
    """The hidden layer's values and the outputs."""
    hidden = np.maximum(inputs @ layers[0] + layers[2], 0)
    return hidden, hidden @ layers[1] + layers[3]


def _trained(
    start: list[Floats], inputs: Floats, labels: Indices, rate: float, steps: int, rng: np.random.Generator
) -> list[Floats]:
    """The network after ``steps`` of gradient descent on its cross-entropy, 50 examples each."""
    layers = [part.copy() for part in start]
    for _ in range(steps):
        chosen = rng.choice(len(inputs), 50, replace=False)
        hidden, outputs = _forward(layers, inputs[chosen])
        slope = np.exp(outputs - outputs.max(1, keepdims=True))
        slope /= slope.sum(1, keepdims=True)
        slope[np.arange(50), labels[chosen]] -= 1
        slope /= 50
        back = (slope @ layers[1].T) * (hidden > 0)
        for part, change in zip(
            layers, (inputs[chosen].T @ back, hidden.T @ slope, back.sum(0), slope.sum(0)), strict=True
        ):
            part -= rate * change
    return layers
