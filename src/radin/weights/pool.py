"""The pool: checkpoints that can be averaged together, known by their content."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from radin.errors import PoolError
from radin.weights.formats import Checkpoint, open_checkpoint
from radin.weights.layout import Shape, count, is_averaged, kind, promote, short
from radin.weights.paths import find_checkpoints, short_names
from radin.weights.remembered import remembered_fingerprint

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


class Pool:
    """N checkpoints with the same tensor names, shapes and kinds of dtype, all finite, no two the same."""

    def __init__(self, members: Sequence[Member], duplicates: Sequence[tuple[Path, Path]] = ()) -> None:
        """Members as checked by ``Pool.open``; ``duplicates`` are (dropped path, kept path)."""
        self.members = tuple(members)
        self.duplicates = tuple(duplicates)

    @classmethod
    def open(
        cls,
        paths: str | Path | Iterable[str | Path],
        *,
        key: str | None = None,
        progress: Progress | None = None,
    ) -> Pool:
        """Find, check and fingerprint checkpoints: headers of all first, then one pass over their content.

        What that pass found is remembered for files that have not changed since: see radin.weights.remembered.
        ``paths``: files, folders, glob patterns; members come in the order given, those behind a folder or a pattern
        in natural order of their paths. ``key``: see open_checkpoint. ``progress(done bytes, total bytes)`` may be
        called from other threads, one call at a time.
        Raises PoolError when they do not fit together or none is found, CheckpointError when one is unusable.
        """
        found = find_checkpoints(paths)
        unique, duplicates = _same_file(found)
        checkpoints = [open_checkpoint(path, key=key) for path in unique]
        check_alike(checkpoints)
        prints = _fingerprints(checkpoints, progress)
        first: dict[str, Checkpoint] = {}
        for checkpoint, content in zip(checkpoints, prints, strict=True):
            if content in first:
                duplicates.append((checkpoint.path, first[content].path))
            else:
                first[content] = checkpoint
        names = short_names([checkpoint.path for checkpoint in first.values()])
        members = [
            Member(name, checkpoint.path, content, checkpoint, checkpoint.notes, checkpoint.bytes)
            for name, (content, checkpoint) in zip(names, first.items(), strict=True)
        ]
        return cls(members, duplicates)

    def reordered(self, order: Sequence[int]) -> Pool:
        """The same members in another order: new place i holds the member that was at ``order[i]``."""
        return Pool([self.members[k] for k in order], self.duplicates)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Member:
        return self.members[index]

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def __repr__(self) -> str:
        return f"<Pool of {len(self)} members, {self.parameters:,} parameters each>"

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted, tied ones included. Not the members' names: see ``member_names``."""
        return self.members[0].checkpoint.names

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(member.fingerprint for member in self.members)

    @property
    def shapes(self) -> Mapping[str, Shape]:
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
        aliases, dtypes = self.aliases, self.dtypes
        return sum(
            count(shape) for name, shape in self.shapes.items() if name not in aliases and is_averaged(dtypes[name])
        )

    @property
    def bytes(self) -> int:
        """Bytes of the largest member's tensors."""
        return max(member.bytes for member in self.members)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the files: what was unwrapped from which, what does not match."""
        return _notes(self.members)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """All tensors of one member by name, for load_state_dict; tied names give the same tensor object.

        Tensors are memory-mapped where the format allows. Raises CheckpointError when the file changed.
        """
        checkpoint = self.members[index].checkpoint
        with checkpoint.open() as reader:
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


def common_dtypes(checkpoints: Sequence[Checkpoint]) -> dict[str, torch.dtype]:
    """Each tensor's dtype in an average: the one that holds all members' values; the first member's if copied."""
    first = checkpoints[0].dtypes
    return {
        name: promote(checkpoint.dtypes[name] for checkpoint in checkpoints) if is_averaged(dtype) else dtype
        for name, dtype in first.items()
    }


def common_aliases(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """{alias: kept name} of the tensors tied in every one of these checkpoints; the first name in order is kept."""
    kept: dict[tuple[str, ...], str] = {}
    aliases = {}
    for name in checkpoints[0].names:
        places = tuple(checkpoint.aliases.get(name, name) for checkpoint in checkpoints)
        if places in kept:
            aliases[name] = kept[places]
        else:
            kept[places] = name
    return aliases


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise PoolError unless all have the same names, shapes and kinds of dtype.

    The most common layout is taken as the expected one, so that the message names the odd one out.
    """
    layouts = [_layout(checkpoint) for checkpoint in checkpoints]
    common = Counter(layouts).most_common(1)[0][0]
    expected = checkpoints[layouts.index(common)]
    odd = [checkpoint for checkpoint, layout in zip(checkpoints, layouts, strict=True) if layout != common]
    if odd:
        others = f" ({len(odd) - 1} more of the {len(checkpoints)} do not fit either.)" if len(odd) > 1 else ""
        raise PoolError(_difference(odd[0], expected) + others)


def _layout(checkpoint: Checkpoint) -> tuple[tuple[str, Shape, str], ...]:
    return tuple((name, shape, kind(checkpoint.dtypes[name])) for name, shape in checkpoint.shapes.items())


def _difference(odd: Checkpoint, expected: Checkpoint) -> str:
    missing = [name for name in expected.names if name not in odd.shapes]
    unexpected = [name for name in odd.names if name not in expected.shapes]
    if missing or unexpected:
        parts = [_listed(names, what) for names, what in ((missing, "lacks"), (unexpected, "adds")) if names]
        return (
            f"{odd.path} does not fit {expected.path}: it {' and '.join(parts)}. "
            "All checkpoints must come from the same architecture."
        )
    for name in expected.names:
        for what, want, got in (
            ("shape", expected.shapes[name], odd.shapes[name]),
            ("dtype", short(expected.dtypes[name]), short(odd.dtypes[name])),
        ):
            if want != got and (what == "shape" or kind(expected.dtypes[name]) != kind(odd.dtypes[name])):
                return (
                    f"tensor {name!r} has {what} {got} in {odd.path}; expected {want} as in {expected.path}. "
                    "All checkpoints must come from the same architecture, with the same head."
                )
    raise AssertionError("the layouts differ in names, shapes or kinds")


def _listed(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{what} {len(names)} tensor{'s' * (len(names) > 1)} ({shown})"


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


def _fingerprints(checkpoints: Sequence[Checkpoint], progress: Progress | None) -> list[str]:
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

    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as threads:
        try:
            return list(threads.map(lambda checkpoint: remembered_fingerprint(checkpoint, report), checkpoints))
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
    if any(".lora_A." in name or ".lora_B." in name for name in members[0].checkpoint.names):
        notes.append(
            "these are LoRA factors: the average of A and B is not the average of their products; merge each adapter "
            "into its model first for a true soup"
        )
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
