"""Write tensors in the form of a checkpoint that is there, so that whatever loads the one loads the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from radin.errors import CheckpointError
from radin.files import replacing, replacing_folder, told
from radin.weights import safetensors_file, torch_file
from radin.weights.formats import SAFETENSORS_SUFFIXES, SUFFIXES, Checkpoint, Part, folder_file, is_index
from radin.weights.saving import (
    FOLDER_METADATA,
    read_metadata,
    write_safetensors,
    write_torch,
)

# Weights beside those that were averaged: another library's, or a trainer's. None of them would be the soup's.
_OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite", ".distcp", ".npz")

# A member's log and card are not the soup's.
_OF_TRAINING = ("trainer_state.json", "README.md")
_EVENTS = "events.out.tfevents"


def suffix_of(like: Checkpoint) -> str:
    """The ending that a path alike has: ".safetensors", ".pt"...; empty where it is a folder."""
    return "" if like.path.is_dir() or is_index(like.path) else like.path.suffix


def write_alike(tensors: Mapping[str, Tensor], like: Checkpoint, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write to ``path``, a file or folder that is not there yet; returns what stands for ``like.path``.

    The tensors have the names of ``like`` and are stored under those that its files have: wrapper prefixes, the entry
    of a torch file, shards and their index. Of a folder, files that are not weights are copied. Raises CheckpointError
    when the disk refuses or a file of ``like`` has gone.
    """
    try:
        with told(path, needs=like.bytes):
            return _write(tensors, like, path, metadata)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def save_alike(tensors: Mapping[str, Tensor], like: Checkpoint, path: Path, metadata: Mapping[str, str]) -> None:
    """As ``write_alike``, whole or not at all; a file, or a folder that radin wrote, is replaced."""
    try:
        if suffix_of(like):
            with told(path, needs=like.bytes), replacing(path) as temporary:
                _write(tensors, like, temporary, metadata)
            return
        require_replaceable(path)
        with told(path, needs=like.bytes), replacing_folder(path) as temporary:
            _write(tensors, like, temporary, metadata)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def require_replaceable(path: Path) -> None:
    """Raise CheckpointError unless nothing is at the place for a folder, or an empty one, or one that radin wrote."""
    if path.exists() and not (path.is_dir() and (read_metadata(path) or not any(path.iterdir()))):
        raise CheckpointError(f"{path}: is there already and no soup of radin's; it was left as it is")


def _write(tensors: Mapping[str, Tensor], like: Checkpoint, path: Path, metadata: Mapping[str, str]) -> Path:
    if suffix_of(like):
        _write_part(tensors, like, like.parts[0], path, metadata)
        return path
    folder = like.path if like.path.is_dir() else like.path.parent
    path.mkdir(exist_ok=True)
    for source in companions(folder):
        target = path / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for part in like.parts:
        _write_part(tensors, like, part, path / part.path.name, metadata)
    index = folder_file(folder) if like.path.is_dir() else like.path
    if index is not None and is_index(index):
        shutil.copyfile(index, path / index.name)
    (path / FOLDER_METADATA).write_text(json.dumps(dict(metadata), indent=2) + "\n", encoding="utf-8")
    return path if like.path.is_dir() else path / like.path.name


def _write_part(
    tensors: Mapping[str, Tensor], like: Checkpoint, part: Part, path: Path, metadata: Mapping[str, str]
) -> None:
    mine = {stored: tensors[name] for name, stored in part.stored.items()}
    path.touch()
    mode = path.stat().st_mode
    _write_tensors(mine, tensors, like, part, path, metadata)
    path.chmod(mode)  # safetensors puts a file of its own there, which only the owner may read


def _write_tensors(
    mine: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    like: Checkpoint,
    part: Part,
    path: Path,
    metadata: Mapping[str, str],
) -> None:
    """``mine``: the part's tensors by name as stored."""
    if part.path.suffix not in SAFETENSORS_SUFFIXES:
        write_torch(torch_file.rewrapped(part.path, part.key, mine), path, metadata)
        return
    # The name under which tied tensors are stored must stay: not every loader knows the names left out.
    tied = {
        part.stored[alias]: part.stored[kept]
        for alias, kept in like.aliases.items()
        if alias in part.stored and tensors[alias] is tensors[kept]
    }
    before = safetensors_file.metadata(part.path)
    own = {name: text for name, text in before.items() if name not in mine and not name.startswith("radin.")}
    kept = {stored: tensor for stored, tensor in mine.items() if stored not in tied}
    write_safetensors(kept, path, {**own, **tied, **metadata})


def companions(folder: Path) -> Iterator[Path]:
    """The files in a checkpoint's folder that are not weights: config.json, a tokenizer's. No other checkpoint's.

    Nor what tells of the training of one member alone.
    """
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", _EVENTS)) or entry.name in (FOLDER_METADATA, *_OF_TRAINING):
            continue
        if entry.is_dir():
            if folder_file(entry) is None:
                yield from companions(entry)
        elif entry.is_file() and entry.suffix not in SUFFIXES + _OTHER_WEIGHTS and not is_index(entry):
            yield entry
