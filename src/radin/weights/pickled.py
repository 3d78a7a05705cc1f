"""What the pickle of a torch file says, without unpickling it: plain values as they are, tensors as descriptions.

A pickle is a program for a small stack machine. This one runs the instructions that torch writes, calls nothing that
the file names, and counts its steps. For a name that is not data, and for all that is made of it, an inert stand-in is
put: it takes no part in what follows, and the file's tensors can be read beside it.
``torch.load(weights_only=True)`` runs no code either, but it has no bounds: a few megabytes keep it busy for minutes.
"""

from __future__ import annotations

import argparse
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from radin.weights.described import Described, Odd, Storage, Unknown
from radin.weights.limits import DIMENSIONS, PICKLE_BYTES, PICKLE_STEPS
from radin.weights.named import Call, StorageType, is_size, known, word

_TUPLE_KEYS = 1_000  # tuples as keys of dicts: their hashes can be made to collide, at the square of their number
_INTEGER_KEYS = 1 << 60  # larger integers' hashes too


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that is known by its ``name``, as nothing but its arguments and its state."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def get(self, field: str) -> Any:
        """An attribute of it, None where there is none."""
        return self.state.get(field) if isinstance(self.state, dict) else None


@dataclass(frozen=True)
class Loaded:
    """What a pickle says: its ``value``, the names it holds that are not data (``unsafe``), and where it ends."""

    value: Any
    unsafe: tuple[str, ...]
    end: int
    steps: int
    storages: Mapping[str, Storage]


def load(data: Any, start: int = 0, steps: int = PICKLE_STEPS, also: Mapping[str, Any] | None = None) -> Loaded:
    """Run the pickle that begins at ``start`` of bytes or a mapped file. ``also``: further names it may call, and ours.

    Raises ValueError for one that is damaged, unknown or too long.
    """
    machine = _Machine(data, start, steps, known() if also is None else {**known(), **also})
    try:
        value = machine.run()
    except (LookupError, TypeError, AttributeError, ArithmeticError, struct.error) as error:
        raise ValueError(f"damaged at byte {machine.at:,} ({type(error).__name__})") from error
    return Loaded(value, tuple(sorted(machine.unsafe)), machine.at, steps - machine.left, machine.storages)


class _Machine:
    def __init__(self, data: Any, start: int, steps: int, names: Mapping[str, Any]) -> None:
        self.names = names
        self.data = data
        self.at = start
        self.end = min(len(data), start + PICKLE_BYTES)
        self.left = steps
        self.tuple_keys = _TUPLE_KEYS
        self.stack: list[Any] = []
        self.marks: list[int] = []  # where groups begin on the stack
        self.memo: dict[int, Any] = {}
        self.unsafe: set[str] = set()
        self.storages: dict[str, Storage] = {}  # the first of each key

    def run(self) -> Any:
        data, steps = self.data, _STEPS
        while True:
            self.left -= 1
            if self.left < 0:
                self.spend(0)
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                raise ValueError(f"byte {self.at - 1:,} is an instruction (0x{code:02x}) that torch does not write")
            step(self)

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise ValueError("its pickle takes more steps than any checkpoint; save its state dict alone")

    def take(self, length: int) -> bytes:
        if self.at + length > self.end:
            raise ValueError("cut off, or larger than any checkpoint's")
        found: bytes = self.data[self.at : self.at + length]
        self.at += length
        return found

    def number(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1_000)
        if end < 0:
            raise ValueError("a name without an end")
        found: bytes = self.data[self.at : end]
        self.at = end + 1
        return found.decode("utf-8")

    def group(self) -> list[Any]:
        """What was pushed since the last mark, which goes too."""
        place = self.marks.pop()
        found = self.stack[place:]
        del self.stack[place:]
        return found

    def key(self, value: Any) -> Any:
        """A value that may be a key: hashing it takes a moment, and no many have the same hash."""
        if value is None or isinstance(value, str | bytes | float | torch.dtype | torch.device):
            return value
        if isinstance(value, int) and abs(value) < _INTEGER_KEYS:
            return value
        if isinstance(value, tuple) and len(value) <= DIMENSIONS and not any(isinstance(v, tuple) for v in value):
            self.tuple_keys -= 1
            if self.tuple_keys >= 0 and all(self.key(part) is part for part in value):
                return value
        if isinstance(value, Described | Odd | Record):  # hashed by identity
            return value
        raise ValueError(f"a key of a dict is a {type(value).__name__} that is no key of a checkpoint")


def _global(m: _Machine) -> None:
    module, name = m.line(), m.line()
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    else:
        module = IMPORT_MAPPING.get(module, module)
    _named(m, f"{module}.{name}")


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)) or len(name) + len(module) > 2_000:
        raise ValueError("a name that is no text")
    _named(m, f"{module}.{name}")


def _named(m: _Machine, full: str) -> None:
    if full in m.names:
        m.stack.append(m.names[full])
    else:
        m.unsafe.add(full.removeprefix("builtins."))
        m.stack.append(Unknown(f"a {full}"))


def _reduce(m: _Machine) -> None:
    arguments = m.stack.pop()
    function = m.stack.pop()
    if isinstance(function, Odd):
        m.stack.append(function)  # the stand-in of a class stands for its instances too
    elif isinstance(function, Call) and isinstance(arguments, tuple):
        m.stack.append(function.run(m, arguments))
    else:
        raise ValueError(f"it calls a {type(function).__name__}")


def _build(m: _Machine) -> None:
    state = m.stack.pop()
    built = m.stack[-1]
    if type(built) is OrderedDict and isinstance(state, dict):
        # A module's versions, for load_state_dict. Any other attribute could hide a method of the dict.
        vars(built).update({name: value for name, value in state.items() if name == "_metadata"})
    elif type(built) is argparse.Namespace and isinstance(state, dict):
        m.spend(len(state))
        vars(built).update({name: value for name, value in state.items() if isinstance(name, str)})
    elif isinstance(built, Record):
        built.state = state


def _items(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, Odd):
        return
    if not isinstance(target, dict):
        raise ValueError(f"it sets items of a {type(target).__name__}")
    if len(items) % 2:
        raise ValueError("a key without a value")
    for place in range(0, len(items), 2):
        target[m.key(items[place])] = items[place + 1]


def _appended(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, Odd):
        return
    if type(target) is not list:
        raise ValueError(f"it appends to a {type(target).__name__}")
    target.extend(items)


def _added(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, Odd):
        return
    if type(target) is not set:
        raise ValueError(f"it adds to a {type(target).__name__}")
    target.update(m.key(item) for item in items)


def _keywords(m: _Machine) -> None:
    """NEWOBJ_EX: a class, arguments and keywords; nothing that is known here takes keywords."""
    keywords = m.stack.pop()
    if keywords and not isinstance(m.stack[-2], Odd):
        raise ValueError("it calls with keywords")
    _reduce(m)


def _pop(m: _Machine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.stack.pop()


def _drop(m: _Machine) -> None:
    m.group()


def _tuple_of(m: _Machine, length: int) -> None:
    found = tuple(m.stack[-length:])
    if len(found) != length:
        raise ValueError("too few values for a tuple")
    m.stack[-length:] = [found]


def _text(m: _Machine, length: int) -> None:
    m.stack.append(m.take(length).decode("utf-8", "surrogatepass"))


def _persistent(m: _Machine) -> None:
    found = m.stack.pop()
    if not isinstance(found, tuple) or len(found) not in (5, 6) or word(found[0]) != "storage":
        raise ValueError("it refers to something that is no storage")
    kind, key, location, numel = found[1:5]
    if isinstance(kind, Odd):
        m.stack.append(kind)
        return
    if not isinstance(kind, StorageType) or not is_size(numel):
        raise ValueError("a storage without a type or a length")
    view = found[5] if len(found) == 6 else None
    if view is not None:
        _, offset, length = view
        if not (is_size(offset) and is_size(length)):
            raise ValueError("a view without a place")
        view = (offset, length)
    storage = Storage(word(key), kind.dtype, numel, word(location), view)
    m.storages.setdefault(storage.key, storage)
    m.stack.append(storage)


def _remember(m: _Machine, place: int) -> None:
    m.memo[place] = m.stack[-1]


def _protocol(m: _Machine) -> None:
    version = m.number(_UINT1)
    if version > 5:
        raise ValueError(f"pickle protocol {version}, which is not known here")


def _push(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(make())


_UINT8 = struct.Struct("<Q")
_UINT1, _UINT2, _UINT4, _INT4 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")
_FLOAT8 = struct.Struct(">d")
_STOP = ord(".")

# By the names that Python's pickletools has for them.
_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _protocol,  # PROTO
    ord("c"): _global,
    ord("R"): _reduce,
    0x81: _reduce,  # NEWOBJ: a class and arguments, as REDUCE has a function and arguments
    ord("b"): _build,
    ord("Q"): _persistent,
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("t"): lambda m: m.stack.append(tuple(m.group())),
    0x85: lambda m: _tuple_of(m, 1),
    0x86: lambda m: _tuple_of(m, 2),
    0x87: lambda m: _tuple_of(m, 3),
    ord(")"): _push(tuple),
    ord("]"): _push(list),
    ord("}"): _push(dict),
    0x8F: _push(set),
    ord("N"): _push(lambda: None),
    0x88: _push(lambda: True),
    0x89: _push(lambda: False),
    ord("a"): lambda m: _appended(m, [m.stack.pop()]),
    ord("e"): lambda m: _appended(m, m.group()),
    ord("s"): lambda m: _items(m, [m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: _items(m, m.group()),
    ord("J"): lambda m: m.stack.append(m.number(_INT4)),
    ord("K"): lambda m: m.stack.append(m.number(_UINT1)),
    ord("M"): lambda m: m.stack.append(m.number(_UINT2)),
    ord("G"): lambda m: m.stack.append(m.number(_FLOAT8)),
    0x8A: lambda m: m.stack.append(int.from_bytes(m.take(m.number(_UINT1)), "little", signed=True)),  # LONG1
    ord("X"): lambda m: _text(m, m.number(_UINT4)),
    ord("U"): lambda m: m.stack.append(m.take(m.number(_UINT1)).decode("utf-8")),  # a string of Python 2
    ord("h"): lambda m: m.stack.append(m.memo[m.number(_UINT1)]),
    ord("j"): lambda m: m.stack.append(m.memo[m.number(_UINT4)]),
    ord("q"): lambda m: _remember(m, m.number(_UINT1)),
    ord("r"): lambda m: _remember(m, m.number(_UINT4)),
    ord("0"): _pop,
    ord("1"): _drop,  # POP_MARK: what remains of a tuple that holds itself
    0x8B: lambda m: m.stack.append(int.from_bytes(m.take(m.number(_UINT4)), "little", signed=True)),  # LONG4
    # Protocols 3 to 5, which torch.save writes where it is told to, and torch's distributed checkpoints have.
    ord("B"): lambda m: m.stack.append(bytes(m.take(m.number(_UINT4)))),
    ord("C"): lambda m: m.stack.append(bytes(m.take(m.number(_UINT1)))),
    0x8C: lambda m: _text(m, m.number(_UINT1)),  # SHORT_BINUNICODE
    0x8D: lambda m: _text(m, m.number(_UINT8)),
    0x8E: lambda m: m.stack.append(bytes(m.take(m.number(_UINT8)))),
    0x90: lambda m: _added(m, m.group()),
    0x91: lambda m: m.stack.append({m.key(value) for value in m.group()}),  # FROZENSET
    0x92: _keywords,
    0x93: _stack_global,
    0x94: lambda m: _remember(m, len(m.memo)),  # MEMOIZE
    0x95: lambda m: m.number(_UINT8),  # FRAME: how much follows in one piece
    0x96: lambda m: m.stack.append(bytearray(m.take(m.number(_UINT8)))),
}
