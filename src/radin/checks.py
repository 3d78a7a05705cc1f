"""Checks of what a user gives, the same wherever it is given."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

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


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind, given as an annotation: classes, unions, literals, tuples, mappings, dataclasses.

    A whole number is a float too, a bool is neither. A dataclass must have fields of their kinds.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(each) and all(fits(item, part) for item, part in zip(value, each, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(name, parts[0]) and fits(item, parts[1]) for name, item in value.items()
        )
    if parts:
        return any(fits(value, part) for part in parts)
    if kind in (None, NoneType):
        return value is None
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)
    return isinstance(value, kind) and not misfits(value)


def misfits(value: Any) -> list[str]:
    """The fields of a dataclass that are not of the kind that it says; none of anything else."""
    if not is_dataclass(value) or isinstance(value, type):
        return []
    kinds = get_type_hints(type(value))
    return [field.name for field in fields(value) if not fits(getattr(value, field.name), kinds[field.name])]
