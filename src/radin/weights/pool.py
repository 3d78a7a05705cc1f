"""The pool: checkpoints that can be averaged together, known by their content."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from radin.errors import CheckpointError, NoWeightsError, PoolError
from radin.weights.adapters import as_members
from radin.weights.content import Content, examine, require_finite
from radin.weights.fitting import check_alike, check_copied, common_aliases, common_dtypes
from radin.weights.formats import Checkpoint, Reader, open_checkpoint
from radin.weights.layout import Shape, count, is_averaged, short
from radin.weights.matching import matched
from radin.weights.members import Members
from radin.weights.paths import look_for, short_names
from radin.weights.raw import kept_threads
from radin.weights.remembered import States, remembered_content, states

Progress = Callable[[int, int], None]

_READERS = 4  # hashing is bound by the processor up to about here, by the disk beyond
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Member:
    """One checkpoint of a pool. ``fingerprint`` is a hash of its content, ``bytes`` the size of its tensors."""

    name: str
    path: Path
    fingerprint: str
    checkpoint: Checkpoint
    notes: tuple[str, ...]
    bytes: int
    _seen: list[States] = field(default_factory=list, repr=False)  # the files as they were when last known to be whole

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """A mapping from name to tensor, good while the context is open; as ``Checkpoint.open``.

        Raises CheckpointError when the files are not those that were opened, before what was read is of use.
        """
        self.require_unchanged()
        with self.checkpoint.open() as reader:
            yield reader
        self.require_unchanged()

    def require_unchanged(self, *, content: bool = False) -> None:
        """Raise CheckpointError unless the weights are still those of the fingerprint.

        Files of which the system says that nothing was done to them are believed, unless ``content``; others are read.
        """
        now = _states(self.checkpoint)
        if not self._seen:
            self._seen.append(now)
        if now == self._seen[0] and not content:
            return
        if examine(self.checkpoint).fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{self.checkpoint.path}: other weights than when radin started: it was replaced or written to. Put "
                "the file back, or give the new one to a new run; what was evaluated before is not lost."
            )
        self._seen[0] = now


def _states(checkpoint: Checkpoint) -> States:
    try:
        return states(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{checkpoint.path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class Opened:
    """Checkpoints of which the headers were read and fit together. links: (dropped path, kept path) to one file."""

    checkpoints: tuple[Checkpoint, ...]
    states: tuple[States, ...]  # of their files, before anything else was read
    links: tuple[tuple[Path, Path], ...]
    notes: tuple[str, ...] = ()  # on what was looked for and left out

    @classmethod
    def of(
        cls, paths: str | Path | Iterable[str | Path], *, key: str | None = None, base: str | Path | None = None
    ) -> Opened:
        """Find checkpoints and read their headers; arguments and errors as ``Pool.open``."""
        found = look_for(paths)
        unique, links = _same_file(found.paths)
        checkpoints = []
        notes = list(found.notes)
        for path in unique:
            try:
                checkpoints.append(open_checkpoint(path, key=key))
            except NoWeightsError as error:
                if path not in found.searched or (path == unique[-1] and not checkpoints):
                    raise
                notes.append(f"left out, for want of weights: {error}")
        checkpoints = matched(as_members(checkpoints, base))
        check_alike(checkpoints)
        return cls(tuple(checkpoints), tuple(_states(c) for c in checkpoints), tuple(links), tuple(notes))


class Pool(Members[Member]):
    """N checkpoints with the same tensor names, shapes and kinds of dtype, all finite, no two the same.

    Made by ``Pool.open``. ``members``: (N,), in the order given. ``duplicates``: pairs of a checkpoint that was dropped
    and the one with the same weights that was kept. ``found``: sentences on where the files were found.
    """

    @classmethod
    def open(
        cls,
        paths: str | Path | Iterable[str | Path],
        *,
        key: str | None = None,
        base: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Pool:
        """Find, check and fingerprint checkpoints: headers of all first, then one pass over their content.

        What that pass found is remembered for files that have not changed since: see radin.weights.remembered.
        ``paths``: files, folders, glob patterns; members come in the order given, those behind a folder or a pattern
        in natural order of their paths. ``key``: see open_checkpoint. ``base``: the model that members which are LoRA
        adapters were trained on; each is merged into it as it is read. ``progress(done bytes, total bytes)`` may be
        called from other threads, one call at a time.
        Raises PoolError when they do not fit together or none is found, CheckpointError when one is unusable.
        """
        return cls.read(Opened.of(paths, key=key, base=base), progress=progress)

    @classmethod
    def read(cls, opened: Opened, *, progress: Progress | None = None) -> Pool:
        """The second half of ``open``, for checkpoints whose headers were read."""
        return cls.of(opened, _contents(opened.checkpoints, progress))

    @classmethod
    def of(cls, opened: Opened, contents: Sequence[Content]) -> Pool:
        """The pool of checkpoints whose content is known. Raises PoolError, CheckpointError when it is unusable."""
        checkpoints, duplicates = opened.checkpoints, list(opened.links)
        for checkpoint, found in zip(checkpoints, contents, strict=True):
            require_finite(checkpoint, found)
        check_copied(checkpoints, contents)
        first: dict[str, Checkpoint] = {}
        before: dict[str, States] = {}
        contents_of = (content.fingerprint for content in contents)
        for checkpoint, state, content in zip(checkpoints, opened.states, contents_of, strict=True):
            before.setdefault(content, state)
            if content in first:
                duplicates.append((checkpoint.path, first[content].path))
            else:
                first[content] = checkpoint
        names = short_names([checkpoint.path for checkpoint in first.values()])
        members = [
            Member(name, checkpoint.path, content, checkpoint, checkpoint.notes, checkpoint.bytes, [before[content]])
            for name, (content, checkpoint) in zip(names, first.items(), strict=True)
        ]
        return cls(members, duplicates, opened.notes)

    def reordered(self, order: Sequence[int]) -> Pool:
        """The same members in another order: new place i holds the member that was at ``order[i]``."""
        return Pool([self.members[k] for k in order], self.duplicates, self.found)

    def __repr__(self) -> str:
        return f"<Pool of {len(self)} members, {self.parameters:,} parameters each>"

    def _repr_html_(self) -> str:
        from radin.report.html import pool_html

        return pool_html(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted, tied ones included. Not the members' names: see ``member_names``."""
        return self.members[0].checkpoint.names

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Tensor name -> shape, the same in every member."""
        return self.members[0].checkpoint.shapes

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The dtype of each tensor in an average of all members."""
        return common_dtypes([member.checkpoint for member in self.members])

    @property
    def aliases(self) -> Mapping[str, str]:
        """{alias: kept name} of the tensors that are tied in every member."""
        return common_aliases([member.checkpoint for member in self.members])

    @property
    def parameters(self) -> int:
        """How many numbers an average averages: elements of float and complex tensors, tied ones once."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> Mapping[str, int]:
        """Elements of each tensor that an average averages, tied ones once."""
        aliases, dtypes = self.aliases, self.dtypes
        return {
            name: count(shape)
            for name, shape in self.shapes.items()
            if name not in aliases and is_averaged(dtypes[name])
        }

    @property
    def bytes(self) -> int:
        """Bytes of the largest member's tensors."""
        return max(member.bytes for member in self.members)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the files: where they were found, what was unwrapped, what does not match."""
        return (*self.found, *_notes(self.members))

    def tensors(self, index: int) -> dict[str, Tensor]:
        """All tensors of one member by name, for load_state_dict; tied names give the same tensor object.

        Tensors are memory-mapped where the format allows. Raises CheckpointError when the file changed.
        """
        checkpoint = self.members[index].checkpoint
        with self.members[index].open() as reader:
            kept = {name: reader[name] for name in checkpoint.names if name not in checkpoint.aliases}
        return {name: kept[checkpoint.aliases.get(name, name)] for name in checkpoint.names}

    def require_several(self) -> None:
        """Raise PoolError unless there are at least two different members to average."""
        if len(self) > 1:
            return
        only = self.members[0].path
        if self.duplicates:
            raise PoolError(
                f"a soup needs at least two different checkpoints; all {len(self.duplicates) + 1} files hold the same "
                f"weights as {only}"
            )
        raise PoolError(f"a soup needs at least two checkpoints; only {only} was found")


def _same_file(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, Path]]]:
    """Paths without those that lead to a file seen before (links), and the (dropped, kept) pairs."""
    first: dict[Path, Path] = {}
    dropped = []
    for path in paths:
        target = path.resolve()
        if target in first:
            dropped.append((path, first[target]))
        else:
            first[target] = path
    return list(first.values()), dropped


def _contents(checkpoints: Sequence[Checkpoint], progress: Progress | None) -> list[Content]:
    total = sum(checkpoint.bytes for checkpoint in checkpoints)
    lock = threading.Lock()
    stop = threading.Event()
    done = 0

    def report(read: int) -> None:
        nonlocal done
        if stop.is_set():
            raise _StoppedError
        with lock:
            done += read
            if progress is not None:
                progress(done, total)

    readers = min(_READERS, os.cpu_count() or 1)
    with kept_threads(), ThreadPoolExecutor(readers, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        try:
            return list(threads.map(lambda checkpoint: remembered_content(checkpoint, report), checkpoints))
        except BaseException:  # the threads end with what they are at, not with all that is left to read
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


class _StoppedError(Exception):
    """Nobody waits for this fingerprint any more."""


def _notes(members: Sequence[Member]) -> tuple[str, ...]:
    notes = []
    holders: dict[str, list[str]] = {}
    for member in members:
        for note in member.notes:
            holders.setdefault(note, []).append(member.name)
    for note, names in holders.items():
        who = f"all {len(members)} members" if len(names) == len(members) else _who(names)
        notes.append(f"{who}: {note}")
    mixed = _mixed_dtypes(members)
    if mixed:
        notes.append(mixed)
    return tuple(notes)


def _who(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _mixed_dtypes(members: Sequence[Member]) -> str | None:
    common = common_dtypes([member.checkpoint for member in members])
    averaged = [name for name, dtype in common.items() if is_averaged(dtype)]
    differing = [name for name in averaged if len({member.checkpoint.dtypes[name] for member in members}) > 1]
    if not differing:
        return None
    name = differing[0]
    counts = Counter(short(member.checkpoint.dtypes[name]) for member in members)
    held = ", ".join(f"{number} in {dtype}" for dtype, number in counts.most_common())
    return (
        f"members store {len(differing)} tensors in different dtypes ({name}: {held}); "
        f"their average is {short(common[name])}"
    )
