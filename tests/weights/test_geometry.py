"""Gram matrix, distances and dispersion against plain numpy on the whole weights."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radin.recipe import Recipe
from radin.weights import Pool, average, dispersion, distances, geometry, gram

geometry_module = importlib.import_module("radin.weights.geometry")

MEMBERS = 5


@pytest.fixture
def flat(tmp_path: Path) -> np.ndarray:
    """Writes a pool and returns its weights as one float64 matrix (members, numbers)."""
    rows = []
    for k in range(MEMBERS):
        generator = torch.Generator().manual_seed(k)
        weight = 3 + 0.1 * torch.randn(31, 7, generator=generator)
        phase = torch.randn(9, generator=generator, dtype=torch.complex64)
        half = torch.randn(11, generator=generator).bfloat16()
        torch.save(
            {
                "weight": weight,
                "tied": weight,
                "phase": phase,
                "half": half,
                "steps": torch.tensor(k * 100),
                "bn.running_mean": 1000 * torch.randn(3),
                "bn.running_var": 1000 * torch.rand(3),
            },
            tmp_path / f"m{k}.pt",
        )
        parts = [
            half.double().numpy(),
            torch.view_as_real(phase).double().numpy().ravel(),
            weight.double().numpy().ravel(),
        ]
        rows.append(np.concatenate(parts))
    return np.stack(rows)


@pytest.mark.parametrize(("open_", "block"), [(1 << 25, 1 << 22), (60, 25)])
def test_gram_equals_the_whole_product(
    tmp_path: Path, flat: np.ndarray, monkeypatch: pytest.MonkeyPatch, open_: int, block: int
) -> None:
    monkeypatch.setattr(geometry_module, "_OPEN", open_)
    monkeypatch.setattr(geometry_module, "_BLOCK", block)
    seen: list[tuple[int, int]] = []
    result = geometry(Pool.open(tmp_path), progress=lambda done, total: seen.append((done, total)))
    centred = flat - flat.mean(axis=0)
    np.testing.assert_allclose(result.gram, centred @ centred.T, rtol=1e-12, atol=1e-12)
    assert result.mean_norm == pytest.approx(np.linalg.norm(flat.mean(axis=0)), rel=1e-12)
    expected = np.linalg.norm(flat[:, None] - flat[None, :], axis=2)
    np.testing.assert_allclose(distances(result.gram), expected, atol=1e-10)
    np.testing.assert_allclose(result.distances, expected / result.mean_norm, atol=1e-10)
    assert seen[-1] == (MEMBERS * (31 * 7 * 4 + 9 * 8 + 11 * 2),) * 2


def test_dispersion_is_the_mean_squared_distance_to_the_soup(tmp_path: Path, flat: np.ndarray) -> None:
    # sum_{i<j} p_i p_j ||theta_i - theta_j||^2 = sum_i p_i ||theta_i - theta_bar||^2 for p that sums to 1
    pool = Pool.open(tmp_path)
    recipe = Recipe.normalized([1, 0, 2, 3, 0.5])
    weights = np.array(recipe.weights)
    expected = weights @ ((flat - weights @ flat) ** 2).sum(axis=1)
    assert float(dispersion(gram(pool), weights)) == pytest.approx(expected, rel=1e-10)
    soup = average(pool, recipe)["weight"].double().numpy().ravel()
    np.testing.assert_allclose(soup, (weights @ flat)[-soup.size :], rtol=1e-6)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_dispersion_equals_its_definition_about_any_origin(members: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(members, 4))
    rows = rng.dirichlet(np.ones(members), size=3)
    pairs = list(itertools.combinations(range(members), 2))
    expected = [sum(p[i] * p[j] * ((theta[i] - theta[j]) ** 2).sum() for i, j in pairs) for p in rows]
    shifted = theta - rng.normal(size=4)
    np.testing.assert_allclose(dispersion(theta @ theta.T, rows), expected, atol=1e-10)
    np.testing.assert_allclose(dispersion(shifted @ shifted.T, rows), expected, atol=1e-10)
    assert dispersion(theta @ theta.T, rows[0]).shape == ()


def test_single_members_have_no_dispersion_and_copies_no_distance() -> None:
    theta = np.array([[1e4, 1.0], [1e4, 1.0], [-2e4, 3.0]]) + 1e-3
    np.testing.assert_allclose(dispersion(theta @ theta.T, np.eye(3)), 0, atol=1e-6)
    assert distances(theta @ theta.T)[0, 1] == pytest.approx(0, abs=1e-3)
    assert not np.isnan(distances(theta @ theta.T)).any()
