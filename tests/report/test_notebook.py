"""A finished run in a notebook: charts of what its figures hold, a table of pandas, a pool as HTML."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import vl_convert

import radin
from radin.report import figures
from radin.report.figures.drawing import chart
from radin.run.record import RunRecord
from radin.run.result import Result


@pytest.fixture(scope="module")
def result(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("notebook") / "run"
    return radin.cook(toy_folder, toy_folder / "task.py", budget=4, out=out, strategy="paper")


@pytest.mark.parametrize(
    ("plot", "values"),
    [
        ("plot_budget", figures.curves),
        ("plot_estimates", figures.estimates),
        ("plot_candidates", figures.ranked),
        ("plot_sizes", figures.sizes),
    ],
)
def test_a_plot_holds_what_the_figure_does(result, plot, values):
    found = getattr(result, plot)().to_dict()
    expected = chart(values(RunRecord.read(result.out)))
    assert vl_convert.vegalite_to_svg(found) == vl_convert.vegalite_to_svg(expected)


def test_a_plot_writes_itself_without_a_browser(result, tmp_path):
    result.plot_budget().save(tmp_path / "budget.svg")
    assert (tmp_path / "budget.svg").read_text().startswith("<svg")


def test_a_figure_that_the_run_cannot_show_says_why(toy_pool, tmp_path):
    command = radin.Command(f"{sys.executable} -c 'print(1)' {{soup}}")
    found = radin.cook(toy_pool, command, budget=2, out=tmp_path / "run")
    with pytest.raises(radin.RadinError, match="has no outputs of its members"):
        found.plot_estimates()


def test_soups_as_a_table_of_pandas(result):
    table = result.to_pandas()
    assert table["name"][0] == result.best.name
    assert len(table) == len(result.evaluations) + sum(
        found is not None
        for found in (result.best, result.best_single, result.reestimated, result.uniform, result.ensemble)
    )
    last = result.evaluations[-1]
    assert table["score"].iloc[-1] == last.score
    ratios = table[[f"ratio {name}" for name in result.member_names]].to_numpy()
    assert tuple(ratios[-1]) == last.recipe.weights
    assert np.allclose(ratios.sum(axis=1), 1)
    assert table["test"][0] == result.best.splits["test"][0]


def test_without_pandas_it_says_how_to_get_it(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(radin.RadinError, match="pip install pandas"):
        result.to_pandas()


def test_a_pool_as_html_is_escaped(toy_folder, tmp_path):
    names = ["<b>one.safetensors", "two.safetensors"]
    for name, source in zip(names, sorted(toy_folder.glob("*.safetensors")), strict=False):
        (tmp_path / name).write_bytes(source.read_bytes())
    pool = radin.Pool.open(tmp_path)
    text = pool._repr_html_()
    assert "pool of 2 members, 2,538 parameters each" in text
    assert "<b>" not in text
    assert "&lt;b&gt;one" in text
    assert all(member.fingerprint[:12] in text for member in pool)
