"""How the members of a pool lie to each other: one initialisation or several, outliers, near duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radin.progress import Progress
from radin.weights.geometry import Geometry, geometry
from radin.weights.pool import Pool

Floats = NDArray[np.float64]

_OUTLYING = 2.0  # times the median distance to the centre
_UNRELATED = 1.0  # distance to the nearest other member, over the norm of the mean's matrices, for half of the members
_APART = 2.0  # a group's distance to the rest, over the typical step between neighbours on either side
_TOGETHER = 0.7  # mean cosine between the members of a group, seen from the centre of the rest
_ALIKE = 0.05  # times the median distance between two members


@dataclass(frozen=True, eq=False)
class Spread:
    """How the members lie to each other. Distances are shares of the norm of the pool's mean.

    ``distances``, ``cosines`` (N, N): between members, and between their differences from the pool's mean.
    ``to_centre`` (N,): distance to the mean of the largest group; ``typical``: its median over that group.
    ``groups``: members that look like one training run each, the largest first. ``outliers``: (member, times
    ``typical``) of that group, farthest first. ``alike``: pairs of near duplicates, the nearest first. ``unrelated``:
    the members look like trainings from different initialisations, each by itself. ``matrix_share``: the norm of the
    mean's tensors of two dimensions or more, over that of all of it.
    """

    distances: Floats
    cosines: Floats
    to_centre: Floats
    typical: float
    groups: tuple[tuple[int, ...], ...]
    outliers: tuple[tuple[int, float], ...]
    alike: tuple[tuple[int, int], ...]
    unrelated: bool
    matrix_share: float

    @property
    def apart(self) -> float:
        """Median distance between two members as a share of the norm of the mean's matrices: large when unrelated."""
        return self.median / self.matrix_share

    @property
    def median(self) -> float:
        """Median distance between two members."""
        return float(np.median(self.distances[np.triu_indices(len(self.distances), 1)]))

    @property
    def core(self) -> tuple[int, ...]:
        """The largest group without its outliers."""
        out = {k for k, _ in self.outliers}
        return tuple(k for k in self.groups[0] if k not in out)

    @property
    def median_cosine(self) -> float:
        """Median cosine between the differences of two members from the mean; about -1/(N-1) when independent."""
        return float(np.median(self.cosines[np.triu_indices(len(self.cosines), 1)]))


def spread(pool: Pool, *, progress: Progress | None = None) -> Spread:
    """How the members of a pool lie to each other: one streamed pass over their weights."""
    report = (lambda done, total: progress("distances between members", done, total)) if progress else None
    return spread_of(geometry(pool, progress=report))


def spread_of(shape: Geometry) -> Spread:
    """The same from a Gram matrix that is there already."""
    distances, scale = shape.distances, shape.mean_norm or 1.0
    nearest = (distances + np.diag(np.full(len(distances), np.inf))).min(axis=1)
    share = (shape.matrix_norm or scale) / scale
    unrelated = float(np.median(nearest)) > _UNRELATED * share
    groups = (tuple(range(len(distances))),) if unrelated else _groups(shape.gram, distances)
    norms = np.sqrt(np.maximum(np.diag(shape.gram), 0.0))
    cosines = shape.gram / np.maximum(np.outer(norms, norms), np.finfo(np.float64).tiny)
    centred = _about(shape.gram, groups[0])
    to_centre = np.sqrt(np.maximum(np.diag(centred), 0.0)) / scale
    typical = float(np.median(to_centre[list(groups[0])]))
    outliers = [
        (k, float(to_centre[k] / typical)) for k in groups[0] if typical > 0 and to_centre[k] > _OUTLYING * typical
    ]
    found = Spread(
        distances,
        np.clip(cosines, -1.0, 1.0),
        to_centre,
        typical,
        groups,
        () if unrelated else tuple(sorted(outliers, key=lambda pair: -pair[1])),
        (),
        unrelated,
        share,
    )
    rows, columns = np.triu_indices(len(distances), 1)
    between = distances[rows, columns]
    alike = [(int(rows[i]), int(columns[i])) for i in np.argsort(between) if between[i] < _ALIKE * found.median]
    return Spread(**{**vars(found), "alike": tuple(alike)})


def _about(gram: Floats, members: Sequence[int]) -> Floats:
    """The Gram matrix with its origin moved to the mean of ``members``."""
    chosen = list(members)
    towards = gram[:, chosen].mean(axis=1)
    result: Floats = gram - towards[:, None] - towards[None, :] + gram[np.ix_(chosen, chosen)].mean()
    return result


def _groups(gram: Floats, distances: Floats) -> tuple[tuple[int, ...], ...]:
    """Members by training run, the largest group first.

    Fine-tunings of one initialisation leave it in directions of their own, however far they go. Those of another
    share the whole way from one initialisation to the other: so a group of its own is several members close together,
    far from the rest, and in one direction seen from there.
    """
    all_members = set(range(len(distances)))
    found: list[tuple[int, ...]] = []
    for cluster in sorted(_clusters(distances), key=len, reverse=True):
        rest = tuple(sorted(all_members - set(cluster)))
        if not 2 <= len(cluster) <= len(rest) or any(set(cluster) & set(group) for group in found):
            continue
        gap = float(distances[np.ix_(cluster, rest)].min())
        steps = max(_step(distances, cluster), _step(distances, rest))
        if gap > _APART * steps and _cosine(_about(gram, rest), cluster) > _TOGETHER:
            found.append(cluster)
    left = tuple(sorted(all_members.difference(*found)))
    return tuple(sorted((group for group in (left, *found) if group), key=len, reverse=True))


def _clusters(distances: Floats) -> Iterator[tuple[int, ...]]:
    """Every cluster of single linkage below the whole."""
    members = [{k} for k in range(len(distances))]
    for i, j, _ in _tree(distances, range(len(distances)))[:-1]:
        joined = members[i] | members[j]
        for k in joined:
            members[k] = joined
        yield tuple(sorted(joined))


def _tree(distances: Floats, chosen: Sequence[int]) -> list[tuple[int, int, float]]:
    """(member, member, distance) of the minimum spanning tree over ``chosen``, shortest first (Prim)."""
    block = distances[np.ix_(chosen, chosen)]
    nearest, parent = block[0].copy(), np.zeros(len(chosen), dtype=np.intp)
    nearest[0] = np.inf
    edges = []
    for _ in range(len(chosen) - 1):
        new = int(nearest.argmin())
        edges.append((chosen[int(parent[new])], chosen[new], float(nearest[new])))
        closer = (block[new] < nearest) & np.isfinite(nearest)
        nearest[closer], parent[closer] = block[new][closer], new
        nearest[new] = np.inf
    return sorted(edges, key=lambda edge: edge[2])


def _step(distances: Floats, chosen: Sequence[int]) -> float:
    """The typical distance between neighbours: the median edge of the minimum spanning tree."""
    edges = _tree(distances, chosen)
    return float(np.median([length for _, _, length in edges])) if edges else 0.0


def _cosine(gram: Floats, chosen: Sequence[int]) -> float:
    """Mean cosine between two of ``chosen``, as seen from the Gram matrix's origin."""
    block = gram[np.ix_(chosen, chosen)]
    norms = np.sqrt(np.maximum(np.diag(block), np.finfo(np.float64).tiny))
    return float((block / np.outer(norms, norms))[np.triu_indices(len(chosen), 1)].mean())
