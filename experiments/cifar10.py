"""CIFAR-10, the binary version: data_batch_1.bin to data_batch_5.bin, test_batch.bin, batches.meta.txt.

A record is one byte of label and 3,072 of picture: 32 x 32 red, then green, then blue, row by row
(https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.pictures import Pictures, Splits, held_out
from radin import RadinError

HELD_OUT = 0.1
SIDE = 32
_RECORD = 1 + 3 * SIDE * SIDE
_MOST = 1 << 30  # bytes of one file; CIFAR-10's have 30,730,000


def splits(folder: Path, hold_out: float = HELD_OUT, seed: int = 0) -> Splits:
    """A tenth of the training pictures held out for validation, test_batch.bin as test."""
    classes = len(names(folder))
    training = [read(folder / f"data_batch_{k}.bin", classes) for k in range(1, 6)]
    pictures = np.concatenate([images for images, _ in training])
    labels = np.concatenate([found for _, found in training])
    rest, held = held_out(labels, hold_out, seed)
    test_pictures, test_labels = read(folder / "test_batch.bin", classes)
    return Splits(
        Pictures(pictures[rest], labels[rest]),
        Pictures(pictures[held], labels[held]),
        Pictures(test_pictures, test_labels),
        {},
        classes,
    )


def names(folder: Path) -> list[str]:
    """The classes' names by batches.meta.txt. Raises RadinError where the folder is not the binary version."""
    meta = folder / "batches.meta.txt"
    if not meta.is_file():
        raise RadinError(
            f"{folder}: no batches.meta.txt; expected the folder of CIFAR-10's binary version "
            "(cifar-10-binary.tar.gz, which unpacks to cifar-10-batches-bin)"
        )
    return meta.read_text(encoding="utf-8").split()


def read(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (M, 32, 32, 3) of bytes and labels (M,). Raises RadinError for a file of another form."""
    if not path.is_file():
        raise RadinError(f"{path}: no such file; CIFAR-10's binary version has data_batch_1.bin to _5 and test_batch")
    size = path.stat().st_size
    if not 0 < size <= _MOST or size % _RECORD:
        raise RadinError(f"{path}: expected records of {_RECORD} bytes, got {size} bytes; is it whole?")
    records = np.fromfile(path, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= classes:
        raise RadinError(f"{path}: label {labels.max()}, and batches.meta.txt names {classes} classes")
    pixels = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels
