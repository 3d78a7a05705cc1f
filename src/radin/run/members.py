"""The members' passes: their outputs, their scores and an estimator, from the cache where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.errors import RunError
from radin.estimate import (
    Estimator,
    Keys,
    MarginCompiler,
    estimator,
    estimator_of,
    load_margins,
    save_margins,
)
from radin.outputs.collect import collect_outputs, stream_outputs
from radin.outputs.store import OutputStore
from radin.question import answer_from_outputs, answer_from_values
from radin.recipe import Recipe
from radin.run.job import Job

# Cached outputs may come from another device or thread count; more than this is another model or other preprocessing.
_SAME_OUTPUTS = 2e-2


@dataclass(frozen=True)
class Known:
    """What the members' passes gave, over the pool's order.

    ``data``: the fingerprint of validation(); ``targets`` (M, ...); ``outputs``: (M, C) of each member where they are
    kept.
    """

    data: str
    estimator: Estimator
    targets: NDArray[Any]
    outputs: tuple[NDArray[Any], ...] | None


def stored_outputs(job: Job, store: OutputStore) -> Known:
    """Each member's outputs on disk, its score in the ledger, and an estimator that is kept beside them."""
    _check_same_outputs(job, store)
    with store.lock():
        cached = collect_outputs(
            job.task,
            job.pool,
            store,
            job.engine,
            job.metric,
            expected_data=job.directory.identity["data"],
            progress=job.progress,
        )
    job.metric.check(cached.targets, cached.outputs[0].shape[1])
    for k, outputs in enumerate(cached.outputs):
        recipe = Recipe.single(k, len(job.pool))
        if job.known(recipe) is None:
            found = answer_from_outputs(job.metric, np.asarray(outputs), cached.targets, 0.0, cached.data)
            job.add(recipe, "validation", found)
    if job.progress:
        job.progress("reading the outputs", 0, None)
    estimates = estimator(
        cached.outputs,
        cached.targets,
        job.metric,
        device=str(job.engine.device),
        cache=store.folder / "compiled.safetensors",
        keys=Keys.of(job.pool.fingerprints, cached.data),
        names=job.names,
    )
    return Known(cached.data, estimates, cached.targets, cached.outputs)


def streamed_outputs(job: Job, store: OutputStore) -> Known:
    """Outputs compiled as they are made and stored nowhere; later sessions read the data and no model."""
    path = store.folder / "compiled.safetensors"
    expected = job.directory.identity["data"]
    device = str(job.engine.device)
    if expected is not None and path.exists():
        _check_same_values(job)
        data, targets = stream_outputs(
            job.task, job.pool, job.engine, job.metric, None, expected_data=expected, progress=job.progress
        )
        margins, keys = load_margins(path)
        if keys.data != expected or set(keys.members) != set(job.pool.fingerprints):
            raise RunError(f"{path} was compiled from other weights or data. Delete it to make it again.")
        margins = margins.reordered([keys.members.index(f) for f in job.pool.fingerprints])
        return Known(data, estimator_of(margins, job.metric, device=device), targets, None)
    classes = job.checked.first_outputs.shape[1]
    compiler = MarginCompiler(len(job.pool), classes, top=job.metric.top, names=job.names)
    values: list[list[NDArray[np.float64]]] = [[] for _ in job.pool]

    def add(block: NDArray[Any], labels: NDArray[Any]) -> None:
        compiler.add(block, labels)
        assert job.metric.per_example is not None
        for mine, outputs in zip(values, block, strict=True):
            mine.append(job.metric.per_example(outputs, labels))

    data, targets = stream_outputs(
        job.task, job.pool, job.engine, job.metric, add, expected_data=expected, progress=job.progress
    )
    margins = compiler.finish()
    for k, parts in enumerate(values):
        job.add(Recipe.single(k, len(job.pool)), "validation", answer_from_values(np.concatenate(parts), 0.0, data))
    save_margins(margins, path, Keys.of(job.pool.fingerprints, data))
    return Known(data, estimator_of(margins, job.metric, device=device), targets, None)


def some_examples(job: Job, known: Known, examples: NDArray[np.intp], folder: Path) -> Known:
    """The same over some of the examples (m,); their outputs are copied to files in ``folder``."""
    assert known.outputs is not None
    folder.mkdir(exist_ok=True)
    copies = []
    for k, outputs in enumerate(known.outputs):
        path = folder / f"{k}.npy"
        np.save(path, outputs[examples])
        copies.append(np.load(path, mmap_mode="r"))
    targets = known.targets[examples]
    estimates = estimator(copies, targets, job.metric, device=str(job.engine.device), names=job.names)
    return replace(known, estimator=estimates, targets=targets, outputs=tuple(copies))


def mixed(outputs: Sequence[Any], recipe: Recipe, rows: int = 4096) -> NDArray[np.float64]:
    """The averaged outputs of a recipe, (examples, classes), from N arrays (examples, classes) read in blocks."""
    examples, classes = outputs[0].shape
    result = np.zeros((examples, classes))
    for start in range(0, examples, rows):
        for k in recipe.members:
            result[start : start + rows] += recipe.weights[k] * outputs[k][start : start + rows]
    return result


def _check_same_outputs(job: Job, store: OutputStore) -> None:
    """Raise RunError when the model gives other outputs than those cached: its code or its input changed."""
    stored = store.get(job.pool[0].fingerprint)
    if stored is None:
        return
    now = job.checked.first_outputs
    before = stored.array()[: len(now)].astype(np.float32)
    if before.shape != now.shape or np.abs(before - now).max() > _SAME_OUTPUTS * max(1.0, np.abs(before).max()):
        raise _other_model(job)


def _check_same_values(job: Job) -> None:
    """The same where no outputs were kept, by what the first member got right."""
    now = job.metric.per_example
    assert now is not None
    values = now(job.checked.first_outputs, job.checked.first_targets)
    before = job.single(0).values
    assert before is not None
    if (values != before[: len(values)]).mean() > _SAME_OUTPUTS:
        raise _other_model(job)


def _other_model(job: Job) -> RunError:
    return RunError(
        f"{job.directory.path}: {job.names[0]} gives other outputs on the first batch of validation() than "
        "those this run began with. The model's code or the data changed: give a new directory with --out."
    )
