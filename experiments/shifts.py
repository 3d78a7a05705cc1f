"""ImageNet's shift sets by their own class lists: V2, Sketch, A, R and ObjectNet.

Folders as they unpack, beside imagenet/:

    imagenetv2-matched-frequency-format-val   folders 0 to 999: the number of the class
    sketch                                    WordNet ids, all classes
    imagenet-a, imagenet-r                    WordNet ids of 200 classes; the others' outputs do not count
    objectnet-1.0                             images/ by its own names, mappings/ to ImageNet's; of the 113 classes that
                                              are in both, each takes the largest output among its ImageNet classes
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import imagenet
from experiments.pictures import Pictures, Splits, class_folders
from radin import RadinError
from radin.files import read_json

HELD_OUT = imagenet.HELD_OUT
FOLDERS = {
    "V2": ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    "Sketch": ("sketch", "imagenet-sketch"),
    "A": ("imagenet-a",),
    "R": ("imagenet-r",),
    "ObjectNet": ("objectnet-1.0",),
}
"""What a set is called -> what its folder may be."""

_FRAME = 2  # pixels of ObjectNet's red border


def splits(folder: Path, hold_out: float = HELD_OUT, seed: int = 0) -> Splits:
    """ImageNet's splits with the shift sets that are there. Raises RadinError where there is none."""
    found = imagenet.splits(folder, hold_out, seed)
    classes = imagenet.classes_of(folder)
    sets = {name: _first(folder, places) for name, places in FOLDERS.items()}
    there = {name: _read(name, place, classes) for name, place in sets.items() if place is not None}
    if not there:
        listed = ", ".join(places[0] for places in FOLDERS.values())
        raise RadinError(f"{folder}: no shift set; expected one or more of {listed}")
    return replace(found, shifts=there)


def _first(folder: Path, places: tuple[str, ...]) -> Path | None:
    return next((folder / place for place in places if (folder / place).is_dir()), None)


def _read(name: str, place: Path, classes: list[str]) -> Pictures:
    if name == "V2":
        numbered, _ = class_folders(place, [str(k) for k in range(len(classes))])
        return numbered
    if name == "ObjectNet":
        return objectnet(place, classes)
    pictures, _ = class_folders(place, classes)
    return pictures if name == "Sketch" else subset(pictures, len(classes))


def subset(pictures: Pictures, classes: int) -> Pictures:
    """The same, classified among their own classes only."""
    own = np.unique(pictures.labels)
    group = np.full(classes, -1)
    group[own] = np.arange(len(own))
    return replace(pictures, labels=group[pictures.labels], group=group)


def objectnet(folder: Path, classes: list[str]) -> Pictures:
    """ObjectNet's pictures of the classes that ImageNet has too, by the four files in mappings/.

    folder_to_objectnet_label.json: {folder: label}. objectnet_to_imagenet_1k.json: {label: "name; name"}.
    imagenet_to_label_2012_v2: ImageNet's names, a line each, in an order of their own, of which
    pytorch_to_imagenet_2012_id.json says {the model's output: the line}.
    """
    mappings = folder / "mappings"
    folders = _mapping(mappings / "folder_to_objectnet_label.json")
    names_of = _mapping(mappings / "objectnet_to_imagenet_1k.json")
    line_of = _mapping(mappings / "pytorch_to_imagenet_2012_id.json")
    text = mappings / "imagenet_to_label_2012_v2"
    if not text.is_file():
        raise RadinError(f"{text}: no such file, which is part of ObjectNet")
    output_of_line = {int(line): int(output) for output, line in line_of.items()}
    lines = text.read_text(encoding="utf-8").splitlines()
    outputs = {name.strip(): output_of_line[k] for k, name in enumerate(lines) if k in output_of_line}
    folder_of = {label: name for name, label in folders.items()}
    group = np.full(len(classes), -1)
    number = {}
    for label, listed in sorted(names_of.items(), key=lambda pair: folder_of.get(pair[0], "")):
        if label not in folder_of:
            raise RadinError(f"{mappings}: {label!r} has ImageNet classes and no folder")
        number[folder_of[label]] = len(number)
        for name in listed.split("; "):
            if not 0 <= outputs.get(name.strip(), -1) < len(classes):
                raise RadinError(f"{mappings}: {label!r} stands for {name!r}, which is none of the model's classes")
            group[outputs[name.strip()]] = number[folder_of[label]]
    inside = sorted(entry.name for entry in (folder / "images").iterdir() if entry.is_dir())
    found, order = class_folders(folder / "images", inside)
    labels = np.array([number.get(name, -1) for name in order])[found.labels]
    kept = found.take(np.flatnonzero(labels >= 0))
    return replace(kept, labels=labels[labels >= 0], border=_FRAME, group=group)


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RadinError(f"{path}: no such file, which is part of ObjectNet")
    try:
        found = read_json(path)
    except ValueError as error:
        raise RadinError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise RadinError(f"{path}: expected a JSON object; got {type(found).__name__}")
    return found
