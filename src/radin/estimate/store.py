"""Keep compiled margins on disk beside the outputs, keyed by content.

Axis names: members N.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from radin.errors import OutputsError
from radin.estimate.margins import Dropped, Margins

FORMAT = "radin-margins-1"


@dataclass(frozen=True)
class Keys:
    """What outputs belong to: ``members``, a content hash of each of N members, and ``data``, one of the examples."""

    members: tuple[str, ...]
    data: str

    @classmethod
    def of(cls, members: Sequence[str], data: str) -> Keys:
        return cls(tuple(members), data)


def save_margins(margins: Margins, path: Path, keys: Keys) -> None:
    """Write the compiled form to a safetensors file, whole or not at all."""
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
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, {"radin": json.dumps(about)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_margins(path: Path) -> tuple[Margins, Keys]:
    """Read a compiled form and what it belongs to. Raises OutputsError when the file is damaged or something else."""
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("radin", "{}"))
            if about.get("format") != FORMAT:
                raise OutputsError(f"{path} holds no compiled margins of format {FORMAT}. Delete it to make it again.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OutputsError(f"{path} is damaged ({error}). Delete it to compile the outputs again.") from None
    dropped = None
    if "dropped_by" in tensors:
        dropped = Dropped(tensors["dropped_example"], tensors["dropped_rival"], tensors["dropped_by"])
    margins = Margins(
        tensors["example"],
        tensors["rival"],
        tensors["logits"],
        tensors["truth"],
        tensors["targets"],
        about["classes"],
        tensors["allowed"],
        about["top"],
        about["purpose"],
        dropped,
    )
    return margins, Keys.of(about["members"], about["data"])
