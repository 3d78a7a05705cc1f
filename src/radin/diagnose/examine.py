"""What a doctor measures: the members and a few soups on a slice of the data, and how a run has gone so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin import metrics
from radin.data.batches import read, rebatched
from radin.data.task import Task
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.engine.rows import joined
from radin.errors import OutputsError, RunError, TaskError
from radin.estimate import estimator
from radin.metrics import Metric
from radin.outputs.collect import stream_outputs
from radin.outputs.files import open_targets
from radin.outputs.store import StoredOutputs
from radin.progress import Progress
from radin.question import Answer, answer_from_outputs
from radin.recipe import Recipe
from radin.run.directory import RunDirectory
from radin.run.journal import has_ledger
from radin.run.ledger import Ledger
from radin.run.members import mixed
from radin.run.result import Result
from radin.run.rows import REESTIMATED, Entry
from radin.search import rank
from radin.search.sources import default_sources
from radin.stats.ranks import spearman
from radin.weights import Pool, average
from radin.weights.spread import Spread

Floats = NDArray[np.float64]

ALPHAS = (0.25, 0.5, 0.75)
_NEXT_BEST = 3
_CANDIDATES = 1000


@dataclass(frozen=True)
class Interpolation:
    """Soups on the straight line from ``first`` to ``second``: ``scores`` at the shares ALPHAS of the second.

    ``barrier``: how much worse the worst of them is than the line between the two members' scores, in the metric's
    units; ``below``: than the worse of the two. Each with its standard error, paired where the metric is a mean of one
    number per example. NaN when a soup's outputs are not finite.
    """

    first: int
    second: int
    farthest: bool
    scores: tuple[float, ...]
    barrier: float
    barrier_stderr: float
    below: float
    below_stderr: float


@dataclass(frozen=True)
class Soups:
    """Soups of the ``usable`` members, and what averaged outputs promise, all on the slice.

    ``together``: all of them as one soup; ``ensemble``: their averaged outputs; ``subset``: the subset whose averaged
    outputs score best, ``promised``. ``core``: the soup of the largest group without its outliers, None where that
    is all of them or fewer than two.
    """

    usable: tuple[int, ...]
    together: Answer
    ensemble: Answer
    subset: tuple[int, ...]
    promised: float
    core: Answer | None
    interpolations: tuple[Interpolation, ...]


@dataclass(frozen=True, eq=False)
class SliceReport:
    """The pool on the first ``examples`` of validation().

    ``members``: each one's score, None where ``broken`` says why not. ``agreement`` (N, N): share of examples on which
    two members give the same class; None for metrics over other targets. ``classes_seen``: how many of ``classes``
    occur among the targets. ``soups``: None when fewer than two members are usable.
    """

    metric: Metric
    examples: int
    classes: int
    classes_seen: int | None
    members: tuple[Answer | None, ...]
    broken: Mapping[int, str]
    agreement: Floats | None
    soups: Soups | None

    @property
    def order(self) -> tuple[int, ...]:
        """Usable members, best first."""
        scores = [(k, found.score) for k, found in enumerate(self.members) if found is not None]
        return tuple(k for k, score in sorted(scores, key=lambda pair: -self.metric.utility(pair[1])))

    def score(self, member: int) -> Answer:
        """The score of a usable member."""
        found = self.members[member]
        assert found is not None
        return found


def first_examples(task: Task, count: int) -> Task:
    """The task with only the first ``count`` examples of validation(); no more than those are read."""

    def validation() -> Iterator[tuple[Any, Any]]:
        left = count
        for whole in read(task.batches("validation"), "validation()"):
            batch = next(iter(rebatched([whole], left)))
            yield batch.inputs, batch.targets
            left -= batch.size
            if left <= 0:
                return

    return replace(task, validation=validation)


def examine_slice(
    task: Task, pool: Pool, shape: Spread, examples: int, engine: Device, progress: Progress | None = None
) -> SliceReport:
    """Measure the pool on the first ``examples`` of validation(), with one model in memory at a time.

    ``shape``: of the pool's weights. Costs at most N + 2 + 3 * 4 passes over the slice, and calibration() for each of
    the soups among them. Raises TaskError when model, data or metric do not fit.
    """
    part, metric = first_examples(task, examples), task.get_metric()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        outputs: dict[int, NDArray[Any]] = {}
        broken: dict[int, str] = {}
        data: str | None = None
        targets: NDArray[Any] = np.empty(0)
        for k, member in enumerate(pool):
            rows: list[NDArray[Any]] = []
            try:
                data, targets = stream_outputs(
                    part, Pool([member]), engine, metric, _keeper(rows), expected_data=data, progress=None
                )
            except OutputsError as error:
                broken[k] = str(error)
                continue
            path = Path(folder) / f"{k}.npy"
            np.save(path, joined(rows, metric))
            outputs[k] = np.load(path, mmap_mode="r")
            if progress is not None:
                progress("members on a slice of the data", k + 1, len(pool))
        if data is None:
            raise OutputsError(f"no member of the pool can be used: {broken[0]}")
        usable = tuple(outputs)
        classes = outputs[usable[0]].shape[1]
        metric.check(targets, classes)
        members = {k: answer_from_outputs(metric, np.asarray(rows), targets, 0.0, data) for k, rows in outputs.items()}
        classified = metric.targets == "classes" and classes > 1
        found = SliceReport(
            metric,
            metric.examples(targets),
            classes,
            len(np.unique(targets)) if classified else None,
            tuple(members.get(k) for k in range(len(pool))),
            broken,
            _agreement(outputs, len(pool)) if classified else None,
            None,
        )
        if len(usable) < 2:
            return found
        soups = _Soups(Evaluator(part, engine, metric), pool, data, progress)
        return replace(found, soups=soups.examine(found, usable, tuple(outputs.values()), targets, shape))


def _keeper(rows: list[NDArray[Any]]) -> Any:
    def add(block: NDArray[Any], labels: NDArray[Any]) -> None:
        rows.append(block[0])

    return add


def _agreement(outputs: Mapping[int, NDArray[Any]], members: int) -> Floats:
    chosen = {k: np.asarray(rows.argmax(axis=1)) for k, rows in outputs.items()}
    result = np.full((members, members), np.nan)
    for i, mine in chosen.items():
        for j, theirs in chosen.items():
            result[i, j] = float((mine == theirs).mean())
    return result


def contrast(parts: Sequence[tuple[float, Answer]]) -> tuple[float, float]:
    """sum_i w_i score_i with its standard error over examples, for (w_i, evaluation i).

    Paired where all have one number per example, else as if they were independent.
    """
    total = sum(weight * found.score for weight, found in parts)
    values = [weight * found.values for weight, found in parts if found.values is not None]
    if len(values) == len(parts):
        together = np.sum(values, axis=0)
        return total, float(together.std(ddof=1) / np.sqrt(len(together)))
    return total, float(np.sqrt(sum((weight * found.stderr) ** 2 for weight, found in parts)))


@dataclass(frozen=True)
class _Soups:
    """Builds soups and scores them on the slice, one after the other."""

    evaluator: Evaluator
    pool: Pool
    data: str
    progress: Progress | None

    def examine(
        self,
        found: SliceReport,
        usable: tuple[int, ...],
        outputs: Sequence[NDArray[Any]],
        targets: NDArray[Any],
        shape: Spread,
    ) -> Soups:
        metric, best = found.metric, found.order[0]
        farthest = max(usable, key=lambda k: float(shape.distances[best, k]))
        others = list(dict.fromkeys([*found.order[1 : 1 + _NEXT_BEST], farthest]))
        near = [k for k in shape.core if k in usable]
        total = 2 + len(others) * len(ALPHAS)
        together = self._score(usable, 1, total)
        core = self._score(near, 2, total) if 2 <= len(near) < len(usable) else None
        interpolations = [
            self._interpolate(found, best, k, k == farthest, 2 + i * len(ALPHAS), total) for i, k in enumerate(others)
        ]
        all_usable = Recipe.uniform(range(len(usable)), len(usable))
        ensemble = answer_from_outputs(metric, mixed(outputs, all_usable, metric), targets, 0.0, self.data)
        sources = [s for s in default_sources(len(usable), _CANDIDATES) if s in ("top-k", "all", "random")]
        top = rank(outputs, targets, metric, sources=sources, top=1, count=_CANDIDATES)[0]
        subset = tuple(usable[k] for k in top.recipe.members)
        return Soups(usable, together, ensemble, subset, top.estimate, core, tuple(interpolations))

    def _score(self, members: Sequence[int] | Mapping[int, float], done: int, total: int) -> Answer:
        shares = members if isinstance(members, Mapping) else dict.fromkeys(members, 1.0)
        recipe = Recipe.normalized(shares.get(k, 0.0) for k in range(len(self.pool)))
        model, _ = self.evaluator.prepare(average(self.pool, recipe), "the soup", calibrate=True)
        found = self.evaluator.score(model, "validation", "the soup", expected_data=self.data)
        if self.progress is not None:
            self.progress("a few soups on a slice of the data", done, total)
        return found

    def _interpolate(
        self, found: SliceReport, first: int, second: int, farthest: bool, done: int, total: int
    ) -> Interpolation:
        sign = 1.0 if found.metric.higher_is_better else -1.0
        ends = found.score(first), found.score(second)
        worse = min(ends, key=lambda end: found.metric.utility(end.score))
        soups, barriers, belows = [], [], []
        for i, share in enumerate(ALPHAS):
            soup = self._score({first: 1 - share, second: share}, done + 1 + i, total)
            line = [(sign * (1 - share), ends[0]), (sign * share, ends[1])]
            soups.append(soup.score)
            barriers.append(contrast([*line, (-sign, soup)]))
            belows.append(contrast([(sign, worse), (-sign, soup)]))
        # NaN, from outputs that are not finite, counts as the worst there is
        deepest = max(barriers, key=lambda pair: np.inf if np.isnan(pair[0]) else pair[0])
        lowest = max(belows, key=lambda pair: np.inf if np.isnan(pair[0]) else pair[0])
        return Interpolation(first, second, farthest, tuple(soups), *deepest, *lowest)


@dataclass(frozen=True)
class History:
    """How a run has gone so far, from its ledger.

    ``soups``: evaluated ones of two members or more with a finite score; ``diverged``: those without. ``compared``: how
    many of the former have an estimate; ``spearman``: rank correlation of estimate and true score over them (None
    below three, or when either is constant); ``bias``: mean of truth minus estimate, ``bias_stderr`` over soups.
    ``best_single``: of members as they are and of those re-estimated, what a soup has to beat. ``gain``: best soup
    minus that in the metric's units, paired; None while there is no soup.
    """

    path: Path
    metric: str
    higher_is_better: bool
    finished: bool
    soups: int
    diverged: int
    compared: int
    spearman: float | None
    bias: float | None
    bias_stderr: float | None
    best_single: float | None
    best_soup: float | None
    gain: float | None
    gain_stderr: float | None


def examine_run(directory: Path, pool: Pool, task: Task | None = None) -> History:
    """What the ledger of a run directory tells. ``task``: for a metric that is a function of the user's.

    Estimates are those of result.json; of soups evaluated since then, or before the run has finished, from the outputs
    in the directory. Raises RunError when there is no run, or when it is one of another pool.
    """
    if not (directory / "run.json").is_file() or not has_ledger(directory):
        raise RunError(f"{directory} is not a run directory: it has no run.json and ledger.sqlite. Give cook's --out.")
    found = RunDirectory(directory, {}).read()
    identity = found["identity"]
    members = identity["members"]
    if set(members) != set(pool.fingerprints):
        gone = [name for fingerprint, name in members.items() if fingerprint not in pool.fingerprints]
        new = [member.name for member in pool if member.fingerprint not in members]
        raise RunError(
            f"{directory} is a run of another pool (only in the run: {', '.join(gone) or 'none'}; only in this pool: "
            f"{', '.join(new) or 'none'}). Give the paths that the run was started with."
        )
    metric = _metric(identity["metric"], task)
    ledger = Ledger(directory / "ledger.sqlite", run=found["run"], read_only=True, metric=metric)
    try:
        entries = ledger.soups()
        singles = [e.evaluation for kind in ("member", REESTIMATED) for e in ledger.entries(kind, "validation")]
    finally:
        ledger.close()
    entries = [e for e in entries if len(e.recipe["members"]) > 1]
    soups = [e for e in entries if np.isfinite(e.evaluation.score)]
    sign = 1.0 if identity["higher_is_better"] else -1.0
    estimates = _estimates(directory, soups, pool, identity["metric"], task)
    pairs = [(e.evaluation.score, estimates[e.identity]) for e in soups if e.identity in estimates]
    truth, promised = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    bias = truth - promised
    single = max(singles, key=lambda found: sign * found.score) if singles else None
    best = max((e.evaluation for e in soups), key=lambda found: sign * found.score, default=None)
    gain = contrast([(1.0, best), (-1.0, single)]) if best is not None and single is not None else (None, None)
    return History(
        path=directory,
        metric=identity["metric"],
        higher_is_better=identity["higher_is_better"],
        finished=(directory / "result.json").is_file(),
        soups=len(soups),
        diverged=len(entries) - len(soups),
        compared=len(pairs),
        spearman=spearman(truth, promised) if len(pairs) > 2 else None,
        bias=float(bias.mean()) if pairs else None,
        bias_stderr=float(bias.std(ddof=1) / np.sqrt(len(bias))) if len(pairs) > 1 else None,
        best_single=single.score if single is not None else None,
        best_soup=best.score if best is not None else None,
        gain=gain[0],
        gain_stderr=gain[1],
    )


def _estimates(directory: Path, soups: Sequence[Entry], pool: Pool, metric: str, task: Task | None) -> dict[str, float]:
    """Recipe identity -> estimate, as far as it is on disk or can be had from what is there."""
    known: dict[str, float] = {}
    if (directory / "result.json").is_file():
        result = Result.load(directory)
        for found in result.evaluations:
            if found.estimate is not None:
                known[found.recipe.identity(result.fingerprints)] = found.estimate
    # Ratios by group have no estimate, and negative ones none by margins.
    missing = [e for e in soups if e.identity not in known and not {"groups", "affine"} & e.recipe.keys()]
    outputs = {f: directory / "outputs" / f"{f[:32]}.safetensors" for f in pool.fingerprints}
    targets = directory / "outputs" / "targets.safetensors"
    chosen = _metric(metric, task)
    if missing and chosen is not None and targets.is_file() and all(path.is_file() for path in outputs.values()):
        arrays = [StoredOutputs.open(path).array() for path in outputs.values()]
        estimates = estimator(arrays, open_targets(targets), chosen, names=pool.member_names)
        recipes = [Recipe.from_json(e.recipe, pool.fingerprints).weights for e in missing]
        scores = estimates.scores(np.array(recipes))
        known |= {e.identity: float(score) for e, score in zip(missing, scores, strict=True)}
    return known


def _metric(name: str, task: Task | None) -> Metric | None:
    if task is not None and task.get_metric().name == name:
        return task.get_metric()
    try:
        return metrics.get(name)
    except TaskError:
        return None
