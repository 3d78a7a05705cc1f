"""The members' passes: their scores, and their outputs and an estimator where they can be had."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.engine.base import Engine
from radin.engine.local import LocalEngine
from radin.engine.rows import widened
from radin.errors import OutputsError, RunError
from radin.estimate import (
    Estimator,
    Keys,
    MarginCompiler,
    Margins,
    PositionCompiler,
    PositionMargins,
    estimator,
    estimator_of,
    load_margins,
    load_positions,
    position_estimator,
    purpose_of,
    save_margins,
    save_positions,
)
from radin.metrics import Metric
from radin.outputs.collect import MemberOutputs, collect_outputs, stream_outputs
from radin.outputs.files import open_array
from radin.outputs.store import OutputStore
from radin.positions import SMALLEST, rows_of, summed
from radin.question import VALIDATION, Answer, Failure, Question, answer_from_numbers, answer_from_outputs
from radin.recipe import Recipe
from radin.run.job import Job
from radin.run.ledger import split_name
from radin.run.preflight import Preflight as FirstBatch
from radin.run.repeat import close_calls, difference, tolerance, undecided

_CHANGES = 3  # how many of an example's totals one position with another answer changes, at most, and each by one
_SOME = 0.1  # of the examples, to see what a question about some of them costs


@dataclass(frozen=True)
class Known:
    """What the members' passes gave, over the pool's order.

    ``data``: the fingerprint of validation(), empty where nobody can tell;
    ``examples``: M, 0 where nobody can tell. ``targets`` (M, ...), ``outputs`` (M, C) of each member, ``estimator``:
    where they can be had.
    """

    data: str
    examples: int
    estimator: Estimator | None = None
    targets: NDArray[Any] | None = None
    outputs: tuple[NDArray[Any], ...] | None = None


def stored_outputs(job: Job, engine: LocalEngine, first: FirstBatch, store: OutputStore) -> Known:
    """Each member's outputs on disk, its score in the ledger, and an estimator that is kept beside them."""
    _check_same_outputs(job, engine, first, store)
    with store.lock():
        cached = collect_outputs(
            engine.task,
            job.pool,
            store,
            engine.device,
            job.metric,
            expected_data=job.directory.identity[VALIDATION],
            progress=job.progress,
            readings=engine.evaluator.readings,
            crew=engine.crew,
        )
    job.metric.check(cached.targets, cached.outputs[0].shape[1])
    _score_members(job, cached)
    if job.progress:
        job.progress("reading the outputs", 0, None)
    estimates = estimator(
        cached.outputs,
        cached.targets,
        job.metric,
        device=str(engine.device.device),
        cache=store.folder / "compiled.safetensors",
        keys=Keys.of(job.pool.fingerprints, cached.data),
        names=job.names,
        told=store.notes.append,
    )
    job.notes += tuple(store.notes)
    return Known(cached.data, job.metric.examples(cached.targets), estimates, cached.targets, cached.outputs)


def _score_members(job: Job, cached: MemberOutputs) -> None:
    """Each member's evaluation, into the ledger.

    A metric that is a function alone is called once for each; the best also gets a standard error, by 20 more calls.
    """
    left = [k for k in range(len(job.pool)) if job.known(Recipe.single(k, len(job.pool))) is None]
    found: dict[int, Answer] = {}
    for done, k in enumerate(left):
        outputs, targets = np.asarray(cached.outputs[k]), cached.targets
        if job.metric.opaque:
            if job.progress:
                job.progress(f"scoring {len(left)} members with {job.metric.name}", done, len(left))
            found[k] = Answer(job.metric.value(outputs, targets), float("nan"), len(targets), 0.0, cached.data)
        else:
            found[k] = answer_from_outputs(job.metric, outputs, targets, 0.0, cached.data)
    if job.metric.opaque and left:
        top = max(left, key=lambda k: job.metric.utility(found[k].score))
        stderr = job.metric.standard_error(np.asarray(cached.outputs[top]), cached.targets)
        found[top] = replace(found[top], stderr=stderr)
    for k in left:
        job.add(Recipe.single(k, len(job.pool)), VALIDATION, found[k])


def streamed_outputs(job: Job, engine: LocalEngine, first: FirstBatch, store: OutputStore) -> Known:
    """Outputs compiled as they are made and stored nowhere; later sessions read the data and no model."""
    path = store.folder / "compiled.safetensors"
    expected = job.directory.identity[VALIDATION]
    device = str(engine.device.device)
    kept = _kept(job, path) if expected is not None and path.exists() else None
    if kept is not None:
        _check_same_values(job, engine, first)
        data, targets = stream_outputs(
            engine.task,
            job.pool,
            engine.device,
            job.metric,
            None,
            expected_data=expected,
            progress=job.progress,
            readings=engine.evaluator.readings,
        )
        margins, keys = kept
        if keys.data != expected or set(keys.members) != set(job.pool.fingerprints):
            raise RunError(f"{path} was compiled from other weights or data. Delete it to make it again.")
        if isinstance(margins, PositionMargins) and margins.margins.purpose != purpose_of(job.metric):
            raise RunError(f"{path} was compiled for another metric. Delete it to make it again.")
        in_order = margins.reordered([keys.members.index(f) for f in job.pool.fingerprints])
        return _compiled(job, in_order, data, targets, device)
    classes = first.first_outputs.shape[1]
    compiler: MarginCompiler | PositionCompiler
    if job.metric.by_position:
        compiler = PositionCompiler(len(job.pool), classes, purpose_of(job.metric), job.names)
    else:
        compiler = MarginCompiler(len(job.pool), classes, top=job.metric.top, names=job.names)
    values: list[list[NDArray[np.float64]]] = [[] for _ in job.pool]

    def add(block: NDArray[Any], labels: NDArray[Any]) -> None:
        compiler.add(block, labels)
        for mine, outputs in zip(values, block, strict=True):
            mine.append(job.metric.numbers(outputs, labels))

    data, targets = stream_outputs(
        engine.task,
        job.pool,
        engine.device,
        job.metric,
        add,
        expected_data=expected,
        progress=job.progress,
        readings=engine.evaluator.readings,
    )
    made = compiler.finish()
    for k, parts in enumerate(values):
        answer = answer_from_numbers(job.metric, np.concatenate(parts), 0.0, data)
        job.add(Recipe.single(k, len(job.pool)), VALIDATION, answer)
    fresh = Keys.of(job.pool.fingerprints, data)
    if isinstance(made, PositionMargins):
        save_positions(made, path, fresh)
    else:
        save_margins(made, path, fresh)
    return _compiled(job, made, data, targets, device)


def _compiled(job: Job, made: Margins | PositionMargins, data: str, targets: NDArray[Any], device: str) -> Known:
    """What is known where outputs are kept only as margins."""
    examples = job.metric.examples(targets)
    if isinstance(made, PositionMargins):
        return Known(data, examples, position_estimator(made, job.metric, device), targets)
    return Known(data, examples, estimator_of(made, job.metric, device=device), targets)


def _kept(job: Job, path: Path) -> tuple[Margins | PositionMargins, Keys] | None:
    """What was compiled before, or None where it is damaged: then it takes the members' passes again.

    So it does where a member's own evaluation was: without outputs nothing else gives it.
    """
    if any(job.known(Recipe.single(k, len(job.pool))) is None for k in range(len(job.pool))):
        return None
    try:
        return load_positions(path) if job.metric.by_position else load_margins(path)
    except OutputsError as error:
        job.notes += (f"made again by a reading of all members: {error}",)
        return None


def asked_scores(job: Job, engine: Engine, given: Sequence[float] | None) -> Known:
    """The members' scores, by asking the engine about each, or as they were given; those in the ledger stand.

    Raises RunError when a member cannot be evaluated, or when a score given is not the one recorded.
    """
    members = len(job.pool)
    if given is not None:
        for k, score in enumerate(given):
            recipe = Recipe.single(k, members)
            recorded = job.known(recipe)
            if recorded is None:
                job.add(recipe, VALIDATION, Answer(float(score), float("nan"), 0, 0.0))
            elif recorded.score != score:
                raise RunError(
                    f"{job.directory.path}: the score of {job.names[k]} was {recorded.score} when this run began, now "
                    f"{score} is given. Give the scores it began with, or a new directory with --out."
                )
    left = deque(k for k in range(members) if job.known(Recipe.single(k, members)) is None)
    passes, working = len(left), 0
    while left or working:
        while left and working < engine.slots:
            k = left.popleft()
            job.report(f"evaluating {job.names[k]}, {passes - len(left)} of {passes} members")
            engine.submit(Question(Recipe.single(k, members)))
            working += 1
        failed: RunError | None = None
        found = engine.wait()
        with job.ledger.together():
            for question, answer in found:
                working -= 1
                if isinstance(answer, Failure):
                    name = job.names[question.recipe.members[0]]
                    failed = failed or RunError(f"{name} could not be evaluated. {answer.message}")
                    continue
                job.add(question.recipe, VALIDATION, answer)
                for split, (score, stderr) in answer.further.items():
                    job.add(question.recipe, split_name(split), Answer(score, stderr, 0, 0.0))
        if failed is not None:  # all that came with it is recorded
            raise failed
    answers = [job.single(k) for k in range(members)]
    counts = {answer.examples for answer in answers if answer.values is not None}
    if len(counts) > 1:
        raise RunError(f"the program gave values for different numbers of examples: {sorted(counts)}")
    known = len(counts) == 1 and all(answer.values is not None for answer in answers)
    return Known("", counts.pop() if known else 0)


def slice_cost(job: Job, engine: Engine, examples: int) -> float:
    """The share of a whole pass that an engine takes for any question, to two digits: it starts, loads, reads.

    The first member is evaluated on every tenth example. Raises RunError when the values are not those that it was
    given before: then questions about some examples are answered about others.
    """
    known = job.single(0)
    some = np.arange(0, examples, max(1, examples // max(1, round(_SOME * examples))))
    job.report(f"evaluating {job.names[0]} on {len(some):,} of {examples:,} examples, to see what that costs")
    engine.submit(Question(Recipe.single(0, len(job.pool)), some))
    (_, answer), *_ = engine.wait()
    if isinstance(answer, Failure):
        raise RunError(f"{job.names[0]} could not be evaluated on some of the examples. {answer.message}")
    assert known.values is not None
    if answer.values is None or not np.allclose(answer.values, known.values[some], atol=1e-6):
        raise RunError(
            f"{job.names[0]} was given other values on {len(some):,} of the examples than on all of them: the program "
            "does not score just the examples whose indices, from 0, are in the file {examples}, or not twice the same"
        )
    share = len(some) / examples
    whole = float(np.median([job.single(k).seconds for k in range(len(job.pool))]))
    if whole <= 0 or share >= 1:
        return 1.0
    return round(min(max((answer.seconds / whole - share) / (1 - share), 0.0), 1.0), 2)


def some_examples(job: Job, engine: LocalEngine, known: Known, examples: NDArray[np.intp], folder: Path) -> Known:
    """The same over some of the examples (m,); their outputs are copied to files in ``folder``."""
    assert known.outputs is not None
    assert known.targets is not None
    folder.mkdir(exist_ok=True)
    rows = rows_of(known.targets, examples) if job.metric.by_position else examples
    copies = []
    for k, outputs in enumerate(known.outputs):
        path = folder / f"{k}.npy"
        np.save(path, outputs[rows])
        copies.append(open_array(path))
    targets = known.targets[rows]
    estimates = estimator(copies, targets, job.metric, device=str(engine.device.device), names=job.names)
    return replace(known, examples=len(examples), estimator=estimates, targets=targets, outputs=tuple(copies))


def mixed(
    outputs: Sequence[Any], recipe: Recipe, metric: Metric | None = None, rows: int = 4096
) -> NDArray[np.float64]:
    """The averaged outputs of a recipe, (examples, classes), from N arrays (examples, classes) read in blocks.

    Where the metric keeps log-probabilities of the targets alone, the log of the averaged probabilities.
    """
    examples, classes = outputs[0].shape
    logs = metric is not None and metric.target_only
    result = np.zeros((examples, classes))
    for start in range(0, examples, rows):
        for k in recipe.members:
            part = np.asarray(outputs[k][start : start + rows], dtype=np.float64)
            result[start : start + rows] += recipe.weights[k] * (np.exp(np.maximum(part, SMALLEST)) if logs else part)
    return np.log(result) if logs else result


def _share(job: Job, engine: LocalEngine, stored: str) -> float:
    """The share of the largest output by which outputs may differ from those of earlier sessions."""
    began = job.directory.read().get("settings", {}).get("device")
    return tolerance(engine.device.precision, same_device=began == engine.device.name, stored=stored)


def _check_same_outputs(job: Job, engine: LocalEngine, first: FirstBatch, store: OutputStore) -> None:
    """Raise RunError when the model gives other outputs than those cached: its code or its input changed."""
    stored = store.get(job.pool[0].fingerprint)
    if stored is None:
        return
    now = first.first_outputs
    before = stored.array()[: len(now)]
    if job.metric.choices:
        now = widened(now, before.shape[1])
    if before.shape != now.shape:
        raise _other_model(job, f"{now.shape[1]} for each example, where it gave {before.shape[1]}")
    found = difference(before, now, _share(job, engine, stored.dtype.name))
    if found is not None:
        raise _other_model(job, str(found))


def _check_same_values(job: Job, engine: LocalEngine, first: FirstBatch) -> None:
    """The same where no outputs were kept, by what the first member got right: only what is undecided may change."""
    values = job.metric.numbers(first.first_outputs, first.first_targets)
    before = job.single(0).numbers
    assert before is not None
    share = _share(job, engine, "float32")
    if job.metric.by_position:
        most = _CHANGES * summed(close_calls(first.first_outputs, share), first.first_targets)
        others = int((np.abs(values - before[: len(values)]).sum(axis=1) > most).sum())
        if others:
            raise _other_model(job, f"the answers in {others} of {len(values)} examples are others")
        return
    decided = ~undecided(first.first_outputs, first.first_targets, job.metric.top, share)
    changed = int((values != before[: len(values)])[decided].sum())
    if changed:
        raise _other_model(job, f"{changed} of {len(values)} answers are others")


def _other_model(job: Job, how: str) -> RunError:
    return RunError(
        f"{job.directory.path}: {job.names[0]} gives other outputs on the first batch of validation() than "
        f"those this run began with: {how}. The model's code or the data changed: give a new directory with --out."
    )
