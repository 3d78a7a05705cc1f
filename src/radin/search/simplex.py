"""Fit mixing ratios to a convex loss of the averaged outputs, over the simplex p >= 0, sum p = 1.

Cross-entropy of averaged logits is convex in p; squared error is quadratic in p. Axis name: members N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Loss = Callable[[Floats], tuple[float, Floats]]
"""p (N,) -> the loss and its gradient (N,)."""

_ARMIJO = 1e-4
_SMALLEST_STEP = 1e-10
_NEGLIGIBLE = 1e-12
_LARGE = 96  # members in use from which eigenvectors, which tell flat directions, take long
_CHANGES = 40


@dataclass(frozen=True)
class Fit:
    """Mixing ratios (N,), their loss, and how far it can be from the best: loss - minimum <= gap."""

    weights: Floats
    value: float
    gap: float
    evaluations: int


def duality_gap(weights: Floats, gradient: Floats) -> float:
    """The Frank-Wolfe gap, gradient . p - min(gradient): for a convex loss an upper bound on loss - minimum.

    Jaggi 2013, "Revisiting Frank-Wolfe", equation 2, where the simplex's corners are the members.
    """
    return float(gradient @ weights - gradient.min())


def quadratic_minimum(
    matrix: Floats, linear: Floats, start: Floats | None = None, *, changes: int | None = None
) -> Floats:
    """The p on the simplex that minimises p' matrix p / 2 + linear . p, by a primal active-set method.

    matrix (N, N) symmetric positive semidefinite, linear (N,) -> p (N,). From ``start`` (the best corner if None):
    minimise over the members in use, drop those whose weight reaches zero, then let in the member with the lowest
    gradient, until none is lower (Nocedal and Wright, algorithm 16.3). Where several p are equally good, as with
    members that repeat each other, it returns one of them. ``changes``: how often the members in use may change; each
    change lowers the quadratic, so that an early end is a better point, not the best one.
    """
    members = len(linear)
    weights = np.eye(members)[np.argmin(np.diag(matrix) / 2 + linear)] if start is None else start.copy()
    inside = weights > 0
    scale = float(np.abs(matrix).max() + np.abs(linear).max())
    for _ in range(50 * members if changes is None else changes):
        gradient = matrix @ weights + linear
        direction, to_minimum = _descent(matrix, gradient, inside, scale)
        shrinking = direction < 0
        limits = weights[shrinking] / -direction[shrinking]
        limit = float(limits.min(initial=np.inf))
        weights = weights + min(limit, to_minimum) * direction
        if limit <= to_minimum:
            leaving = shrinking & (weights <= _NEGLIGIBLE)
            leaving[np.flatnonzero(shrinking)[limits.argmin()]] = True
            inside &= ~leaving
            weights = np.where(inside, weights, 0.0)
            weights /= weights.sum()
            continue
        gradient = matrix @ weights + linear
        outside = np.where(inside, np.inf, gradient)
        enter = int(outside.argmin())
        if outside[enter] >= float(gradient @ weights) - 1e-14 * scale:
            break
        inside[enter] = True
    minimum: Floats = weights / weights.sum()
    return minimum


def _descent(matrix: Floats, gradient: Floats, inside: NDArray[np.bool_], scale: float) -> tuple[Floats, float]:
    """A direction that keeps the sum and the members in use, and the step along it to the quadratic's minimum.

    Newton's direction, step 1; but where the quadratic is flat and falls, straight down that way.
    """
    chosen = np.flatnonzero(inside)
    size = len(chosen)
    if size > _LARGE:
        newton = _newton(matrix[np.ix_(chosen, chosen)], gradient[chosen])
        if newton is not None:
            direction = np.zeros(len(gradient))
            direction[chosen] = newton
            return direction, 1.0
    centre = np.eye(size) - 1.0 / size
    values, vectors = np.linalg.eigh(centre @ matrix[np.ix_(chosen, chosen)] @ centre)
    slopes = vectors.T @ (centre @ gradient[chosen])
    curved = values > 4 * size * np.finfo(np.float64).eps * max(float(np.abs(matrix).max()), 1e-300)
    direction = np.zeros(len(gradient))
    if np.abs(slopes[~curved]).max(initial=0.0) > 1e-12 * scale:
        direction[chosen] = -(vectors[:, ~curved] @ slopes[~curved])
        curvature = float(direction @ matrix @ direction)
        return direction, float(-gradient @ direction) / curvature if curvature > 0 else np.inf
    direction[chosen] = -(vectors[:, curved] @ (slopes[curved] / values[curved]))
    return direction, 1.0


def _newton(matrix: Floats, gradient: Floats) -> Floats | None:
    """Newton's direction of sum zero, by one linear system; None where the matrix is too nearly singular for that."""
    try:
        by_gradient, by_ones = np.linalg.solve(matrix, np.column_stack([gradient, np.ones(len(gradient))])).T
    except np.linalg.LinAlgError:
        return None
    direction: Floats = by_ones * (by_gradient.sum() / by_ones.sum()) - by_gradient
    slope = matrix @ direction + gradient
    left = np.abs(slope - slope.mean()).max()
    sound = np.isfinite(left) and left <= 1e-9 * np.abs(gradient).max() and float(direction @ gradient) < 0
    return direction if sound else None


def minimise(loss: Loss, members: int, *, tolerance: float = 1e-10, evaluations: int = 300) -> Fit:
    """Minimise a smooth convex loss over the simplex until the duality gap is at most ``tolerance``.

    Sequential quadratic programming: each step minimises the gradient's model with a BFGS curvature on the simplex
    (``quadratic_minimum``) and is shortened until the loss falls (Nocedal and Wright, chapter 18, damped update 18.14
    to 18.16). Every evaluation of the loss may read all outputs, so few are made. It stops early where rounding lets
    the loss fall no more, or after ``evaluations``; ``Fit.gap`` says what was reached.
    """
    weights = np.full(members, 1.0 / members)
    value, gradient = loss(weights)
    size = max(float(np.ptp(gradient)), 1e-12)
    curvature = np.eye(members) * size
    done = 1
    while done < evaluations and duality_gap(weights, gradient) > tolerance:
        if members <= _LARGE:
            target = quadratic_minimum(curvature, gradient - curvature @ weights, start=weights)
        elif done == 1:
            target = projected((weights - gradient / size)[None])[0]
        else:  # so many changes that the next evaluation is worth more than the rest of this minimum
            target = quadratic_minimum(curvature, gradient - curvature @ weights, start=weights, changes=_CHANGES)
        direction = target - weights
        slope = float(gradient @ direction)
        step = 1.0
        while done < evaluations:
            trial = weights + step * direction
            trial_value, trial_gradient = loss(trial)
            done += 1
            if trial_value <= value + _ARMIJO * step * slope:
                break
            # The minimum of the parabola through both values and the slope, kept within a tenth and a half.
            curve = trial_value - value - step * slope
            step *= float(np.clip(-step * slope / (2 * curve), 0.1, 0.5))
            if step < _SMALLEST_STEP:
                return Fit(weights, value, duality_gap(weights, gradient), done)
        else:
            break
        curvature = _bfgs(curvature, trial - weights, trial_gradient - gradient)
        weights, value, gradient = trial, trial_value, trial_gradient
    return Fit(weights, value, duality_gap(weights, gradient), done)


def _bfgs(curvature: Floats, moved: Floats, changed: Floats) -> Floats:
    """The damped BFGS update (Nocedal and Wright, procedure 18.2): positive definite for any gradient change."""
    along = curvature @ moved
    model = float(moved @ along)
    true = float(moved @ changed)
    if model <= 0:
        return curvature
    share = 1.0 if true >= 0.2 * model else 0.8 * model / (model - true)
    blended = share * changed + (1 - share) * along
    updated: Floats = curvature - np.outer(along, along) / model + np.outer(blended, blended) / float(moved @ blended)
    return updated


def projected(points: Floats) -> Floats:
    """The nearest ratios on the simplex to each of the points (S, N), (S, N).

    Held, Wolfe and Crowder 1974, "Validation of subgradient optimization": all coordinates less one amount, cut at 0.
    """
    falling = -np.sort(-points, axis=1)
    excess = (falling.cumsum(axis=1) - 1) / np.arange(1, points.shape[1] + 1)
    used = (falling > excess).sum(axis=1)
    weights: Floats = np.maximum(points - excess[np.arange(len(points)), used - 1][:, None], 0.0)
    return weights


def tidy(weights: Floats, smallest: float = 1e-9) -> Floats:
    """The ratios with those below ``smallest`` set to zero, summing to 1: no member is read for nothing."""
    kept = np.where(weights < smallest, 0.0, weights)
    result: Floats = kept / kept.sum()
    return result
