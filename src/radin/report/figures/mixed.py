"""Figure 1, its claim measured: averaged outputs against the soup's, beside first- and second-order theory.

The paper's equations 1 to 4: to first order in the members' distances both are the same, for any ratios p. To second
order averaged outputs minus the soup's are sum_{i<j} p_i p_j h_ij with h_ij = 1/2 d_ij' H d_ij, which on a line is
p (1 - p) h. What h is, is not known; that one h fits all points is what is tested. Axis names: points S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np

from radin.question import Answer, Floats
from radin.recipe import Recipe
from radin.report.figures.values import About, Unavailable
from radin.run import mixing as passes
from radin.run.record import RunRecord


@dataclass(frozen=True)
class MixedPoint:
    """One recipe. ratios: of the best members, best first. soup, averaged: the scores of the soup and of the averaged
    outputs, with standard errors; gap: averaged minus soup, over the same examples. apart: the root mean square of
    averaged minus soup's outputs; second_order: what the fitted theory says of it (first order: 0).
    """

    ratios: tuple[float, ...]
    soup: float
    soup_stderr: float
    averaged: float
    gap: float
    gap_stderr: float
    apart: float
    second_order: float


@dataclass(frozen=True)
class Fit:
    """How well theory fits the distances of outputs: root mean squares of what it leaves, over the points.

    first_order: of the distances themselves, where theory says 0. second_order: once its constants are fitted.
    points: how many; constants: how many were fitted.
    """

    first_order: float
    second_order: float
    points: int
    constants: int

    @property
    def explained(self) -> float:
        """The share of the first-order theory's squared error that the second-order one takes away."""
        return 1 - (self.second_order / self.first_order) ** 2 if self.first_order else 0.0


@dataclass(frozen=True)
class MixedFigure:
    """Figure 1. ``names``: of the best members, best first. line: from the second (p = 0) to the best (p = 1), these
    left out; simplex: of all three, its sides included. ends: the members' scores, evaluated as soups are.
    reestimated: whether their BatchNorm statistics were estimated again, as the soups' are.
    """

    about: About
    names: tuple[str, ...]
    ends: tuple[float, ...]
    line: tuple[MixedPoint, ...]
    line_fit: Fit
    simplex: tuple[MixedPoint, ...]
    simplex_fit: Fit | None
    reestimated: bool


def mixing(record: RunRecord) -> MixedFigure | Unavailable:
    """The gap between averaged outputs and soup, as far as it was measured (Figure 1)."""
    line = [recipe for recipe in passes.line(record) if _known(record, recipe)]
    whole = passes.simplex(record)
    simplex = [recipe for recipe in whole if _known(record, recipe)]
    if len(line) < 2:
        needed = len(dict.fromkeys((*passes.line(record), *whole))) + 3
        if not record.identity.get("the metric's code"):
            return Unavailable("1", "a program evaluates, and the soups' outputs are not known")
        return Unavailable(
            "1",
            f"the soups' outputs between the best members are not known; --evaluate {needed} --task ... measures them",
        )
    members = passes.corners(record)
    line_theory = second_order(record, line, members[:2])
    enough = len(simplex) >= 7  # six constants, and one to see whether they fit
    simplex_theory = second_order(record, simplex, members) if enough else np.empty(0)
    again = {recipe.members[0]: answer for recipe, answer in record.reestimated_since.items()}
    return MixedFigure(
        about=About.of(record),
        names=tuple(record.names[k] for k in members),
        ends=tuple((again[k] if k in again else record.singles[k]).score for k in members),
        line=_points(record, line, members[:2], line_theory),
        line_fit=_fit(record, line, line_theory, 1),
        simplex=_points(record, simplex, members, simplex_theory) if enough else (),
        simplex_fit=_fit(record, simplex, simplex_theory, 6) if enough else None,
        reestimated=bool(set(members) & set(again)),
    )


def _known(record: RunRecord, recipe: Recipe) -> bool:
    return recipe in record.mixed and bool(np.isfinite(record.mixed[recipe][1])) and recipe in record.scores


def second_order(record: RunRecord, recipes: Sequence[Recipe], members: Sequence[int]) -> Floats:
    """The distances of outputs (S,) that second-order theory gives recipes, its constants fitted to those measured.

    The mean square of sum_{i<j} p_i p_j h_ij is quadratic in the products p_i p_j: its coefficients, the mean products
    of the h_ij, are found by least squares on the measured squares, each weighted by its inverse, so that all distances
    count by their relative error.
    """
    ratios = np.array([[recipe.weights[k] for k in members] for recipe in recipes])
    pairs = [ratios[:, i] * ratios[:, j] for i, j in combinations(range(len(members)), 2)]
    terms = np.array([first * second for first, second in combinations_with_replacement(pairs, 2)]).T
    squares = np.array([record.mixed[recipe][1] ** 2 for recipe in recipes])
    weights = 1 / np.maximum(squares, 1e-12 * squares.max(initial=1e-300))
    coefficients, *_ = np.linalg.lstsq(terms * weights[:, None], squares * weights, rcond=None)
    result: Floats = np.sqrt(np.maximum(terms @ coefficients, 0.0))
    return result


def _fit(record: RunRecord, recipes: Sequence[Recipe], theory: Floats, constants: int) -> Fit:
    apart = np.array([record.mixed[recipe][1] for recipe in recipes])
    left = float(np.sqrt(np.mean((apart - theory) ** 2)))
    return Fit(float(np.sqrt(np.mean(apart**2))), left, len(recipes), constants)


def _points(
    record: RunRecord, recipes: Sequence[Recipe], members: Sequence[int], theory: Floats
) -> tuple[MixedPoint, ...]:
    found = []
    for recipe, distance in zip(recipes, theory, strict=True):
        soup, (averaged, apart) = record.scores[recipe], record.mixed[recipe]
        gap, stderr = _gap(averaged, soup)
        ratios = tuple(recipe.weights[k] for k in members)
        found.append(MixedPoint(ratios, soup.score, soup.stderr, averaged.score, gap, stderr, apart, float(distance)))
    return tuple(found)


def _gap(averaged: Answer, soup: Answer) -> tuple[float, float]:
    """Averaged minus soup with its standard error, example by example where there are numbers for each."""
    if averaged.values is not None and soup.values is not None:
        differences = averaged.values - soup.values
        count = len(differences)
        return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return averaged.score - soup.score, float(np.hypot(averaged.stderr, soup.stderr))
