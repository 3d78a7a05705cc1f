"""The benchmark of hidden outputs: curves, what they say of ours, and the short form for a small pool."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmarks.spending.hidden import GREEDY, OURS, Curves, curve, play, quick, table, together
from benchmarks.spending.truth import Truth

from radin import Recipe


@pytest.fixture(scope="module")
def folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    (folder / "members").mkdir()
    for path in toy_folder.glob("*.safetensors"):
        shutil.copy(path, folder / "members")
    shutil.copy(toy_folder / "task.py", folder)
    return folder


def made(ours: list[list[float]], other: list[list[float]], single: list[float]) -> Curves:
    return Curves("made", {OURS: np.array(ours), GREEDY: np.array(other)}, np.array(single))


def test_the_lead_is_paired_and_in_percentage_points() -> None:
    curves = made([[0.5, 0.6], [0.7, 0.9]], [[0.4, 0.6], [0.5, 0.7]], [0.5, 0.8])
    mean, error = curves.lead(GREEDY)
    np.testing.assert_allclose(mean, [15.0, 10.0])
    np.testing.assert_allclose(error, [5.0, 10.0])
    assert curves.below_single() == 1
    text = table(curves)
    assert "| greedy, strict | +15.00 ± 5.00 | +10.00 ± 10.00 | +10.00 |" in text
    assert "Below the best single member: 1 of 4 cases." in text


def test_pools_are_put_together() -> None:
    first, second = made([[0.5]], [[0.4]], [0.3]), made([[0.7]], [[0.8]], [0.6])
    whole = together([first, second], "both")
    np.testing.assert_array_equal(whole.best[OURS], [[0.5], [0.7]])
    np.testing.assert_array_equal(whole.single, [0.3, 0.6])


def test_greedys_curve_is_the_best_of_its_soups_and_the_best_member(folder: Path) -> None:
    truth = Truth(folder)
    members = [0, 1, 3, 5]
    found = curve(truth, members, GREEDY, 5, seed=0)
    order = sorted(members, key=lambda k: (-truth.singles[k], truth.pool.fingerprints[k]))
    kept, current, expected = order[:1], truth.singles[order[0]], []
    for k in order[1:]:
        score = truth.score(Recipe.uniform([*kept, k], len(truth.pool)), "validation")
        if score > current:
            kept, current = [*kept, k], score
        expected.append(current)
    np.testing.assert_allclose(found, [*expected, current, current])


def test_play_draws_the_same_sub_pools_again_and_ours_is_never_below_the_best_member(folder: Path) -> None:
    truth = Truth(folder)
    once, again = (play(truth, "toy", range(2), 4, 3, (OURS, GREEDY)) for _ in range(2))
    np.testing.assert_array_equal(once.best[OURS], again.best[OURS])
    assert once.best[OURS].shape == (2, 3)
    assert once.below_single() == 0


def test_the_short_form_gives_two_numbers(folder: Path) -> None:
    found = quick(folder, subpools=2, members=4, most=3)
    assert set(found) == {"hidden_vs_greedy_pp", "hidden_below_best_single"}
    assert np.isfinite(found["hidden_vs_greedy_pp"])
    assert found["hidden_below_best_single"] == 0
