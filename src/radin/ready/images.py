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
    return Kept(Pictures(SPLITS[name]){alone})
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
        with {picture} as picture:
            return prepare(picture.convert("RGB")), {label}


@cache
def split(name):
    return Kept(Pictures(rows(SPLITS[name])){alone})
'''

# How a row's picture is opened, by what the column {image} holds.
_OPENED = {
    "paths": "Image.open(row[{image}])",
    "bytes": 'Image.open(BytesIO(row[{image}]["bytes"]))',
    "pictures": "row[{image}]",
}
_IMAGES = (
    *(("image",), ("img",), ("picture",), ("pixel_values",), ("image_path",), ("img_path",)),
    *(("file_name",), ("filename",), ("filepath",), ("file",), ("path",)),
)
_LABELS = (("label",), ("labels",), ("target",), ("fine_label",), ("class",))

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
    text, more = _with_splits(_FOLDER_CODE, splits, model)
    return DataPart(tuple(splits), (*imports, *more), constants, text, notes)


def table_part(tables: Tables, model: ModelPart, asked: Mapping[str, tuple[str, ...]], batchnorm: bool) -> DataPart:
    """The data of a table with a column of pictures. Raises TaskError as ``folder_part``."""
    library("PIL", "pictures in tables")
    (image,) = column_of(tables, asked, "image", _IMAGES)
    (label,) = column_of(tables, asked, "label", _LABELS)
    splits = dict(tables.splits)
    if not batchnorm:
        splits.pop("calibration", None)
    tables = Tables(tables.kind, splits)
    holds = _holds(tables, image)
    values = [value for table in splits.values() for value in table.values(label)]
    names = splits["validation"].names.get(label)
    indices, note = label_indices(values, names, model.classes, model.labels, f"column {label!r}")
    numbers = all(str(key).strip().isdecimal() for key in indices)
    constants, expression = tables.constants([image, label]), f"row[{literal(label)}]"
    what = "labels in the data, and which output of the model stands for each"
    if model.named_classes and numbers:
        if not names:
            raise TaskError(
                f"column {label!r} holds numbers without names, and the model classifies by names of classes: give a "
                "column of names, --columns label=NAME"
            )
        constants += f"\nNAMES = {literal(list(names))}\n"
        constants += labels_constant({name: indices[k] for k, name in enumerate(names)}, what)
        expression = f"LABELS[NAMES[{expression}]]"
    elif model.named_classes or any(key != index for key, index in indices.items()):
        constants += "\n" + labels_constant(indices, what)
        expression = f"LABELS[{expression}]"
    code = _TABLE_CODE.replace("{rows}", tables.code(paths=image if holds == "paths" else None))
    code = code.replace("{picture}", _OPENED[holds].replace("{image}", literal(image)))
    text, more = _with_splits(code.replace("{label}", expression), splits, model)
    imports = ["from functools import cache", "from PIL import Image", *tables.imports, *more]
    imports += {"paths": ["from pathlib import Path"], "bytes": ["from io import BytesIO"], "pictures": []}[holds]
    return DataPart(tuple(splits), tuple(imports), constants, text, () if note is None else (note,))


def _holds(tables: Tables, column: str) -> str:
    """What a column of pictures holds: "paths" to their files, their "bytes", or "pictures" as datasets opens them.

    Raises TaskError for something else, and for a path without a file.
    """
    first = tables.splits["validation"].first(column)
    if isinstance(first, str) and tables.kind != "datasets":
        for split, table in tables.items():
            for row, path in enumerate(table.files(column), start=1):
                if not path.is_file():
                    raise TaskError(
                        f"column {column!r} of {split}, row {row}: no picture {path}; paths are absolute or start at "
                        "the folder of the table"
                    )
        return "paths"
    if isinstance(first, Mapping) and isinstance(first.get("bytes"), bytes):
        return "bytes"
    if hasattr(first, "convert"):
        return "pictures"
    expected = "paths of their files, or their bytes as datasets writes them"
    if tables.kind == "datasets":
        expected = "them as datasets.Image, by cast_column before save_to_disk"
    raise TaskError(
        f"column {column!r} holds {type(first).__name__} {first!r:.60} and no pictures; expected {expected}. Another "
        "column: --columns image=NAME"
    )


def _with_splits(code: str, splits: Mapping[str, object], model: ModelPart) -> tuple[str, list[str]]:
    """The code with a function for each split, and imports that it needs."""
    code = code.replace("{alone}", ", threads=1" if model.alone else "")
    functions = [f"def {name}():\n    return split({literal(name)})\n" for name in splits if name != "calibration"]
    names = "Dataset"
    if "calibration" in splits:
        functions.append(_CALIBRATION_CODE.strip("\n") + "\n")
        names += ", Subset"
    imports = ["from radin import Kept", f"from torch.utils.data import {names}"]
    return "\n\n".join([code.strip("\n") + "\n", *functions]), imports


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
