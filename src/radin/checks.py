"""Checks of what a user gives, the same wherever it is given."""

from __future__ import annotations

import operator
from typing import Any

from radin.errors import RadinError

MOST = 10**9  # no count that a user means is larger


def whole_number(name: str, value: Any, least: int, most: int | None = MOST) -> int:
    """``value`` as an int. ``most`` None: no bound. Raises RadinError, which begins with ``name``."""
    try:
        number = operator.index(value)  # numpy's integers are whole numbers too
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise RadinError(f"{name} must be a whole number; got {value!r}")
    if number < least:
        raise RadinError(f"{name} must be at least {least}; got {number}")
    if most is not None and number > most:
        raise RadinError(f"{name} must be at most {most:,}; got {number:,}")
    return number
