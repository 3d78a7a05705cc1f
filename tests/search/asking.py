"""What tests of whole soups need of a search: the recipe that it asks about."""

from __future__ import annotations

from radin.recipe import Recipe
from radin.search import Search


def ask(search: Search) -> Recipe | None:
    """The recipe of the next question; None when there is nothing to ask."""
    question = search.ask()
    return None if question is None else question.recipe
