"""ImageNet as class folders: imagenet/train and imagenet/val with a folder of pictures for each WordNet id."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.pictures import Integers, Splits, class_folders, held_out
from radin import RadinError

HELD_OUT = 26.0
"""Of each class, as the Model Soups paper holds out."""

INDICES = "imagenet_98_idxs.npy"
"""That paper's own choice, where the file lies in the data folder: 1 for each training picture that was held out."""


def splits(folder: Path, hold_out: float = HELD_OUT, seed: int = 0) -> Splits:
    """Part of train/ held out for validation; val/, which is the official validation set, as test."""
    top = folder / "imagenet" if (folder / "imagenet").is_dir() else folder
    training, classes = class_folders(top / "train")
    test, _ = class_folders(top / "val", classes)
    indices = folder / INDICES
    rest, held = marked(indices, len(training)) if indices.is_file() else held_out(training.labels, hold_out, seed)
    return Splits(training.take(rest), training.take(held), test, {}, len(classes))


def classes_of(folder: Path) -> list[str]:
    """The WordNet ids in the order of the model's outputs."""
    top = folder / "imagenet" if (folder / "imagenet").is_dir() else folder
    return sorted(entry.name for entry in (top / "train").iterdir() if entry.is_dir())


def marked(path: Path, count: int) -> tuple[Integers, Integers]:
    """(the rest, held out) of ``count`` pictures by the marks in a file. Raises RadinError if it does not fit."""
    try:
        marks = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RadinError(f"{path}: expected one array of numpy's: {error}") from None
    if marks.shape != (count,) or not np.isin(marks, (0, 1)).all() or not 0 < marks.sum() < count:
        raise RadinError(f"{path}: expected {count:,} marks 0 or 1, one for each training picture; got {marks.shape}")
    return np.flatnonzero(marks == 0), np.flatnonzero(marks == 1)
