"""What a user's metric is, by its code and not by its name: a run that continues must do so with the same one."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from radin import metrics
from radin.errors import TaskError
from radin.metrics import Metric

_LIBRARIES = tuple(
    {str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_GLOBAL_LOADS = frozenset(dis.opmap[name] for name in ("LOAD_GLOBAL", "LOAD_NAME") if name in dis.opmap)
_SAYS_NOTHING = ("EXTENDED_ARG", "RESUME", "NOP")  # a part of the next argument, or where a line starts
_CALL_FLAGS = 0x04 | 0x08 | 0x20 | 0x80 | 0x200  # *args, **kwargs, generator, coroutine, asynchronous generator
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))

Token = str | tuple[Any, ...]


def metric_identity(metric: Metric) -> str:
    """The name of one of radin's own metrics; of a user's, "NAME:" and a hash of its code, as by code_identity."""
    code = _metric_code(metric)
    try:
        own = metrics.get(metric.name)
    except TaskError:
        own = None
    if own is not None and _metric_code(own) == code:
        return metric.name
    return f"{metric.name}:{code}"


def code_identity(function: Callable[..., Any]) -> str:
    """A hash (hex) of what a function does, as far as its code tells: two of the same code have the same.

    Counted: bytecode, constants, the names of what it uses, defaults, what it closes over, and the same of every
    function, class and constant that it refers to by a global name; arguments of a partial; the object of a bound
    method; the class and the attributes of a callable object. Not counted: comments, layout, line numbers, docstrings,
    names of local variables. What belongs to Python, to an installed package or to radin goes by its qualified name.
    Bytecode is that of one minor version of Python: another one gives another hash.
    """
    return _digest(_Walk().of(function))


def _metric_code(metric: Metric) -> str:
    parts = (metric.value, metric.per_example, metric.summary, metric.from_summary, metric.totals, metric.from_totals)
    parts += () if metric.loss is None else (metric.loss,)
    about: tuple[object, ...] = (
        metric.higher_is_better,
        metric.targets,
        metric.family,
        metric.top,
        metric.target_only,
        metric.choices,
    )
    if metric.by_position:
        about += (metric.ignore_index,)
    return _digest((repr(about), *(None if part is None else code_identity(part) for part in parts)))


def _digest(token: Token | None) -> str:
    return hashlib.sha256(repr(token).encode("utf-8", "surrogatepass")).hexdigest()


class _Walk:
    """One walk over what a function refers to. Objects under way are known, so that it ends where they form a ring."""

    def __init__(self) -> None:
        self._active: list[object] = []
        self._done: dict[int, tuple[object, Token]] = {}  # the object is held so that its id stays its own

    def of(self, value: object) -> Token:
        """A token of any value, made of strings and tuples alone."""
        if isinstance(value, _SIMPLE):
            return (type(value).__name__, repr(value))
        if isinstance(value, ModuleType):
            return ("module", value.__name__)
        for place, other in enumerate(self._active):
            if other is value:
                return ("again", str(place))
        if id(value) in self._done:
            return self._done[id(value)][1]
        self._active.append(value)
        try:
            token = self._compound(value)
        finally:
            self._active.pop()
        digest = ("hash", _digest(token))
        self._done[id(value)] = (value, digest)
        return digest

    def _compound(self, value: object) -> Token:
        if isinstance(value, CodeType):
            return self._code(value, {})
        if isinstance(value, tuple | list):
            return (type(value).__name__, *map(self.of, value))
        if isinstance(value, set | frozenset):
            return (type(value).__name__, *sorted(map(self.of, value), key=repr))
        if isinstance(value, Mapping):
            pairs = ((self.of(key), self.of(item)) for key, item in value.items())
            return ("mapping", *sorted(pairs, key=repr))
        if _is_array(value):
            array = np.ascontiguousarray(_to_numpy(value))
            return ("array", str(array.dtype), repr(array.shape), hashlib.sha256(array.tobytes()).hexdigest())
        if isinstance(value, functools.partial):
            return ("partial", self.of(value.func), self.of(value.args), self.of(value.keywords))
        if isinstance(value, MethodType):
            return ("method", self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, BuiltinFunctionType | np.ufunc):
            return ("builtin", _qualified(value))
        wrapped = getattr(value, "__wrapped__", None)  # as functools.cache leaves it
        if callable(wrapped) and not isinstance(value, Mapping):
            return ("wrapper", _qualified(type(value)), self.of(wrapped))
        if isinstance(value, property):
            return ("property", *map(self.of, (value.fget, value.fset)))
        if isinstance(value, staticmethod | classmethod):
            return (type(value).__name__, self.of(value.__func__))
        return ("object", self.of(type(value)), *self._attributes(value))

    def _function(self, function: FunctionType) -> Token:
        cells = tuple(map(self._cell, function.__closure__ or ()))
        if _is_library(function):
            return ("library", _qualified(function), *cells)
        defaults = (self.of(function.__defaults__ or ()), self.of(function.__kwdefaults__ or {}))
        return ("function", self._code(function.__code__, function.__globals__), *defaults, *cells)

    def _cell(self, cell: Any) -> Token:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return ("empty cell",)

    def _code(self, code: CodeType, names: Mapping[str, Any]) -> Token:
        """Instructions with what they load, and what the global names among them stand for now."""
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _CALL_FLAGS)
        steps = tuple(self._steps(code, names))
        globals_ = [step.argval for step in dis.get_instructions(code) if step.opcode in _GLOBAL_LOADS]
        loaded = dict.fromkeys(name for name in globals_ if name in names and not name.startswith("__"))
        meanings = tuple((name, self._named(names[name], code)) for name in loaded)
        return ("code", repr(counts), code.co_exceptiontable.hex(), steps, meanings)

    def _steps(self, code: CodeType, names: Mapping[str, Any]) -> Iterator[Token]:
        for step in dis.get_instructions(code):
            if step.opname in _SAYS_NOTHING:
                continue
            # A docstring is a constant that nothing loads, and moves the places of the others.
            if step.opcode in dis.hasconst:
                inner = isinstance(step.argval, CodeType)
                value = self._code(step.argval, names) if inner else self.of(step.argval)
                yield (step.opname, value)
            elif step.opcode in dis.hasname:
                yield (step.opname, str(step.argval), str((step.arg or 0) & 1))
            else:
                yield (step.opname, str(step.arg))

    def _named(self, value: object, code: CodeType) -> Token:
        """What a global name stands for; of a module of the user's, whatever of it may be meant here."""
        if isinstance(value, ModuleType) and not _is_library_module(value):
            held = vars(value)
            return ("module", *((name, self.of(held[name])) for name in code.co_names if name in held))
        return self.of(value)

    def _class(self, kind: type) -> Token:
        if _is_library_class(kind):
            return ("class", _qualified(kind))
        held = {name: value for name, value in vars(kind).items() if not _is_bookkeeping(name)}
        bases = tuple(map(self.of, kind.__bases__))
        return ("class", bases, tuple((name, self.of(value)) for name, value in sorted(held.items())))

    def _attributes(self, value: object) -> Iterator[Token]:
        """The attributes of an object that say what it does: what has no plain value counts by its class."""
        slots = [name for kind in type(value).__mro__ for name in _names(getattr(kind, "__slots__", ()))]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
        for name, item in sorted(held.items()):
            plain = isinstance(item, (*_SIMPLE, tuple, list, set, frozenset, Mapping, FunctionType, functools.partial))
            yield (name, self.of(item) if plain or _is_array(item) or callable(item) else self.of(type(item)))


def _is_bookkeeping(name: str) -> bool:
    return name in ("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__") or (
        name in ("__static_attributes__", "__annotations__", "__annotate__", "__slots__", "__match_args__")
    )


def _names(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]


def _qualified(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__qualname__)
    return f"{getattr(value, '__module__', None)}.{name}"


def _is_library(function: FunctionType) -> bool:
    return _is_own(function.__module__) or _is_installed(function.__code__.co_filename)


def _is_library_module(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is None or _is_own(module.__name__) or _is_installed(file)


def _is_library_class(kind: type) -> bool:
    if _is_own(kind.__module__) or kind.__module__ in sys.builtin_module_names:
        return True
    module = sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None) is not None and module is not None and _is_library_module(module)


def _is_own(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "radin"


def _is_installed(file: str) -> bool:
    if file.startswith("<frozen"):
        return True
    return not file.startswith("<") and str(Path(file).resolve()).startswith(_LIBRARIES)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray | np.generic) or (
        type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach") and hasattr(value, "numpy")
    )


def _to_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value
    tensor = value.detach().cpu()
    return tensor.numpy() if tensor.dtype.is_floating_point is False else tensor.double().numpy()
