"""Small real data in the very formats of CIFAR-10, ImageNet with its shift sets, and DomainNet, to see that all runs.

Fashion-MNIST where Debian's package is installed, else scikit-learn's digits, each on 32 x 32 pixels. What is measured
on them says nothing about the data sets whose form they have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.demo.data import Images, fashion, find_fashion, scanned_digits

Bytes = NDArray[np.uint8]

SIDE = 32
CLASSES = 10
WORDNET = tuple(f"n{1440764 + 331 * k:08d}" for k in range(CLASSES))
"""What the classes' folders are called in the stand-in for ImageNet; the names mean nothing."""
TINY_CLIP = "radin-experiments-tiny"
DOMAINS = ("plain", "rotated", "noisy")


def pictures(count: int, seed: int = 0) -> tuple[Bytes, NDArray[np.int64]]:
    """(count, 32, 32, 3) and their labels, drawn at random without return, as even by class as the source is."""
    found: Images = fashion()[0] if find_fashion() else scanned_digits()
    taken = found.take(np.random.default_rng(seed).permutation(len(found))[:count])
    framed = np.pad(taken.images, ((0, 0), (2, 2), (2, 2)))
    return np.repeat(framed[..., None], 3, axis=3), taken.labels


def rotated(images: Bytes) -> Bytes:
    return np.ascontiguousarray(np.rot90(images, axes=(1, 2)))


def noisy(images: Bytes, seed: int = 0) -> Bytes:
    noise = np.random.default_rng(seed).normal(0, 40, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def cifar10(folder: Path, training: int = 600, test: int = 200) -> Path:
    """data_batch_1.bin to _5, test_batch.bin and batches.meta.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pictures(training + test)
    records = np.concatenate(
        [labels.astype(np.uint8)[:, None], images.transpose(0, 3, 1, 2).reshape(len(labels), -1)], axis=1
    )
    for k, part in enumerate(np.array_split(records[:training], 5), start=1):
        part.tofile(folder / f"data_batch_{k}.bin")
    records[training:].tofile(folder / "test_batch.bin")
    (folder / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(CLASSES)) + "\n\n")
    return folder


def imagenet(folder: Path, training: int = 600, test: int = 200, shift: int = 100) -> Path:
    """imagenet/train and val, and beside it V2, Sketch, A, R and ObjectNet with classes of their own."""
    images, labels = pictures(training + test + 5 * shift)
    parts = np.split(np.arange(len(labels)), training + test + shift * np.arange(0, 5))
    fit, rest = parts[0][:training], parts[0][training:]
    _class_folders(folder / "imagenet" / "train", images[fit], labels[fit], WORDNET, ".JPEG")
    _class_folders(folder / "imagenet" / "val", images[rest], labels[rest], WORDNET, ".JPEG")
    v2, sketch, a, r, objects = parts[1:]
    numbers = tuple(str(k) for k in range(CLASSES))
    _class_folders(folder / "imagenetv2-matched-frequency-format-val", images[v2], labels[v2], numbers, ".jpeg")
    _class_folders(folder / "sketch", 255 - images[sketch], labels[sketch], WORDNET, ".JPEG")
    for name, rows, own, changed in (("imagenet-a", a, (1, 4, 7), noisy), ("imagenet-r", r, (0, 2, 3, 9), rotated)):
        rows = rows[np.isin(labels[rows], own)]
        _class_folders(folder / name, changed(images[rows]), labels[rows], WORDNET, ".jpg")
    objectnet(folder / "objectnet-1.0", images[objects], labels[objects])
    return folder


OBJECTS = {"Bag": (8,), "Shoe/boot": (5, 7, 9), "Upper garment": (0, 2, 6)}
"""ObjectNet's labels in the stand-in -> the classes that they stand for; "Lamp" stands for none."""
ORDER = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
"""Line of imagenet_to_label_2012_v2 of each class: an order of its own, as ImageNet's differs from PyTorch's."""


def objectnet(folder: Path, images: Bytes, labels: NDArray[np.int64]) -> None:
    """images/ by its own names with a red frame of two pixels, and the four files in mappings/."""
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    framed[:, [0, 1, -2, -1]] = (255, 0, 0)
    framed[:, :, [0, 1, -2, -1]] = (255, 0, 0)
    names = {label: label.lower().replace("/", "_").replace(" ", "_") for label in (*OBJECTS, "Lamp")}
    of_class = {k: label for label, classes in OBJECTS.items() for k in classes}
    own = np.array([of_class.get(int(k), "Lamp") for k in labels])
    order = sorted(names)
    numbers = np.array([order.index(label) for label in own])
    _class_folders(folder / "images", framed, numbers, tuple(names[label] for label in order), ".png")
    mappings = folder / "mappings"
    mappings.mkdir()
    words = [f"thing {k}, object {k}" for k in range(CLASSES)]
    lines = [""] * CLASSES
    for k, line in enumerate(ORDER):
        lines[line] = words[k]
    content: dict[str, Any] = {
        "folder_to_objectnet_label.json": {folder_name: label for label, folder_name in names.items()},
        "objectnet_to_imagenet_1k.json": {label: "; ".join(words[k] for k in ks) for label, ks in OBJECTS.items()},
        "pytorch_to_imagenet_2012_id.json": {str(k): line for k, line in enumerate(ORDER)},
    }
    for name, value in content.items():
        (mappings / name).write_text(json.dumps(value))
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")


def tiny_clip(folder: Path) -> str:
    """The name of an open_clip model of a few thousand weights for pictures of 32 x 32, made known to open_clip."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{TINY_CLIP}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return TINY_CLIP


def domainnet(folder: Path, training: int = 300, test: int = 100) -> Path:
    """A folder per domain and its two lists, as DomainNet has."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, domain in enumerate(DOMAINS):
        images, labels = pictures(training + test, seed=number)
        if domain == "rotated":
            images = rotated(images)
        elif domain == "noisy":
            images = noisy(images)
        lines = []
        for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            name = f"{domain}/class_{label}/{domain}_{label:03d}_{k:06d}.jpg"
            _write(folder / name, image)
            lines.append(f"{name} {label}\n")
        (folder / f"{domain}_train.txt").write_text("".join(lines[:training]))
        (folder / f"{domain}_test.txt").write_text("".join(lines[training:]))
    return folder


def _class_folders(folder: Path, images: Bytes, labels: NDArray[np.int64], names: tuple[str, ...], ending: str) -> None:
    for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        _write(folder / names[label] / f"{names[label]}_{k}{ending}", image)


def _write(path: Path, image: Bytes) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
