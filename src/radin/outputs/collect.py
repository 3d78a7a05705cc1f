"""Passes by the members: outputs over validation(), into the cache or straight to whoever asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.data.batches import DataFingerprint
from radin.data.readings import Readings, check_same
from radin.data.task import Task
from radin.engine.crew import Crew, Work
from radin.engine.device import Device, TooLittleMemoryError
from radin.engine.forward import OutOfMemoryError, check_finite, lacks_memory
from radin.engine.load import load_weights
from radin.engine.rows import Rows, widened
from radin.engine.worker import MemberRows
from radin.errors import OutputsError, RadinError, TaskError
from radin.files import told
from radin.metrics import Metric
from radin.outputs.store import OutputStore, PendingOutputs
from radin.progress import Progress
from radin.question import Failure
from radin.weights import Pool


@dataclass(frozen=True)
class MemberOutputs:
    """All members' outputs (examples, classes), in the pool's order and memory-mapped.

    ``targets`` (examples, ...); ``data``: the data's fingerprint; ``passes``: members whose outputs were not cached.
    """

    outputs: tuple[NDArray[Any], ...]
    targets: NDArray[Any]
    data: str
    passes: int
    seconds: float


def collect_outputs(
    task: Task,
    pool: Pool,
    store: OutputStore,
    engine: Device,
    metric: Metric,
    *,
    expected_data: str | None = None,
    progress: Progress | None = None,
    readings: Readings | None = None,
    crew: Crew | None = None,
) -> MemberOutputs:
    """Every member's outputs over validation(), from the cache where they are, else computed.

    Members that fit in memory together share one reading of the data. When all outputs are cached the data is still
    read once, without any model, to make sure that it is the same data. ``expected_data``: a data fingerprint recorded
    earlier. ``readings``: an Evaluator's, which then need not read the data again. ``crew``: workers that make those
    that are missing, one member at a time, while the data are read here without a model. Raises TaskError when the data
    differs from it or between two readings, and OutputsError when outputs are not finite, naming the member.
    """
    started = time.monotonic()
    stored = {k: found for k, f in enumerate(pool.fingerprints) if (found := store.get(f)) is not None}
    if expected_data is None and stored:
        expected_data = next(iter(stored.values())).data
    missing = [k for k in range(len(pool)) if k not in stored]
    group = engine.capacity(pool.bytes, len(missing)) if missing else 1
    targets: NDArray[Any] | None = None
    readings = readings or Readings(task, engine.batch_size, share=0.0)
    left, done, fitted = list(missing), 0, 0
    if crew is not None and missing:
        for k in missing:
            crew.submit(Work(member=k))
        left = []
    while left or targets is None:
        members = left[:group]
        count = done + -(-len(left) // group)
        what = f"outputs of {len(members)} members" if members else "checking the data"
        if count > 1:
            what += f", reading {done + 1} of {count}"
        passing = _Pass(readings, (), engine, metric, expected_data, what, progress, task.outputs)
        made = _made(task, pool, members, store, passing)
        if made is not None:
            expected_data, targets = made
            left, done = left[len(members) :], done + 1
            continue
        # The memory is free again only here, without the error's frames.
        group = len(members) // 2
        engine.forget("outputs")
        fitted = group
    if fitted:
        engine.say("members", f"the members' outputs were made {fitted} at a time: more did not fit in memory")
    assert expected_data is not None
    assert targets is not None
    if crew is not None and missing:
        _gather(crew, pool, len(missing), store, engine, expected_data, progress)
    for k, member in enumerate(pool):
        found = store.get(member.fingerprint)
        assert found is not None
        if found.data != expected_data:
            raise OutputsError(
                f"{found.path} holds outputs of {member.name} over other data "
                f"({found.data[:12]}, now {expected_data[:12]}). Use another folder for outputs over other data."
            )
        if found.shape[0] != len(targets):
            raise OutputsError(f"{found.path}: {found.shape[0]} examples, the data has {len(targets)}")
        stored[k] = found
    store.save_targets(targets, expected_data)
    store.share(pool.fingerprints)
    in_order = tuple(stored[k].array() for k in range(len(pool)))
    return MemberOutputs(in_order, targets, expected_data, len(missing), time.monotonic() - started)


def _gather(
    crew: Crew, pool: Pool, left: int, store: OutputStore, engine: Device, data: str, progress: Progress | None
) -> None:
    """Store the outputs of ``left`` members as workers give them back; where some fail, the others' first."""
    what, count, failed = f"outputs of {left} members, on workers", left, []
    while left:
        if progress:
            progress(what, count - left, count)
        for work, reply in crew.wait():
            left -= 1
            assert work.member is not None
            for key, note in reply.said.items():
                engine.say(key, note)
            name = pool[work.member].name
            if isinstance(reply.found, MemberRows):
                check_same("validation", reply.found.data, reply.found.examples, data)
                store.put(pool[work.member].fingerprint, reply.found.rows, data)
            else:
                assert isinstance(reply.found, Failure)
                failed.append(f"{name}: {reply.found.message}")
    if failed:
        raise OutputsError(
            f"{len(failed)} of {count} members could not be evaluated; the outputs of the others are kept. "
            + "\n".join(failed[:5])
            + "\nThe same command tries these again; without them, leave their files out."
        )


def stream_outputs(
    task: Task,
    pool: Pool,
    engine: Device,
    metric: Metric,
    add: Callable[[NDArray[Any], NDArray[Any]], None] | None,
    *,
    expected_data: str | None = None,
    progress: Progress | None = None,
    readings: Readings | None = None,
) -> tuple[str, NDArray[Any]]:
    """All members' outputs over validation() in one reading, handed on batch by batch and stored nowhere.

    ``add(outputs (members, b, classes), targets (b, ...))`` is called for each batch in order; None: the data are only
    read. ``readings``: an Evaluator's, which then need not read the data again. Returns the data's fingerprint and the
    targets (examples, ...). Raises as ``collect_outputs``, and RadinError when the members do not fit in memory
    together.
    """
    members = range(len(pool)) if add else range(0)
    if add and engine.capacity(pool.bytes, len(pool)) < len(pool):
        raise RadinError(
            f"without keeping outputs all {len(pool)} members must be in memory at once, {len(pool) * pool.bytes:,} "
            "bytes of weights: keep the outputs, or say --members-at-once if you know that they fit"
        )
    placed = _place(task, pool, members, engine)
    what = f"outputs of {len(members)} members" if members else "checking the data"
    readings = readings or Readings(task, engine.batch_size, share=0.0)
    passing = _Pass(readings, placed, engine, metric, expected_data, what, progress, task.outputs)
    data = DataFingerprint()
    targets = []
    for labels, outputs in passing.batches(data, lambda first: add is not None):
        targets.append(labels)
        if add and outputs:
            add(np.stack([rows.numpy() for rows in outputs]), labels)
    return passing.finished(data, targets)


Placed = Sequence[tuple[str, torch.nn.Module]]


def _made(
    task: Task, pool: Pool, members: Sequence[int], store: OutputStore, passing: _Pass
) -> tuple[str, NDArray[Any]] | None:
    """Outputs of some members, in one reading; None where they do not fit in memory together."""
    try:
        placed = _place(task, pool, members, passing.engine)
        return _read_into(store, [pool.fingerprints[k] for k in members], replace(passing, placed=placed))
    except (TooLittleMemoryError, OutOfMemoryError):
        if len(members) < 2:
            raise
        return None


def _place(task: Task, pool: Pool, members: Iterable[int], engine: Device) -> Placed:
    """(name, model on the device) of each member."""
    placed = []
    for k in members:
        try:
            model = task.build_model()
            load_weights(model, pool.tensors(k), pool[k].name)
            placed.append((pool[k].name, engine.place(model)))
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            raise TooLittleMemoryError(
                f"{pool[k].name} does not fit in the memory of device {str(engine.device)!r}, beside "
                f"{len(placed)} others: use a device with more, or fewer at once (--members-at-once, --jobs)"
            ) from None
    return placed


@dataclass(frozen=True)
class _Pass:
    """One reading of validation() by some members; none: only its fingerprint and targets are wanted."""

    readings: Readings
    placed: Placed
    engine: Device
    metric: Metric
    expected_data: str | None
    what: str
    progress: Progress | None
    call: Callable[[torch.nn.Module, Any], Any] | None = None
    total: list[int] = field(default_factory=lambda: [0])  # examples, where the data tell how many they have

    def batches(
        self, data: DataFingerprint, wanted: Callable[[int], bool], *, all_wanted: bool = True
    ) -> Iterator[tuple[NDArray[Any], list[torch.Tensor]]]:
        """Targets and each member's outputs, batch by batch; no outputs where ``wanted(first example)`` is False.

        ``all_wanted``: that is nowhere so, and the models' time therefore that of a pass.
        """
        models = [model for _, model in self.placed]
        rows_of = Rows(self.metric, self.call)

        def report(done: int, total: int | None) -> None:
            self.total[:] = [total or 0]
            if self.progress:
                self.progress(self.what, done, total)

        timed = len(models) if all_wanted else 0
        for batch in self.readings.whole("validation", data=data, models=timed, progress=report):
            assert batch.targets is not None
            first = data.examples - batch.size
            labels = rows_of.targets(batch, first)
            outputs = self.engine.outputs(models, batch, rows_of) if wanted(first) else []
            for (name, _), rows in zip(self.placed, outputs, strict=False):
                check_finite(name, rows, labels[:, 1] if self.metric.by_position else first)
                self.metric.check_batch(labels, rows.shape[1])
            yield labels, outputs

    def finished(self, data: DataFingerprint, targets: Sequence[NDArray[Any]]) -> tuple[str, NDArray[Any]]:
        """The data's fingerprint and all targets. Raises TaskError when the data are not those expected."""
        now = data.hexdigest()
        if self.expected_data not in (None, now):
            raise TaskError(
                f"validation() gave other data than before: {data.examples} examples with fingerprint {now[:12]}, "
                f"expected {str(self.expected_data)[:12]}. It must give the same examples in the same order "
                "every time: no shuffling, no random augmentation. For new data use a new run directory."
            )
        return now, np.concatenate(targets)


class _CannotResume(Exception):
    """The rows kept from a killed reading do not belong to the data as it is read now."""


def _read_into(store: OutputStore, fingerprints: Sequence[str], passing: _Pass) -> tuple[str, NDArray[Any]]:
    """Fill the store by one reading; continues a killed one by the same members where its rows are good."""
    widen = widened if passing.metric.choices else None
    for resume in (True, False):
        reading = PendingOutputs(store, fingerprints, resume=resume, widen=widen) if fingerprints else None
        try:
            return _attempt(reading, passing)
        except _CannotResume:
            continue
    raise AssertionError("a reading from the start needs nothing to resume")


def _attempt(reading: PendingOutputs | None, passing: _Pass) -> tuple[str, NDArray[Any]]:
    data = DataFingerprint()
    targets = []
    skip = reading.examples if reading is not None else 0

    def wanted(first: int) -> bool:
        if reading is None:
            return False
        if data.examples == skip and skip and data.hexdigest() != reading.resume_data:
            raise _CannotResume
        if first < skip < data.examples:  # the batches are cut differently now
            raise _CannotResume
        return first >= skip

    for labels, outputs in passing.batches(data, wanted, all_wanted=skip == 0):
        targets.append(labels)
        if outputs and reading is not None:
            left = max(0, passing.total[0] - reading.examples) * sum(rows[0].numel() for rows in outputs)
            with told(reading.folder, needs=left * reading.itemsize):
                reading.append(outputs, data)
    if data.examples < skip:
        raise _CannotResume
    fingerprint, whole = passing.finished(data, targets)
    if reading is not None:
        reading.finish(fingerprint)
    return fingerprint, whole
