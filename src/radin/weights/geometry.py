"""Distances between the members of a pool, and the dispersion of a recipe, from one N x N Gram matrix.

To second order the logits of a soup and of the ensemble of its members differ by
1/2 sum_{i<j} p_i p_j d_ij' H d_ij with d_ij = theta_i - theta_j: the dispersion is what this is without the Hessian H.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radin.weights.formats import Reader
from radin.weights.layout import Piece, blocks, chunks, count, is_averaged, reals, regroup
from radin.weights.pool import Pool, Progress

Floats = NDArray[np.float64]

# BatchNorm statistics are not weights: they are estimated again after averaging, and are far larger in scale.
STATISTICS = ("running_mean", "running_var")

_OPEN = 1 << 25  # elements read from all members together before their files are closed and mapped pages let go
_BLOCK = 1 << 22  # elements of all members together held as float64 at once
_COPY = 1 << 15  # elements converted in one step, which torch then runs without waiting for other threads


def batchnorm_layers(pool: Pool) -> list[str]:
    """The layers of the pool that keep running statistics, by what their tensors' names have in common."""
    return [name.rpartition(".")[0] for name in pool.names if name.rpartition(".")[2] == "running_var"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """``gram`` (N, N): inner products of the members' weights about their mean; ``mean_norm``: that mean's norm.

    ``matrix_norm``: the norm of the mean's tensors of two dimensions or more alone. Biases and the scales of
    normalisation layers begin alike in every training, whatever its seed, and can be most of the mean's norm.
    """

    gram: Floats
    mean_norm: float
    matrix_norm: float

    @property
    def distances(self) -> Floats:
        """(N, N) distances between members as shares of the mean's norm."""
        return distances(self.gram) / self.mean_norm if self.mean_norm > 0 else distances(self.gram)


def geometry(pool: Pool, *, progress: Progress | None = None) -> Geometry:
    """Gram matrix and norm of the mean over all float and complex tensors, tied ones once, in one streamed pass.

    BatchNorm statistics (STATISTICS) are left out. Sums are in float64. ``progress(done, total)``: bytes read.
    """
    members = len(pool)
    aliases, dtypes = pool.aliases, pool.dtypes
    sizes = {
        name: count(shape)
        for name, shape in pool.shapes.items()
        if name not in aliases and is_averaged(dtypes[name]) and not name.endswith(STATISTICS)
    }
    total = sum(size * member.checkpoint.dtypes[name].itemsize for member in pool for name, size in sizes.items())
    matrices = {name: size for name, size in sizes.items() if len(pool.shapes[name]) > 1}
    others = {name: size for name, size in sizes.items() if name not in matrices}
    gram = torch.zeros(members, members, dtype=torch.float64)
    squared_norms = [0.0, 0.0]  # of the mean: of its matrices, of its other tensors
    done = 0
    width = max(2, _BLOCK // members)
    matrix = torch.empty(members, width, dtype=torch.float64)
    limit = max(1, _OPEN // members)
    for kind, chunk in [(k, chunk) for k, some in enumerate((matrices, others)) for chunk in chunks(some, limit)]:
        with ExitStack() as stack:
            readers = [stack.enter_context(member.open()) for member in pool]
            # complex numbers come as two reals each, so a block of half the width always fits
            for block in regroup(chunk, width // 2):
                used = 0
                for row, reader in zip(matrix, readers, strict=True):
                    used, read = _fill(row, block, reader)
                    done += read
                weights = matrix[:, :used]
                mean = weights.mean(dim=0)
                weights -= mean
                gram.addmm_(weights, weights.T)
                squared_norms[kind] += float(mean @ mean)
                if progress is not None:
                    progress(done, total)
    return Geometry(gram.numpy(), mean_norm=sum(squared_norms) ** 0.5, matrix_norm=squared_norms[0] ** 0.5)


def _fill(row: Tensor, block: tuple[Piece, ...], reader: Reader) -> tuple[int, int]:
    """Write one member's pieces into ``row`` as float64; how many numbers, and how many bytes they had in the file."""
    used = read = 0
    for piece in block:
        values = reals(piece.of(reader[piece.name]))
        for _, part in blocks(values, _COPY):
            row[used : used + len(part)].copy_(part)
            used += len(part)
        read += values.numel() * values.dtype.itemsize
    return used, read


def gram(pool: Pool, *, progress: Progress | None = None) -> Floats:
    """(N, N) inner products of the members' weights about the pool's mean: see ``geometry``."""
    return geometry(pool, progress=progress).gram


def distances(gram: Floats) -> Floats:
    """(N, N) Euclidean distances ||theta_i - theta_j|| from a Gram matrix, about any origin."""
    squares = np.diag(gram)
    squared = squares[:, None] + squares[None, :] - 2 * gram
    np.fill_diagonal(squared, 0.0)
    result: Floats = np.sqrt(np.maximum(squared, 0.0))  # rounding can leave near duplicates a little below zero
    return result


def dispersion(gram: Floats, ratios: Floats) -> Floats:
    """D(p) = sum_{i<j} p_i p_j ||theta_i - theta_j||^2 = p'diag(G) - p'Gp, zero for a single member.

    Below zero, it may be, only where a ratio is negative: beyond the members.

    ``ratios`` (S, N) or (N,), each row summing to 1 -> (S,) or (). The Gram matrix may be about any origin.
    """
    rows = np.asarray(ratios, dtype=np.float64)
    result: Floats = np.asarray(rows @ np.diag(gram) - ((rows @ gram) * rows).sum(axis=-1))
    return np.where((rows < 0).any(axis=-1), result, np.maximum(result, 0.0))  # rounding else
