"""What a batch may look like, and a fingerprint of data that does not depend on the batch size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.data.task import user_code
from radin.errors import TaskError

_TARGET_NAMES = ("labels", "label", "targets", "target")


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
        try:
            targets = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TaskError(
                f"{where}: the targets are no numbers: {str(error).splitlines()[0]}. Give a tensor of class "
                "indices, or of numbers; labels that are text must be mapped to indices first"
            ) from None
        if not targets.ndim:
            raise TaskError(f"{where}: the targets must be one for each example; got a single {targets.dtype}")
    tensors = [tensor for _, tensor in leaves(inputs)]
    if not tensors:
        raise TaskError(f"{where}: the inputs hold no tensor; got {_describe(inputs)}")
    sizes = {len(tensor) for tensor in tensors if tensor.ndim}
    if targets is not None and targets.ndim:
        sizes.add(len(targets))
    if len(sizes) != 1:
        raise TaskError(f"{where}: inputs and targets must have the same number of examples; got {sorted(sizes)}")
    return Batch(inputs, targets, sizes.pop())


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)} items"
    return type(value).__name__


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) for every tensor in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from leaves(value[name], f"{path}/{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}/{index}")


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
            yield rows_between(batch, start, min(start + size, batch.size))


def rows_between(batch: Batch, start: int, stop: int) -> Batch:
    """Some neighbouring rows of a batch, in the same memory."""
    targets = None if batch.targets is None else batch.targets[start:stop]
    return Batch(_mapped(batch.inputs, lambda tensor: tensor[start:stop]), targets, stop - start)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nested value with every tensor that has rows changed."""
    if isinstance(value, torch.Tensor):
        return change(value) if value.ndim else value
    if isinstance(value, Mapping):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_mapped(part, change) for part in value)
    return value


def copied(batch: Batch) -> Batch:
    """The same batch in memory of its own, which no loader that reuses its buffers can change."""
    targets = None if batch.targets is None else batch.targets.clone()
    return Batch(_mapped(batch.inputs, torch.Tensor.clone), targets, batch.size)


def size_in_bytes(batch: Batch) -> int:
    """Memory that the batch's tensors take."""
    tensors = [tensor for _, tensor in leaves(batch.inputs)]
    tensors += [batch.targets] if batch.targets is not None else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def selected(batches: Iterable[Batch], examples: NDArray[np.intp]) -> Iterator[Batch]:
    """Only some examples, in order: ``examples`` (m,) ascending indices over all batches.

    What is left of neighbouring batches is joined to batches as large as the largest seen so far, where shapes and
    dtypes agree. Tensors are copies: a model that changes its inputs in place changes no batch given here.
    """
    first, usual = 0, 0
    held: Batch | None = None
    for batch in batches:
        usual = max(usual, batch.size)
        low, high = np.searchsorted(examples, [first, first + batch.size])
        rows = torch.from_numpy(examples[low:high] - first)
        first += batch.size
        if low == high:
            continue
        part = picked(batch, rows)
        if held is not None and _layout(held) != _layout(part):
            yield held
            held = None
        held = part if held is None else _joined(held, part)
        if held.size >= usual:
            *whole, last = rebatched([held], usual)
            yield from whole
            held = last
            if held.size == usual:
                yield held
                held = None
    if held is not None:
        yield held


def picked(batch: Batch, rows: torch.Tensor) -> Batch:
    """Copies of some rows of a batch, (m,) indices into it."""

    def pick(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[rows.to(tensor.device)]

    return Batch(_mapped(batch.inputs, pick), None if batch.targets is None else pick(batch.targets), len(rows))


def _joined(first: Batch, second: Batch) -> Batch:
    targets = None
    if first.targets is not None and second.targets is not None:
        targets = torch.cat([first.targets, second.targets])
    return Batch(_concatenated(first.inputs, second.inputs), targets, first.size + second.size)


def _concatenated(first: Any, second: Any) -> Any:
    if isinstance(first, torch.Tensor):
        return torch.cat([first, second]) if first.ndim else first
    if isinstance(first, Mapping):
        return {name: _concatenated(part, second[name]) for name, part in first.items()}
    if isinstance(first, list | tuple):
        return tuple(_concatenated(a, b) for a, b in zip(first, second, strict=True))
    return first


def _layout(batch: Batch) -> Any:
    """Equal for two batches whose rows may be put together."""

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (value.dtype, tuple(value.shape[1:]), value.device) if value.ndim else (value.dtype, value.item())
        if isinstance(value, Mapping):
            return {name: of(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return tuple(of(part) for part in value)
        return value

    return of(batch.inputs), of(batch.targets)


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
        """Add a batch: its inputs and targets, in order."""
        streams = list(leaves(batch.inputs, "inputs"))
        if batch.targets is not None:
            streams.append(("targets", batch.targets))
        for path, tensor in streams:
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
