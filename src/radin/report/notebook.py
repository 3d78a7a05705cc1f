"""A finished run in a notebook: its figures as charts of Altair, its soups as a table of pandas."""

from __future__ import annotations

from typing import Any

from radin.errors import RadinError
from radin.report.figures import FIGURES, Unavailable
from radin.report.figures.drawing import altair, chart
from radin.run.record import RunRecord
from radin.run.result import Result, Scored


def figure(result: Result, number: str) -> Any:
    """A figure of the run, by the number that the paper gives it: an Altair chart, which also saves itself.

    Raises RadinError where the run cannot show it, or Altair is missing.
    """
    alt = altair()
    values = FIGURES[number](RunRecord.read(result.out))
    if isinstance(values, Unavailable):
        raise RadinError(values.why)
    return alt.Chart.from_dict(chart(values))


def frame(result: Result) -> Any:
    """A pandas DataFrame with a row for each model reported and then each soup evaluated.

    Columns: name, members (how many), score, stderr, estimate, seconds; NAME and NAME stderr of each further split or
    set; ratio NAME, the mixing ratio of each member. Raises RadinError where pandas is missing.
    """
    try:
        import pandas
    except ImportError:
        raise RadinError("a table of pandas takes pandas: pip install pandas") from None
    models = [result.best, result.best_single, result.reestimated, result.uniform, result.ensemble]
    rows = [_row(result, found) for found in (*models, *result.evaluations) if found is not None]
    return pandas.DataFrame(rows)


def _row(result: Result, scored: Scored) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": scored.name,
        "members": scored.recipe.size,
        "score": _number(scored.score),
        "stderr": _number(scored.stderr),
        "estimate": _number(scored.estimate),
        "seconds": _number(scored.seconds),
    }
    for on in (scored.splits, scored.further):
        for name, (score, stderr) in on.items():
            row |= {name: score, f"{name} stderr": stderr}
    ratios = zip(result.member_names, scored.recipe.weights, strict=True)
    return row | {f"ratio {name}": ratio for name, ratio in ratios}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
