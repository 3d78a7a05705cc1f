"""Soups as files for programs to load: built one at a time, named by their content, gone when they have been scored."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from radin.errors import RadinError
from radin.recipe import Recipe
from radin.weights import Pool, average, recipe_metadata, save
from radin.weights.alike import save_alike, suffix_of, write_alike
from radin.weights.beside import files_source
from radin.weights.formats import Checkpoint
from radin.weights.kinds import SHARED_SUFFIXES, SUFFIXES

_SLOT = "slot-"
FAILED = "failed"


class Stopped(Exception):
    """The engine was closed while a soup was being built."""


class SoupFiles:
    """The scratch folder of an engine: a folder for each slot, with at most one soup in it.

    pool: the members. folder: made when first needed; what an earlier engine left in it is then removed. slots: how
    many. Only one soup is in memory at a time, however many slots there are.
    """

    def __init__(
        self,
        pool: Pool,
        folder: Path,
        slots: int,
        integers_from: str | None = None,
        files_from: str | None = None,
    ) -> None:
        self._pool = pool
        self._integers_from = integers_from
        self._files_from = files_from
        self._building = threading.Lock()
        self._failed = threading.Lock()
        self._slots = slots
        self._ready = False
        self.folder = folder.absolute()

    def prepare(self) -> None:
        """Make the folder, once. Raises RadinError when the disk has no room for a soup in each slot."""
        if self._ready:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.remove(failed=True)
        self.folder.mkdir(exist_ok=True)
        self._ready = True
        slots = self._slots
        free, needed = shutil.disk_usage(self.folder).free, slots * self._pool.bytes
        if free < needed:
            raise RadinError(
                f"{self.folder}: {slots} soup{'s' * (slots > 1)} at a time need {needed / 1e9:.1f} GB on disk; "
                f"{free / 1e9:.1f} GB are free. Make room, or run fewer jobs at once."
            )

    def slot(self, slot: int) -> Path:
        """An empty folder for what the slot does next."""
        folder = self.folder / f"{_SLOT}{slot}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def build(self, recipe: Recipe, folder: Path, stop: threading.Event) -> Path:
        """The soup in the members' own format, in ``folder``; of a single member its own file, which is not copied.

        Its name is new for every recipe: a program may keep what it knows of a file by its path. Raises Stopped when
        ``stop`` is set, CheckpointError when a member changed or the disk refuses.
        """
        if recipe.is_single:
            member = self._pool[recipe.members[0]]
            if member.checkpoint.form is member.checkpoint:  # an adapter's folder holds no whole model
                member.require_unchanged()
                return member.path.absolute()

        def check(done: int, total: int) -> None:
            if stop.is_set():
                raise Stopped

        like = self._like(recipe)
        name = f"soup-{recipe.identity(self._pool.fingerprints)[:16]}{suffix_of(like)}"
        with self._building:
            check(0, 0)
            tensors = average(self._pool, recipe, integers_from=self._integers_from, progress=check)
            return write_alike(tensors, like, folder / name, self._metadata(recipe))

    def write(self, recipe: Recipe, path: Path) -> None:
        """The soup whole or not at all: in the members' own format, or as the ending of ``path`` says."""
        like = self._like(recipe)
        with self._building:
            tensors = average(self._pool, recipe, integers_from=self._integers_from)
            # A name without an ending that is known is a folder's, if the members are folders.
            if suffix_of(like) == (path.suffix if path.suffix in (*SUFFIXES, *SHARED_SUFFIXES) else ""):
                save_alike(tensors, like, path, self._metadata(recipe))
            else:
                save(tensors, path, metadata=self._metadata(recipe))

    def _like(self, recipe: Recipe) -> Checkpoint:
        """Whose form the soup takes: that of the member named, or with the largest weight, the first of equals."""
        return self._pool[files_source(self._pool, recipe, self._files_from)].checkpoint.form

    def _metadata(self, recipe: Recipe) -> dict[str, str]:
        return recipe_metadata(self._pool, recipe, integers_from=self._integers_from)

    def keep_failed(self, written: Path) -> Path | None:
        """Keep what a failed program has written, in the place of the failure before; None where it wrote nothing."""
        with self._failed:
            target = self.folder / FAILED
            if not any(written.iterdir()):
                return None
            shutil.rmtree(target, ignore_errors=True)
            written.rename(target)
            return target

    def release(self, slot: int) -> None:
        """Remove what a slot holds."""
        shutil.rmtree(self.folder / f"{_SLOT}{slot}", ignore_errors=True)

    def remove(self, *, failed: bool = False) -> None:
        """Remove the soups, and the folder when nothing is left in it; what failed last stays unless ``failed``."""
        for entry in list(self.folder.glob(f"{_SLOT}*")) + ([self.folder / FAILED] if failed else []):
            shutil.rmtree(entry, ignore_errors=True)
        if not failed and not any(self.folder.iterdir()):
            self.folder.rmdir()
