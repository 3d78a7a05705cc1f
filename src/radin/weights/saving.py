"""Write tensors to a file, whole or not at all, and read back the recipe that a soup carries."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.files import Writer, parse_json, read_json, replacing, told
from radin.weights import safetensors_file, torch_file
from radin.weights.kinds import SAFETENSORS, kind_of
from radin.weights.layout import Piece, count, find_aliases, leaves
from radin.weights.limits import METADATA_BYTES
from radin.weights.writing import Streamed, TensorWriter, put_metadata

SAVE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Written in the form of a member that is such a file: see alike.in_form_of.
MEMBER_SUFFIXES = (".ckpt", ".tar", ".pkl", ".nemo")
ENDINGS = (*SAVE_SUFFIXES, *MEMBER_SUFFIXES)
RECIPE_KEY = "radin.recipe"

# Where a soup that is a folder keeps its metadata.
FOLDER_METADATA = "radin.json"

# torch.save writes a zip archive under this folder when given an open file; torch.load ignores entries it does not know
_TORCH_METADATA = "archive/radin.json"


def save(tensors: Mapping[str, Tensor], path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict to ``path``, .safetensors or .pt/.pth, replacing what was there only once all is on disk.

    ``metadata`` goes into the safetensors header, or into the torch file as an entry that torch.load ignores. Tied
    tensors are written once: safetensors metadata has {alias: kept name}, as in safetensors.torch.save_model.
    Raises CheckpointError for another ending, or when the disk refuses.
    """
    path = Path(path)
    check_output(path)
    strings = {str(name): str(value) for name, value in (metadata or {}).items()}
    with told(path, needs=_bytes(tensors)), replacing(path) as temporary:
        if path.suffix == ".safetensors":
            write_safetensors(tensors, temporary, strings)
            put_metadata(temporary, final_metadata(tensors, strings))
        else:
            content = {name: tensor.detach() for name, tensor in whole(tensors).items()}
            write_torch(content, temporary, {})
            add_metadata(temporary, final_metadata(tensors, strings))


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of all tensors, tied ones once."""
    if isinstance(tensors, Streamed):
        return sum(
            count(shape) * tensors.dtypes[name].itemsize
            for name, shape in tensors.shapes.items()
            if name not in tensors.aliases
        )
    return sum(
        tensor.numel() * tensor.dtype.itemsize
        for tensor in {id(tensor): tensor for tensor in tensors.values()}.values()
    )


def check_output(path: str | Path, *, alike: bool = False) -> None:
    """Raise CheckpointError unless ``save`` can write a file of this name: for asking before long work begins.

    alike: or a file in the form of the members.
    """
    path = Path(path)
    endings = ENDINGS if alike else SAVE_SUFFIXES
    if path.suffix not in endings:
        raise CheckpointError(f"{path}: cannot write this kind of file; expected {', '.join(endings)}")
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
    aliases = aliases_of(tensors)
    write_stored({name: name for name in tensors if name not in aliases}, tensors, path, {**aliases, **metadata})


def write_stored(
    stored: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> None:
    """The same under other names. ``stored``: {name in the file: name in ``tensors``}, for those to be written."""
    # transformers loads only files that say which framework wrote them
    metadata = {"format": "pt", **metadata}
    if isinstance(tensors, Streamed):
        places: dict[str, list[str]] = {}  # of what is computed once, and may be stored under several names
        for place, name in stored.items():
            places.setdefault(tensors.aliases.get(name, name), []).append(place)
        shapes = {place: tensors.shapes[name] for place, name in stored.items()}
        dtypes = {place: tensors.dtypes[name] for place, name in stored.items()}
        with TensorWriter(path, shapes, dtypes, metadata) as writer:

            def put(piece: Piece, values: Tensor) -> None:
                for place in places[piece.name]:
                    writer.write(replace(piece, name=place), values)

            tensors.stream(places, put)
        return
    given = {place: tensors[name].detach() for place, name in stored.items()}
    shapes = {place: tuple(tensor.shape) for place, tensor in given.items()}
    dtypes = {place: tensor.dtype for place, tensor in given.items()}
    with TensorWriter(path, shapes, dtypes, metadata) as writer:
        for place, tensor in given.items():
            flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            for piece in (piece for group in leaves({place: len(flat)}) for piece in group):
                writer.write(piece, piece.of(flat))


def aliases_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{alias: kept name} of the tensors that are one."""
    return dict(tensors.aliases) if isinstance(tensors, Streamed) else find_aliases(tensors)


def whole(tensors: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Mapping[str, Tensor]:
    """The same, or some of them, in memory."""
    return tensors.tensors(names) if isinstance(tensors, Streamed) else tensors


def final_metadata(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The metadata as they are to stay, of the same length. To be asked once all tensors are written."""
    return tensors.final_metadata(metadata) if isinstance(tensors, Streamed) else metadata


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
    add_metadata(path, metadata)


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Add the metadata to a torch file that has none yet."""
    if metadata:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo(_TORCH_METADATA), json.dumps(dict(metadata)))
