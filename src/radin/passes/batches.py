"""What a batch may look like, and a fingerprint of data that does not depend on the batch size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from radin.errors import TaskError
from radin.passes.task import user_code

_TARGET_NAMES = ("labels", "label", "targets", "target")


Progress = Callable[[str, float, float | None], None]
"""Called with (what, done, total or None)."""


@dataclass(frozen=True)
class Batch:
    """``inputs``: a tensor, or a tuple or mapping of them. ``targets``: (b, ...) tensor, or None if there are none."""

    inputs: Any
    targets: torch.Tensor | None
    size: int


def read(batches: Iterable[Any], what: str) -> Iterator[Batch]:
    """Yield each item of the user's iterable as a Batch.

    An item is ``(inputs, targets)``, or a mapping with the targets under "labels" (or label, targets, target).
    Empty batches are left out. ``what`` names the data in messages ("validation()"). Raises TaskError for items of
    another form, and with the user's own traceback when the iterable itself fails.
    """
    with user_code(what):
        iterator = iter(batches)
    index = 0
    while True:
        with user_code(what):
            try:
                item = next(iterator)
            except StopIteration:
                return
        batch = _as_batch(item, f"{what}, batch {index}")
        if batch.size:
            yield batch
        index += 1


def _as_batch(item: Any, where: str) -> Batch:
    inputs: Any
    targets: Any = None
    if isinstance(item, Mapping):
        names = [name for name in _TARGET_NAMES if name in item]
        inputs = {name: value for name, value in item.items() if name not in names[:1]}
        targets = item[names[0]] if names else None
    elif isinstance(item, list | tuple) and len(item) == 2:
        inputs, targets = item
    elif isinstance(item, torch.Tensor):
        inputs = item
    else:
        raise TaskError(f"{where}: expected (inputs, targets) or a mapping with 'labels'; got {_describe(item)}")
    if targets is not None:
        targets = torch.as_tensor(targets)
    leaves = list(_leaves(inputs))
    if not leaves:
        raise TaskError(f"{where}: the inputs hold no tensor; got {_describe(inputs)}")
    sizes = {len(leaf) for _, leaf in leaves if leaf.ndim}
    if targets is not None and targets.ndim:
        sizes.add(len(targets))
    if len(sizes) != 1:
        raise TaskError(f"{where}: inputs and targets must have the same number of examples; got {sorted(sizes)}")
    return Batch(inputs, targets, sizes.pop())


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)} items"
    return type(value).__name__


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) for every tensor in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from _leaves(value[name], f"{path}/{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{path}/{index}")


def to_device(value: Any, device: torch.device) -> Any:
    """The same nested value with every tensor moved to ``device``."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: to_device(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_device(part, device) for part in value)
    return value


def rebatched(batches: Iterable[Batch], size: int | None) -> Iterator[Batch]:
    """The same examples in the same order, in batches of at most ``size`` (None: as they come)."""
    for batch in batches:
        if size is None or batch.size <= size:
            yield batch
            continue
        for start in range(0, batch.size, size):
            stop = min(start + size, batch.size)
            targets = None if batch.targets is None else batch.targets[start:stop]
            yield Batch(_rows(batch.inputs, start, stop), targets, stop - start)


def _rows(value: Any, start: int, stop: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[start:stop]
    if isinstance(value, Mapping):
        return {name: _rows(part, start, stop) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_rows(part, start, stop) for part in value)
    return value


class DataFingerprint:
    """A running hash of examples in order: the same for any batch size, another for any other content or order.

    Each tensor of a batch has its own stream of rows, so that cutting the data into other batches feeds every
    stream the same bytes. (Text that is padded per batch has other rows when the batches change.)
    """

    def __init__(self) -> None:
        self.examples = 0
        self._streams: dict[str, Any] = {}
        self._layout: dict[str, tuple[str, tuple[int, ...]]] = {}

    def update(self, batch: Batch) -> None:
        leaves = list(_leaves(batch.inputs, "inputs"))
        if batch.targets is not None:
            leaves.append(("targets", batch.targets))
        for path, tensor in leaves:
            stream = self._streams.setdefault(path, hashlib.sha256())
            layout = (str(tensor.dtype), tuple(tensor.shape[1:]))
            if self._layout.get(path) != layout:
                stream.update(repr((self.examples, layout)).encode())
                self._layout[path] = layout
            stream.update(tensor_bytes(tensor))
        self.examples += batch.size

    def hexdigest(self) -> str:
        """The hash of everything seen so far; more may be fed afterwards."""
        whole = hashlib.sha256(str(self.examples).encode())
        for path in sorted(self._streams):
            whole.update(path.encode() + self._streams[path].digest())
        return whole.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The tensor's values as contiguous bytes, whatever its dtype."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def length(source: Any) -> int | None:
    """How many batches a reading has, if it says so."""
    try:
        return len(source)
    except TypeError:
        return None
