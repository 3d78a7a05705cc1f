"""Soups as the page's figures show them: points with their recipes. Axis names: members N, soups S."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from radin.question import Answer
from radin.recipe import Recipe
from radin.report.figures.budget import SHOWN
from radin.run import replay
from radin.run.record import RunRecord

Rows = list[dict[str, Any]]

FIRST, FURTHER, EVALUATED = 300, 500, 1500
"""Points of the candidates that are drawn: so many of the best, so many of the others, so many of those evaluated."""
LINES = 60  # soups whose ratios are drawn side by side


def code(recipe: Recipe) -> str:
    """A recipe in few characters, read by the page's script: ``u`` and members as bits, or ``w`` and their ratios."""
    if recipe.is_uniform and not recipe.groups:
        return f"u{sum(1 << k for k in recipe.members):x}"
    return "w" + ",".join(f"{k}:{recipe.weights[k]:.4g}" for k in recipe.members)


def known(record: RunRecord) -> list[tuple[Recipe, Answer]]:
    """All soups of two members and more with a true score, best first, equal ones by ratios."""
    found = [(s.recipe, s.found) for s in record.soups if s.recipe.size > 1 and math.isfinite(s.found.score)]
    return sorted(found, key=lambda pair: (-record.metric.utility(pair[1].score), pair[0].weights))


def ranking(record: RunRecord) -> tuple[Rows, int]:
    """Candidates and evaluated soups by estimate, best first, and how many there are; few enough of them to be drawn.

    Of many the best and evenly spaced others are kept, and all that were evaluated up to EVALUATED. Empty without
    outputs.
    """
    if record.estimator is None:
        return [], 0
    truths = dict(known(record))
    further = {soup.recipe for soup in record.soups if soup.further}
    recipes = list(dict.fromkeys((*truths, *record.candidates)))
    guesses = record.estimates(recipes)
    utility = np.array([record.metric.utility(float(guess)) for guess in guesses])
    order = [int(k) for k in np.argsort(-utility, kind="stable") if np.isfinite(guesses[k])]
    others = np.unique(np.linspace(FIRST, max(FIRST, len(order) - 1), FURTHER).astype(int))
    drawn = set(range(min(FIRST, len(order)))) | {int(place) for place in others if place < len(order)}
    evaluated = [place for place, k in enumerate(order) if recipes[k] in truths]
    rows: Rows = []
    for place in sorted(drawn | set(evaluated[:EVALUATED])):
        recipe = recipes[order[place]]
        answer = truths.get(recipe)
        row: dict[str, Any] = {
            "rank": place + 1,
            "estimate": _digits(float(guesses[order[place]])),
            "members": recipe.size,
        }
        row |= {"what": "not evaluated", "recipe": code(recipe)}
        if answer is not None:
            row |= {"truth": _digits(answer.score), "error": _digits(answer.stderr)}
            row["what"] = "evaluated since" if recipe in further else "evaluated by the run"
        rows.append(row)
    return rows, len(order)


def evaluated(record: RunRecord) -> Rows:
    """Soups with a true score, best first: at most EVALUATED."""
    found = known(record)[:EVALUATED]
    guesses = record.estimates([recipe for recipe, _ in found])
    further = {soup.recipe for soup in record.soups if soup.further}
    return [
        {
            "truth": _digits(answer.score),
            "error": _digits(answer.stderr),
            "estimate": _digits(float(guess)),
            "members": recipe.size,
            "equal": recipe.is_uniform,
            "what": "evaluated since" if recipe in further else "evaluated by the run",
            "recipe": code(recipe),
        }
        for (recipe, answer), guess in zip(found, guesses, strict=True)
    ]


def course(record: RunRecord) -> tuple[Rows, Rows]:
    """Score by passes spent: the steps of the run and of methods replayed from known scores, and where those stop."""
    own = replay.own_curve(record)
    longest = max(math.ceil(own.ends), int(record.settings.get("budget", 1)), 1)
    curves = [own]
    for method in replay.methods(record):
        if (method.name in SHOWN or method.outputs) and method.strategy != record.settings.get("strategy"):
            curves.append(replay.replay(record, method, record.scores, longest))
    steps: Rows = []
    stops: Rows = []
    for curve in curves:
        if curve is not own and curve.ends <= 0:
            continue  # it lacks its first soup
        until = min(curve.ends, longest)
        found = [_step(curve.name, s.passes, s) for s in curve.standings if s.passes <= until]
        found.append(_step(curve.name, until, curve.standings[-1]))
        steps += [row | {"own": curve is own} for row in found]
        if curve.missing is not None:
            stops.append(found[-1])
    return steps, stops


def _step(name: str, passes: float, standing: replay.Standing) -> dict[str, Any]:
    error = standing.stderr if math.isfinite(standing.stderr) else 0.0
    return {
        "method": name,
        "passes": round(passes, 3),
        "score": _digits(standing.score),
        "low": _digits(standing.score - error),
        "high": _digits(standing.score + error),
        "members": standing.recipe.size,
        "recipe": code(standing.recipe),
    }


def ratios(record: RunRecord) -> tuple[Rows, int]:
    """The best LINES soups with the ratios of all members, best member first, and how many soups there are.

    share: the soup's place among all of them, in per cent.
    """
    found = known(record)
    rows: Rows = []
    for place, (recipe, answer) in enumerate(found[:LINES]):
        rows.append(
            {
                "soup": place + 1,
                "share": round(100 * (place + 1) / len(found), 3),
                "score": _digits(answer.score),
                "members": recipe.size,
                "place": list(range(1, record.members + 1)),
                "ratio": [float(f"{recipe.weights[k]:.3g}") for k in record.order],
                "recipe": code(recipe),
            }
        )
    return rows, len(found)


def _digits(value: float) -> float | None:
    """Six significant digits; None for what is no number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def without(recipe: Recipe, members: Iterable[int]) -> list[Recipe]:
    """The recipe with each of these members left out, the other ratios in proportion."""
    found = []
    for member in members:
        weights = [0.0 if k == member else weight for k, weight in enumerate(recipe.weights)]
        found.append(Recipe.normalized(weights))
    return found
