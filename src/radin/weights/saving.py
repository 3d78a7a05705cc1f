"""Write tensors to a file, whole or not at all, and read back the recipe that a soup carries."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from radin.checksums import sort_metadata
from radin.errors import CheckpointError
from radin.files import Writer, parse_json, read_json, replacing, told
from radin.weights import safetensors_file, torch_file
from radin.weights.kinds import SAFETENSORS, kind_of
from radin.weights.layout import find_aliases
from radin.weights.limits import METADATA_BYTES

SAVE_SUFFIXES = (".safetensors", ".pt", ".pth")
RECIPE_KEY = "radin.recipe"

# Where a soup that is a folder keeps its metadata.
FOLDER_METADATA = "radin.json"

# torch.save writes a zip archive under this folder when given an open file; torch.load ignores entries it does not know
_TORCH_METADATA = "archive/radin.json"


def save(tensors: Mapping[str, Tensor], path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict to .safetensors or .pt/.pth, replacing what was there only once all is on disk.

    ``metadata`` goes into the safetensors header, or into the torch file as an entry that torch.load ignores. Tied
    tensors are written once: safetensors metadata has {alias: kept name}, as in safetensors.torch.save_model.
    Raises CheckpointError for another ending, or when the disk refuses.
    """
    path = Path(path)
    check_output(path)
    strings = {str(name): str(value) for name, value in (metadata or {}).items()}
    try:
        with told(path, needs=_bytes(tensors)), replacing(path) as temporary:
            if path.suffix == ".safetensors":
                write_safetensors(tensors, temporary, strings)
            else:
                write_torch({name: tensor.detach() for name, tensor in tensors.items()}, temporary, strings)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of all tensors, tied ones once."""
    return sum(
        tensor.numel() * tensor.dtype.itemsize
        for tensor in {id(tensor): tensor for tensor in tensors.values()}.values()
    )


def check_output(path: str | Path) -> None:
    """Raise CheckpointError unless ``save`` can write a file of this name: for asking before long work begins."""
    path = Path(path)
    if path.suffix not in SAVE_SUFFIXES:
        raise CheckpointError(f"{path}: cannot write this kind of file; expected {', '.join(SAVE_SUFFIXES)}")
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise CheckpointError(f"{path}: its folder does not exist")
    if not os.access(path.absolute().parent, os.W_OK):
        raise CheckpointError(f"{path}: its folder cannot be written to")


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata strings of a file or folder that radin wrote; empty when there are none. Raises CheckpointError."""
    path = Path(path)
    if path.is_dir():
        return _folder_metadata(path)
    try:
        if kind_of(path) == SAFETENSORS or path.suffix == ".safetensors":
            return safetensors_file.metadata(path)
        written = torch_file.entry(path, _TORCH_METADATA, METADATA_BYTES)
        return {} if written is None else _strings(parse_json(written.decode("utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged, or not written by torch.save: {error}") from error


def _folder_metadata(folder: Path) -> dict[str, str]:
    path = folder / FOLDER_METADATA
    if not path.exists():
        return {}
    try:
        return _strings(read_json(path, METADATA_BYTES))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or not written by radin: {error}") from error


def _strings(value: Any) -> dict[str, str]:
    """Metadata: an object of strings. Raises ValueError."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("expected a JSON object of strings")
    return value


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe a soup was made by, in the form Recipe.from_json reads. Raises CheckpointError if it has none."""
    metadata = read_metadata(path)
    if RECIPE_KEY not in metadata:
        raise CheckpointError(f"{path}: carries no recipe; only files written by radin do")
    try:
        value = parse_json(metadata[RECIPE_KEY])
        if all(_is_share(member) for member in value["members"]):
            return dict(value)
    except (ValueError, TypeError, LookupError, OverflowError):
        pass
    raise CheckpointError(f"{path}: its recipe is damaged, or was not written by radin")


def _is_share(member: Any) -> bool:
    """Whether this is how Recipe.to_json writes a member's share."""
    return (
        isinstance(member["name"], str)
        and isinstance(member["fingerprint"], str)
        and isinstance(member["weight"], int | float)
        and math.isfinite(member["weight"])
    )


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a state dict to ``path`` as it comes, tied tensors once. ``save`` does it whole or not at all."""
    aliases = find_aliases(tensors)
    kept = {name: tensor.detach() for name, tensor in tensors.items() if name not in aliases}
    holders = Counter(tensor.untyped_storage().data_ptr() for tensor in kept.values() if tensor.numel())
    # safetensors refuses tensors that are parts of one storage; only such are copied
    whole = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        if holders[tensor.untyped_storage().data_ptr()] > 1
        else tensor.contiguous()
        for name, tensor in kept.items()
    }
    try:
        # transformers loads only files that say which framework wrote them
        safetensors.torch.save_file(whole, path, metadata={"format": "pt", **aliases, **metadata})
        sort_metadata(path)
    except KeyError as error:  # how the library says that it knows no such dtype
        raise CheckpointError(f"safetensors cannot store {error}; write a .pt file instead") from error


def write_torch(content: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """torch.save ``content``, a state dict or what holds one, and the metadata with it."""
    with path.open("wb") as file:
        writer: Any = Writer(file)
        try:
            torch.save(content, writer)
        except RecursionError:  # what else the members' file holds, beside its weights
            raise CheckpointError(f"{path}: cannot be written: its entries are nested too deeply") from None
        except RuntimeError:
            if writer.error is not None:
                raise writer.error from None
            raise
    if metadata:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo(_TORCH_METADATA), json.dumps(dict(metadata)))
