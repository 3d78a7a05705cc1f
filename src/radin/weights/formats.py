"""A checkpoint, whatever its format: a .safetensors or torch file, or a folder of shards."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from radin.errors import CheckpointError
from radin.weights import distributed
from radin.weights.checkpoint import Checkpoint, Distributed, File, Part, Reader, Stretch, state_of
from radin.weights.kinds import DISTRIBUTED, SAFETENSORS, SAFETENSORS_SUFFIXES, SUFFIXES, TORCH, kind_of
from radin.weights.limits import DIMENSIONS, NAME, TENSORS
from radin.weights.shards import (
    ADAPTER_FILES,
    FOLDER_FILES,
    INDEX_SUFFIX,
    folder_file,
    is_index,
    shards_of,
    weight_map_of,
)
from radin.weights.stored import WRAPPERS, Stored, strip_wrappers

# What other modules need of a checkpoint comes from here, wherever it is defined.
__all__ = [
    "ADAPTER_FILES",
    "FOLDER_FILES",
    "Checkpoint",
    "Part",
    "Reader",
    "Stretch",
    "folder_file",
    "is_index",
    "open_checkpoint",
]


def open_checkpoint(path: str | Path, *, key: str | None = None) -> Checkpoint:
    """Read the headers of a checkpoint: a file, an index of shards, or a folder that holds one of FOLDER_FILES.

    ``key``: the entry of a torch file that holds the state dict, when it is not one of torch_entries.NESTED_KEYS.
    Raises CheckpointError when the file is missing, damaged, unsafe, of an unknown kind or without tensors.
    """
    try:
        return _open(Path(path), key)
    except OSError as error:
        raise CheckpointError(f"{_brief(path)}: cannot be read: {error.strerror}") from error


def _open(path: Path, key: str | None) -> Checkpoint:
    if path.is_dir():
        inside = folder_file(path)
        if inside is None and (path / distributed.METADATA).is_file():
            return _open_distributed(path, key)
        if inside is None:
            raise CheckpointError(f"{path}: not a checkpoint folder; expected one of {', '.join(FOLDER_FILES)}")
        return _open_index(path, inside, key) if is_index(inside) else _open_files(path, [inside], key)
    if is_index(path):
        return _open_index(path, path, key)
    if path.name == distributed.METADATA:
        return _open_distributed(path.parent, key)
    _refuse_part(path)
    shard = re.search(r"-\d{5}-of-(\d{5})$", path.stem)
    if shard and int(shard.group(1)) > 1:
        raise CheckpointError(f"{path}: one shard of a checkpoint. Give its folder or its {INDEX_SUFFIX} file.")
    return _open_files(path, [path], key)


def _refuse_part(path: Path) -> None:
    """Refuse one process's part of a checkpoint of DeepSpeed's or torch's, by its name, and say what is whole."""
    if re.fullmatch(r".*zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt", path.name):
        raise CheckpointError(
            f"{path}: one process's part of a DeepSpeed ZeRO-3 checkpoint, whose weights are spread over all of them. "
            "Make it whole with DeepSpeed's script in the folder above, python zero_to_fp32.py . whole, and give that"
        )
    rank = re.fullmatch(r"mp_rank_(\d+)_model_states\.pt", path.name)
    if rank and (int(rank.group(1)) > 0 or path.with_name("mp_rank_01_model_states.pt").exists()):
        raise CheckpointError(
            f"{path}: one of the parts over which DeepSpeed spread the model (model parallel). Make it whole first, "
            "with the training framework's own conversion"
        )
    if path.suffix == ".distcp":
        raise CheckpointError(f"{path}: one part of a distributed checkpoint. Give its folder.")


def _open_distributed(folder: Path, key: str | None) -> Checkpoint:
    metadata = folder / distributed.METADATA
    state = state_of(metadata)
    stored, chunks = distributed.describe(folder, key)
    names = sorted({chunk.file for parts in chunks.values() for chunk in parts})
    held = Distributed(stored, chunks, tuple((folder / name, state_of(folder / name)) for name in names))
    return _checkpoint(folder, (File(metadata, key, state, DISTRIBUTED, chunks=held),), [stored])


def _open_index(path: Path, index: Path, key: str | None) -> Checkpoint:
    weight_map = weight_map_of(index)
    checkpoint = _open_files(path, shards_of(index, weight_map), key)
    held = {stored: checkpoint._files[file].path.name for file, stored in checkpoint._places.values()}
    for name, shard in weight_map.items():
        if held.get(name) != shard and checkpoint.aliases.get(name) is None:
            raise CheckpointError(f"{index}: places tensor {name[:100]!r} in {shard}, which does not hold it")
    return checkpoint


def _open_files(path: Path, paths: list[Path], key: str | None) -> Checkpoint:
    files = tuple(File(file, key, state_of(file), _kind(file)) for file in paths)
    stored = [file.describe() for file in files]
    files = tuple(
        replace(file, places=part.places, starts=part.starts) for file, part in zip(files, stored, strict=True)
    )
    return _checkpoint(path, files, stored)


def _checkpoint(path: Path, files: tuple[File, ...], stored: list[Stored]) -> Checkpoint:
    """One checkpoint of what its files hold."""
    _check_bounds(path, stored)
    places: dict[str, tuple[int, str]] = {}
    for index, part in enumerate(stored):
        for name in part.shapes:
            if name in places:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is in two shards, {files[places[name][0]].path.name} and "
                    f"{files[index].path.name}"
                )
            places[name] = (index, part.aliases.get(name, name))
    if not places:
        raise CheckpointError(f"{path}: holds no tensors")
    wrappers = stored[0].wrappers if len({part.wrappers for part in stored}) == 1 else WRAPPERS
    clean, stripped = strip_wrappers(places, wrappers)
    order = sorted(places, key=clean.__getitem__)
    where = {name: stored[places[name][0]] for name in order}
    return Checkpoint(
        path=path,
        shapes={clean[name]: where[name].shapes[name] for name in order},
        dtypes={clean[name]: where[name].dtypes[name] for name in order},
        aliases={clean[name]: clean[places[name][1]] for name in order if places[name][1] != name},
        notes=tuple(dict.fromkeys(note for part in stored for note in part.notes)) + stripped,
        mapped=all(part.mapped for part in stored),
        _files=files,
        _places={clean[name]: places[name] for name in order},
        _listed={clean[name]: (places[name][0], name) for name in order},
    )


def _check_bounds(path: Path, stored: list[Stored]) -> None:
    """Refuse more tensors than a checkpoint has, names that nothing could print, and shapes that nothing could have."""
    if sum(len(part.shapes) for part in stored) > TENSORS:
        raise CheckpointError(f"{path}: holds more than {TENSORS:,} tensors")
    for part in stored:
        for name, shape in part.shapes.items():
            if len(name) > NAME or not _is_text(name):
                raise CheckpointError(
                    f"{path}: a tensor's name ({name[:60]!r}...) is longer than {NAME:,} characters or no text"
                )
            if len(shape) > DIMENSIONS or math.prod(size for size in shape if size) >= 1 << 62:
                raise CheckpointError(f"{path}: tensor {name!r} has a shape that no tensor has")


def _is_text(name: str) -> bool:
    """Whether a name can be written: not half of a surrogate pair."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _brief(path: object) -> str:
    text = str(path)
    return text if len(text) <= NAME else f"{text[:60]}... ({len(text):,} characters)"


def _kind(path: Path) -> str:
    """What is in a file; where that cannot be told, what its name says, so that the reader says what is wrong."""
    try:
        found = kind_of(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if found is not None:
        return found
    if path.suffix in SUFFIXES:
        return SAFETENSORS if path.suffix in SAFETENSORS_SUFFIXES else TORCH
    raise CheckpointError(
        f"{path}: unknown kind of file. It is neither safetensors nor what torch.save writes, whatever its name; save "
        "the state dict with one of them"
    )
