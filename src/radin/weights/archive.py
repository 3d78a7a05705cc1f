"""The table of contents of a zip archive, and its entries: read with bounds, each checked before it is believed.

torch files are zip archives. Python's zipfile reads a table of any size and raises a dozen kinds of exceptions; torch's
own reader maps entries without looking whether they are compressed. Here a damaged archive is a ValueError.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radin.weights.limits import DIRECTORY_BYTES, EXPANDED_BYTES, EXPANSION

_LOCAL = struct.Struct("<4s5H3I2H")  # what stands before each entry's data
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # an entry of the table of contents
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_LONGEST_COMMENT = 0xFFFF
_IN_ZIP64 = 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: where its header is, how many bytes it has in the file (``packed``) and read, and their checksum."""

    name: bytes
    header: int
    packed: int
    size: int
    method: int
    crc: int

    @property
    def stored(self) -> bool:
        """Whether its bytes are in the file as they are."""
        return self.method == _STORED


@dataclass(frozen=True)
class Archive:
    """The entries of a zip archive by name, in the order of its table of contents. ``content``: the file."""

    content: Any
    entries: Mapping[bytes, Entry]
    _starts: tuple[int, ...]  # of all entries and of the table of contents, ascending

    def start(self, entry: Entry) -> int:
        """Where the data of an entry begin. Raises ValueError unless they are there, clear of all others."""
        try:
            fields = _LOCAL.unpack(self.content[entry.header : entry.header + _LOCAL.size])
        except struct.error:
            raise ValueError(f"{_shown(entry.name)} begins beyond the end of the file") from None
        name_at = entry.header + _LOCAL.size
        start: int = name_at + fields[9] + fields[10]
        name = bytes(self.content[name_at : name_at + fields[9]])
        if fields[0] != b"PK\x03\x04" or name != entry.name or fields[3] != entry.method:
            raise ValueError(f"{_shown(entry.name)} is not where the table of contents says")
        after = bisect_right(self._starts, entry.header)
        if after == len(self._starts) or start + entry.packed > self._starts[after]:
            raise ValueError(f"{_shown(entry.name)} reaches into what follows it")
        return start

    def read(self, entry: Entry, limit: int) -> bytes:
        """All bytes of an entry, decompressed and their checksum compared. Raises ValueError."""
        if entry.size > limit:
            raise ValueError(f"{_shown(entry.name)} has {entry.size:,} bytes; at most {limit:,} are read")
        return unpacked(self.content, self.start(entry), entry)


def unpacked(content: Any, start: int, entry: Entry) -> bytes:
    """The bytes of an entry whose data begin at ``start``, decompressed. Raises ValueError."""
    raw = content[start : start + entry.packed]
    if not entry.stored:
        if entry.size > max(EXPANDED_BYTES, EXPANSION * entry.packed):
            raise ValueError(f"{_shown(entry.name)} is {entry.size:,} bytes compressed to {entry.packed:,}")
        try:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            raw = inflate.decompress(raw, entry.size + 1)
        except zlib.error as error:
            raise ValueError(f"{_shown(entry.name)} cannot be decompressed: {error}") from None
    if len(raw) != entry.size:
        raise ValueError(f"{_shown(entry.name)} does not have the {entry.size:,} bytes that it should")
    if zlib.crc32(raw) != entry.crc:
        raise ValueError(f"{_shown(entry.name)} does not have the checksum that it should")
    return bytes(raw)


def open_archive(content: Any) -> Archive:
    """The table of contents of a mapped file. Raises ValueError for what is not a whole zip archive within bounds."""
    offset, size, number = _directory(content)
    if size > DIRECTORY_BYTES:
        raise ValueError(f"a table of contents of {size:,} bytes; at most {DIRECTORY_BYTES:,} are read")
    table = bytes(content[offset : offset + size])
    if offset + size > len(content):
        raise ValueError("the table of contents lies beyond the end of the file")
    entries: dict[bytes, Entry] = {}
    at = 0
    for _ in range(number):
        entry, at = _entry(table, at)
        if entry.name in entries:
            raise ValueError(f"two entries are named {_shown(entry.name)}")
        entries[entry.name] = entry
    starts = sorted(entry.header for entry in entries.values())
    if starts and starts[-1] >= offset:
        raise ValueError("an entry begins beyond the table of contents")
    return Archive(content, entries, (*starts, offset))


def _directory(content: Any) -> tuple[int, int, int]:
    """Where the table of contents begins, its bytes, and its entries."""
    lowest = max(0, len(content) - _END.size - _LONGEST_COMMENT)
    at = lowest + bytes(content[lowest:]).rfind(b"PK\x05\x06")
    if at < lowest or at + _END.size > len(content):
        raise ValueError("no table of contents at its end")
    _, disk, first_disk, _, number, size, offset, _ = _END.unpack(content[at : at + _END.size])
    locator = at - _LOCATOR64.size
    if locator >= 0 and content[locator : locator + 4] == b"PK\x06\x07":
        place = _LOCATOR64.unpack(content[locator:at])[2]
        if place + _END64.size > len(content) or content[place : place + 4] != b"PK\x06\x06":
            raise ValueError("its zip64 record is not where it should be")
        _, _, _, _, disk, first_disk, _, number, size, offset = _END64.unpack(content[place : place + _END64.size])
    if disk or first_disk:
        raise ValueError("one part of an archive in several parts")
    return offset, size, number


def _entry(table: bytes, at: int) -> tuple[Entry, int]:
    """The entry at a place of the table of contents, and where the next one is."""
    try:
        fields = _CENTRAL.unpack_from(table, at)
    except struct.error:
        raise ValueError("the table of contents is cut off") from None
    signature, _, _, flags, method, _, _, crc, packed, size, name, extra, comment, _, _, _, header = fields
    if signature != b"PK\x01\x02":
        raise ValueError("the table of contents is damaged")
    start = at + _CENTRAL.size
    more = start + name
    if more + extra + comment > len(table):
        raise ValueError("the table of contents is cut off")
    if _IN_ZIP64 in (packed, size, header):
        size, packed, header = _zip64(table[more : more + extra], size, packed, header)
    title = table[start:more]
    if flags & 1:
        raise ValueError(f"{_shown(title)} is encrypted")
    if method not in (_STORED, _DEFLATED):
        raise ValueError(f"{_shown(title)} is compressed in a way that is not known here (method {method})")
    if method == _STORED and packed != size:
        raise ValueError(f"{_shown(title)} is not compressed, and has two sizes")
    return Entry(title, header, packed, size, method, crc), more + extra + comment


def _zip64(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Sizes and place of an entry from its zip64 field, where the short ones have no room for them."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = list(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            wide = [values.pop(0) if values and value == _IN_ZIP64 else value for value in (size, packed, header)]
            return wide[0], wide[1], wide[2]
        at += 4 + length
    return size, packed, header


def _shown(name: bytes) -> str:
    """An entry's name, as it may stand in a message."""
    return repr(name[:60].decode("utf-8", "replace")) + ("..." if len(name) > 60 else "")
