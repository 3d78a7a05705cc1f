"""Inner products of one set of tensors, such as a gradient, with members of a pool, in a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radin.weights.layout import Piece, blocks, chunks, reals
from radin.weights.pool import Pool

_OPEN = 1 << 23  # elements read from all members together before mapped pages are let go
_BLOCK = 1 << 15  # elements that are converted and multiplied in the processor's cache


def inner_products(pool: Pool, members: Sequence[int], tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """<tensor, that of each member>, (len(members),) by name, in float64; of complex ones the real part.

    ``tensors``: on any device, of the pool's names and shapes. Each member is read once, block by block, so that memory
    does not grow with how many there are. Raises CheckpointError when a member changed.
    """
    found = {name: np.zeros(len(members)) for name in tensors}
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    own, theirs = torch.empty(2 * _BLOCK, dtype=torch.float64), torch.empty(2 * _BLOCK, dtype=torch.float64)
    for chunk in chunks(sizes, max(_BLOCK, _OPEN // max(1, len(members)))):
        mine = {piece: reals(piece.of(tensors[piece.name].detach()).cpu()) for piece in chunk}
        with ExitStack() as stack:
            for place, k in enumerate(members):
                reader = stack.enter_context(pool[k].open())
                for piece, gradient in mine.items():
                    found[piece.name][place] += _product(gradient, piece, reader[piece.name], own, theirs)
    return found


def _product(gradient: Tensor, piece: Piece, tensor: Tensor, own: Tensor, theirs: Tensor) -> float:
    total = 0.0
    values = reals(piece.of(tensor))
    for start, part in blocks(gradient, _BLOCK):
        one, other = own[: len(part)].copy_(part), theirs[: len(part)].copy_(values[start : start + len(part)])
        total += float(one @ other)
    return total
