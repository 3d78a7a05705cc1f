"""Reading one file as torch.save wrote it, whatever it is called, never running code from it, and within bounds."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from radin.errors import CheckpointError, NoWeightsError
from radin.files import open_regular
from radin.weights import pickled, tar
from radin.weights.archive import Entry, open_archive, unpacked
from radin.weights.described import Described, Odd, Quantized, Storage, Unknown, holders
from radin.weights.kinds import TAR, kind_of_bytes
from radin.weights.layout import DTYPES, count, short
from radin.weights.limits import EXPANDED_BYTES, EXPANSION, PICKLE_BYTES, PICKLE_STEPS, VIEWS
from radin.weights.named import Call, StorageType
from radin.weights.stored import LIGHTNING_WRAPPERS, WRAPPERS, Place, Stored

# Where training scripts put the weights, in order of preference. Like timm, the moving average comes first.
NESTED_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
_EMA_KEYS = NESTED_KEYS[:2]

# Running averages that are no better weights: icefall's begins with training, to be subtracted from a later one's.
_AVERAGES = ("model_avg",)

_NOT_PLAIN = Described | Odd | Call | StorageType  # what no file can be written with
_EXTRA_STATE = "_extra_state"  # how torch.nn.Module names what a layer keeps beside its tensors

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C  # what torch's format before 1.6 begins with, pickled
_LEGACY_VERSION = 1001
_LIGHTNING_SETTINGS = "hyper_parameters"


@dataclass(frozen=True)
class _Content:
    """What a file holds, and a function from storage to where it begins and, in a zip archive, its entry."""

    value: Any
    locate: Callable[[Storage], tuple[int, Entry | None]]
    is_zip: bool
    within: bool  # whether the bytes are only part of the file
    unsafe: tuple[str, ...]  # the names in it that are not data, for which stand-ins were put


def describe(path: Path, key: str | None) -> Stored:
    """What the file holds, with tensors nested under ``key`` or one of NESTED_KEYS taken out.

    Raises CheckpointError for a damaged file, one that would run code, or one without tensors.
    """
    with _told(path):
        content = _load(path)
        found, notes = _state_dict(path, content, key)
        tensors = _plain(path, found)
        places = _places(path, tensors, content)
    aliases = _aliases(tensors)
    _refuse_views(path, tensors, aliases)
    compressed = any(place.entry is not None and not place.entry.stored for place in places.values())
    if compressed:
        notes += ("compressed, which cannot be memory-mapped; saving it again with torch.save makes it faster",)
    if not content.is_zip:
        notes += ("legacy torch format, not memory-mapped; saving it again with torch.save makes it faster",)
    halves = {torch.float16, torch.bfloat16}
    if "ds_version" in content.value and any(tensor.dtype in halves for tensor in tensors.values()):
        notes += (
            "DeepSpeed's weights in half precision, as the model computes with them; its zero_to_fp32.py gives those "
            "in float32",
        )
    is_lightning = isinstance(content.value, Mapping) and "pytorch-lightning_version" in content.value
    return Stored(
        shapes={name: tensor.size for name, tensor in tensors.items()},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        aliases=aliases,
        notes=notes,
        wrappers=LIGHTNING_WRAPPERS if is_lightning else WRAPPERS,
        mapped=content.is_zip and not compressed,
        places=places,
        starts={} if content.within else _starts(places),
    )


@contextmanager
def tensors(path: Path, places: Mapping[str, Place]) -> Iterator[Callable[[str], Tensor]]:
    """A function from stored name to tensor, memory-mapped where the file allows, good inside the context.

    ``places``: as ``describe`` found them in this file, which must not have changed since.
    """
    with _told(path):
        content = _mapped(path)

    def read(name: str) -> Tensor:
        with _told(path):
            return _read(content, places[name])

    yield read


def entry(path: Path, name: str, limit: int) -> bytes | None:
    """An entry of the archive that a torch file is, of at most ``limit`` bytes; None where there is none.

    Files from before torch 1.6 are no archives and have none. Raises OSError, and ValueError for a damaged archive.
    """
    content = _mapped(path)
    if content[: len(_ZIP)] != _ZIP:
        return None
    archive = open_archive(content)
    found = archive.entries.get(name.encode())
    return None if found is None else archive.read(found, limit)


def single_tensor(path: Path, content: memoryview) -> Tensor:
    """The tensor that a torch file holds and nothing else; the file is these bytes of the one at ``path``.

    Raises CheckpointError.
    """
    with _told(path):
        if content[: len(_ZIP)] != _ZIP:
            raise ValueError("no torch file where a tensor should be")
        loaded = _zip(path, content)
        if not isinstance(loaded.value, Described | Odd):
            raise ValueError(f"a {type(loaded.value).__name__} where a tensor should be")
        found = _plain(path, {"": loaded.value})
        return _read(content, _places(path, found, loaded)[""])


def rewrapped(path: Path, key: str | None, tensors: Mapping[str, Tensor]) -> Any:
    """What the file holds, for torch.save, with ``tensors`` (by name as stored) in the place of its weights.

    Other entries with tensors in them (an optimizer's state, a moving average) are left out: none of them would be true
    of the new weights.
    """
    with _told(path):
        outer = _load(path).value
        chosen = _chosen(_nested(outer), key)
        inner = outer if chosen is None else outer[chosen]
        within, around = holders(inner, _NOT_PLAIN), holders(outer, _NOT_PLAIN)
        settings = outer.get(_LIGHTNING_SETTINGS)
        if chosen is not None and _LIGHTNING_SETTINGS in around and isinstance(settings, Mapping):
            # load_from_checkpoint builds the module from these: those that are plain stay, the others must be given
            odd = holders(settings, _NOT_PLAIN)
            outer = {**outer, _LIGHTNING_SETTINGS: {name: value for name, value in settings.items() if name not in odd}}
            around.discard(_LIGHTNING_SETTINGS)
        versions = getattr(inner, "_metadata", None)
        if holders({"": versions}, _NOT_PLAIN):
            versions = None
    weights = OrderedDict(
        (name, tensors.get(name, value)) for name, value in inner.items() if name in tensors or name not in within
    )
    if versions is not None:  # of a module's own layout, which load_state_dict asks for
        vars(weights)["_metadata"] = versions
    if chosen is None:
        return weights
    return {
        name: weights if name == chosen else value
        for name, value in outer.items()
        if name == chosen or name not in around
    }


def is_torch(path: Path) -> bool:
    """Whether a file that begins as torch's do is one, and not any zip archive. Raises OSError, ValueError."""
    content = _mapped(path)
    if content[: len(_ZIP)] != _ZIP:
        return True
    return any(name.endswith(b"/data.pkl") for name in open_archive(content).entries)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of reading as one message about the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: truncated, damaged or not saved by torch.save ({error}). Copy or download it again."
        ) from error


def _mapped(path: Path) -> Any:
    """The file's bytes, or of a tar archive those of its weights, read as they are needed.

    Closed when no tensor refers to it any more.
    """
    with open_regular(path) as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that it could write to
    if kind_of_bytes(content[:512], len(content)) != TAR:
        return content
    place = tar.weights_in(path)
    if place is None:
        raise ValueError(
            "a tar archive without model_weights.ckpt, as NeMo's have; if it is torch's format of 2016, load it with "
            "a torch of then and save it again"
        )
    return memoryview(content)[place[0] : place[0] + place[1]]


def _load(path: Path) -> _Content:
    """What the file says, and where its numbers are. Raises ValueError, OSError, CheckpointError."""
    content = _mapped(path)
    if content[: len(_ZIP)] == _ZIP:
        return _zip(path, content)
    return _legacy(path, content if isinstance(content, mmap.mmap) else bytes(content))


def _zip(path: Path, content: Any) -> _Content:
    """torch's format since 1.6: an archive of a pickle and one entry per storage."""
    archive = open_archive(content)
    if any(name.endswith(b"/constants.pkl") for name in archive.entries):
        raise CheckpointError(
            f"{path}: a TorchScript archive, which holds code. If you trust it, save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), 'model.pt')."
        )
    root = next(iter(archive.entries), b"").partition(b"/")[0] + b"/"
    if root + b"data.pkl" not in archive.entries:
        raise ValueError("an archive without torch's data.pkl")
    order = archive.entries.get(root + b"byteorder")
    if order is not None and archive.read(order, 100) != b"little":
        raise ValueError("written on a machine of the other byte order; save it as safetensors there")
    loaded = pickled.load(archive.read(archive.entries[root + b"data.pkl"], PICKLE_BYTES))

    def locate(storage: Storage) -> tuple[int, Entry | None]:
        entry = archive.entries.get(root + b"data/" + storage.key.encode("utf-8", "replace"))
        if entry is None:
            raise ValueError(f"its numbers {storage.key[:20]!r} are missing")
        if entry.size != storage.nbytes:
            raise ValueError(f"{storage.nbytes:,} bytes of numbers were promised, and {entry.size:,} are there")
        return archive.start(entry), entry

    return _Content(loaded.value, locate, True, not isinstance(content, mmap.mmap), loaded.unsafe)


def _legacy(path: Path, content: Any) -> _Content:
    """The format before 1.6: pickles one after another, then each storage's length and numbers."""
    at, left = 0, PICKLE_STEPS
    values: list[pickled.Loaded] = []
    for _ in range(5):
        loaded = pickled.load(content, at, left)
        values.append(loaded)
        at, left = loaded.end, left - loaded.steps
        if len(values) == 1 and loaded.value != _MAGIC:
            raise ValueError("it does not begin as torch's files do")
    version, about, main, keys = values[1].value, values[2].value, values[3], values[4].value
    if version != _LEGACY_VERSION or not isinstance(about, dict) or not isinstance(keys, list):
        raise ValueError("it does not begin as torch's files do")
    if about.get("little_endian") is not True:
        raise ValueError("written on a machine of the other byte order; save it as safetensors there")
    starts: dict[str, int] = {}
    for key in keys:
        storage = main.storages.get(str(key)) if isinstance(key, str | int) else None
        if storage is None or storage.key in starts:
            raise ValueError("its list of storages does not fit its tensors")
        numel = int.from_bytes(content[at : at + 8], "little", signed=True)
        starts[storage.key] = at + 8
        at += 8 + storage.nbytes
        if numel != storage.numel or at > len(content):
            raise ValueError(f"{storage.numel:,} numbers were promised, and {min(numel, len(content)):,} are there")

    def locate(storage: Storage) -> tuple[int, Entry | None]:
        root = main.storages[storage.key]
        if storage.key not in starts or storage.dtype != root.dtype or storage.numel != root.numel:
            raise ValueError(f"its numbers {storage.key[:20]!r} are missing")
        offset, length = storage.view or (0, root.numel)
        if offset + length > root.numel:
            raise ValueError("a view reaches beyond its storage")
        return starts[storage.key] + offset * root.dtype.itemsize, None

    return _Content(main.value, locate, False, not isinstance(content, mmap.mmap), main.unsafe)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name[:100] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse(path: Path, names: Sequence[str]) -> NoReturn:
    """Refuse weights that only code could make, by the names of it."""
    raise CheckpointError(
        f"{path}: refused, because it holds {_shown(names)}, which is not plain tensor data: loading it would run code "
        "from the file. If you trust its source, load it yourself with torch.load(path, weights_only=False) and "
        "save the state_dict alone: safetensors.torch.save_file(state_dict, 'model.safetensors')."
    )


def _state_dict(path: Path, content: _Content, key: str | None) -> tuple[dict[str, Described | Odd], tuple[str, ...]]:
    """The tensors among a file's content or its nested dicts, and notes on what was taken."""
    outer = content.value
    if isinstance(outer, Unknown):
        _refuse(path, content.unsafe)
    if not isinstance(outer, Mapping):
        raise NoWeightsError(f"{path}: expected a dict of tensors; the file holds a {type(outer).__name__}")
    nested = _nested(outer)
    chosen = _chosen(nested, key)
    listed = ", ".join(name[:100] for name in nested[:20])
    if key is not None and key not in nested:
        if isinstance(outer.get(key), Unknown):
            _refuse(path, content.unsafe)
        raise CheckpointError(
            f"{path}: no state dict under the key {key!r}; "
            + (f"keys that hold tensors: {listed}" if nested else "no key holds one")
        )
    inner = outer if chosen is None else outer[chosen]
    found = {
        name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Described | Odd)
    }
    # What a layer keeps beside its tensors is left out whatever it is; any other entry may be weights.
    found = {
        name: value
        for name, value in found.items()
        if not (isinstance(value, Unknown) and name.rpartition(".")[2] == _EXTRA_STATE)
    }
    others = {name: value for name, value in inner.items() if name not in found}
    groups = {name: value for name, value in others.items() if isinstance(value, list | tuple | set)}
    if any(isinstance(value, Unknown) for value in found.values()) or holders(groups, Unknown):
        _refuse(path, content.unsafe)
    _refuse_packed(path, others)
    if not found:
        if content.unsafe and any(isinstance(outer.get(name), Unknown) for name in (*NESTED_KEYS, "net", "network")):
            _refuse(path, content.unsafe)
        hint = f"; choose one with key: {listed}" if nested else ""
        raise NoWeightsError(f"{path}: holds no tensors at its top level or under {NESTED_KEYS}{hint}")
    notes = _notes(chosen, key, inner, found)
    averages = [name for name in _AVERAGES if name in nested and name != chosen]
    if averages:
        notes += (f"left out {averages[0]}, an average over all of training; key {averages[0]} takes it",)
    if content.unsafe:
        notes += (f"names {_shown(content.unsafe)} beside its weights: not data, so it was neither run nor kept",)
    return found, notes


def _nested(outer: Mapping[Any, Any]) -> list[str]:
    """The entries that are dicts of tensors."""
    known: dict[int, bool] = {}  # the same dict may be there under many names
    for value in outer.values():
        if id(value) not in known:
            known[id(value)] = isinstance(value, Mapping) and any(
                isinstance(entry, Described | Odd) for entry in value.values()
            )
    return [name for name, value in outer.items() if isinstance(name, str) and known[id(value)]]


def _chosen(nested: list[str], key: str | None) -> str | None:
    """The entry that holds the weights; None: they are not nested."""
    return next((name for name in NESTED_KEYS if name in nested), None) if key is None else key


def _refuse_packed(path: Path, others: Mapping[Any, Any]) -> None:
    """Refuse weights that are not tensors of their own: torch.ao keeps a layer's, quantized, packed in a tuple.

    Left out, the rest would be averaged, and the soup's weights would be nobody's. ``others``: what is beside the
    tensors. Dicts of other tensors are let be: an optimizer's state, a layer's extra state.
    """
    groups = {name: value for name, value in others.items() if isinstance(value, list | tuple | set)}
    packed = holders(groups, Described | Odd) | holders(others, Quantized)
    names = sorted(str(name)[:100] for name in packed)
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise CheckpointError(
            f"{path}: its weights are packed or quantized ({shown}), and cannot be averaged. Average the checkpoints "
            "from before quantization, then quantize the soup."
        )


def _notes(
    chosen: str | None, key: str | None, inner: Mapping[Any, Any], found: Mapping[str, object]
) -> tuple[str, ...]:
    notes = []
    if chosen is not None:
        preferred = chosen in _EMA_KEYS and key is None
        notes.append(f"took {chosen}" + (" (the moving average, preferred where there is one)" if preferred else ""))
    left = sorted(str(name)[:100] for name in inner if name not in found)
    if left:
        shown = ", ".join(left[:5]) + ("..." if len(left) > 5 else "")
        notes.append(f"left out {len(left)} entries that are not tensors: {shown}")
    return tuple(notes)


def _plain(path: Path, found: Mapping[str, Described | Odd]) -> dict[str, Described]:
    """The same, all of them dense tensors of a dtype that can be averaged."""
    plain = {}
    for name, tensor in found.items():
        if isinstance(tensor, Odd):
            raise CheckpointError(f"{path}: tensor {name[:100]!r} is {tensor.what}; only dense tensors can be averaged")
        if tensor.dtype not in DTYPES.values():
            raise CheckpointError(
                f"{path}: tensor {name[:100]!r} is {short(tensor.dtype)}, which cannot be averaged; "
                f"known dtypes: {', '.join(short(dtype) for dtype in DTYPES.values())}"
            )
        plain[name] = tensor
    return plain


def _places(path: Path, tensors: Mapping[str, Described], content: _Content) -> dict[str, Place]:
    """Where each tensor's numbers are. Raises ValueError unless all of them are there."""
    located: dict[Storage, tuple[int, Entry | None]] = {}
    expanded = 0
    for tensor in tensors.values():
        if tensor.storage not in located:
            entry = (located.setdefault(tensor.storage, content.locate(tensor.storage)))[1]
            if entry is not None and not entry.stored:
                expanded += entry.size
    if expanded > max(4 * EXPANDED_BYTES, EXPANSION * path.stat().st_size):
        raise ValueError(f"{expanded:,} bytes of numbers are compressed in it")
    places = {}
    for name, tensor in tensors.items():
        elements = _stretch(tensor.storage) // tensor.dtype.itemsize
        if count(tensor.size) and max(count(tensor.size), tensor.offset + _span(tensor)) > elements:
            raise CheckpointError(
                f"{path}: tensor {name[:100]!r} of shape {tensor.size} needs more than the {elements:,} values that "
                "are stored for it: an expanded view, or a damaged file. Save it with tensor.clone()."
            )
        places[name] = Place(*located[tensor.storage], tensor)
    return places


def _starts(places: Mapping[str, Place]) -> dict[str, int]:
    """The byte at which each tensor begins whose elements are in the file as they are, in order."""
    return {
        name: place.start + place.tensor.offset * place.tensor.dtype.itemsize
        for name, place in places.items()
        if (place.entry is None or place.entry.stored)
        and not (place.tensor.conj or place.tensor.neg)
        and _is_contiguous(place.tensor)
    }


def _is_contiguous(tensor: Described) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.size), reversed(tensor.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _stretch(storage: Storage) -> int:
    """Bytes of a storage, or of that view of it."""
    return storage.nbytes if storage.view is None else storage.view[1] * storage.dtype.itemsize


def _span(tensor: Described) -> int:
    """Elements from the first to the last of a tensor that has any."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True))


def _aliases(tensors: Mapping[str, Described]) -> dict[str, str]:
    """Tied tensors, as {alias: kept name}: the same elements of the same storage. The first name in order is kept."""
    kept: dict[object, str] = {}
    aliases = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if count(tensor.size) == 0:
            continue
        elements = (tensor.storage, tensor.offset, tensor.dtype, tensor.size, tensor.stride, tensor.conj, tensor.neg)
        if kept.setdefault(elements, name) != name:
            aliases[name] = kept[elements]
    return aliases


def _refuse_views(path: Path, tensors: Mapping[str, Described], aliases: Mapping[str, str]) -> None:
    """Refuse many large views of one storage: a small file would take as long to read as a huge one."""
    bytes_of: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name in aliases:
            continue
        key = tensor.storage.key
        bytes_of[key] = bytes_of.get(key, 0) + count(tensor.size) * tensor.dtype.itemsize
        if bytes_of[key] > VIEWS * tensor.storage.nbytes:
            raise CheckpointError(
                f"{path}: its tensors are views of each other, with {VIEWS} times what is stored and more "
                f"({name[:100]!r} and others). Save them with tensor.clone()."
            )


def _read(content: Any, place: Place) -> Tensor:
    """A tensor, mapped where its numbers are in the file as they are, and as the processor wants them."""
    tensor, size = place.tensor, place.tensor.dtype.itemsize
    if count(tensor.size) == 0:
        return torch.empty(tensor.size, dtype=tensor.dtype)
    at, bytes_ = tensor.offset * size, _span(tensor) * size
    source: Any = content
    if place.entry is not None and not place.entry.stored:
        source = bytearray(unpacked(content, place.start, place.entry))
    elif (place.start + at) % size:
        source, at = bytearray(content[place.start + at : place.start + at + bytes_]), 0
    else:
        at += place.start
    flat = torch.frombuffer(source, dtype=tensor.dtype, count=bytes_ // size, offset=at)
    found = flat.as_strided(tensor.size, tensor.stride)
    found = found.conj().resolve_conj() if tensor.conj else found
    return torch.neg(found) if tensor.neg else found
