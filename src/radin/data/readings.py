"""The readings of a task's data: whole ones, and those of some examples, each as cheap as the data allow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radin.data.batches import Batch, DataFingerprint, copied, length, read, rebatched, selected, size_in_bytes
from radin.data.select import Indexed, indexed
from radin.data.task import Task
from radin.errors import TaskError, printable
from radin.memory import free_memory

Way = Literal["index", "held", "reading"]

# Of the memory that is really free, how much all held data may take together.
HELD_SHARE = 0.25

_LOG = logging.getLogger("radin")


@dataclass(frozen=True)
class _Known:
    """What a whole reading of a split has told.

    ``held``: its batches in memory; or ``by_index``: the way to any example, and the targets (M, ...) to expect; or
    neither. ``reading_seconds``: those spent outside the models; ``model_seconds``: those of one model over
    everything, NaN where no model ran.
    """

    data: str
    examples: int
    batches: int
    held: tuple[Batch, ...] | None
    by_index: tuple[Indexed, NDArray[Any]] | None
    reading_seconds: float
    model_seconds: float


class Readings:
    """Reads a task's splits. Of two readings of the same examples it takes the cheaper.

    A map-style dataset is read by index: a slice touches only its own examples. Anything else is kept in memory by its
    first whole reading while all that is kept stays below ``share`` of the free memory; past that every slice reads
    everything, and ``notes`` says so. ``batch_size``: cut the user's batches to at most this many examples.
    """

    def __init__(self, task: Task, batch_size: int | None = None, *, share: float = HELD_SHARE) -> None:
        self._task, self._batch_size, self._share = task, batch_size, share
        self._known: dict[str, _Known] = {}
        self._changes_count: set[str] = set()
        self.notes: list[str] = []

    def way(self, split: str) -> Way:
        """How some examples of a split would be read now; "reading" before its first whole reading."""
        known = self._known.get(split)
        if known is None:
            return "reading"
        if known.held is not None:
            return "held"
        return "reading" if known.by_index is None else "index"

    def fingerprint(self, split: str) -> str:
        """Of the split's data, as its last whole reading gave them."""
        return self._known[split].data

    def examples(self, split: str) -> int:
        """How many examples the split has, as its last whole reading gave them."""
        return self._known[split].examples

    def reading_share(self, split: str, seconds_per_batch: float | None = None) -> float:
        """The share of a model's pass over a split that reads the data and checks them, in [0, 1], to two digits.

        It is what a slice of any size pays besides its own examples: 0 where slices are held or read by index.
        ``seconds_per_batch``: of one model, for where no model ran in a reading so far; without it such a share is 1.
        A loader that works ahead in processes of its own hides its work behind the model's, here too.
        """
        known = self._known.get(split)
        if self.way(split) != "reading":
            return 0.0
        if known is None:
            return 1.0
        model = known.model_seconds
        if np.isnan(model):
            model = 0.0 if seconds_per_batch is None else seconds_per_batch * known.batches
        return round(known.reading_seconds / max(known.reading_seconds + model, 1e-9), 2)

    def whole(
        self,
        split: str,
        *,
        data: DataFingerprint | None = None,
        expected: str | None = None,
        models: int = 0,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Iterator[Batch]:
        """All batches of a split, with targets, from memory where they are held and are those ``expected``.

        ``data``: a new one, fed each batch before it is yielded. ``models``: how many are run on each batch before the
        next is asked for, which tells the time of reading from theirs. ``progress(done, total)``: after each of the
        user's batches. Raises TaskError when there is no batch, or one without targets.
        """
        known = self._known.get(split)
        if known is None or known.held is None or expected not in (None, known.data):
            yield from self._read(split, DataFingerprint() if data is None else data, models, progress)
            return
        for index, batch in enumerate(known.held):
            if data is not None:
                data.update(batch)
            yield copied(batch)
            if progress:
                progress(index + 1, len(known.held))

    def some(self, split: str, examples: NDArray[np.intp], expected: str) -> Iterator[Batch]:
        """Only these examples of a split, (m,) ascending indices, in batches; all or none of them are there.

        Raises TaskError when the split is not the data with fingerprint ``expected``: checked where everything is
        read; by index, only that the targets are those expected.
        """
        known = self._known.get(split)
        if known is None or known.data != expected or self.way(split) == "reading":
            yield from selected(self._checked(split, expected), examples)
        elif known.held is not None:
            yield from selected(known.held, examples)
        else:
            assert known.by_index is not None
            data, targets = known.by_index
            batches = rebatched(data.read(examples, f"{split}()"), self._batch_size)
            yield from _with_targets(batches, targets[examples], split)

    def _checked(self, split: str, expected: str) -> Iterator[Batch]:
        data = DataFingerprint()
        yield from self._read(split, data, 0, None)
        check_same(split, data.hexdigest(), data.examples, expected)

    def _read(
        self,
        split: str,
        data: DataFingerprint,
        models: int,
        progress: Callable[[int, int | None], None] | None,
    ) -> Iterator[Batch]:
        """Read a split from beginning to end, and learn how it may be read from now on."""
        started = since = time.monotonic()
        reading, pieces = 0.0, 0
        source = self._task.batches(split, self._batch_size)
        total = length(source)
        by_index = None if split in self._changes_count else indexed(source)
        room, free = self._room(split)
        held: list[Batch] | None = [] if by_index is None and self._share else None
        targets: list[NDArray[Any]] = []
        for index, whole in enumerate(read(source, f"{split}()")):
            for batch in rebatched([whole], self._batch_size):
                if batch.targets is None:
                    raise TaskError(f"{split}() gives inputs without targets: yield (inputs, targets)")
                data.update(batch)
                if by_index is not None:
                    targets.append(batch.targets.cpu().numpy().copy())
                room -= size_in_bytes(batch)
                if room < 0:
                    held = None
                if held is not None:
                    held.append(copied(batch))
                pieces += 1
                reading += time.monotonic() - since
                yield batch
                since = time.monotonic()
            if progress:
                progress(index + 1, total)
        if not pieces:
            raise TaskError(f"{split}() gave no batches")
        ended = time.monotonic()
        reading += ended - since
        if by_index is not None and data.examples != by_index.examples:
            self._changes_count.add(split)
            by_index = None
        elif by_index is None and held is None and self._share:
            self._say_too_large(split, free)
        self._learn(
            split,
            _Known(
                data.hexdigest(),
                data.examples,
                pieces,
                None if held is None else tuple(held),
                None if by_index is None else (by_index, np.concatenate(targets)),
                reading,
                (ended - started - reading) / models if models else float("nan"),
            ),
        )

    def _learn(self, split: str, now: _Known) -> None:
        """Keep what a reading has told. Times that were measured with a model stay: prices do not move in a run."""
        before = self._known.get(split)
        if before is not None and not np.isnan(before.model_seconds):
            now = replace(now, reading_seconds=before.reading_seconds, model_seconds=before.model_seconds)
        self._known[split] = now

    def _room(self, split: str) -> tuple[int, int]:
        """Bytes that this split may take in memory, and how many are free when no data are held."""
        self._known = {s: replace(known, held=None) if s == split else known for s, known in self._known.items()}
        taken = sum(_bytes(known.held or ()) for known in self._known.values())
        free = free_memory() + taken
        return int(free * self._share) - taken, free

    def _say_too_large(self, split: str, free: int) -> None:
        note = (
            f"{split}() is not kept in memory, for it takes more than {self._share:.0%} of the {free / 1e9:.1f} GB "
            "free: every slice of it reads all of it. A map-style Dataset would be read by index."
        )
        if not any(known.startswith(f"{split}()") for known in self.notes):
            self.notes.append(note)
            _LOG.warning(printable(note))


def check_same(split: str, found: str, examples: int, expected: str) -> None:
    """Raise TaskError when the data read do not have the fingerprint expected."""
    if found != expected:
        raise TaskError(
            f"{split}() gave other data than before: {examples} examples with fingerprint {found[:12]}, expected "
            f"{expected[:12]}. It must give the same examples in the same order every time: no shuffling, no random "
            "augmentation."
        )


def _bytes(batches: Iterable[Batch]) -> int:
    return sum(size_in_bytes(batch) for batch in batches)


def _with_targets(batches: Iterable[Batch], targets: NDArray[Any], split: str) -> Iterator[Batch]:
    """The same batches. Raises TaskError when their targets are not those expected, (m, ...)."""
    done = 0
    for batch in batches:
        expected = targets[done : done + batch.size]
        done += batch.size
        found = None if batch.targets is None else batch.targets.cpu().numpy()
        if found is None or found.dtype != expected.dtype or found.tobytes() != expected.tobytes():
            raise _otherwise_by_index(split)
        yield batch
    if done != len(targets):
        raise _otherwise_by_index(split)


def _otherwise_by_index(split: str) -> TaskError:
    return TaskError(
        f"{split}() gave other targets when some examples were read by index than when all were read in order. "
        "dataset[i] must give the same example every time, whatever was asked before. If it has to be read in order, "
        "return a generator of batches instead."
    )
