"""One pass over a checkpoint's content: its fingerprint, and whether all its floats are finite."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.weights.formats import Checkpoint
from radin.weights.layout import blocks, chunks, count, is_averaged, reals, short

VERSION = "radin content 1"
_BLOCK = 1 << 15  # elements hashed and checked together, while they are in the processor's cache
_CHUNK = 1 << 24  # elements read before the file is closed and opened again, which lets go of its mapped pages


@dataclass(frozen=True)
class Content:
    """What one pass over a checkpoint finds.

    fingerprint: of all of it. not_finite: (tensor, how many of its values are NaN or infinite). copied: (tensor, its
    SHA-256) for those of more than one value that a soup would copy from one member, integers and bools.
    """

    fingerprint: str
    not_finite: tuple[tuple[str, int], ...] = ()
    copied: tuple[tuple[str, str], ...] = ()


def fingerprint(checkpoint: Checkpoint, report: Callable[[int], None] | None = None) -> str:
    """SHA-256 (hex) over every name with its dtype, shape and bytes; the same whatever the file format.

    Wrapper prefixes, nesting, shards and metadata do not count, nor does it matter whether equal tensors are tied.
    ``report`` is told the bytes read since it was last called. Raises CheckpointError when a float is NaN or infinite.
    """
    found = examine(checkpoint, report)
    require_finite(checkpoint, found)
    return found.fingerprint


def examine(checkpoint: Checkpoint, report: Callable[[int], None] | None = None) -> Content:
    """The same as a value, without refusing anything: one pass over the content."""
    sizes = _sizes(checkpoint)
    digests = {name: hashlib.sha256() for name in sizes}
    bad: Counter[str] = Counter()
    for chunk in chunks(sizes, _CHUNK if checkpoint.mapped else max(1, sum(sizes.values()))):
        with checkpoint.open() as reader:
            for piece in chunk:
                for _, block in blocks(piece.of(reader[piece.name]), _BLOCK):
                    block = block.contiguous()
                    digests[piece.name].update(block.view(torch.uint8).numpy().data)
                    if is_averaged(block.dtype):
                        bad[piece.name] += not_finite(block)
                    if report is not None:
                        report(block.numel() * block.dtype.itemsize)
    total = hashlib.sha256(VERSION.encode())
    for name, shape in checkpoint.shapes.items():
        digest = digests[checkpoint.aliases.get(name, name)].hexdigest()
        total.update(json.dumps([name, short(checkpoint.dtypes[name]), shape, digest]).encode())
    return Content(
        total.hexdigest(),
        tuple((name, bad[name]) for name in sizes if bad[name]),
        tuple(
            (name, digests[checkpoint.aliases.get(name, name)].hexdigest())
            for name, shape in checkpoint.shapes.items()
            if count(shape) > 1 and not is_averaged(checkpoint.dtypes[name])
        ),
    )


def require_finite(checkpoint: Checkpoint, found: Content) -> None:
    """Raise CheckpointError when the pass over the content found NaN or infinity."""
    if found.not_finite:
        (name, bad), more = found.not_finite[0], len(found.not_finite) - 1
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name!r} has {bad:,} of {_sizes(checkpoint)[name]:,} values NaN or infinite"
            + (f", and {more} more tensor{'s' * (more > 1)} too" if more else "")
            + ". The run that wrote it diverged; leave this checkpoint out."
        )


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Elements of each tensor, tied ones once."""
    return {name: count(shape) for name, shape in checkpoint.shapes.items() if name not in checkpoint.aliases}


def not_finite(flat: Tensor) -> int:
    """How many elements of a flat float or complex tensor are NaN or infinite."""
    numbers = reals(flat)
    if numbers.dtype.itemsize == 1:  # torch can neither sum float8 nor test it
        numbers = numbers.float()
    # A sum is finite only if all its terms are, and is many times faster than testing each. It can overflow, so a
    # sum that is not finite decides nothing.
    if bool(torch.isfinite(numbers.sum())):
        return 0
    wrong = ~torch.isfinite(numbers)
    return int((wrong.view(-1, 2).any(dim=1) if flat.is_complex() else wrong).sum())
