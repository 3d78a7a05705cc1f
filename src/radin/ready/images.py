"""Pictures with a class each: a folder with one subfolder per class, or a table with a column of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from radin.errors import TaskError
from radin.ready.labels import label_indices
from radin.ready.optional import library
from radin.ready.parts import DataPart, ModelPart, literal, mapping
from radin.ready.specs import DataSpec, split_name
from radin.ready.tables import Tables
from radin.ready.texts import column_of, labels_constant

# Enough for BatchNorm statistics, and no more than a small share of a pass for most.
CALIBRATION = 1000

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_FOLDER_CODE = '''
class Pictures(Dataset):
    """The pictures in a folder with one subfolder for each class, and their classes' indices."""

    def __init__(self, folder):
        found = [(path, index) for name, index in LABELS.items() for path in sorted(Path(folder, name).rglob("*"))]
        self.files = [(path, index) for path, index in found if path.suffix.lower() in ENDINGS]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, place):
        path, index = self.files[place]
        with Image.open(path) as picture:
            return prepare(picture.convert("RGB")), index


@cache
def split(name):
    return Pictures(SPLITS[name])
'''

_TABLE_CODE = '''
{rows}


class Pictures(Dataset):
    """The pictures of a table, and their classes' indices."""

    def __init__(self, table):
        self.table = table

    def __len__(self):
        return len(self.table)

    def __getitem__(self, place):
        row = self.table[place]
        picture = row[{image!r}]
        if isinstance(picture, dict):
            picture = Image.open(BytesIO(picture["bytes"]))
        return prepare(picture.convert("RGB")), {label}


@cache
def split(name):
    return Pictures(rows(SPLITS[name]))
'''

_CALIBRATION_CODE = f'''
def calibration():
    """Every few of the training pictures, for BatchNorm statistics."""
    pictures = split("calibration")
    return Subset(pictures, range(0, len(pictures), max(1, len(pictures) // {CALIBRATION})))
'''


def folder_part(spec: DataSpec, model: ModelPart, batchnorm: bool) -> DataPart:
    """The data of imagefolder:DIR: its folders train, val and test, or one folder of classes as validation.

    The training pictures are used where the model has BatchNorm layers (``batchnorm``). Raises TaskError where there
    are no pictures, or where their classes do not fit the model.
    """
    library("PIL", "--data imagefolder:DIR")
    splits, left = _split_folders(spec)
    classes = {split: _classes(folder, split) for split, folder in splits.items()}
    names = sorted(set().union(*classes.values()))
    indices, note = label_indices(names, None, model.classes, model.labels, f"--data {spec.text}")
    if not batchnorm:
        splits.pop("calibration", None)
    constants = "\n".join(
        [
            mapping("SPLITS", {name: str(folder.resolve()) for name, folder in splits.items()}),
            labels_constant(indices, "the folders' names, and which output of the model stands for each"),
            f"ENDINGS = {literal(ENDINGS)}",
        ]
    )
    notes = tuple(filter(None, [note, *left]))
    imports = ["from functools import cache", "from pathlib import Path", "from PIL import Image"]
    text, more = _with_splits(_FOLDER_CODE, splits)
    return DataPart(tuple(splits), (*imports, *more), constants, text, notes)


def table_part(tables: Tables, model: ModelPart, asked: Mapping[str, tuple[str, ...]], batchnorm: bool) -> DataPart:
    """The data of a table with a column of pictures. Raises TaskError as ``folder_part``."""
    library("PIL", "pictures in tables")
    if tables.kind == "csv":
        raise TaskError("a CSV file holds no pictures: give --data imagefolder:DIR, with one subfolder for each class")
    (image,) = column_of(tables, asked, "image", (("image",), ("img",), ("picture",), ("pixel_values",)))
    (label,) = column_of(tables, asked, "label", (("label",), ("labels",), ("target",), ("fine_label",), ("class",)))
    splits = dict(tables.splits)
    if not batchnorm:
        splits.pop("calibration", None)
    tables = Tables(tables.kind, splits)
    values = [value for table in splits.values() for value in table.values(label)]
    names = splits["validation"].names.get(label)
    indices, note = label_indices(values, names, model.classes, model.labels, f"column {label!r}")
    plain = all(not isinstance(key, str) and key == index for key, index in indices.items()) and not model.named_classes
    constants = tables.constants([image, label])
    if not plain:
        constants += "\n" + labels_constant(indices, "labels in the data, and the model's outputs for them")
    expression = f"row[{literal(label)}]" if plain else f"LABELS[row[{literal(label)}]]"
    code = (
        _TABLE_CODE.replace("{rows}", tables.code()).replace("{image!r}", literal(image)).replace("{label}", expression)
    )
    text, more = _with_splits(code, splits)
    imports = ["from functools import cache", "from io import BytesIO", "from PIL import Image", *tables.imports, *more]
    return DataPart(tuple(splits), tuple(imports), constants, text, () if note is None else (note,))


def _with_splits(code: str, splits: Mapping[str, object]) -> tuple[str, list[str]]:
    """The code with a function for each split, and imports that it needs."""
    functions = [f"def {name}():\n    return split({literal(name)})\n" for name in splits if name != "calibration"]
    names = "Dataset"
    if "calibration" in splits:
        functions.append(_CALIBRATION_CODE.strip("\n") + "\n")
        names += ", Subset"
    return "\n\n".join([code.strip("\n") + "\n", *functions]), [f"from torch.utils.data import {names}"]


def _split_folders(spec: DataSpec) -> tuple[dict[str, Path], list[str]]:
    """{split: folder}, validation first, and what to say of folders that were left out."""
    given = {split: Path(place) for split, place in spec.places.items()}
    notes = []
    if spec.plain is not None:
        top = Path(spec.plain)
        if not top.is_dir():
            raise TaskError(f"{top}: no such folder; expected one with a subfolder for each class, or train, val, test")
        inner: dict[str, Path] = {}
        for entry in sorted(top.iterdir()):
            split = split_name(entry.name) if entry.is_dir() else None
            if split is not None and split in inner:
                notes.append(f"{entry} was left out: {inner[split]} is the {split} data")
            elif split is not None:
                inner[split] = entry
        if "validation" in inner:
            given = inner | given
        elif set(inner) - set(given):
            raise TaskError(
                f"{top} has {', '.join(folder.name for folder in inner.values())} and no folder val, by which recipes "
                "are chosen. Make one of pictures that no model was trained on"
            )
        else:
            given = {"validation": top} | given
    for split, folder in given.items():
        if not folder.is_dir():
            raise TaskError(f"{folder}: no such folder, given for {split}")
    return {split: given[split] for split in ("validation", "test", "calibration") if split in given}, notes


def _classes(folder: Path, split: str) -> list[str]:
    """Names of the subfolders that hold pictures."""
    found = [
        entry.name
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and any(path.suffix.lower() in ENDINGS for path in entry.rglob("*"))
    ]
    if not found:
        raise TaskError(
            f"{folder}: no pictures for {split}; expected one subfolder for each class with files that end in "
            f"{', '.join(ENDINGS)}"
        )
    return found
