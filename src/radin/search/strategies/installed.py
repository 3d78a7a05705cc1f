"""Strategies of other packages, found by their entry points in the group "radin.strategies"."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from radin.errors import RadinError, printable

GROUP = "radin.strategies"

_Known = TypeVar("_Known")
_log = logging.getLogger("radin")


def load_installed(known: MutableMapping[str, _Known]) -> dict[str, str]:
    """Import what installed packages declare in the group; it registers itself in ``known`` as it is imported.

    An entry point is called as the strategy that it is for, and leads to its function or to the module with it. What
    fails, or would take the name of a strategy that is there, is left out and logged as a warning; nothing is raised.

    Returns by name why a strategy cannot be used, for whoever asks for it.
    """
    refused: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        before = dict(known)
        reason = _failure(point, known)
        taken = sorted(name for name, old in before.items() if known.get(name) is not old)
        if taken:
            known.update(before)
            reason = f"it takes the name of a strategy that is there already ({', '.join(map(printable, taken))})"
        if reason:
            for name in known.keys() - before.keys():
                del known[name]
            refused[point.name] = _message(point, reason)
            _log.warning("%s", refused[point.name])
    return refused


def _failure(point: EntryPoint, known: MutableMapping[str, _Known]) -> str:
    """Why an entry point gives no strategy, in words; empty where it does. Imports it."""
    if point.name in known:
        return f"it takes the name of a strategy that is there already ({printable(point.name)})"
    try:
        point.load()
    except (Exception, SystemExit) as error:  # the code of others: whatever it does, radin goes on without it
        how = str(error) if isinstance(error, RadinError) else f"{type(error).__name__}: {error}"
        return f"importing {printable(point.value)} failed with {printable(how)}"
    if point.name not in known:
        return f"importing {printable(point.value)} registered no strategy of this name with @strategy(...)"
    return ""


def _message(point: EntryPoint, reason: str) -> str:
    package = "a package" if point.dist is None else f"the package {printable(point.dist.name)} {point.dist.version}"
    return f"strategy {point.name!r} of {package} cannot be used: {reason}. Update or uninstall that package"
