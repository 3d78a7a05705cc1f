"""The members as the page shows them: what they score, where they lie, what they give the winner, how they agree.

Axis names: members N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from radin.question import Floats
from radin.recipe import Recipe
from radin.report.page.soups import Rows, without
from radin.run.record import RunRecord

MOST = 80  # members that the picture of agreement has room for


@dataclass(frozen=True)
class MemberRow:
    """One member. distance: to the centre of the pool, as a share of the norm of its mean; None where weights are not
    read. ratio: in the winner. importance: what the winner's estimate loses without it, positive where it helps; None
    where it is not in the winner, or nothing can be estimated.
    """

    name: str
    fingerprint: str
    score: float
    stderr: float
    reestimated: float | None
    distance: float | None
    ratio: float
    importance: float | None


def members(record: RunRecord, winner: Recipe, to_centre: Floats | None) -> list[MemberRow]:
    """The members (N,), best first. to_centre: (N,) distances, where the weights were read."""
    losses = importance(record, winner)
    again = {r.members[0]: a.score for r, a in (*record.reestimated_since.items(), *record.reestimated.items())}
    return [
        MemberRow(
            record.names[k],
            record.fingerprints[k],
            record.singles[k].score,
            record.singles[k].stderr,
            again.get(k),
            None if to_centre is None else float(to_centre[k]),
            winner.weights[k],
            losses.get(k),
        )
        for k in record.order
    ]


def importance(record: RunRecord, winner: Recipe) -> dict[int, float]:
    """By member of the winner, how much better its estimate is than without that member, in the metric's units.

    Empty where that is not defined: of ratios by group, and of negative ones.
    """
    if record.estimator is None or winner.size < 2 or winner.groups or winner.affine:
        return {}
    whole, *left = record.estimates([winner, *without(winner, winner.members)])
    sign = 1.0 if record.metric.higher_is_better else -1.0
    found = {k: sign * float(whole - rest) for k, rest in zip(winner.members, left, strict=True)}
    return {k: loss for k, loss in found.items() if math.isfinite(loss)}


def scaled(distances: Floats) -> tuple[Floats, float]:
    """Classical multidimensional scaling of distances (N, N) to the plane (Torgerson 1952).

    Returns places (N, 2) about their mean, and the share of the variance that lies in the plane. Signs are such that
    the same distances give the same map.
    """
    squares = np.asarray(distances, dtype=np.float64) ** 2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(-0.5 * centred)
    top = np.argsort(values)[::-1][:2]
    places = vectors[:, top] * np.sqrt(np.maximum(values[top], 0.0))
    for axis in range(places.shape[1]):
        if places[np.argmax(np.abs(places[:, axis])), axis] < 0:
            places[:, axis] *= -1
    if places.shape[1] < 2:
        places = np.column_stack([places, np.zeros(len(places))])
    total = float(np.maximum(values, 0.0).sum())
    return places, float(np.maximum(values[top], 0.0).sum()) / total if total > 0 else 1.0


def pool_map(record: RunRecord, winner: Recipe, distances: Floats) -> tuple[Rows, float]:
    """The members in the plane with the soup among them, and the share of the variance that the plane shows.

    A soup is where its ratios put it: the plane is linear in the weights, so it lies at the mean of its members.
    """
    places, share = scaled(distances)
    rows: Rows = []
    for k, name in enumerate(record.names):
        row = {"name": name, "score": float(f"{record.singles[k].score:.6g}"), "what": "member"}
        rows.append(row | _at(places[k]) | {"ratio": float(f"{winner.weights[k]:.3g}")})
    if winner.size > 1 and not winner.groups:
        at = np.asarray(winner.weights) @ places
        rows.append({"name": f"soup of {winner.size}", "what": "chosen soup", "ratio": 1.0} | _at(at))
    return rows, share


def _at(place: Floats) -> dict[str, Any]:
    return {"x": float(f"{place[0]:.5g}"), "y": float(f"{place[1]:.5g}")}


def agreement(record: RunRecord) -> tuple[Rows, str] | None:
    """How alike members answer, pair by pair among the best MOST, and what that is; None without values per example.

    Where each example is right or wrong: the share on which both are right or both wrong. Else the correlation of the
    members' values.
    """
    shown = record.order[:MOST]
    values = [record.singles[k].values for k in shown]
    usable = [np.asarray(value, dtype=np.float64) for value in values if value is not None]
    if len(shown) < 2 or len(usable) < len(shown) or len({len(value) for value in usable}) > 1:
        return None
    matrix = np.array(usable)
    if np.isin(matrix, (0.0, 1.0)).all():
        alike = (matrix @ matrix.T + (1 - matrix) @ (1 - matrix).T) / matrix.shape[1]
        what = "share of examples on which both are right or both wrong"
    else:
        centred = matrix - matrix.mean(1, keepdims=True)
        norms = np.sqrt((centred**2).sum(1))
        alike = centred @ centred.T / np.maximum(np.outer(norms, norms), np.finfo(np.float64).tiny)
        what = "correlation of the members' values by example"
    rows: Rows = []
    for i in range(len(shown)):
        for j in range(i):
            rows.append({"a": i + 1, "b": j + 1, "v": float(f"{alike[i, j]:.4g}")})
    return rows, what
