"""Damage: bytes flipped, cut, repeated and replaced; JSON documents with any node of any other kind."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

# What stands where something else was expected.
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "a" * 5000,
    "\x1b[31m\u202e\x00",
    "../../etc/passwd",
    "é\ud800",
    [],
    [None],
    [[]],
    [1] * 1000,
    {},
    {"": None},
    {"members": 1},
    {"name": [], "fingerprint": {}, "weight": "1"},
)
_DEEP = 100_000


def damaged_bytes(chance: random.Random, data: bytes, head: int = 512) -> bytes:
    """``data`` with one to eight kinds of damage."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        changed = _damaged_once(chance, changed, head)
    return bytes(changed)


def _damaged_once(chance: random.Random, data: bytearray, head: int) -> bytearray:
    if not data:
        return bytearray(chance.randbytes(chance.choice((0, 1, 8, 100))))
    at = chance.randrange(min(head, len(data)) if chance.random() < 0.6 else len(data))
    way = chance.randrange(10)
    if way < 3:
        data[at] ^= 1 << chance.randrange(8)
    elif way == 3:
        data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, ord("{"), ord('"')))
    elif way == 4:
        del data[at:]
    elif way == 5:
        del data[at : at + chance.choice((1, 2, 8, 64))]
    elif way == 6:
        data[at:at] = chance.randbytes(chance.choice((1, 8, 100)))
    elif way == 7:
        size = chance.choice((2, 4, 8))
        number = chance.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data), len(data) + 1))
        data[at : at + size] = (number % 256**size).to_bytes(size, chance.choice(("little", "big")))
    elif way == 8:
        size = chance.choice((16, 512, 4096))
        other = chance.randrange(len(data))
        data[at : at + size] = data[other : other + size]
    else:
        data.extend(chance.randbytes(chance.choice((1, 8, 4096))))
    return data


def damaged_json(chance: random.Random, value: Any) -> bytes:
    """A JSON text whose shape is any: one to three nodes replaced, dropped, added or renamed; or no JSON at all."""
    way = chance.random()
    if way < 0.03:
        return chance.choice(
            (b"", b"null", b"[]", b"{}", b"0", b'"x"', b"nul", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"NaN")
        )
    if way < 0.05:
        opening = chance.choice(("[", '{"a":'))
        return (opening * _DEEP).encode()
    if way < 0.2:
        return damaged_bytes(chance, json.dumps(value, indent=chance.choice((None, 2))).encode())
    changed = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        changed = _other_node(chance, changed)
    return json.dumps(changed).encode("utf-8", "surrogatepass")


def _other_node(chance: random.Random, value: Any) -> Any:
    places = list(_places(value))
    if not places:
        return copy.deepcopy(chance.choice(_VALUES))
    holder, key = chance.choice(places)
    way = chance.randrange(6)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[chance.choice(("x", "", "seconds", "a" * 300))] = holder.pop(key)
    elif way == 2 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif way == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = chance.choice((-holder[key], holder[key] + 1, holder[key] * 2, str(holder[key]), 0, 1e-320))
    elif way == 4:
        other, another = chance.choice(places)
        if isinstance(other, dict | list) and _has(other, another):
            holder[key] = copy.deepcopy(other[another])
    else:
        holder[key] = copy.deepcopy(chance.choice(_VALUES))
    return value


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key or index) of every node below the root."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield value, key
        yield from _places(part)
