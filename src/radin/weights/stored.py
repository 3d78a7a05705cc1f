"""What one file holds, as its header tells it, before any wrapper prefix is stripped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from radin.weights.archive import Entry
from radin.weights.described import Described
from radin.weights.layout import Shape

# DataParallel and DistributedDataParallel, torch.compile
WRAPPERS = ("module.", "_orig_mod.")
_COMPILED = "_orig_mod"
WRAPPED = ("module", _COMPILED)
# LightningModules keep their network in an attribute, by custom called model
LIGHTNING_WRAPPERS = (*WRAPPERS, "model.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's numbers are in a torch file: its storage begins at byte ``start``, in the zip ``entry``."""

    start: int
    entry: Entry | None  # None: in a file that is no zip archive
    tensor: Described


@dataclass(frozen=True)
class Stored:
    """Names as stored -> shape, dtype; tied tensors as {alias: kept name}; which wrapper prefixes may be stripped."""

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, torch.dtype]
    aliases: Mapping[str, str]
    notes: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = WRAPPERS
    mapped: bool = True  # whether reading a tensor maps it (True) or copies it (False)
    places: Mapping[str, Place] = field(default_factory=dict)  # of the tensors of a torch file
    # The byte at which a tensor begins, of those whose elements are all there one after another, as they are.
    starts: Mapping[str, int] = field(default_factory=dict)


def strip_wrappers(names: Iterable[str], wrappers: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
    """{stored name: name without wrapper prefixes}, and a note for each prefix taken off.

    A prefix goes only when every name has it: a model with one submodule called "module" among others keeps it. A
    compiled part's _orig_mod goes wherever it is, if every name of that part has it.
    """
    clean = {name: name for name in names}
    notes = []
    while prefix := _common_wrapper(clean.values(), wrappers):
        clean = {name: value.removeprefix(prefix) for name, value in clean.items()}
        notes.append(f"stripped prefix {prefix} from all {len(clean)} keys")
    inner = _without_compiled(clean)
    if inner != clean:
        changed = sum(inner[name] != value for name, value in clean.items())
        notes.append(f"stripped {_COMPILED}. inside {changed} of {len(clean)} keys (a compiled part of the model)")
    return inner, tuple(notes)


def unwrapped(name: str) -> str:
    """A name without the parts that wrappers put into it, wherever they are."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def common_prefix(names: Iterable[str]) -> str:
    """The first part that all of these names have, with its point; empty where they have none in common."""
    heads = {name.partition(".")[0] for name in names if "." in name}
    values = tuple(names)
    if len(heads) != 1 or not all("." in name for name in values):
        return ""
    return next(iter(heads)) + "."


def _without_compiled(names: dict[str, str]) -> dict[str, str]:
    """The same without _orig_mod inside, where all names of a part have it and none comes to clash."""
    found = dict(names)
    while True:
        places = {value.partition(f".{_COMPILED}.")[0] for value in found.values() if f".{_COMPILED}." in value}
        changed = dict(found)
        for place in places:
            of_it = [name for name, value in changed.items() if value.startswith(place + ".")]
            wrapped = f"{place}.{_COMPILED}."
            if all(changed[name].startswith(wrapped) for name in of_it):
                changed |= {name: f"{place}.{changed[name].removeprefix(wrapped)}" for name in of_it}
        if changed == found or len(set(changed.values())) < len(changed):
            return found
        found = changed


def _common_wrapper(names: Iterable[str], wrappers: tuple[str, ...]) -> str | None:
    values = tuple(names)
    for prefix in wrappers:
        if values and all(value.startswith(prefix) and value != prefix for value in values):
            return prefix
    return None
