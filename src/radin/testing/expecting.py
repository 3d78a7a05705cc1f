"""How the checks say what is not as it must be."""

from __future__ import annotations

from typing import Any

import numpy as np


def expect(holds: bool, message: str) -> None:
    """Raises AssertionError with the message unless it holds; with ``python -O`` too."""
    if not holds:
        raise AssertionError(message)


def expect_equal(found: Any, expected: Any, what: str) -> None:
    """Raises AssertionError with both values unless they are the same; NaN is NaN."""
    same = found == expected or (
        isinstance(found, float) and isinstance(expected, float) and np.isnan(found) and np.isnan(expected)
    )
    expect(bool(same), f"{what}: expected {expected!r}; got {found!r}")


def expect_close(found: float, expected: float, what: str, within: float = 1e-12) -> None:
    """Raises AssertionError with both values unless they differ by at most ``within``."""
    expect(abs(found - expected) <= within, f"{what}: expected {expected!r}; got {found!r}")
