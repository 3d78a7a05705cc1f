"""What a torch file's pickle may name: each class and function is a call of ours, which makes a value or a description.

Nothing of what the file names is called. What a call copies is counted, so that a short pickle cannot copy for ever.
"""

from __future__ import annotations

import argparse
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from radin.weights.described import Described, Odd, Quantized, Storage
from radin.weights.limits import DIMENSIONS

_TEXT_PER_STEP = 64  # copying so many bytes counts as one step
_TENSOR_STEPS = 10  # what describing one tensor counts


class Machine(Protocol):
    """What runs the pickle."""

    def spend(self, steps: int) -> None:
        """Count steps. Raises ValueError when there are none left."""

    def key(self, value: Any) -> Any:
        """The same value, if it may be a key. Raises ValueError."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What the file may name and call: a function of ours of the machine and the arguments."""

    run: Callable[[Machine, tuple[Any, ...]], Any]


@dataclass(frozen=True, slots=True)
class StorageType:
    """A class of torch's that stands for the dtype of a storage."""

    dtype: torch.dtype


def _dense(
    m: Machine, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype, metadata: Any = None
) -> Described | Odd:
    if isinstance(storage, Odd):
        return storage
    if not isinstance(storage, Storage) or not (isinstance(size, tuple) and isinstance(stride, tuple)):
        raise ValueError("a tensor without a storage or a shape")
    m.spend(_TENSOR_STEPS + len(size))
    if len(size) != len(stride) or len(size) > DIMENSIONS or not all(map(is_size, (*size, *stride, offset))):
        raise ValueError("a tensor whose shape, strides and offset are not sizes")
    if str(dtype) in _QUANTIZED_DTYPES:
        return Quantized("quantized")
    if storage.location == "meta":
        return Odd("without data")
    bits = metadata if isinstance(metadata, dict) else {}
    return Described(
        storage, dtype, offset, tuple(size), tuple(stride), bits.get("conj") is True, bits.get("neg") is True
    )


def _tensor(m: Machine, a: tuple[Any, ...]) -> Any:
    storage, offset, size, stride = a[:4]
    dtype = storage.dtype if isinstance(storage, Storage) else torch.float32
    return _dense(m, storage, offset, size, stride, dtype, a[6] if len(a) > 6 else None)


def _typed_tensor(m: Machine, a: tuple[Any, ...]) -> Any:
    storage, offset, size, stride, _, _, dtype = a[:7]
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor without a dtype")
    return _dense(m, storage, offset, size, stride, dtype, a[7] if len(a) > 7 else None)


def _inner(m: Machine, a: tuple[Any, ...]) -> Any:
    """A parameter is the tensor in it."""
    if not a or not isinstance(a[0], Described | Odd):
        raise ValueError("a parameter without a tensor")
    return a[0]


def _typed(m: Machine, a: tuple[Any, ...]) -> Any:
    function, kind, arguments = a[:3]
    if isinstance(kind, Odd):
        return kind
    if not isinstance(function, Call) or function.run is _typed or not isinstance(arguments, tuple):
        raise ValueError("a tensor that nothing makes")
    return function.run(m, arguments)


def _ordered(m: Machine, a: tuple[Any, ...]) -> Any:
    found: OrderedDict[Any, Any] = OrderedDict()
    for key, value in a[0] if a else ():
        m.spend(1)
        found[m.key(key)] = value
    return found


def _counter(m: Machine, a: tuple[Any, ...]) -> Any:
    m.spend(len(a[0]) if a else 0)
    return Counter(dict(a[0])) if a else Counter()


def _set(m: Machine, a: tuple[Any, ...]) -> Any:
    values = a[0] if a else []
    m.spend(len(values))
    return {m.key(value) for value in values}


def _bytes(m: Machine, a: tuple[Any, ...]) -> Any:
    text, encoding = a
    m.spend(len(text) // _TEXT_PER_STEP)
    if word(encoding) not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding that torch does not write")
    return text.encode("latin1")


def _bytearray(m: Machine, a: tuple[Any, ...]) -> Any:
    if a and not isinstance(a[0], bytes):
        return bytearray(_bytes(m, a))
    m.spend(len(a[0]) // _TEXT_PER_STEP if a else 0)
    return bytearray(*a[:1])


def _device(m: Machine, a: tuple[Any, ...]) -> Any:
    kind = word(a[0])[:20]
    try:
        return torch.device(kind, *a[1:2])
    except RuntimeError:
        return kind


def _sizes(m: Machine, a: tuple[Any, ...]) -> Any:
    values = tuple(a[0]) if a else ()
    m.spend(len(values))
    if not all(map(is_size, values)):
        raise ValueError("a shape that is not made of sizes")
    return torch.Size(values)


def _odd(what: str) -> Call:
    return Call(lambda m, a: Odd(what))


@cache
def known() -> dict[str, Any]:
    """What a checkpoint may name: classes and functions as calls of ours, and torch's constants as they are."""
    constants = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    storages = {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
        "ComplexDoubleStorage": torch.complex128,
        "QInt8Storage": torch.qint8,
        "QUInt8Storage": torch.quint8,
        "QInt32Storage": torch.qint32,
        "QUInt4x2Storage": torch.quint4x2,
        "QUInt2x4Storage": torch.quint2x4,
    }
    tensor, parameter = Call(_tensor), Call(_inner)
    return {
        **constants,
        **{f"{module}.{name}": StorageType(dtype) for name, dtype in storages.items() for module in _STORAGE_MODULES},
        "torch.storage.UntypedStorage": StorageType(torch.uint8),
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": Call(_typed_tensor),
        "torch._tensor._rebuild_from_type_v2": Call(_typed),
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
        "torch.nn.parameter.Parameter": parameter,
        "torch.Tensor": _odd("in a form of torch's that is too old"),
        "torch._utils._rebuild_qtensor": Call(lambda m, a: Quantized("quantized")),
        "torch._utils._rebuild_sparse_tensor": Call(lambda m, a: Odd(word(a[0])[:40])),  # its layout
        "torch._utils._rebuild_nested_tensor": _odd("nested"),
        "torch._utils._rebuild_meta_tensor_no_storage": _odd("without data"),
        "torch._utils._rebuild_wrapper_subclass": _odd("of a subclass"),
        "torch._utils._rebuild_device_tensor_from_numpy": _odd("from another device"),
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _odd("from another device"),
        "torch.serialization._get_layout": Call(lambda m, a: word(a[0])),
        **{f"torch.{name}": name for name in _QSCHEMES},
        "torch.Size": Call(_sizes),
        "torch.device": Call(_device),
        "collections.OrderedDict": Call(_ordered),
        "collections.Counter": Call(_counter),
        "argparse.Namespace": Call(lambda m, a: argparse.Namespace()),
        "builtins.set": Call(_set),
        "builtins.complex": Call(lambda m, a: complex(float(a[0]), float(a[1]))),
        "builtins.bytearray": Call(_bytearray),
        "_codecs.encode": Call(_bytes),
    }


_QUANTIZED_DTYPES = ("torch.qint8", "torch.quint8", "torch.qint32", "torch.quint4x2", "torch.quint2x4")
_STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")
_QSCHEMES = (
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)


def is_size(value: Any) -> bool:
    """Whether a value can be a number of elements: a whole number, not negative, below 2**62."""
    return type(value) is int and 0 <= value < 1 << 62


def word(value: Any) -> str:
    """Text, which comes as bytes where Python 2 wrote it, or a number as text."""
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    if not isinstance(value, str | int):
        raise ValueError(f"a {type(value).__name__} where a word should be")
    return str(value)
