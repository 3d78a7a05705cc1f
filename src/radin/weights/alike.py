"""Write tensors in the form of a checkpoint that is there, so that whatever loads the one loads the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from radin.errors import CheckpointError
from radin.files import replacing, replacing_folder, told
from radin.weights import distributed, safetensors_file, tar, torch_file
from radin.weights.formats import Checkpoint, Part, folder_file, is_index
from radin.weights.kinds import DISTRIBUTED, SAFETENSORS, SHARED_SUFFIXES, SUFFIXES, TAR
from radin.weights.saving import (
    FOLDER_METADATA,
    MEMBER_SUFFIXES,
    SAVE_SUFFIXES,
    add_metadata,
    final_metadata,
    read_metadata,
    whole,
    write_stored,
    write_torch,
)
from radin.weights.writing import Streamed, put_metadata

# Weights beside those that were averaged: another library's, or a trainer's. None of them would be the soup's.
_OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".tflite", ".distcp", ".npz")

# A member's log and card are not the soup's.
_OF_TRAINING = ("trainer_state.json", "README.md")
_EVENTS = "events.out.tfevents"


def suffix_of(like: Checkpoint) -> str:
    """The ending that a path alike has: ".safetensors", ".pt"...; empty where it is a folder."""
    if like.path.is_dir() or is_index(like.path):
        return ""
    known = like.path.suffix if like.path.suffix in (*SUFFIXES, *SHARED_SUFFIXES) else ""
    return known or {SAFETENSORS: ".safetensors", TAR: ".nemo"}.get(like.parts[0].kind, ".pt")


def in_form_of(checkpoints: Sequence[Checkpoint], path: Path) -> Checkpoint | None:
    """The first of these whose form a file of this name is to have; None where it is to be a state dict alone.

    Of .safetensors, .pt, .pth and .bin any loader takes a state dict. A .ckpt, .pth.tar or .nemo is what a library's
    own loader takes, so it is written as the members are. Raises CheckpointError where none is such a file.
    """
    if path.suffix in SAVE_SUFFIXES or path.suffix not in MEMBER_SUFFIXES:
        return None
    for checkpoint in checkpoints:
        if suffix_of(checkpoint) == path.suffix:
            return checkpoint
    raise CheckpointError(
        f"{path}: a {path.suffix} file is written as the members are, and none of them is one; "
        f"expected {', '.join(SAVE_SUFFIXES)}"
    )


def write_alike(tensors: Mapping[str, Tensor], like: Checkpoint, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write to ``path``, a file or folder that is not there yet; returns what stands for ``like.path``.

    The tensors have the names of ``like`` and are stored under those that its files have: wrapper prefixes, the entry
    of a torch file, shards and their index. Of a folder, files that are not weights are copied. Raises CheckpointError
    when the disk refuses or a file of ``like`` has gone.
    """
    with told(path, needs=like.bytes):
        return _write(tensors, like, path, metadata)


def save_alike(tensors: Mapping[str, Tensor], like: Checkpoint, path: Path, metadata: Mapping[str, str]) -> None:
    """As ``write_alike``, whole or not at all; a file, or a folder that radin wrote, is replaced."""
    if suffix_of(like):
        with told(path, needs=like.bytes), replacing(path) as temporary:
            _write(tensors, like, temporary, metadata)
        return
    require_replaceable(path)
    with told(path, needs=like.bytes), replacing_folder(path) as temporary:
        _write(tensors, like, temporary, metadata)


def require_replaceable(path: Path) -> None:
    """Raise CheckpointError unless nothing is at the place for a folder, or an empty one, or one that radin wrote."""
    if path.exists() and not (path.is_dir() and (read_metadata(path) or not any(path.iterdir()))):
        raise CheckpointError(f"{path}: is there already and no soup of radin's; it was left as it is")


def _write(tensors: Mapping[str, Tensor], like: Checkpoint, path: Path, metadata: Mapping[str, str]) -> Path:
    if suffix_of(like):
        _write_part(tensors, like, like.parts[0], path, metadata)
        _put_final([(like.parts[0], path)], final_metadata(tensors, metadata))
        return path
    folder = like.path if like.path.is_dir() else like.path.parent
    path.mkdir(exist_ok=True)
    for source in companions(folder):
        target = path / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    written = [(part, path / part.path.name) for part in like.parts]
    for part, target in written:
        _write_part(tensors, like, part, target, metadata)
    metadata = final_metadata(tensors, metadata)
    _put_final(written, metadata)
    index = folder_file(folder) if like.path.is_dir() else like.path
    if index is not None and is_index(index):
        shutil.copyfile(index, path / index.name)
    (path / FOLDER_METADATA).write_text(json.dumps(dict(metadata), indent=2) + "\n", encoding="utf-8")
    return path if like.path.is_dir() else path / like.path.name


def _write_part(
    tensors: Mapping[str, Tensor], like: Checkpoint, part: Part, path: Path, metadata: Mapping[str, str]
) -> None:
    """One file's tensors. A torch file's metadata are added when all is written, see ``_put_final``."""
    if part.kind == DISTRIBUTED:
        held = whole(tensors, part.stored)  # torch's planner wants all of them at once
        distributed.write(
            path.parent, part.path.parent, part.key, {stored: held[n] for n, stored in part.stored.items()}
        )
        return
    if part.kind != SAFETENSORS:
        found = whole(tensors, part.stored)
        content = torch_file.rewrapped(part.path, part.key, {stored: found[n] for n, stored in part.stored.items()})
        if part.kind == TAR:
            kept = final_metadata(tensors, metadata)
            tar.write_like(part.path, path, lambda file: write_torch(content, file, kept))
        else:
            write_torch(content, path, {})
        return
    names = {stored: name for name, stored in part.stored.items()}
    # The name under which tied tensors are stored must stay: not every loader knows the names left out. A member that
    # stores one twice, in two shards, has an index that names both: so has the soup.
    tied = {
        part.stored[alias]: part.stored[kept]
        for alias, kept in like.aliases.items()
        if alias in part.stored and kept in part.stored and _are_one(tensors, alias, kept)
    }
    before = safetensors_file.metadata(part.path)
    own = {name: text for name, text in before.items() if name not in names and not name.startswith("radin.")}
    kept = {stored: name for stored, name in names.items() if stored not in tied}
    write_stored(kept, tensors, path, {**own, **tied, **metadata})


def _are_one(tensors: Mapping[str, Tensor], one: str, other: str) -> bool:
    if isinstance(tensors, Streamed):
        return tensors.aliases.get(one, one) == tensors.aliases.get(other, other)
    return tensors[one] is tensors[other]


def _put_final(written: Iterable[tuple[Part, Path]], metadata: Mapping[str, str]) -> None:
    """The metadata as they are to stay, in all files of a checkpoint that was written."""
    for part, path in written:
        if part.kind not in (TAR, DISTRIBUTED):  # one has them already, the other in its folder alone
            (put_metadata if part.kind == SAFETENSORS else add_metadata)(path, metadata)


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
