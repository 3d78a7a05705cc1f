"""What a slice of the examples costs, against its share of a whole reading: many small files on disk.

    python -m benchmarks.engine_parts.slices        half a minute; from the repository's root

A slice of a tenth of the examples should cost a tenth of a whole reading: a ratio of 1. By index it is near that; from
data that can only be read in order, and are too large to keep in memory, it is near 10.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from radin import Task
from radin.data.batches import read
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator

SIDE, CLASSES = 64, 10


def write_images(folder: Path, images: int, seed: int = 0) -> None:
    """Images (3, 64, 64) uint8 from a seed, one .npy file each, and their labels."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(images):
        np.save(folder / f"{index:06d}.npy", draw.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))
    np.save(folder / "labels.npy", draw.integers(0, CLASSES, images))


def read_image(folder: Path, index: int) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{index:06d}.npy")).float() / 255


class Images(Dataset[Any]):
    """The images, any of which can be read alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.labels = folder, np.load(folder / "labels.npy")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return read_image(self.folder, index), int(self.labels[index])


class ImagesInOrder(IterableDataset[Any]):
    """The same images, from the first to the last only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.labels = folder, np.load(folder / "labels.npy")

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        for index, label in enumerate(self.labels):
            yield read_image(self.folder, index), int(label)


def network() -> nn.Module:
    """A tiny convolutional network."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, CLASSES)
    )


@dataclass(frozen=True)
class SliceCosts:
    """Seconds of a slice over its share of a whole reading's seconds, medians over several slices.

    slice_cost_ratio: by index, reading alone. with_model: by index, the network run on both. in_order: reading alone,
    where all must be read. in_order_with_model: that, with the network. reading_share: what the engine says that a
    slice in order costs of a pass. whole_seconds: one whole reading, no model.
    """

    slice_cost_ratio: float
    with_model: float
    in_order: float
    in_order_with_model: float
    reading_share: float
    whole_seconds: float
    images: int
    slice_share: float


def measure(folder: Path, *, images: int = 4000, share: float = 0.1, repeats: int = 5, seed: int = 0) -> SliceCosts:
    """Write the images to ``folder`` and time random slices of ``share`` of them, in turns with whole readings."""
    write_images(folder, images, seed)
    draw = np.random.default_rng(seed)
    slices = [np.sort(draw.choice(images, round(share * images), replace=False)) for _ in range(repeats)]
    metric, engine = Task(network, []).get_metric(), Device.create("cpu", batch_size=64)
    by_index = Evaluator(Task(network, lambda: Images(folder)), engine, metric)
    in_order = Evaluator(
        Task(network, lambda: DataLoader(ImagesInOrder(folder), batch_size=64)), engine, metric, held_share=1e-9
    )
    model = network().eval().requires_grad_(False)
    data = by_index.score(model, "validation", "the network").data
    in_order.score(model, "validation", "the network", expected_data=data)
    assert (by_index.way(), in_order.way()) == ("index", "reading")
    times: dict[str, list[float]] = {}
    for examples in slices:
        for name, evaluator in (("index", by_index), ("order", in_order)):
            some = partial(evaluator.readings.some, "validation", examples, data)
            whole = partial(evaluator.task.batches, "validation", 64)
            work = {
                "whole": lambda whole=whole: drain(read(whole(), "")),  # not even the fingerprint is taken
                "slice": lambda some=some: drain(some()),
                "whole with model": partial(evaluator.score, model, "validation", ""),
                "slice with model": partial(evaluator.values, model, "validation", examples, expected_data=data),
            }
            for what, run in work.items():
                started = time.perf_counter()
                run()
                times.setdefault(f"{name} {what}", []).append(time.perf_counter() - started)
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}

    def ratio(name: str, suffix: str = "") -> float:
        return middle[f"{name} slice{suffix}"] / (share * middle[f"{name} whole{suffix}"])

    return SliceCosts(
        ratio("index"),
        ratio("index", " with model"),
        ratio("order"),
        ratio("order", " with model"),
        in_order.reading_share(),
        middle["index whole"],
        images,
        share,
    )


def drain(batches: Iterable[Any]) -> None:
    """Read to the end and keep nothing."""
    for _ in batches:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(measure(Path(folder), images=asked.images, repeats=asked.repeats))))


if __name__ == "__main__":
    main()
