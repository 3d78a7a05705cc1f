"""The benchmark of learned ratios: its numbers draw by draw, and the report that is made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmarks.paper import KEPT, finite
from benchmarks.spending import gains, targets
from benchmarks.spending.gains import BASELINES, BEFORE, DEFAULT, Draws, Row

import radin
from benchmarks import learned
from radin.report.figures.size import AtSize


def rows(pool: str, lead: float, *, below: bool = False, draws: int = 5) -> list[Row]:
    """A default ahead of all others by about ``lead`` points on test, and by one on validation."""
    rng = np.random.default_rng(0)
    found = []
    for draw in range(draws):
        for strategy in (DEFAULT, BEFORE, *BASELINES):
            first = strategy == DEFAULT
            test = 0.7 + 0.01 * draw + (lead / 100 if first else 1e-4 * rng.standard_normal())
            validation = 0.8 + (0.01 if first and not (below and draw == 0) else 0.0) - (0.02 if first and below else 0)
            found.append(Row(pool, f"{pool}-0", 13, draw, strategy, 8, test, validation))
    return found


def test_rows_are_kept_line_by_line_and_the_last_of_a_draw_counts(tmp_path: Path) -> None:
    path = tmp_path / "kept.csv"
    all_rows = [*rows("b", 0.5), *rows("a", 0.5)]
    for row in all_rows:
        gains.append(path, row)
    again = Row("b", "b-0", 13, 0, DEFAULT, 8, 0.123456, 0.9)
    gains.append(path, again)
    found = gains.read(path)
    assert len(found) == len(all_rows)
    assert again in found
    gains.write(path, found)
    assert gains.read(path) == sorted(found)
    assert path.read_text().splitlines()[1].startswith('a,a-0,13,0,"RADIN, lambda 0",8,')


def test_gains_are_paired_over_the_draws_that_both_have() -> None:
    found = [Row("a", "a", 13, draw, DEFAULT, 8, 0.5 + 0.01 * draw, 0.6) for draw in range(4)]
    found += [Row("a", "a", 13, draw, BEFORE, 8, 0.5, 0.6) for draw in (3, 1, 9)]
    found += [Row("a", "a", 72, 0, BEFORE, 8, 0.1, 0.1)]
    draws = Draws(found)
    np.testing.assert_allclose(draws.gains("a", BEFORE, 8, "test"), [1.0, 3.0])
    value = draws.mean(["a"], BEFORE, 8, "test")
    assert (value.mean, value.stderr) == pytest.approx((2.0, 1.0))  # standard deviation sqrt(2), over sqrt(2)
    assert draws.scores(["a"], BEFORE, 8, "test").mean == pytest.approx(50)


def test_the_answers_say_yes_and_no() -> None:
    good = targets.answers([*rows("a", 0.5), *rows("clipart", 0.4)])
    assert len(good) == 6
    assert all(line.rstrip(".").endswith("yes") for line in good)
    assert "+0.45 ±" in good[0]
    bad = targets.answers([*rows("a", 0.1, below=True), *rows("clipart", -0.1)])
    assert "**no**" in bad[0]
    assert bad[1].startswith("On no pool behind it by more than one: **no** (clipart -0.10 ±")
    assert bad[4].endswith("5 of 10 runs, all budgets: **no**.")
    assert "not behind pruned on test: -0.1" in bad[5]


def test_numbers_are_means_over_pools() -> None:
    found = targets.numbers([*rows("a", 0.5), *rows("b", 0.1)])
    assert found["learned_vs_ours_test_pp"] == pytest.approx(0.3, abs=0.02)
    assert 0 < found["learned_vs_ours_se_pp"] < 0.01
    assert found["ours_vs_pruned_test_pp"] == pytest.approx(0.3, abs=0.02)


def test_the_report_is_of_the_numbers_kept() -> None:
    kept = gains.read(KEPT)
    assert KEPT.with_suffix(".md").read_text() == targets.report(kept)
    assert kept == sorted(kept)
    assert all(np.isfinite(value) for value in targets.numbers(kept).values())


def test_baselines_and_runs_are_of_the_same_sub_pools(toy_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    shutil.copytree(toy_folder, folder / "members", ignore=shutil.ignore_patterns("task.py"))
    shutil.copy(toy_folder / "task.py", folder)
    files = sorted((folder / "members").glob("*.safetensors"))
    shutil.copy(files[0], folder / "members" / "z.safetensors")  # a member twice is one, as in cook
    (draw,) = [d for d in range(100) if {0, 6} < set(np.random.default_rng(d).choice(7, 3, replace=False))][:1]
    found = {
        (row.strategy, row.budget): row
        for row in learned.played("pool", folder, range(draw, draw + 1), 3, BASELINES, [1], set())
    }
    assert set(found) == {(label, 1) for label in BASELINES} | {("greedy, strict", 2)}
    ((cooked,),) = [list(learned.runs("pool", folder, range(draw, draw + 1), 3, [("uniform", 1)], False, set()))]
    uniform = found["uniform", 1]
    assert uniform.test == pytest.approx(cooked.test, abs=1e-9)
    assert uniform.validation == pytest.approx(cooked.validation, abs=1e-9)
    chosen = learned.drawn(sorted((folder / "members").glob("*.safetensors")), 3, draw)
    assert len(radin.Pool.open(chosen)) == 2
    known = {row.key for row in found.values()}
    assert not list(learned.played("pool", folder, range(draw, draw + 1), 3, BASELINES, [1], known))


def test_only_standard_errors_may_lack_in_a_figure() -> None:
    assert finite((AtSize(2, 1, 0.5, float("nan")),))
    assert not finite({"sizes": [AtSize(2, 1, float("inf"), 0.1)]})
