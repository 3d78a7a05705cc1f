"""Data that can be read by index: a slice reads only its own examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset
from torch.utils.data.dataloader import default_collate

from radin.data.batches import Batch, leaves, picked, read, tensor_bytes
from radin.errors import TaskError


@dataclass(frozen=True, eq=False)
class Indexed:
    """Data read in order by ``loader``, any example of which can be read alone."""

    loader: DataLoader[Any]

    @property
    def examples(self) -> int:
        """How many examples a reading in order gives, if the loader's collate function leaves their number alone."""
        count, size = len(self.loader.dataset), self._batch_size  # type: ignore[arg-type]
        return count - count % size if self.loader.drop_last else count

    @property
    def plain(self) -> bool:
        """Whether torch's own collate function joins the examples: their number is then sure."""
        return self.loader.collate_fn is default_collate

    @property
    def _batch_size(self) -> int:
        assert self.loader.batch_size is not None
        return self.loader.batch_size

    def read(self, examples: NDArray[np.intp], what: str) -> Iterator[Batch]:
        """Only these examples (m,), ascending indices, in batches of the loader's size; no other is touched.

        As many workers as the loader has, but no more than there are batches for. Raises as ``batches.read``.
        """
        whole = self.loader
        workers = min(whole.num_workers, -(-len(examples) // self._batch_size))
        loader = DataLoader(
            Subset(whole.dataset, examples.tolist()),
            batch_size=self._batch_size,
            num_workers=workers,
            collate_fn=whole.collate_fn,
            pin_memory=whole.pin_memory,
            timeout=whole.timeout if workers else 0,
            worker_init_fn=whole.worker_init_fn,
            multiprocessing_context=whole.multiprocessing_context if workers else None,
            generator=whole.generator,
            prefetch_factor=whole.prefetch_factor if workers else None,
        )
        return read(loader, what)


def indexed(source: Any) -> Indexed | None:
    """The data by index, if ``source`` is a DataLoader that reads a map-style dataset in order in the default way.

    None for everything else: lists, generators, iterable datasets, and loaders with an order, batches or an iteration
    of their own.
    """
    if not isinstance(source, DataLoader) or type(source).__iter__ is not DataLoader.__iter__:
        return None
    data, sampler, batches = source.dataset, source.sampler, source.batch_sampler
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return None
    in_order = type(sampler) is SequentialSampler and sampler.data_source is data
    # A loader that was given its batch sampler has no batch size; one with batch_size=None has no batch sampler.
    usual = type(batches) is BatchSampler and source.batch_size is not None
    return Indexed(source) if in_order and usual else None


def check_by_index(data: Indexed, what: str) -> None:
    """Compare every other example of the first batch, read by index, with the reading in order.

    Only where shapes agree: text may be padded otherwise. Nothing is compared when the collate function changes the
    number of examples: such data are not read by index. Raises TaskError when they differ.
    """
    first = next(read(data.loader, what), None)
    if first is None or first.size != min(data.examples, data.loader.batch_size or 0):
        return
    examples = np.arange(min(1, first.size - 1), first.size, 2)
    (*others, found) = data.read(examples, what)
    if others or found.size != len(examples):
        return
    if not agree(picked(first, torch.from_numpy(examples)), found):
        raise TaskError(
            f"{what} gave other examples when read by index than when read in order. dataset[i] must give the same "
            "example every time and in any order: no random augmentation, and nothing in collate_fn that depends on "
            "the rest of the batch but padding. If it has to be read in order, return a generator of batches instead."
        )


def agree(first: Batch, second: Batch) -> bool:
    """Whether two batches hold the same values, tensor by tensor, where shapes and dtypes agree."""
    pairs = list(zip(_tensors(first), _tensors(second), strict=False))
    same = [(a, b) for a, b in pairs if a.shape == b.shape and a.dtype == b.dtype]
    return all(tensor_bytes(a) == tensor_bytes(b) for a, b in same)


def _tensors(batch: Batch) -> list[torch.Tensor]:
    targets = [] if batch.targets is None else [batch.targets]
    return targets + [tensor for _, tensor in leaves(batch.inputs)]
