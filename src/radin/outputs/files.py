"""Outputs and targets in files that users bring, or that an earlier run left: opened, memory-mapped, checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from radin.checksums import KEY, damage, opened
from radin.disks import is_network
from radin.errors import OutputsError
from radin.files import open_regular, parse_json, read_json
from radin.outputs.lm_eval import find_logs, read_logs
from radin.outputs.store import StoredOutputs, is_read, map_array
from radin.weights.pool import Member, Pool
from radin.weights.remote import fetch_files, is_url

_SUFFIXES = (".npy", ".safetensors")
_TENSORS = ("outputs", "logits")  # what the outputs are called in a .safetensors file that holds more
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


class SavedOutputs(NamedTuple):
    """Outputs of all members, each (M, C), memory-mapped, in the pool's order, and the targets (M, ...)."""

    outputs: tuple[NDArray[Any], ...]
    targets: NDArray[Any]


def located(place: str | Path) -> Path:
    """Where outputs are on this machine: a path as it is, a URL's file or folder as a copy. Raises PoolError."""
    return fetch_files(str(place)) if is_url(place) else Path(place)


def read_outputs(folder: Path, pool: Pool) -> SavedOutputs:
    """The members' outputs and the targets from a folder: NAME.npy or NAME.safetensors, targets.npy or .safetensors.

    A "/" in a member's name is a folder, or "_" or "-" in the file's name. A .safetensors file holds the outputs as
    "outputs" or "logits" or as its only tensor; those that radin wrote are found by fingerprint, and known by it. Or
    sample logs of lm-evaluation-harness, in a folder for each member (see lm_eval.py).
    Raises OutputsError for a member without a file, outputs of other weights, and shapes that do not fit together.
    """
    if not folder.is_dir():
        raise OutputsError(f"{folder} is no folder of outputs")
    logs = find_logs(folder, pool.member_names)
    if logs is not None:
        choices, right = read_logs(logs, pool.member_names)
        return SavedOutputs(tuple(choices), right)
    files = [next((path for path in _places(folder, member) if path.is_file()), None) for member in pool]
    missing = [member.name for member, path in zip(pool, files, strict=True) if path is None]
    if missing:
        tried = ", ".join(path.name for path in list(_places(folder, pool[pool.member_names.index(missing[0])]))[:2])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise OutputsError(f"{folder} has no outputs of {missing[0]}{more}; looked for {tried}")
    targets_file = next((p for p in (folder / f"targets{end}" for end in _SUFFIXES) if p.is_file()), None)
    if targets_file is None:
        raise OutputsError(f"{folder} has no targets.npy or targets.safetensors, one target per example")
    targets = open_targets(targets_file)
    found: list[NDArray[Any]] = []
    for member, path in zip(pool, files, strict=True):
        assert path is not None
        array = open_array(path, member.fingerprint)
        if len(array) != len(targets):
            raise OutputsError(
                f"{path} holds the outputs of {len(array):,} examples; there are {len(targets):,} targets"
            )
        if found and array.shape != found[0].shape:
            raise OutputsError(f"{path} has {array.shape[1]} outputs per example, {files[0]} has {found[0].shape[1]}")
        found.append(array)
    return SavedOutputs(tuple(found), targets)


def _places(folder: Path, member: Member) -> Iterator[Path]:
    """Where a member's outputs may lie, in order of preference."""
    for name in dict.fromkeys((member.name, member.name.replace("/", "_"), member.name.replace("/", "-"))):
        for suffix in _SUFFIXES:
            yield folder / f"{name}{suffix}"
    yield folder / f"{member.fingerprint[:32]}.safetensors"


def outputs_at(path: Path) -> list[tuple[str, Path]]:
    """(name, file) of the outputs at a path: the file itself, or each member's in the outputs folder of a run."""
    if not path.is_dir():
        return [(path.stem, path)]
    files = [file for file in sorted(path.glob("*.safetensors")) if re.fullmatch("[0-9a-f]{32}", file.stem)]
    if not files:
        raise OutputsError(f"{path} holds no members' outputs; give files, or the outputs folder of a run")
    names: dict[str, str]
    try:  # only for the names: a run's file that cannot be read is not needed for them
        members = opened(read_json(path.parent / "run.json"))["identity"]["members"]
        names = {str(fingerprint)[:32]: str(name) for fingerprint, name in members.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        names = {}
    return [(names.get(file.stem, file.stem[:12]), file) for file in files]


def open_array(path: Path, fingerprint: str | None = None) -> NDArray[Any]:
    """Outputs (examples, classes), memory-mapped. fingerprint: of the weights that gave them, where it matters.

    Raises OutputsError; so for a file of radin's that holds the outputs of other weights.
    """
    if not path.is_file():
        raise OutputsError(f"no outputs file {path}")
    array = _open_safetensors(path, fingerprint) if path.suffix == ".safetensors" else _open_npy(path)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise OutputsError(f"{path}: outputs must have the shape (examples, classes); got {array.shape}")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise OutputsError(f"{path}: outputs must be numbers; they are {array.dtype}")
    return array


def open_targets(path: Path) -> NDArray[Any]:
    """Targets (examples, ...). Raises OutputsError."""
    if not path.is_file():
        raise OutputsError(f"no targets file {path}")
    if path.suffix != ".safetensors":
        return _open_npy(path)
    from safetensors import SafetensorError
    from safetensors.numpy import load, load_file

    header, _ = _header(path)
    wrong = damage(path) if KEY in header.get("__metadata__", {}) else None
    if wrong is not None:
        raise OutputsError(f"{path} is damaged: {wrong}. The same cook command makes it again.")
    try:
        found = load(path.read_bytes()) if is_network(path) else load_file(path)
        return found["targets"]
    except (SafetensorError, KeyError) as error:
        raise OutputsError(f"{path} does not hold targets as radin writes them ({error})") from None


def _open_safetensors(path: Path, fingerprint: str | None) -> NDArray[Any]:
    header, start = _header(path)
    metadata = header.pop("__metadata__", {})
    if "member" in metadata:
        stored = StoredOutputs.open(path)
        if fingerprint is not None and stored.member != fingerprint:
            raise OutputsError(f"{path} holds the outputs of other weights ({stored.member[:12]})")
        return stored.array()
    name = next((name for name in _TENSORS if name in header), None) or (
        next(iter(header)) if len(header) == 1 else None
    )
    if name is None:
        raise OutputsError(f"{path}: which of its tensors are the outputs? Call them {' or '.join(_TENSORS)}")
    entry = header[name]
    if entry["dtype"] not in _DTYPES:
        raise OutputsError(f"{path}: outputs are stored as {entry['dtype']}; expected {', '.join(_DTYPES)}")
    offset, shape = start + entry["data_offsets"][0], tuple(entry["shape"])
    return map_array(path, np.dtype(_DTYPES[entry["dtype"]]), shape, offset)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a whole .safetensors file, and where its data starts."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path) as file, safe_open(path, "np"):  # the library's own checks of the file
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(length).decode())
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
    except (SafetensorError, OSError, ValueError) as error:
        raise OutputsError(f"{path} is not a whole .safetensors file ({error})") from None
    return header, 8 + length


def _open_npy(path: Path) -> NDArray[Any]:
    try:
        with open_regular(path):
            read = is_read(path, path.stat().st_size)
            found = np.load(path, mmap_mode=None if read else "r", allow_pickle=False)
        if isinstance(found, np.memmap) and found.flags.c_contiguous and found.size:
            return map_array(path, found.dtype, found.shape, found.offset)
        return np.asarray(found)
    except MemoryError:
        raise
    except Exception as error:  # numpy reads the header as Python, and raises whatever that does
        raise OutputsError(f"{path} is not a whole .npy array of numbers ({error})") from None
