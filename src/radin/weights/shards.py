"""Folders that are one checkpoint: what they must hold, and the index that says which shard has which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from radin.errors import CheckpointError
from radin.files import open_regular, parse_json
from radin.weights.kinds import SUFFIXES
from radin.weights.limits import INDEX_BYTES, SHARDS, TENSORS

INDEX_SUFFIX = ".index.json"

# What a folder must hold to be one checkpoint, in order of preference.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)

# Of these, an adapter's: see radin.weights.adapters.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def folder_file(folder: Path) -> Path | None:
    """The file that makes ``folder`` one checkpoint, or None."""
    return next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)


def is_index(path: Path) -> bool:
    """Whether the path is an index of shards, by its name."""
    return path.name.endswith(INDEX_SUFFIX)


def shards_of(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    """The shard files that an index names. They must lie beside it: an index is data, not a list of paths to open."""
    names = sorted(set(weight_map.values()))
    if len(names) > SHARDS:
        raise CheckpointError(f"{index}: names {len(names):,} shards; at most {SHARDS:,} are read")
    for name in names:
        if not name.endswith(SUFFIXES) or "/" in name or "\\" in name or Path(name).name != name:
            raise CheckpointError(
                f"{index}: shard {name[:100]!r} is not a plain file name ending in {', '.join(SUFFIXES)}; "
                "shards must lie in the folder of their index"
            )
        try:
            there = (index.parent / name).exists()
        except (OSError, ValueError):  # too long for a file's name, or with a zero byte in it
            there = False
        if not there:
            raise CheckpointError(f"{index}: names the shard {name[:100]}, which is not in its folder")
    return [index.parent / name for name in names]


def _parsed(index: Path) -> Any:
    """An index as JSON. Raises OSError, ValueError."""
    with open_regular(index) as file:
        data = file.read(INDEX_BYTES + 1)
    if len(data) > INDEX_BYTES:
        raise ValueError(f"larger than {INDEX_BYTES:,} bytes")
    # Three bytes make a list of sixty, and an index has hardly any.
    if data.count(b"[") + data.count(b"{") > TENSORS:
        raise ValueError("it is made of lists")
    return parse_json(data.decode("utf-8"))


def weight_map_of(index: Path) -> dict[str, str]:
    """{tensor: shard} as an index has it. Raises CheckpointError."""
    try:
        content = _parsed(index)
        weight_map = content["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise CheckpointError(
            f"{index}: not an index of shards; expected a JSON object with a weight_map{reason}"
        ) from error
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must give a file name for each tensor")
    if len(weight_map) > TENSORS:
        raise CheckpointError(f"{index}: places {len(weight_map):,} tensors; at most {TENSORS:,} are read")
    return weight_map
