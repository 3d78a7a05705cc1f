"""A small real zoo: networks fine-tuned on handwritten digits from one initialisation, and their true soups."""

from __future__ import annotations

import copy
import hashlib
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from radin import metrics
from radin.recipe import Recipe

# (learning rate, weight decay, epochs, seed): from gentle to rough, so that some members harm a soup.
RUNS = [
    (0.002, 1e-4, 3, 0),
    (0.004, 1e-4, 3, 1),
    (0.008, 1e-4, 2, 2),
    (0.002, 1e-2, 4, 3),
    (0.015, 1e-4, 2, 4),
    (0.004, 1e-1, 3, 5),
    (0.03, 1e-4, 2, 6),
    (0.001, 1e-4, 5, 7),
    (0.06, 1e-4, 2, 8),
    (0.01, 1e-3, 3, 9),
]


@dataclass(frozen=True)
class Zoo:
    """Members' outputs (N, M, C) on validation examples, and the weights from which soups are made."""

    outputs: np.ndarray
    targets: np.ndarray
    inputs: np.ndarray
    layers: list[list[np.ndarray]]
    made: dict[Any, float] = field(default_factory=dict)

    def logits(self, recipe: Recipe) -> np.ndarray:
        """Outputs of the soup itself, not of the averaged outputs."""
        hidden_weights, output_weights, hidden_bias, output_bias = (
            sum(p * member[part] for p, member in zip(recipe.weights, self.layers, strict=True)) for part in range(4)
        )
        return np.maximum(self.inputs @ hidden_weights + hidden_bias, 0) @ output_weights + output_bias

    def score(self, recipe: Recipe, metric: str = "accuracy") -> float:
        """The true score of a recipe's soup."""
        key = (recipe, metric)
        if key not in self.made:
            self.made[key] = metrics.get(metric).value(self.logits(recipe), self.targets)
        return self.made[key]

    def singles(self, metric: str = "accuracy") -> np.ndarray:
        """The members' own scores."""
        members = len(self.layers)
        return np.array([self.score(Recipe.single(k, members), metric) for k in range(members)])

    def keys(self) -> list[str]:
        """One string per member that names its content."""
        return [hashlib.sha256(np.ascontiguousarray(own).data).hexdigest() for own in self.outputs]

    def gram(self) -> np.ndarray:
        """Inner products of the members' weights, each by itself, so that no order of members rounds otherwise."""
        flat = [np.concatenate([part.ravel() for part in member]) for member in self.layers]
        return np.array([[one @ other for other in flat] for one in flat])

    def permuted(self, order: list[int]) -> Zoo:
        return Zoo(self.outputs[order], self.targets, self.inputs, [self.layers[k] for k in order])


@pytest.fixture(scope="session")
def zoo() -> Zoo:
    digits = load_digits()
    inputs = digits.data / 16.0
    labels = digits.target
    shuffled = np.random.default_rng(0).permutation(len(labels))
    start, tune, check = shuffled[:200], shuffled[200:900], shuffled[900:1700]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = MLPClassifier((24,), max_iter=12, learning_rate_init=0.01, random_state=0)
        first.fit(inputs[start], labels[start])
        layers = []
        for rate, decay, epochs, seed in RUNS:
            model = copy.deepcopy(first)
            model.set_params(learning_rate_init=rate, alpha=decay, random_state=seed)
            rng = np.random.default_rng(seed)
            del model._optimizer  # so that partial_fit makes one with the new learning rate
            for _ in range(epochs):
                chosen = rng.choice(tune, 400, replace=False)
                for batch in np.array_split(chosen, 8):
                    model.partial_fit(inputs[batch], labels[batch])
            layers.append([*model.coefs_, *model.intercepts_])
    pool = Zoo(np.empty(0), labels[check], inputs[check], layers)
    outputs = np.stack([pool.logits(Recipe.single(k, len(RUNS))) for k in range(len(RUNS))])
    return Zoo(outputs, pool.targets, pool.inputs, layers)


class Dense:
    """The estimate by its definition: average the outputs, then the metric."""

    def __init__(self, outputs: np.ndarray, targets: np.ndarray, metric: str = "accuracy") -> None:
        self.outputs, self.targets, self.metric = outputs, targets, metrics.get(metric)

    def scores(self, weights: np.ndarray) -> np.ndarray:
        return np.array([self.metric.value(np.tensordot(p, self.outputs, 1), self.targets) for p in weights])


@pytest.fixture(scope="session")
def dense() -> type[Dense]:
    return Dense
