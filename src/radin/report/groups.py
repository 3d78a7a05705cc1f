"""The ratios of a recipe by group of tensors, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

_MEMBERS = 8
_GROUPS = 40
_REST = "all other tensors"


def group_rows(
    names: Sequence[str], weights: Sequence[float], groups: Sequence[tuple[str, Sequence[float]]]
) -> tuple[list[str], list[list[str]], str]:
    """Column names; a row for the tensors that no group names, then one per group in natural order; what is left out.

    names, weights (n,): the members used, with their ratios outside of groups. groups: (name, ratios (n,)). The members
    with the largest mean ratio over the rows, whatever its sign, have columns of their own, the others one together.
    What is left out is a sentence, empty where nothing is.
    """
    rows = [(_REST, weights), *sorted(groups, key=lambda group: _natural(group[0]))]
    order = sorted(range(len(names)), key=lambda k: -sum(abs(ratios[k]) for _, ratios in rows))
    shown, others = (order, []) if len(order) <= _MEMBERS else (order[: _MEMBERS - 1], order[_MEMBERS - 1 :])
    columns = ["tensors", *(names[k] for k in shown), *([f"{len(others)} others"] if others else [])]
    cells = [
        [name, *(f"{ratios[k]:.3f}" for k in shown), *([f"{sum(ratios[k] for k in others):.3f}"] if others else [])]
        for name, ratios in rows[: _GROUPS + 1]
    ]
    missing = len(rows) - len(cells)
    return (
        columns,
        cells,
        f"and {missing} more groups, which recipe.json and the soup's metadata hold" if missing else "",
    )


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """layer.2 before layer.10."""
    parts = [(part, part.isascii() and part.isdecimal()) for part in name.split(".")]
    return [(not number, int(part) if number else 0, part) for part, number in parts]
