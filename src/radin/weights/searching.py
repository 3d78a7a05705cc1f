"""What a folder stands for: the checkpoints in it and below it, found by going down, and what was left out and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

from radin.errors import PoolError, printable
from radin.weights.formats import FOLDER_FILES
from radin.weights.kinds import SUFFIXES, is_checkpoint_file, stem

DEPTH = 8  # folders below the one that was given: sweep/trial_3/lightning_logs/version_0/checkpoints is four
ENTRIES = 200_000  # files and folders looked at
_SHOWN = 4

# What trainers write beside the weights (Trainer, accelerate, DeepSpeed, icefall), under endings that weights have.
_NOT_WEIGHTS = re.compile(
    r"(optimizer|optim|scheduler|scaler|sampler|dl_state_dict|dataloader)([-_.]?\d+)*\.(pt|pth|bin|pkl|ckpt)"
    r"|(rng_state|random_states|random_state|custom_checkpoint)([-_]\w+)?\.(pt|pth|bin|pkl)"
    r"|training_args\.bin|.*optim_states\.pt|latest_checkpointed_iteration.*"
)
# Where fine-tuning began, by its name alone.
_INITIAL = re.compile(
    r"((model|checkpoint|ckpt|weights)[-_.]?)?"
    r"(init|initial|initiali[sz]ation|pre-?trained|base|zero[-_]?shot)"
    r"([-_.]?(model|checkpoint|ckpt|weights))?",
    re.IGNORECASE,
)
_RUN_FILE, _LEDGERS = "run.json", {"ledger.sqlite", "journal"}  # of a run of radin's: its soup is no member
_EARLIER = "earlier states of a run whose final model is taken; to have them too, name them"
_DISTRIBUTED = ".metadata"  # of torch.distributed.checkpoint


@dataclass
class Found:
    """Checkpoints behind what was given, in order, and what a person should know of the search.

    ``searched``: those that nobody named; one of them without weights in it is left out and not an error. It can be
    given wherever paths can, and is not looked for again then.
    """

    paths: list[Path] = field(default_factory=list)
    searched: set[Path] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)


class Tree(Protocol):
    """A place with folders: this machine's, or one behind a URL."""

    def entries(self, folder: PurePath) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders in it, hidden ones left out. Raises OSError."""

    def is_checkpoint(self, path: PurePath) -> bool:
        """Whether a file is a checkpoint, as far as that can be told here."""

    def identity(self, folder: PurePath) -> object:
        """The same for two ways to one folder."""


class LocalTree:
    """Folders of this machine."""

    def entries(self, folder: PurePath) -> tuple[list[str], list[str]]:
        """As Tree says; links count as what they lead to."""
        files, folders = [], []
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith(".") and entry.name != _DISTRIBUTED:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
        return files, folders

    def is_checkpoint(self, path: PurePath) -> bool:
        """By name, and by content where others have such names."""
        return is_checkpoint_file(Path(path))

    def identity(self, folder: PurePath) -> object:
        """Device and inode."""
        status = os.stat(folder)
        return status.st_dev, status.st_ino


class Search:
    """One walk down from a folder: ``taken`` and ``left``, paths with the reason why they were left out."""

    def __init__(self, tree: Tree) -> None:
        self.taken: list[PurePath] = []
        self.left: list[tuple[PurePath, str]] = []
        self.initial: list[PurePath] = []
        self._tree = tree
        self._seen: set[object] = set()
        self._looked_at = 0

    def run(self, folder: PurePath) -> None:
        """Look at the folder and, where nothing in it is a checkpoint, below it. Raises OSError, PoolError."""
        self._walk(folder, 0)
        if not self.taken:  # all that is there is called init or the like: then that is what is meant
            self.taken, self.initial = self.initial, []

    def _walk(self, folder: PurePath, depth: int) -> None:
        identity = self._tree.identity(folder)
        if identity in self._seen:
            return
        self._seen.add(identity)
        try:
            files, folders = self._tree.entries(folder)
        except OSError as error:
            if depth == 0:
                raise
            self.left.append((folder, f"cannot be looked into: {error.strerror}"))
            return
        self._looked_at += len(files) + len(folders)
        if self._looked_at > ENTRIES:
            raise PoolError(
                f"{printable(folder)}: more than {ENTRIES:,} files and folders to look through; name the folders or "
                "give a pattern such as 'runs/*/best.pt'"
            )
        if _RUN_FILE in files and not _LEDGERS.isdisjoint([*files, *folders]):
            self.left.append((folder, "a run of radin's"))
            return
        if is_checkpoint_folder(files):
            self._take(folder)
            deeper = [name for name in folders if re.fullmatch(r"(checkpoint|step|epoch)[-_]?\d+", name)]
            self.left += [(folder / name, _EARLIER) for name in deeper]
            return
        here = []
        for name in sorted(files):
            if is_not_weights(name):
                self.left.append((folder / name, "no weights"))
            elif self._tree.is_checkpoint(folder / name):
                here.append(folder / name)
        before = len(self.taken)
        for path in here:
            self._take(path)
        if len(self.taken) > before:
            deeper = [name for name in folders if self._holds(folder / name)]
            self.left += [(folder / name, "below a folder that holds checkpoints itself") for name in deeper]
            return
        for name in sorted(folders):
            if depth < DEPTH:
                self._walk(folder / name, depth + 1)

    def _holds(self, folder: PurePath) -> bool:
        """Whether a folder that is not gone down into holds a checkpoint directly."""
        try:
            files, _ = self._tree.entries(folder)
        except OSError:
            return False
        return is_checkpoint_folder(files) or any(PurePath(name).suffix in SUFFIXES for name in files)

    def _take(self, path: PurePath) -> None:
        (self.initial if is_initial(path) else self.taken).append(path)

    def notes(self, root: PurePath) -> Iterator[str]:
        """What to say of it, where it is not just the files of the folder itself."""
        if not self.taken:
            return
        if any(path.parent != root and path != root for path in self.taken):
            parents = {path.parent for path in self.taken}
            yield (
                f"{printable(root)}: took {_of(len(self.taken), 'checkpoint')} from {_of(len(parents), 'folder')} "
                f"below: {_listed(self.taken, root)}"
            )
        for path in self.initial:
            yield initial_note(path)
        for reason in dict.fromkeys(reason for _, reason in self.left):
            paths = [path for path, why in self.left if why == reason]
            counted = Counter(path.name for path in paths)
            shown = ", ".join(
                name + (f" ({number} times)" if number > 1 else "") for name, number in counted.most_common(_SHOWN)
            )
            yield f"{printable(root)}: left out {printable(shown)}{'...' * (len(counted) > _SHOWN)} ({reason})"


def is_checkpoint_folder(files: Sequence[str]) -> bool:
    """Whether a folder that holds files of these names is one checkpoint."""
    return any(name in files for name in (*FOLDER_FILES, _DISTRIBUTED))


def is_not_weights(name: str) -> bool:
    """Whether trainers give this name to something else than weights: an optimizer's state, random generators'."""
    return re.fullmatch(_NOT_WEIGHTS, name) is not None


def is_initial(path: PurePath) -> bool:
    """Whether a checkpoint is, by its name or its folder's, what fine-tuning began with and not a member."""
    if re.fullmatch(_INITIAL, stem(Path(path)).name):
        return True
    parent = path.parent.name  # a run may well be called base
    return parent.lower() != "base" and re.fullmatch(_INITIAL, parent) is not None


def initial_note(path: PurePath) -> str:
    """What is said of one that was left out."""
    return (
        f"left out {printable(path)}: by its name it is what the members were fine-tuned from. Name the file itself to "
        "make it a member"
    )


def search(folder: Path) -> Found:
    """The checkpoints in a folder of this machine; none, no paths. Raises OSError, PoolError."""
    walk = Search(LocalTree())
    walk.run(folder)
    paths = [Path(path) for path in walk.taken]
    return Found(paths, set(paths) - {folder}, list(walk.notes(folder)))


def _of(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _listed(paths: Sequence[PurePath], root: PurePath) -> str:
    shown = ", ".join(printable(path.relative_to(root).as_posix()) for path in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
