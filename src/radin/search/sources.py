"""Where recipes come from beyond one draw of subsets: each source is a function over a problem, named for its reader.

A source reads cached outputs only (``problem.estimate``, ``problem.fit``) and yields mixing ratios in blocks, so that
a million recipes never lie in memory at once. Axis names: members N, recipes S, ensembles grown side by side E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radin.errors import RadinError
from radin.progress import Progress
from radin.search.candidates import (
    EXHAUSTIVE_LIMIT,
    Floats,
    Masks,
    count_subsets,
    distinct,
    equal_weights,
    exhaustive,
    monte_carlo,
    prefixes,
)
from radin.search.simplex import tidy
from radin.search.strategies.base import Problem

ROWS_PER_BLOCK = 16384
_MERGED = 4096  # recipes at least that are merged with the best so far at once

# What bounds the work in pools of more than ALL members; in smaller ones all is tried.
ALL = 96
_ADDITIONS = 48  # to an ensemble
_TRIED, _TURNS = 16, 16  # members tried for each, and in how many steps each of the others has its turn
_FLIPS, _SWAPS = 32, 128  # single changes and swaps tried around a subset
_STEPS = 48  # of a path of local search


@dataclass(frozen=True)
class Hints:
    """What a source may use besides the problem.

    ``count``: how many recipes a random source draws. ``best`` (S, N): the best recipes of the sources before it.
    """

    count: int
    best: Floats


Source = Callable[[Problem, Hints, np.random.Generator], Iterator[Floats]]


def singles(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """Each member alone; its estimate is its true score."""
    yield np.eye(problem.members)


def top_k(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """The average of the k best members, for every k."""
    yield equal_weights(prefixes(problem.members)[1:])


def random_subsets(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """Random subsets as in the paper's Algorithm 2 (sizes 2 to N-1), and the average of all."""
    if problem.members < 2:
        return
    masks = monte_carlo(problem.members, hints.count, (2, problem.members - 1), rng, include_uniform=True)
    for start in range(0, len(masks), ROWS_PER_BLOCK):
        yield equal_weights(masks[start : start + ROWS_PER_BLOCK])


def all_subsets(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """Every subset of two members or more; up to 20 members."""
    for masks in exhaustive(problem.members):
        yield equal_weights(masks)


def ensemble_selection(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """Add the member that helps most, repeats allowed, again and again.

    Caruana et al. 2004, "Ensemble selection from libraries of models", with replacement and sorted initialisation:
    grown from the 1, 2, 4, ... best members; every ensemble on the way is a recipe.
    """
    sizes = [2**i for i in range(problem.members.bit_length()) if 2**i <= problem.members]
    starts = prefixes(problem.members)[np.array(sizes) - 1].astype(np.float64)
    unrestricted = np.ones((len(starts), problem.members), dtype=np.bool_)
    for counts in _grow(
        problem, starts, unrestricted, steps=max(20, problem.members if problem.members <= ALL else _ADDITIONS)
    ):
        yield counts / counts.sum(axis=1, keepdims=True)


def bagged_selection(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """Ensemble selection in 20 random halves of the pool: the best of each, and their average.

    Caruana et al. 2004, section 2.3: bagging keeps the selection from exploiting single estimates.
    """
    allowed = rng.random((20, problem.members)) < 0.5
    allowed = allowed[allowed.any(axis=1)]
    if not len(allowed):
        return
    # Each bag starts from its own best member, the first in canonical order.
    starts = np.eye(problem.members)[allowed.argmax(axis=1)]
    path = np.stack(list(_grow(problem, starts, allowed, steps=20)))
    weights = path / path.sum(axis=2, keepdims=True)
    estimates = problem.estimate(weights.reshape(-1, problem.members)).reshape(weights.shape[:2])
    chosen = weights[estimates.argmax(axis=0), np.arange(len(allowed))]
    yield chosen
    yield chosen.mean(axis=0, keepdims=True)


def _grow(problem: Problem, counts: Floats, allowed: Masks, steps: int) -> Iterator[Floats]:
    """Ensembles (E, N), as counts of each member, after 0, 1, ..., ``steps`` additions; each adds what helps most.

    In a large pool most members help little, and the same ones again and again: after the first step only those are
    tried that helped most when last tried, and in turns a few of the others.
    """
    yield counts
    latest = np.full(allowed.shape, -np.inf)
    for step in range(steps):
        tried = allowed if step == 0 else _worth_trying(latest, allowed, step)
        grower, member = np.nonzero(tried)
        grown = counts[grower]
        grown[np.arange(len(member)), member] += 1
        latest[grower, member] = problem.estimate(grown / grown.sum(axis=1, keepdims=True))
        counts = counts + np.eye(problem.members)[np.where(tried, latest, -np.inf).argmax(axis=1)]
        yield counts


def _worth_trying(latest: Floats, allowed: Masks, step: int) -> Masks:
    """For each row the ``_TRIED`` best of those allowed by the latest estimates, and some of the rest in turns."""
    members = allowed.shape[1]
    if members <= ALL:
        return allowed
    tried = np.zeros_like(allowed)
    np.put_along_axis(tried, np.argsort(-latest, axis=1, kind="stable")[:, :_TRIED], True, axis=1)
    tried[:, step % _TURNS :: _TURNS] = True
    return tried & allowed


def local_search(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """From several subsets, add, drop or swap one member as long as the estimate rises.

    Starts: the subsets behind the 8 best recipes so far (4 in a large pool), the best member and the average of all.
    Yields each subset on the way and, around each subset where it ends, its neighbours. In a large pool a step looks at
    the members whose adding or dropping looked best before, at swaps of the best of these, and at all members before it
    ends.
    """
    members = problem.members
    if members < 2:
        return
    ends = [np.eye(1, members, dtype=np.bool_), np.ones((1, members), dtype=np.bool_)]
    masks = np.concatenate([hints.best[: 8 if members <= ALL else 4] > 0, *ends])
    masks = masks[distinct(masks)]
    estimates = problem.estimate(equal_weights(masks))
    latest: Floats = np.full(
        masks.shape, np.inf
    )  # of each subset with one member added or dropped; not known: to be tried
    fresh: Masks = np.ones(len(masks), dtype=np.bool_)  # whether all of these are those of the subset as it is
    for _ in range(_STEPS if members > ALL else 4 * members):
        if not len(masks):
            return
        yield equal_weights(masks)
        around, scores = _around_each(problem, masks, latest, fresh)
        moved: list[NDArray[np.bool_]] = []
        gained: list[float] = []
        seen: list[NDArray[np.float64]] = []
        known: list[bool] = []
        for k, (near, score) in enumerate(zip(around, scores, strict=True)):
            if score.max(initial=-np.inf) > estimates[k]:
                moved.append(near[score.argmax()])
                gained.append(score.max())
                seen.append(latest[k])
                known.append(members <= ALL)
            elif fresh[k]:
                yield equal_weights(near)
            else:  # nothing better among those tried: try them all before it ends
                moved.append(masks[k])
                gained.append(estimates[k])
                seen.append(latest[k])
                known.append(True)
        masks, estimates = np.array(moved, dtype=np.bool_).reshape(-1, members), np.array(gained, dtype=np.float64)
        latest, fresh = np.array(seen, dtype=np.float64).reshape(-1, members), np.array(known, dtype=np.bool_)
        # Paths that meet continue as one.
        kept = distinct(masks) if len(masks) else np.arange(0)
        masks, estimates, latest, fresh = masks[kept], estimates[kept], latest[kept], fresh[kept]


def _around_each(problem: Problem, masks: Masks, latest: Floats, fresh: Masks) -> tuple[list[Masks], list[Floats]]:
    """Neighbours of each subset (P, N) and their estimates; writes those of single changes into ``latest`` (P, N).

    ``fresh`` (P,): where all single changes are tried, and not only those that looked best.
    """
    flips = []
    for mask, known, everything in zip(masks, latest, fresh, strict=True):
        tried = np.arange(len(mask)) if everything else np.sort(np.argsort(-known, kind="stable")[:_FLIPS])
        flipped = mask ^ np.eye(len(mask), dtype=np.bool_)[tried]
        flips.append((tried[flipped.any(axis=1)], flipped[flipped.any(axis=1)]))
    scores = _estimated(problem, [flipped for _, flipped in flips])
    for known, (tried, _), found in zip(latest, flips, scores, strict=True):
        known[tried] = found
    swaps = [_swaps(mask, known) for mask, known in zip(masks, latest, strict=True)]
    more = _estimated(problem, swaps)
    around = [np.concatenate([flipped, swapped]) for (_, flipped), swapped in zip(flips, swaps, strict=True)]
    return around, [np.concatenate(pair) for pair in zip(scores, more, strict=True)]


def _estimated(problem: Problem, parts: list[Masks]) -> list[Floats]:
    """Estimates of the averages of all subsets of all parts, by one call."""
    found = problem.estimate(equal_weights(np.concatenate(parts)))
    return np.split(found, np.cumsum([len(part) for part in parts])[:-1])


def _swaps(mask: Masks, latest: Floats) -> Masks:
    """The subset (N,) with one member swapped for another, (S, N): all swaps, or the most promising of many.

    ``latest`` (N,): estimates with each member alone added or dropped.
    """
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
    out, into = np.repeat(inside, len(outside)), np.tile(outside, len(inside))
    if len(mask) > ALL and len(out) > _SWAPS:
        promise = np.where(np.isfinite(latest), latest, np.finfo(np.float64).min / 4)
        chosen = np.sort(np.argsort(-(promise[out] + promise[into]), kind="stable")[:_SWAPS])
        out, into = out[chosen], into[chosen]
    swapped: Masks = np.repeat(mask[None], len(out), axis=0)
    rows = np.arange(len(out))
    swapped[rows, out], swapped[rows, into] = False, True
    return swapped


def ratios(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """Unequal mixing ratios around the best recipes so far, and mixtures of them.

    Half are drawn from a Dirichlet distribution whose mean is one of the best recipes, over its members, with total
    concentration N times 1, 4 or 16; half average two to four of the best recipes, in ratios from a flat Dirichlet.
    """
    best = hints.best[:32]
    if not len(best):
        return
    for start in range(0, hints.count, ROWS_PER_BLOCK):
        rows = min(ROWS_PER_BLOCK, hints.count - start)
        mixed = rows // 2 if len(best) > 1 else 0
        yield _around(best, rows - mixed, rng)
        if mixed:
            yield _mixtures(best, mixed, rng)


def _around(best: Floats, count: int, rng: np.random.Generator) -> Floats:
    means = best[rng.integers(0, len(best), count)]
    concentration = best.shape[1] * rng.choice([1.0, 4.0, 16.0], (count, 1))
    drawn = rng.standard_gamma(means * concentration)
    total = drawn.sum(axis=1, keepdims=True)
    # Gamma draws of tiny shape can all underflow to zero; the mean itself stands for those.
    weights: Floats = np.where(total > 0, drawn / np.where(total > 0, total, 1.0), means)
    return weights


def _mixtures(best: Floats, count: int, rng: np.random.Generator) -> Floats:
    most = min(4, len(best))
    shares = rng.standard_exponential((count, most))
    shares *= np.arange(most) < rng.integers(2, most + 1, (count, 1))
    shares /= shares.sum(axis=1, keepdims=True)
    chosen = rng.random((count, len(best))).argsort(axis=1)[:, :most]
    weights: Floats = np.einsum("sk,skn->sn", shares, best[chosen])
    return weights


def convex_fit(problem: Problem, hints: Hints, rng: np.random.Generator) -> Iterator[Floats]:
    """The mixing ratios with the least cross-entropy, or least squared error, of the averaged outputs.

    Both are convex in p; see ``Search`` for how each is fitted.
    """
    if problem.fit is not None:
        yield tidy(problem.fit())[None]


SOURCES: dict[str, Source] = {
    "single": singles,
    "top-k": top_k,
    "random": random_subsets,
    "all": all_subsets,
    "selection": ensemble_selection,
    "bagging": bagged_selection,
    "fit": convex_fit,
    "local": local_search,
    "ratios": ratios,
}
"""All sources by name; those that start from the best recipes so far come last."""


def default_sources(members: int, count: int) -> tuple[str, ...]:
    """Every source, with all subsets in place of random ones where there are at most ``count`` of them."""
    most = min(count, EXHAUSTIVE_LIMIT)
    few = count_subsets(members, 2, members, most) <= most
    return tuple(name for name in SOURCES if name != ("random" if few else "all"))


class SubsetMemory:
    """An estimate that remembers uniform averages: several sources, and repeated calls, score the same subsets."""

    def __init__(self, estimate: Callable[[Floats], Floats]) -> None:
        self._estimate = estimate
        self._known: dict[bytes, float] = {}

    def __call__(self, ratios: Floats) -> Floats:
        """Utilities (S,) of ratios (S, N); only subsets that were not seen before are estimated."""
        masks = ratios > 0
        if (
            not len(ratios)
            or (np.where(masks, ratios, ratios.max(axis=1, keepdims=True)).min(axis=1) < ratios.max(axis=1)).any()
        ):
            return self._estimate(ratios)
        packed = np.packbits(masks, axis=1)
        keys = packed.view(f"V{packed.shape[1]}").ravel().tolist()
        known = self._known
        new = [index for index, key in enumerate(keys) if key not in known]
        if new:
            for index, value in zip(new, self._estimate(ratios[new]).tolist(), strict=True):
                known[keys[index]] = value
        return np.array([known[key] for key in keys])


@dataclass(frozen=True)
class Ranking:
    """The best distinct recipes found: mixing ratios (K, N), utilities (K,), best first, and the source of each."""

    weights: Floats
    utilities: Floats
    sources: tuple[str, ...]


def best_recipes(
    problem: Problem, sources: Iterable[str], *, count: int, keep: int, progress: Progress | None = None
) -> Ranking:
    """The ``keep`` best recipes by estimate among those of the sources, which run in the order given.

    Each source starts from the best recipes of those before it. A recipe that several sources find is the first one's;
    equal estimates stay in the order found. Every source draws from ``problem.seed`` afresh, so that its random recipes
    do not depend on which others run. ``progress(what, done, total)`` after each source. Raises RadinError for an
    unknown source.
    """
    names = list(sources)
    for name in names:
        if name not in SOURCES:
            raise RadinError(f"unknown source {name!r}; known: {', '.join(SOURCES)}")
    ranking = Ranking(np.empty((0, problem.members)), np.empty(0), ())
    for done, name in enumerate(names):
        hints = Hints(count, ranking.weights)
        for weights in _gathered(SOURCES[name](problem, hints, np.random.default_rng(problem.seed))):
            ranking = _merged(ranking, weights, problem.estimate(weights), name, keep)
        if progress is not None:
            progress("ranking recipes", done + 1, len(names))
    return ranking


def _gathered(blocks: Iterable[Floats]) -> Iterator[Floats]:
    """The same recipes in fewer blocks: each is merged with all those kept."""
    parts: list[Floats] = []
    for block in blocks:
        parts.append(block)
        if sum(map(len, parts)) >= _MERGED:
            yield np.concatenate(parts)
            parts = []
    if sum(map(len, parts)):
        yield np.concatenate(parts)


def _merged(ranking: Ranking, weights: Floats, utilities: Floats, source: str, keep: int) -> Ranking:
    if len(ranking.utilities) == keep:
        # Most of a large block cannot enter: leave it out before anything is sorted.
        better = utilities > ranking.utilities[-1]
        weights, utilities = weights[better], utilities[better]
        if not len(weights):
            return ranking
    weights = np.concatenate([ranking.weights, weights])
    utilities = np.concatenate([ranking.utilities, utilities])
    kept = distinct(weights)
    order = kept[np.argsort(-utilities[kept], kind="stable")][:keep]
    found = len(ranking.sources)
    return Ranking(weights[order], utilities[order], tuple(ranking.sources[i] if i < found else source for i in order))
