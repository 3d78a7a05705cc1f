"""Reading one file as torch.save wrote it, whatever it is called, never running code from it, and within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.weights.archive import open_archive
from radin.weights.described import Described, Odd, holders
from radin.weights.named import Call, StorageType
from radin.weights.stored import LIGHTNING_WRAPPERS, WRAPPERS, Place, Stored
from radin.weights.torch_content import ZIP, from_zip, load, mapped
from radin.weights.torch_entries import chosen_of, nested_in, state_dict
from radin.weights.torch_tensors import aliases_of, places_of, plain, read_tensor, refuse_views, starts_of

_NOT_PLAIN = Described | Odd | Call | StorageType  # what no file can be written with
_LIGHTNING_SETTINGS = "hyper_parameters"


def describe(path: Path, key: str | None) -> Stored:
    """What the file holds, with tensors nested under ``key`` or one of torch_entries.NESTED_KEYS taken out.

    Raises CheckpointError for a damaged file, one that would run code, or one without tensors.
    """
    with _told(path):
        content = load(path)
        found, notes = state_dict(path, content, key)
        tensors = plain(path, found)
        places = places_of(path, tensors, content)
    aliases = aliases_of(tensors)
    refuse_views(path, tensors, aliases)
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
        starts={} if content.within else starts_of(places),
    )


@contextmanager
def tensors(path: Path, places: Mapping[str, Place]) -> Iterator[Callable[[str], Tensor]]:
    """A function from stored name to tensor, memory-mapped where the file allows, good inside the context.

    ``places``: as ``describe`` found them in this file, which must not have changed since.
    """
    with _told(path):
        content = mapped(path)

    def read(name: str) -> Tensor:
        with _told(path):
            return read_tensor(content, places[name])

    yield read


def entry(path: Path, name: str, limit: int) -> bytes | None:
    """An entry of the archive that a torch file is, of at most ``limit`` bytes; None where there is none.

    Files from before torch 1.6 are no archives and have none. Raises OSError, and ValueError for a damaged archive.
    """
    content = mapped(path)
    if content[: len(ZIP)] != ZIP:
        return None
    archive = open_archive(content)
    found = archive.entries.get(name.encode())
    return None if found is None else archive.read(found, limit)


def single_tensor(path: Path, content: memoryview) -> Tensor:
    """The tensor that a torch file holds and nothing else; the file is these bytes of the one at ``path``.

    Raises CheckpointError.
    """
    with _told(path):
        if content[: len(ZIP)] != ZIP:
            raise ValueError("no torch file where a tensor should be")
        loaded = from_zip(path, content)
        if not isinstance(loaded.value, Described | Odd):
            raise ValueError(f"a {type(loaded.value).__name__} where a tensor should be")
        found = plain(path, {"": loaded.value})
        return read_tensor(content, places_of(path, found, loaded)[""])


def rewrapped(path: Path, key: str | None, tensors: Mapping[str, Tensor]) -> Any:
    """What the file holds, for torch.save, with ``tensors`` (by name as stored) in the place of its weights.

    Other entries with tensors in them (an optimizer's state, a moving average) are left out: none of them would be true
    of the new weights.
    """
    with _told(path):
        outer = load(path).value
        chosen = chosen_of(nested_in(outer), key)
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
    content = mapped(path)
    if content[: len(ZIP)] != ZIP:
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
