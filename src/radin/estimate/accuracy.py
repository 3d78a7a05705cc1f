"""Accuracy, top-k and balanced accuracy of averaged outputs, exactly, from margin rows.

A recipe is right on an example iff fewer than k of its rows fail: p . (y_t - y_j) <= 0, or < 0 where the tie is won.
Scoring S recipes is one matrix product and a minimum per example. It runs in float32; an example whose smallest
value lies within the rounding error of zero is decided again in float64, with sums instead of averages where all
weights are equal, so that ties are ties. Axis names: members N, examples M, rows R, recipes S, contested examples E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from radin.estimate.dense import as_weights
from radin.estimate.margins import Margins
from radin.estimate.reading import Array, Floats
from radin.estimate.threads import map_on_threads

# A product of these rows and recipes stays in cache until its minimum is taken. Other accelerators are taken to have
# smaller caches and fewer threads than a CUDA device.
BLOCK_ROWS = {"cpu": 1024, "cuda": 32768}
BLOCK_RECIPES = {"cpu": 512, "cuda": 4096}
_OTHER_ROWS, _OTHER_RECIPES = 8192, 2048
_FEWEST = 32  # recipes that make a task of their own
_EXACT_ROWS = 4096  # margin rows that are in float64 together, where all are wanted
_EXACT_NUMBERS = 1 << 22  # margins that are in float64 together, where few are


def block_rows(device: torch.device) -> int:
    """How many margin rows are scored together on a device of this type."""
    return BLOCK_ROWS.get(device.type, _OTHER_ROWS)


def block_recipes(device: torch.device) -> int:
    """How many recipes are scored together on a device of this type."""
    return BLOCK_RECIPES.get(device.type, _OTHER_RECIPES)


def has_float64(device: str) -> bool:
    """Whether a device computes in float64, in which close decisions are made; Apple's MPS, for one, does not."""
    try:
        return float((torch.ones(2, dtype=torch.float64, device=device) * 3).sum()) == 6
    except (RuntimeError, TypeError):
        return False


@dataclass(frozen=True)
class Block:
    """Rows of some contested examples, in levels: the first row of each, then the second of each that has one, ...

    Examples are ordered by how many rows they have, most first, so that level l holds rows of the first examples
    alone. ``first``: the place of its first example among the contested ones; ``scaled`` (R, N) float32, each row
    times a power of two that brings its largest margin to between 1/2 and 1; ``levels``: where each level starts,
    and the end; ``allowed`` (E, 1): how many rows of an example may fail.
    """

    first: int
    scaled: torch.Tensor
    levels: tuple[int, ...]
    allowed: torch.Tensor

    @property
    def examples(self) -> int:
        """How many examples, M."""
        return self.levels[1]

    @cached_property
    def whole(self) -> int:
        """How many levels have a row of every example: one minimum over all is faster than one by one."""
        return int((np.diff(self.levels) == self.examples).sum())

    def later_levels(self, after: int = 1) -> Iterator[tuple[int, int]]:
        """Start and end of each level after the first ``after``."""
        return pairwise(self.levels[after:])


@dataclass(frozen=True)
class Contested:
    """The rows of all contested examples, for scoring.

    ``example`` (E,): most rows first. ``blocks``: their rows in float32, in blocks. Example after example: ``place``
    (R,) of each row in ``logits`` (., N), the outputs of the rows' classes as they were compiled, ``strict`` (R,),
    ``rival`` (R,), and where each example's rows start, ``starts`` (E + 1,). ``truth`` (E, N): the true classes'
    outputs. ``allowed`` (E,).
    """

    example: Array
    blocks: list[Block]
    place: torch.Tensor
    logits: torch.Tensor
    truth: torch.Tensor
    strict: torch.Tensor
    rival: torch.Tensor
    starts: torch.Tensor
    allowed: torch.Tensor

    def rows_of(self, examples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows of these contested examples (Q,), one after the other: which of the Q, and the row."""
        counts = self.starts[examples + 1] - self.starts[examples]
        which = torch.repeat_interleave(counts)
        ends = torch.cumsum(counts, 0)
        within = torch.arange(len(which), device=which.device) - (ends - counts)[which]
        return which, self.starts[examples][which] + within

    def in_levels(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of a block as they lie there (R,): which contested example each is of, and which row it is."""
        counts = np.diff(block.levels)
        which = torch.cat([torch.arange(int(count), device=self.starts.device) for count in counts]) + block.first
        level = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(which.device)
        return which, self.starts[which] + level

    def margins(self, which: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Margins y_t - y_j in float64 of rows (Q,) of the contested examples ``which`` (Q,), (Q, N).

        Made when asked for: few are, and all of them take twice the memory of the outputs that they come from.
        """
        return self.truth[which].double() - self.logits[self.place[row]].double()


def contested(margins: Margins, device: str, *, alike: bool = False) -> Contested:
    """Arrange the rows for scoring. ``alike`` scales all rows of an example alike, so that they can be compared."""
    places = margins.places()
    unique, inverse, counts = np.unique(margins.example[places], return_inverse=True, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")
    rank = np.argsort(ranked)[inverse]
    by_example = np.argsort(rank, kind="stable")
    places, rank, counts = places[by_example], rank[by_example], counts[ranked]
    starts = np.concatenate([[0], np.cumsum(counts)])
    level = np.arange(len(places)) - starts[rank]
    allowed = margins.allowed[unique[ranked]]
    blocks = []
    for lo, hi in _cut(starts, block_rows(torch.device(device))):
        rows = slice(starts[lo], starts[hi])
        order = np.argsort(level[rows], kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(level[rows]))])
        blocks.append(
            Block(
                lo,
                torch.from_numpy(_scaled(margins, places[rows], starts[lo:hi] - starts[lo], alike)[order]).to(device),
                tuple(int(edge) for edge in edges),
                torch.from_numpy(allowed[lo:hi, None]).to(device),
            )
        )
    return Contested(
        unique[ranked],
        blocks,
        torch.from_numpy(places).to(device),
        torch.from_numpy(margins.logits).to(device),
        torch.from_numpy(margins.truth[unique[ranked]]).to(device),
        torch.from_numpy(margins.strict()[places]).to(device),
        torch.from_numpy(margins.rival[places].astype(np.int64)).to(device),
        torch.from_numpy(starts).to(device),
        torch.from_numpy(allowed).to(device),
    )


def _scaled(margins: Margins, places: Array, starts: Array, alike: bool) -> Array:
    """The rows at these places, each times a power of two; ``starts``: of each example's rows among them."""
    values = margins.at(places)
    largest = np.maximum(values.max(axis=1, initial=0), -values.min(axis=1, initial=0))
    if alike and len(places):
        largest = np.maximum.reduceat(largest, starts)[np.searchsorted(starts, np.arange(len(places)), "right") - 1]
    return np.asarray(np.ldexp(values, -np.frexp(largest)[1][:, None]).astype(np.float32))


def _cut(starts: Array, rows: int) -> list[tuple[int, int]]:
    """Ranges of examples with at most ``rows`` rows each, or one example; starts (E + 1,) of their rows."""
    edges = [0]
    while edges[-1] < len(starts) - 1:
        end = int(np.searchsorted(starts, starts[edges[-1]] + rows, side="right")) - 1
        edges.append(max(edges[-1] + 1, end))
    return list(pairwise(edges))


def rounding_bound(members: int) -> float:
    """How far a float32 product of a scaled row with mixing weights may lie from the exact one.

    Each of N terms carries the rounding of row, weight and product, and of at most N additions, in any order:
    gamma_{N+3} * sum p |m| with |m| <= 1 and sum p <= 1 + 1e-6 (Higham 2002, section 3.1); one more unit covers the
    denormals.
    """
    unit = 2.0**-24
    count = (members + 4) * unit
    return count / (1 - count) * (1 + 1e-5)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep torch from computing float32 products in TF32 or bfloat16, which the rounding bound does not cover."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run_all(run: Callable[[int], None], tasks: Sequence[int], device: torch.device) -> None:
    """Run independent tasks: on the CPU on as many threads as torch uses, one after the other on a GPU."""
    threads = min(torch.get_num_threads(), len(tasks)) if device.type == "cpu" else 1
    for _ in map_on_threads(run, tasks, threads):
        pass


def shared_out(rows: int, block: int, device: torch.device) -> int:
    """How many rows a task takes: a block at most, and on the CPU so few that each of torch's threads has a task.

    One task on all threads would have them wait for each other after every small step, on a busy machine for long.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return min(block, max(_FEWEST, -(-rows // threads)))


def exact_at_once(data: Contested, members: int) -> int:
    """How many (example, recipe) pairs are decided in float64 together: where all members tie, all of them are."""
    most = int(torch.diff(data.starts).max()) if len(data.example) else 1
    return max(1, _EXACT_NUMBERS // (members * most))


def exact_weights(rows: Floats) -> Floats:
    """Weights for the float64 decision: 1 for each member of an equal average, so that its sums are exact."""
    top = rows.max(axis=1, keepdims=True)
    equal = ((rows == 0) | (rows == top)).all(axis=1)
    result = rows.copy()
    result[equal] = rows[equal] > 0
    return result


class AccuracyEstimator:
    """Accuracy or top-k accuracy of averaged outputs, or, with ``example_weights``, a weighted mean such as balanced
    accuracy."""

    def __init__(self, margins: Margins, *, device: str = "cpu", example_weights: Floats | None = None) -> None:
        """``example_weights`` (M,): what each example counts; None for 1/M each, where scores are counts over M."""
        self.members, self.examples, self.margins = margins.members, margins.examples, margins
        self._device, self._top = torch.device(device), margins.top
        self._contested = contested(margins, device)
        self._tau = rounding_bound(self.members)
        each = np.ones(self.examples) if example_weights is None else example_weights
        self._scale, self._each = self.examples if example_weights is None else 1, example_weights
        sure = margins.allowed >= 0
        sure[self._contested.example] = False
        self._base = float(each[sure].sum())
        # Counts are exact in float32 up to 2^24; weights are not.
        whole = example_weights is None and self.examples < 2**24
        self._example_weights = torch.from_numpy(each[self._contested.example]).to(
            self._device, torch.float32 if whole else torch.float64
        )

    @property
    def work(self) -> int:
        """Multiplications that a recipe's score takes."""
        return sum(block.scaled.numel() for block in self._contested.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes read to score a recipe: the float32 rows."""
        return 4 * self.work

    def scores(self, weights: Array) -> Floats:
        """Weights (S, N), rows p >= 0 with sum 1, -> (S,)."""
        rows = as_weights(weights, self.members)
        totals = np.empty(len(rows))
        step = shared_out(len(rows), block_recipes(self._device), self._device)

        def run(lo: int) -> None:
            totals[lo : lo + step] = self._totals(rows[lo : lo + step])

        with full_precision():
            run_all(run, range(0, len(rows), step), self._device)
        return (totals + self._base) / self._scale

    def example_margins(self, weights: Floats) -> Floats:
        """By how much averaged outputs are right on each example: the true class's less the best other's, (S, M).

        ``weights`` (S, N). Infinite where every recipe is right, or wrong. Only for accuracy (top 1).
        """
        result = np.tile(np.where(self.margins.allowed >= 0, np.inf, -np.inf), (len(weights), 1))
        for example, first in self.least_margins(weights):
            result[:, example] = first.T.cpu().numpy()
        return result

    def least_margins(self, weights: Floats) -> Iterator[tuple[Array, torch.Tensor]]:
        """Contested examples (e,), some at a time, and the smallest of each one's margins in float64, (e, S)."""
        data = self._contested
        columns = torch.from_numpy(np.ascontiguousarray(weights.T)).to(self._device, torch.float64)
        for block in data.blocks:
            which, row = data.in_levels(block)
            values = data.margins(which, row) @ columns
            first = values[: block.examples]
            for lo, hi in block.later_levels():
                torch.minimum(first[: hi - lo], values[lo:hi], out=first[: hi - lo])
            yield data.example[block.first : block.first + block.examples], first

    def among(self, members: Sequence[int]) -> AccuracyEstimator:
        """The same of recipes of some members alone, in this order."""
        few = self.margins.among(members)
        return AccuracyEstimator(few, device=str(self._device), example_weights=self._each)

    def screened(self, probes: Floats, order: Sequence[int] | None = None) -> AccuracyEstimator:
        """The same without the rows that decide nothing for recipes like these, for ranking many of them.

        probes (S, N): mixing ratios, over members in this ``order`` where one is given: member i is the ``order[i]`` of
        this one. A row whose margins over them are above zero by more than their standard
        deviation is taken never to fail, and one below zero by as much always. Scores are then approximate: those that
        matter are asked of the whole afterwards.
        """
        return AccuracyEstimator(self._few_rows(probes, order), device=str(self._device), example_weights=self._each)

    def _few_rows(self, probes: Floats, order: Sequence[int] | None) -> Margins:
        margins, columns = self.margins, np.ascontiguousarray(probes.T, dtype=np.float32)
        members = list(range(self.members) if order is None else order)
        places = margins.places()
        may_fail, always = np.zeros(len(margins.example), np.bool_), np.zeros(len(margins.example), np.bool_)
        for lo in range(0, len(places), _EXACT_ROWS):
            part = places[lo : lo + _EXACT_ROWS]
            values = margins.at(part)[:, members]
            values /= np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-300)
            found = values.astype(np.float32) @ columns
            reach = found.std(axis=1)
            may_fail[part] = found.min(axis=1) <= reach
            always[part] = found.max(axis=1) < -reach
        allowed = margins.allowed.copy()
        np.subtract.at(allowed, margins.example[always], 1)
        kept = may_fail & ~always & (allowed[margins.example] >= 0)
        return replace(
            margins,
            example=margins.example[kept],
            rival=margins.rival[kept],
            logits=margins.logits[kept][:, members],
            truth=margins.truth[:, members],
            allowed=np.maximum(allowed, -1),
            dropped=None,
        )

    @torch.inference_mode()
    def _totals(self, rows: Floats) -> Floats:
        recipes = torch.from_numpy(rows).to(self._device, torch.float32).T.contiguous()
        height = max((len(block.scaled) for block in self._contested.blocks), default=0)
        buffer = torch.empty(height, len(rows), device=self._device)
        total = torch.zeros(len(rows), dtype=self._example_weights.dtype, device=self._device)
        flags = torch.empty(height, len(rows), dtype=total.dtype, device=self._device)
        unsure = []
        for block in self._contested.blocks:
            values = torch.mm(block.scaled, recipes, out=buffer[: len(block.scaled)])
            each = self._example_weights[block.first : block.first + block.examples]
            if self._top == 1:
                sure, near = self._decide_best(block, values, each, flags[: block.examples])
            else:
                right, doubtful = self._decide_top(block, values)
                sure, near = each @ right.to(total.dtype), torch.nonzero(doubtful)
            total += sure
            unsure.append(near + near.new_tensor([block.first, 0]))
        near_zero = torch.cat(unsure) if unsure else torch.empty(0, 2, dtype=torch.int64)
        if len(near_zero):
            exact = torch.from_numpy(exact_weights(rows)).to(self._device)
            for part in near_zero.split(exact_at_once(self._contested, self.members)):
                example, recipe = part.unbind(1)
                right = self._decide_exactly(example, exact[recipe])
                total.index_add_(0, recipe, self._example_weights[example] * right)
        return total.cpu().numpy().astype(np.float64)

    def _decide_best(
        self, block: Block, values: torch.Tensor, each: torch.Tensor, flags: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight of examples that are right for sure, (S,), and the (example, recipe) pairs float32 cannot tell.

        ``values`` (R, S), overwritten; ``each`` (E,) weights of examples; ``flags`` (E, S), scratch. Few recipes have a
        doubtful example, and those are found by comparing two sums, which costs far less than comparing each example.
        """
        first, tau = values[: block.examples], self._tau
        for lo, hi in block.later_levels():
            torch.minimum(first[: hi - lo], values[lo:hi], out=first[: hi - lo])
        sure = each @ torch.gt(first, tau, out=flags)
        not_wrong = each @ torch.ge(first, -tau, out=flags)
        recipes = torch.nonzero(not_wrong != sure)[:, 0]
        near = torch.nonzero(first[:, recipes].abs_() <= tau)
        near[:, 1] = recipes[near[:, 1]]
        return sure, near

    def _decide_top(self, block: Block, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which examples are right for sure, and which float32 cannot tell, (E, S) each."""
        first, tau = values[: block.examples], self._tau
        failing, doubtful = (first < -tau).int(), (first <= tau).int()
        for lo, hi in block.later_levels():
            failing[: hi - lo] += values[lo:hi] < -tau
            doubtful[: hi - lo] += values[lo:hi] <= tau
        right = doubtful <= block.allowed
        return right, ~right & (failing <= block.allowed)

    def _decide_exactly(self, example: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Whether the recipes (Q, N), of any positive scale, are right on the contested examples (Q,), in float64."""
        data = self._contested
        which, row = data.rows_of(example)
        value = (data.margins(example[which], row) * weights[which]).sum(dim=1)
        fails = torch.where(data.strict[row], value <= 0, value < 0)
        failing = torch.zeros_like(example).index_add_(0, which, fails.long())
        return failing <= data.allowed[example]


def balanced_weights(targets: Array) -> Floats:
    """What each example counts for in balanced accuracy: 1 / (classes present * examples of its class)."""
    support = np.bincount(targets)
    result: Floats = 1 / (support[targets] * np.count_nonzero(support))
    return result
