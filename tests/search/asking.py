"""What tests of whole soups need of a search: the recipe that it asks about."""

from __future__ import annotations

from typing import Any

import pytest

from radin.recipe import Recipe
from radin.search import Search
from radin.search.strategies import names

# Without gradients these ask what adaptive asks (test_learned.py sees to it), and take as long.
ALIKE = ("learned", "learned-by-layer")


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    """The marks of a test of every strategy, for this one."""
    return [pytest.mark.long] if name in ALIKE else []


def every_strategy() -> list[Any]:
    """To parametrise by."""
    return [pytest.param(name, marks=marks_of(name)) for name in names()]


def ask(search: Search) -> Recipe | None:
    """The recipe of the next question; None when there is nothing to ask."""
    question = search.ask()
    return None if question is None else question.recipe
