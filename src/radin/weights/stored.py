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

    A prefix goes only when every name has it: a model with one submodule called "module" among others keeps it.
    """
    clean = {name: name for name in names}
    notes = []
    while prefix := _common_wrapper(clean.values(), wrappers):
        clean = {name: value.removeprefix(prefix) for name, value in clean.items()}
        notes.append(f"stripped prefix {prefix} from all {len(clean)} keys")
    return clean, tuple(notes)


def _common_wrapper(names: Iterable[str], wrappers: tuple[str, ...]) -> str | None:
    values = tuple(names)
    for prefix in wrappers:
        if values and all(value.startswith(prefix) and value != prefix for value in values):
            return prefix
    return None
