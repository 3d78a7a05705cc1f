"""Labelled pictures as the data sets give them, what is held out of them, and the splits that a task is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from radin import RadinError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
CALIBRATION = 1000
"""Training pictures for BatchNorm statistics: enough, and a small share of a pass."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """Pictures and their classes.

    items: paths, or arrays (height, width, 3) of bytes. labels (M,). border: pixels cut off on each side before
    preprocessing (ObjectNet's red frame). group: for each output of the model, which of this set's classes it stands
    for, -1 for none; None where the set has the model's own classes.
    """

    items: Sequence[Any]
    labels: Integers
    border: int = 0
    group: Integers | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Integers) -> Pictures:
        """Some of them, (m,) indices."""
        return Pictures([self.items[k] for k in rows], self.labels[rows], self.border, self.group)

    def open(self, place: int) -> Any:
        """One picture, as PIL gives it, in RGB."""
        from PIL import Image

        item = self.items[place]
        if isinstance(item, Path):
            with Image.open(item) as picture:
                found = picture.convert("RGB")
        else:
            found = Image.fromarray(item)
        b = self.border
        return found.crop((b, b, found.width - b, found.height - b)) if b else found


@dataclass(frozen=True)
class Splits:
    """What an experiment reads. fitting: what --train may learn from, without ``validation``; classes: how many."""

    fitting: Pictures
    validation: Pictures
    test: Pictures
    shifts: Mapping[str, Pictures]
    classes: int


class Prepared(Dataset[Any]):
    """Pictures as a model takes them: (tensor, label); of a set with other classes ({"images", "group"}, label)."""

    def __init__(self, pictures: Pictures, prepare: Callable[[Any], torch.Tensor]) -> None:
        self.pictures, self.prepare = pictures, prepare
        self._group = None if pictures.group is None else torch.from_numpy(pictures.group)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> Any:
        inputs: Any = self.prepare(self.pictures.open(place))
        if self._group is not None:
            inputs = {"images": inputs, "group": self._group}
        return inputs, int(self.pictures.labels[place])


def outputs(model: torch.nn.Module, inputs: Any) -> torch.Tensor:
    """A task's outputs(): the model's; for a set with other classes, the largest of those that each stands for."""
    if isinstance(inputs, torch.Tensor):
        found: torch.Tensor = model(inputs)
        return found
    logits = model(inputs["images"])
    group = inputs["group"][0]
    kept = group >= 0
    empty = logits.new_full((len(logits), int(group.max()) + 1), -torch.inf)
    return empty.scatter_reduce(1, group[kept].expand(len(logits), -1), logits[:, kept], "amax")


class Loaded:
    """The splits of a task over prepared pictures; its methods are the task file's functions."""

    def __init__(self, splits: Splits, prepare: Callable[[Any], torch.Tensor], batch_size: int, workers: int) -> None:
        self._splits, self._prepare, self._batch, self._workers = splits, prepare, batch_size, workers

    def validation(self) -> DataLoader[Any]:
        return self._loader(self._splits.validation)

    def test(self) -> DataLoader[Any]:
        return self._loader(self._splits.test)

    def shifts(self) -> dict[str, DataLoader[Any]]:
        return {name: self._loader(found) for name, found in self._splits.shifts.items()}

    def calibration(self) -> DataLoader[Any]:
        """Every few of the training pictures, as they are."""
        fitting = self._splits.fitting
        return self._loader(fitting.take(np.arange(0, len(fitting), max(1, len(fitting) // CALIBRATION))))

    def _loader(self, pictures: Pictures) -> DataLoader[Any]:
        return DataLoader(Prepared(pictures, self._prepare), batch_size=self._batch, num_workers=self._workers)


def held_out(labels: Integers, amount: float, seed: int = 0) -> tuple[Integers, Integers]:
    """(the rest, held out): sorted indices, drawn within each class by ``seed``.

    amount: a share of each class below 1, or that many of each. Raises RadinError where a class would have none left.
    """
    rng = np.random.default_rng(seed)
    out = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = round(amount * len(rows)) if amount < 1 else int(amount)
        if not 0 < count < len(rows):
            raise RadinError(
                f"class {label} has {len(rows)} training pictures, of which {count} would be held out for validation; "
                "choose another --hold-out: a share below 1, or a number of each class"
            )
        out.append(rng.permutation(rows)[:count])
    chosen = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def class_folders(folder: Path, names: Sequence[str] | None = None) -> tuple[Pictures, list[str]]:
    """The pictures in a folder with one subfolder per class, ordered by class and path; and the classes' names.

    names: the classes in the model's order, where the folder is not to say; each subfolder must be one of them.
    Raises RadinError for a folder that is missing, empty, or has other classes.
    """
    if not folder.is_dir():
        raise RadinError(f"{folder}: no such folder; expected one subfolder of pictures for each class")
    inside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    order = inside if names is None else list(names)
    odd = sorted(set(inside) - set(order))
    if odd:
        raise RadinError(f"{folder}: {odd[0]!r} is none of the {len(order)} classes ({order[0]} to {order[-1]})")
    place = {name: k for k, name in enumerate(order)}
    items, labels = [], []
    for name in sorted(inside, key=place.__getitem__):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in ENDINGS)
        items += found
        labels += [place[name]] * len(found)
    if not items:
        raise RadinError(f"{folder}: no pictures ({', '.join(ENDINGS)}) in its {len(inside)} subfolders")
    return Pictures(items, np.array(labels, np.int64)), order
