"""The main job: pool -> outputs -> search -> evaluations -> soup. The only place that knows the order of things."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import radin
from radin.data.task import Task
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.errors import RadinError, TaskError
from radin.outputs.store import OutputStore
from radin.progress import Progress
from radin.recipe import Recipe
from radin.run.directory import RunDirectory, write_json
from radin.run.job import Job
from radin.run.ledger import Ledger
from radin.run.members import Known, mixed, some_examples, stored_outputs, streamed_outputs
from radin.run.outcome import Outcome
from radin.run.preflight import preflight
from radin.run.result import Result
from radin.run.soups import Recorded, Soups
from radin.search import Part, Search
from radin.search.strategies import base
from radin.stats.split import split_halves
from radin.weights import Pool, integer_source

__all__ = ["cook", "mixed", "versions"]

# The uniform soup is worth a pass where that is at most an eighth of the budget.
UNIFORM_FROM = 8
# Soups evaluated on the half that chooses: one for every so many passes, and the most.
_PASSES_PER_FINALIST, _FINALISTS = 3, 4
_SEARCHED = "searched-half"  # the outputs on the half that is searched on, while they are needed

Indices = NDArray[np.intp]


def cook(
    pool: Pool | str | Path | Iterable[str | Path],
    task: Task | str | Path,
    *,
    budget: int,
    out: str | Path,
    strategy: str = "adaptive",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    uniform: bool | None = None,
    choose_on_half: bool = False,
    device: str = "auto",
    precision: str = "float32",
    batch_size: int | None = None,
    members_at_once: int | None = None,
    outputs: str | Path | None = None,
    outputs_dtype: str = "float32",
    keep_outputs: bool = True,
    integers_from: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Find the best soup of ``pool`` that ``budget`` validation passes can buy; write it to ``out``/soup.safetensors.

    pool: a Pool, or what Pool.open takes. task: a Task, or what Task.load takes. budget: passes spent on soups in total
    over all sessions of this run; the members' own passes are not in it. A soup may be evaluated on some examples only
    and then costs its share of a pass; where BatchNorm statistics are estimated again, a pass is the validation
    examples and the calibration examples, and beginning a soup costs the latter. out: the run directory; if the run is
    there already, it goes on where it stopped. strategy, options: see radin.search.strategies. uniform: whether to
    spend a pass on the average of all members first; by default from a budget of 8 on. outputs: a folder for the
    members' outputs that several runs share, so that a member added later costs one pass and not N; default inside
    ``out``. keep_outputs=False compiles outputs as they are made and stores none: for accuracy and top-k, when disk is
    short; it gives up resuming inside a reading, other metrics, and adding members without new passes. integers_from:
    the member whose integer tensors the soup takes. progress: called with (what, done, total or None).

    choose_on_half: search on half of the validation examples, drawn by class and seed, and choose on the others, which
    the search never sees: among the soups that the search found best, evaluated on these too, and the members. All
    scores reported are then those on the half that chooses. For metrics that are a mean over examples.

    Raises RadinError (one of its children) for anything the user can mend, before anything long starts where it can be
    known; never overwrites another run.
    """
    started = time.monotonic()
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise RadinError(f"the budget is the number of passes to spend on soups and must be at least 1; got {budget!r}")
    settings = base.get(strategy).settings(options)
    task = Task.load(task)
    metric = task.get_metric()
    engine = Device.create(device, precision, batch_size, members_at_once)
    if not isinstance(pool, Pool):
        opening = (lambda done, total: progress("reading checkpoints", done, total)) if progress else None
        pool = Pool.open(pool, progress=opening)
    pool.require_several()
    integer_source(pool, Recipe.single(0, len(pool)), integers_from)  # refuses an unknown name before anything long
    checked = preflight(task, pool.shapes, pool[0].name, lambda: pool.tensors(0), engine, metric)

    if not keep_outputs and metric.family != "accuracy":
        raise RadinError(f"outputs need not be kept for accuracy and top-k only; metric {metric.name!r} needs them")
    if choose_on_half and metric.per_example is None:
        raise RadinError(f"choosing on half of validation takes a metric that is a mean; {metric.name!r} is none")
    if choose_on_half and not keep_outputs:
        raise RadinError("choosing on half of validation needs the outputs kept")
    identity = {
        "members": dict(zip(pool.fingerprints, pool.member_names, strict=True)),
        "data": None,
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "precision": precision,
        "outputs_dtype": outputs_dtype,
        "keep_outputs": keep_outputs,
        "chosen_on_half": seed if choose_on_half else None,
    }
    asked = {
        "budget": budget,
        "strategy": strategy,
        "options": settings,
        "seed": seed,
        "uniform": budget >= UNIFORM_FROM if uniform is None else uniform,
        "integers_from": integers_from,
        "versions": versions(),
    }
    with RunDirectory(Path(out), identity) as directory:
        if directory.is_new:
            directory.record(asked)  # before anything else is written: from here on the folder is known as a run's
        ledger = Ledger(directory.ledger)
        evaluator = Evaluator(task, engine, metric)
        try:
            job = Job(pool, task, metric, engine, evaluator, directory, ledger, checked, integers_from, progress)
            job.seconds["open"] = time.monotonic() - started
            started = time.monotonic()
            store = OutputStore(Path(outputs or directory.outputs), precision=precision, dtype=outputs_dtype)
            known = stored_outputs(job, store) if keep_outputs else streamed_outputs(job, store)
            calibration = _calibration_examples(job)
            asked["calibration_examples"] = calibration
            directory.bind_data(known.data, asked)
            job.seconds["outputs"] = time.monotonic() - started
            outcome = (_on_halves if choose_on_half else _on_all)(job, known, asked, calibration)
            outcome.soups.write(outcome.best())
            result = outcome.result(asked)
        finally:
            ledger.close()
            shutil.rmtree(directory.path / _SEARCHED, ignore_errors=True)
        write_json(directory.path / "recipe.json", result.to_json()["best"])
        write_json(directory.path / "result.json", result.to_json())
        return result


def versions() -> dict[str, str]:
    """Of radin, Python, torch and numpy."""
    return {
        "radin": radin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _calibration_examples(job: Job) -> int:
    """K, over how many examples each soup's BatchNorm statistics are estimated; what the run began with stays."""
    recorded: int | None = job.directory.read().get("settings", {}).get("calibration_examples")
    if recorded is not None:
        return recorded
    if not job.checked.batchnorm_layers or job.task.calibration is None:
        return 0
    found = job.evaluator.calibration_examples()
    if not found:
        raise TaskError("calibration() gave no batches: BatchNorm statistics cannot be re-estimated")
    return found


def _on_all(job: Job, known: Known, asked: Mapping[str, Any], calibration: int) -> Outcome:
    """Spend the budget; all examples decide."""
    examples = len(known.targets)
    singles = np.array([job.single(k).score for k in range(len(job.pool))])
    soups = Soups(
        job,
        known.data,
        examples=examples,
        calibration=calibration,
        budget=asked["budget"],
        choose=None,
        best=max(job.metric.utility(float(score)) for score in singles),
    )
    search = _search(job, known, asked, singles, asked["budget"], calibration)
    everything = np.arange(examples)
    _replay(search, soups, everything)
    if asked["uniform"] and not _is_told(search, job.everyone):
        missing = soups.missing(job.everyone, everything)
        if soups.affords(job.everyone, missing):
            _tell(search, soups, Part(job.everyone, missing), everything, job)
    _spend(search, soups, everything, job)
    return Outcome(job, known, search, soups, None)


def _on_halves(job: Job, known: Known, asked: Mapping[str, Any], calibration: int) -> Outcome:
    """Search on one half of the examples, evaluate the best found on the other too.

    A pass is M + K examples here too. The search may spend what is left after a few evaluations on the other half are
    laid aside; these then take as many of its complete soups, best first, as the budget allows.
    """
    budget, examples = asked["budget"], len(known.targets)
    half, choose = split_halves(known.targets, asked["seed"])
    values = [job.single(k).values for k in range(len(job.pool))]
    numbers = np.array(values, dtype=np.float64)
    soups = Soups(
        job,
        known.data,
        examples=examples,
        calibration=calibration,
        budget=budget,
        choose=choose,
        best=max(job.metric.utility(float(row.mean())) for row in numbers[:, choose]),
    )
    started = time.monotonic()
    seen = some_examples(job, known, half, job.directory.path / _SEARCHED)
    job.seconds["outputs"] += time.monotonic() - started
    finalists = min(_FINALISTS, max(1, budget // _PASSES_PER_FINALIST))
    whole = budget * (examples + calibration) - finalists * len(choose)
    if "finish" in asked["options"]:
        options = {**asked["options"], "finish": max(finalists, asked["options"]["finish"])}
        asked = {**asked, "options": options}
    search = _search(job, seen, asked, numbers[:, half].mean(axis=1), whole // (len(half) + calibration), calibration)
    _replay(search, soups, half)
    if asked["uniform"] and not _is_told(search, job.everyone):
        missing = soups.missing(job.everyone, half)
        if soups.affords(job.everyone, missing):
            _tell(search, soups, Part(job.everyone, np.searchsorted(half, missing)), half, job)
    _spend(search, soups, half, job)
    told = sorted(search.evaluations, key=lambda pair: -job.metric.utility(pair[1]))
    found = [recipe for recipe, score in told if np.isfinite(score)]
    first = [job.everyone] if asked["uniform"] and job.everyone in found else []
    for recipe in dict.fromkeys([*first, *found]):
        missing = soups.missing(recipe, choose)
        if len(missing) and soups.affords(recipe, missing):
            soups.evaluate(recipe, missing)
    return Outcome(job, known, search, soups, choose)


def _search(
    job: Job,
    known: Known,
    asked: Mapping[str, Any],
    singles: NDArray[np.float64],
    budget: int,
    calibration: int,
) -> Search:
    started = time.monotonic()
    search = Search(
        known.outputs,
        known.targets,
        metric=job.metric,
        strategy=asked["strategy"],
        options=asked["options"],
        budget=budget,
        seed=asked["seed"],
        keys=job.pool.fingerprints,
        names=job.names,
        estimator=known.estimator,
        singles=singles,
        gram=job.gram() if base.get(asked["strategy"]).geometry else None,
        parts=True,
        overhead=calibration / len(known.targets),
    )
    job.seconds["search"] = time.monotonic() - started
    return search


def _replay(search: Search, soups: Soups, examples: Indices) -> None:
    """Tell the search what earlier sessions evaluated, in the order in which they did. ``examples``: the search's."""
    for entry in soups.recorded():
        _tell_recorded(search, entry, examples)


def _tell_recorded(search: Search, entry: Recorded, examples: Indices) -> None:
    if entry.values is None:
        search.tell(entry.recipe, entry.score)
        return
    shared = np.isin(entry.examples, examples)
    if shared.any():
        part = Part(entry.recipe, np.searchsorted(examples, entry.examples[shared]))
        search.tell_part(part, entry.values[shared])


def _is_told(search: Search, recipe: Recipe) -> bool:
    return any(told == recipe for told, _ in search.evaluations)


def _spend(search: Search, soups: Soups, examples: Indices, job: Job) -> None:
    """Ask, evaluate, tell, until the search has spent its budget."""
    while True:
        started = time.monotonic()
        part = search.ask_part()
        job.seconds["search"] += time.monotonic() - started
        if part is None:
            return
        _tell(search, soups, part, examples, job)


def _tell(search: Search, soups: Soups, part: Part, examples: Indices, job: Job) -> None:
    if job.metric.per_example is None:
        search.tell(part.recipe, soups.evaluate_whole(part.recipe))
    else:
        search.tell_part(part, soups.evaluate(part.recipe, examples[part.examples]))
