"""Checksums that the files of radin's own carry inside, so that a damaged one is noticed and never believed.

A safetensors file has one in its metadata, over all of its other bytes; a JSON object one under "checksum", over its
other entries. They are there against disks and accidents: whoever wants to deceive can compute them anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from radin.files import open_regular

KEY = "radin.checksum"
_JSON_KEY = "checksum"
BLANK = "0" * 64
_ENTRY = re.compile(rb'"radin\.checksum"\s*:\s*"([0-9a-f]{64})"')
_CHUNK = 1 << 20
_HEADER_LIMIT = 100_000_000  # what the format allows
_LENGTH = 8


def file_checksum(path: Path) -> str:
    """SHA-256 (hex) of a file; of a folder, of the names and contents of all files in it. Raises OSError."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = [[file.relative_to(path).as_posix(), file_checksum(file)] for file in files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    with path.open("rb") as file:
        return _content(file).hexdigest()


def sealed_header(header: bytes, content: hashlib._Hash) -> bytes:
    """The head of a safetensors file (length and header), its blank checksum filled in.

    ``content``: SHA-256 of the bytes that follow, fed so far; it is not changed.
    """
    found = _ENTRY.search(header)
    assert found is not None
    assert found.group(1) == BLANK.encode(), "the header has a blank to be filled in"
    digest = hashlib.sha256(header + content.digest()).hexdigest()
    return header[: found.start(1)] + digest.encode() + header[found.end(1) :]


def seal(path: Path) -> None:
    """Fill in the checksum of a safetensors file that was written with {KEY: BLANK} in its metadata."""
    with path.open("r+b") as file:
        header = _in_order(_head(file))
        header = sealed_header(header, _content(file))
        file.seek(0)
        file.write(header)


def _in_order(header: bytes) -> bytes:
    """Length and header with the metadata sorted, as long as before: the library's order differs between processes."""
    value = json.loads(header[_LENGTH:])
    value["__metadata__"] = dict(sorted(value["__metadata__"].items()))
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    room = len(header) - _LENGTH
    return header[:_LENGTH] + text.ljust(room) if len(text) <= room else header  # Python escapes no more than Rust


def damage(path: Path) -> str | None:
    """What is wrong with a safetensors file that carries a checksum: it has none, or another. None: it is whole.

    Raises OSError.
    """
    try:
        with open_regular(path) as file:
            header = _head(file)
            found = _ENTRY.search(header)
            if found is None:
                return "it has no checksum: another program's, or damaged"
            blank = header[: found.start(1)] + BLANK.encode() + header[found.end(1) :]
            whole = hashlib.sha256(blank + _content(file).digest()).hexdigest() == found.group(1).decode()
    except ValueError as error:
        return str(error)
    return None if whole else "its content does not match its checksum"


def _head(file: BinaryIO) -> bytes:
    """Length and header of a safetensors file, as they are; the file then stands where its data start."""
    start = file.read(_LENGTH)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH or length > _HEADER_LIMIT:
        raise ValueError("it is no safetensors file, or damaged")
    header: bytes = start + file.read(length)
    if len(header) < _LENGTH + length:
        raise ValueError("it is truncated")
    return header


def _content(file: BinaryIO) -> hashlib._Hash:
    """SHA-256 of what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum in it."""
    rest: dict[str, Any] = json.loads(json.dumps(dict(value)))  # as a reader will find it: tuples are lists there
    rest.pop(_JSON_KEY, None)
    return {**rest, _JSON_KEY: _json_checksum(rest)}


def opened(value: Any) -> dict[str, Any]:
    """The JSON object that ``sealed`` was given. Raises ValueError when it is none, or not as it was written."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object; found a {type(value).__name__}")
    if _JSON_KEY not in value:
        raise ValueError("it has no checksum")
    rest = {name: part for name, part in value.items() if name != _JSON_KEY}
    if value[_JSON_KEY] != _json_checksum(rest):
        raise ValueError("its content does not match its checksum")
    return rest


def row_checksum(*columns: Any) -> str:
    """A checksum (32 hex digits) of the columns of a row: None, text, whole numbers, floats and bytes."""
    digest = hashlib.sha256()
    for column in columns:
        part = column if isinstance(column, bytes) else repr(column).encode()
        digest.update(f"{type(column).__name__} {len(part)} ".encode() + part)
    return digest.hexdigest()[:32]


def _json_checksum(value: Mapping[str, Any]) -> str:
    # NaN and infinity are not JSON, but Python's reader takes them; so do they count here.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
