"""Which tensors may have mixing ratios of their own: groups from coarse to fine, from the tensors' names alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from radin.recipe import group_of

MOST_GROUPS = 256
"""More groups than this are learned from too few examples each, and a recipe of them is long."""

ONE, BLOCKS, MODULES = "one", "blocks", "modules"
_NUMBERED = re.compile(r"(?:.*\.)?\d+")


def groupings(sizes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Groups by name, as those of ``Recipe``, from coarse to fine: "one", "blocks" and "modules".

    ``sizes``: how many elements each tensor has that a soup averages, by name, tied ones once. A block is what is
    repeated: the longest prefix that ends in a number and holds several modules; what is in none goes by the first part
    of its name. A module is the last prefix. The group that holds most is not named: it is "all other tensors". A finer
    grouping of more than MOST_GROUPS is the next coarser one.
    """
    modules = {name: name.rpartition(".")[0] or name for name in sizes}
    held = Counter[str]()
    for module in set(modules.values()):
        held.update(_numbered(module))
    blocks = {
        name: next((prefix for prefix in reversed(_numbered(module)) if held[prefix] > 1), name.partition(".")[0])
        for name, module in modules.items()
    }
    found: dict[str, tuple[str, ...]] = {ONE: ()}
    for key, groups in ((BLOCKS, blocks), (MODULES, modules)):
        names = _named(set(groups.values()), sizes)
        found[key] = names if len(names) < MOST_GROUPS else list(found.values())[-1]
    return found


def _numbered(module: str) -> list[str]:
    """The prefixes of a module's name that end in a number, the shortest first, itself among them."""
    parts = module.split(".")
    prefixes = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return [prefix for prefix in prefixes if _NUMBERED.fullmatch(prefix)]


def _named(groups: set[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The groups without the one that holds most, among those that lie in no other; sorted."""
    elements = Counter[str]()
    for name, size in sizes.items():
        elements[group_of(groups, name) or ""] += size
    outer = [group for group in sorted(groups) if group_of(groups - {group}, group) is None]
    rest = max(outer, key=lambda group: elements[group], default="")
    return tuple(sorted(groups - {rest}))
