"""Keep compiled margins on disk beside the outputs, keyed by content.

Axis names: members N.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from radin.checksums import BLANK, KEY, damage, seal
from radin.disks import is_network
from radin.errors import OutputsError
from radin.estimate.margins import Dropped, Margins
from radin.estimate.reading import Array
from radin.files import hidden_error, parse_json, replacing

FORMAT = "radin-margins-1"
_NAMES = (
    *("example", "rival", "logits", "truth", "targets", "allowed"),
    *("dropped_example", "dropped_rival", "dropped_by"),
)


@dataclass(frozen=True)
class Keys:
    """What outputs belong to: ``members``, a content hash of each of N members, and ``data``, one of the examples."""

    members: tuple[str, ...]
    data: str

    @classmethod
    def of(cls, members: Sequence[str], data: str) -> Keys:
        """The keys of N members, in the order of the outputs, over the data of a fingerprint."""
        return cls(tuple(members), data)


def save_margins(margins: Margins, path: Path, keys: Keys) -> None:
    """Write the compiled form to a safetensors file, whole or not at all."""
    save_arrays(margins, path, keys, {}, {})


def save_arrays(
    margins: Margins, path: Path, keys: Keys, more: Mapping[str, Array], about_more: Mapping[str, str]
) -> None:
    """The same with more arrays and more to say of them, under names that margins do not use themselves."""
    tensors = {
        "example": margins.example,
        "rival": margins.rival,
        "logits": margins.logits,
        "truth": margins.truth,
        "targets": margins.targets,
        "allowed": margins.allowed,
    }
    if margins.dropped is not None:
        tensors["dropped_example"] = margins.dropped.example
        tensors["dropped_rival"] = margins.dropped.rival
        tensors["dropped_by"] = margins.dropped.by
    about = {
        "format": FORMAT,
        "members": list(keys.members),
        "data": keys.data,
        "classes": margins.classes,
        "top": margins.top,
        "purpose": margins.purpose,
        **about_more,
    }
    tensors |= more
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        # not save_file, which writes to a file of its own there, and leaves it behind when it is killed
        temporary.write_bytes(save(tensors, {"radin": json.dumps(about), KEY: BLANK}))
        seal(temporary)


def load_margins(path: Path) -> tuple[Margins, Keys]:
    """Read a compiled form and what it belongs to. Raises OutputsError when the file is damaged or something else.

    Raises OSError where it cannot be read.
    """
    margins, keys, more, _ = load_arrays(path)
    if more:
        raise OutputsError(f"{path} holds no margins of single rows but {', '.join(sorted(more))} too")
    return margins, keys


def load_arrays(path: Path) -> tuple[Margins, Keys, dict[str, Array], dict[str, Any]]:
    """What ``save_arrays`` wrote: margins, what they belong to, the other arrays, all that is said of them."""
    try:
        wrong = damage(path)
        if wrong is not None:
            raise OutputsError(f"{path} is damaged, or holds no compiled margins: {wrong}")
        if is_network(path):
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            about = parse_json(parse_json(content[8 : 8 + length].decode())["__metadata__"].get("radin", "{}"))
            tensors = load(content)
            return _loaded(about, tensors)
        with safe_open(path, framework="numpy") as file:
            about = parse_json((file.metadata() or {}).get("radin", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _loaded(about, tensors)
    except FileNotFoundError:
        raise OutputsError(f"{path} is not there") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        if (hidden := hidden_error(error)) is not None:
            raise hidden from None
        raise OutputsError(f"{path} is damaged, or holds no compiled margins of format {FORMAT} ({error})") from None


def _loaded(about: Any, tensors: Mapping[str, Array]) -> tuple[Margins, Keys, dict[str, Array], dict[str, Any]]:
    """As ``load_arrays``. Raises KeyError, TypeError or ValueError."""
    margins, keys = _from_tensors(about, tensors)
    more = {name: array for name, array in tensors.items() if name not in _NAMES}
    return margins, keys, more, dict(about)


def _from_tensors(about: Any, tensors: Mapping[str, Array]) -> tuple[Margins, Keys]:
    """Raises KeyError, TypeError or ValueError for anything that cannot have been written here."""
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r}")
    example, rival, logits, truth, targets, allowed = (tensors[name] for name in _NAMES[:6])
    rows, examples, members, classes = len(example), len(targets), len(about["members"]), int(about["classes"])
    dropped = None
    if "dropped_by" in tensors:
        dropped = Dropped(tensors["dropped_example"], tensors["dropped_rival"], tensors["dropped_by"])
        gone = len(dropped.by)
        _require("dropped", (dropped.example, dropped.rival, dropped.by), [(gone,)] * 3, (examples, classes, rows))
    _require("rows", (example, rival, targets), [(rows,), (rows,), (examples,)], (examples, classes, classes))
    shapes = [(rows, members), (examples, members), (examples,)]
    if [logits.shape, truth.shape, allowed.shape] != shapes or np.any(np.diff(example) < 0):
        raise ValueError("its arrays do not fit together")
    top, purpose = int(about["top"]), about["purpose"]
    margins = Margins(example, rival, logits, truth, targets, classes, allowed, top, purpose, dropped)
    return margins, Keys.of([str(member) for member in about["members"]], str(about["data"]))


def _require(what: str, arrays: Sequence[Array], shapes: Sequence[tuple[int]], below: Sequence[int]) -> None:
    """Raise ValueError unless these are whole numbers of these shapes, from 0 and below these bounds."""
    for array, shape, bound in zip(arrays, shapes, below, strict=True):
        if array.shape != shape or array.dtype.kind not in "iu" or (array.size and not array.min() >= 0):
            raise ValueError(f"its {what} are no whole numbers of the shape expected")
        if array.size and array.max() >= bound:
            raise ValueError(f"its {what} are out of range")
