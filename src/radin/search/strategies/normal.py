"""The normal distribution, and what is gained where a value is known up to normal noise."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np

from radin.search.strategies.base import Floats


def normal_below(z: Floats) -> Floats:
    """Share of a standard normal distribution below z, to the precision of float64, in the tails too."""
    import torch  # a search by other ways does not wait for it

    return 0.5 * _computed(torch.special.erfc, -z / sqrt(2))


def expected_improvement(lead: Floats, spread: Floats) -> Floats:
    """E[max(lead + spread Z, 0)] for Z standard normal, elementwise (Jones, Schonlau and Welch 1998).

    With ``lead`` at most 0, by how much a candidate stands behind the best other one, and ``spread`` that of what its
    next evaluation will tell of it, this is its knowledge gradient (Frazier, Powell and Dayanik 2008).
    """
    import torch

    wide = np.maximum(spread, 1e-12)
    z = np.clip(lead / wide, -38, 38)
    density = np.exp(-0.5 * z**2) / sqrt(2 * pi)
    # Below zero the two terms nearly cancel, so the density is taken out of both (Mills' ratio by erfcx).
    below = np.maximum(-z, 0) / sqrt(2)
    behind = density * np.maximum(1 - sqrt(pi) * below * _computed(torch.special.erfcx, below), 0)
    result: Floats = wide * np.where(z < 0, behind, density + z * normal_below(z))
    return result


def _computed(function: Callable[[Any], Any], values: Floats) -> Floats:
    """One of torch's special functions of float64 values."""
    import torch

    from radin.estimate.threads import one_thread

    with one_thread():
        result: Floats = function(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))).numpy()
    return result
