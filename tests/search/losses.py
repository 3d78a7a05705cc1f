"""Convex losses of averaged outputs straight from their formulas, and an independent solver for their minimum."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize


def cross_entropy(outputs, targets):
    """Value and gradient of the cross-entropy of averaged logits, straight from its formula."""

    def loss(p):
        logits = np.tensordot(p, outputs, 1)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = odds / odds.sum(axis=1, keepdims=True)
        rows = np.arange(len(targets))
        value = -np.log(shares[rows, targets]).mean()
        shares[rows, targets] -= 1
        return value, np.einsum("nmc,mc->n", outputs, shares) / len(targets)

    return loss


def squared_error(outputs, values):
    def loss(p):
        error = np.tensordot(p, outputs, 1) - values
        return (error**2).mean(), 2 * np.einsum("nmc,mc->n", outputs, error) / error.size

    return loss


def scipy_fit(loss, members):
    return minimize(
        loss,
        np.full(members, 1 / members),
        jac=True,
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 2000},
    ).x
