"""Pictures for the clipart pools: openclipart, Tux Paint's stamps, Noto's emoji, in eight classes that they share."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin import RadinError
from radin.demo import data
from radin.demo.data import Images

SIDE = 64
MAX_PIXELS = 4_000_000
SHARES = {"finetuning": 0.45, "validation": 0.27, "test": 0.28}
SHIFTS = ("stamps", "emoji")

PACKAGES = ("openclipart-png", "tuxpaint-stamps-default", "fonts-noto-color-emoji", "unicode-data")
SOURCES = {
    "clipart": "usr/share/openclipart/png",
    "stamps": "usr/share/tuxpaint/stamps",
    "font": "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "emoji": "usr/share/unicode/emoji/emoji-test.txt",
}

# Folders of each class; the longest match decides, "-" takes a folder out.
CLIPART = {
    "animals": "animals",
    "buildings": "buildings -buildings/furniture",
    "food": "food",
    "objects": "office electronics computer/hardware tools containers recreation/music buildings/furniture",
    "people": "people -people/clothing",
    "plants": "plants",
    "signs": "signs_and_symbols -signs_and_symbols/flags -signs_and_symbols/led -signs_and_symbols/weather "
    "-signs_and_symbols/clocks -signs_and_symbols/money -signs_and_symbols/awards transportation/roadsigns "
    "transportation/aiga-symbols",
    "vehicles": "transportation -transportation/roadsigns -transportation/aiga-symbols",
}
STAMPS = {
    "animals": "animals",
    "buildings": "town/houses town/monuments town/cartoon",
    "food": "food",
    "objects": "household hobbies/music",
    "people": "people symbols/faces",
    "plants": "plants",
    "signs": "symbols/math symbols/shapes symbols/music town/roadsigns",
    "vehicles": "vehicles military/vehicles",
}
# Unicode's subgroups, or "*" and a whole group.
EMOJI = {
    "animals": "animal-mammal animal-bird animal-amphibian animal-reptile animal-marine animal-bug",
    "buildings": "place-building place-religious",
    "food": "food-fruit food-vegetable food-prepared food-asian food-marine food-sweet drink",
    "objects": "tool household office computer phone lock writing musical-instrument light&video",
    "people": "*People&Body",
    "plants": "plant-flower plant-other",
    "signs": "*Symbols",
    "vehicles": "transport-ground transport-water transport-air",
}
CLASSES = tuple(CLIPART)


def check_source(source: Path) -> None:
    """Raise RadinError unless the packages' files are there."""
    missing = [place for place in SOURCES.values() if not (source / place).exists()]
    if missing:
        raise RadinError(
            f"{source} lacks {', '.join(missing)}. On Debian or Ubuntu, in that folder: "
            f"apt-get download {' '.join(PACKAGES)}; for file in *.deb; do dpkg-deb -x $file .; done. "
            "Or install these packages and give --source /"
        )


def pictures(source: Path) -> dict[str, Images]:
    """Clipart, stamps and emoji as (M, 64, 64, 3) bytes with labels, no picture twice."""
    check_source(source)
    clipart = data.without_duplicates(_rendered(_by_folder(source / SOURCES["clipart"], CLIPART)))
    stamps = data.without_duplicates(_rendered(_by_folder(source / SOURCES["stamps"], STAMPS)), clipart)
    emoji = data.without_duplicates(_rendered(_emoji(source / SOURCES["font"], source / SOURCES["emoji"])), clipart)
    return {"clipart": clipart, "stamps": stamps, "emoji": emoji}


def _class_of(folder: str, classes: Mapping[str, str]) -> str | None:
    found, length = None, 0
    for name, folders in classes.items():
        for entry in folders.split():
            place = entry.removeprefix("-")
            inside = f"{folder}/".startswith(f"{place}/")
            if inside and (len(place) > length or (len(place) == length and entry == place)):
                found, length = (name if entry == place else None), len(place)
    return found


def _by_folder(root: Path, classes: Mapping[str, str]) -> Iterator[tuple[Any, str]]:
    """(opened picture, class); the same file in folders of two classes is left out, and what is over 4 megapixels."""
    from PIL import Image, UnidentifiedImageError

    places: dict[str, set[str]] = defaultdict(set)
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*.png")):
        name = _class_of(path.parent.relative_to(root).as_posix(), classes)
        if name is not None:
            digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            places[digest].add(name)
            files.setdefault(digest, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about huge pictures, which are opened for their size only, and odd metadata
        for digest, path in files.items():
            if len(places[digest]) > 1:
                continue
            try:
                picture = Image.open(path)
                if picture.width * picture.height <= MAX_PIXELS:
                    picture.load()
                    yield picture, min(places[digest])
            except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
                continue  # damaged, or huge


def _emoji(font: Path, table: Path) -> Iterator[tuple[Any, str]]:
    """Every fully qualified emoji of one code point, so without skin tones and flags, as the font's bitmap."""
    from PIL import Image, ImageDraw, ImageFont

    classes = {entry: name for name, entries in EMOJI.items() for entry in entries.split()}
    face = ImageFont.truetype(str(font), 109)  # the only size that the font has
    group = subgroup = ""
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = "*" + line.removeprefix("# group: ").replace(" ", "")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ").replace(" ", "")
        elif "; fully-qualified" in line:
            points = [p for p in line.split(";")[0].split() if p != "FE0F"]
            name = classes.get(subgroup) or classes.get(group)
            if name is not None and len(points) == 1:
                picture = Image.new("RGBA", (160, 160))
                character = chr(int(points[0], 16))
                ImageDraw.Draw(picture).text((10, 10), character, font=face, embedded_color=True)
                yield picture, name


def _rendered(found: Iterator[tuple[Any, str]]) -> Images:
    """Cropped to what is not transparent, on white, padded to a square, 64 x 64."""
    from PIL import Image

    images, labels = [], []
    for picture, name in found:
        picture = picture.convert("RGBA")
        box = picture.getchannel("A").getbbox()
        if box is None:
            continue
        picture = picture.crop(box)
        side = max(picture.size)
        square = Image.new("RGBA", (side, side), "white")
        square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        images.append(np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)))
        labels.append(CLASSES.index(name))
    return Images(np.stack(images), np.array(labels, np.int64))


def splits(found: Mapping[str, Images], split: int) -> dict[str, Images]:
    """The clipart cut at random, class by class, by SHARES; the shifts whole."""
    clipart, rng = found["clipart"], np.random.default_rng(split)
    rows: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SHARES}
    for label in range(len(CLASSES)):
        order = rng.permutation(np.flatnonzero(clipart.labels == label))
        ends = np.rint(np.cumsum(list(SHARES.values())) * len(order)).astype(int)
        for name, part in zip(SHARES, np.split(order, ends[:-1]), strict=True):
            rows[name].append(part)
    parts = {name: clipart.take(rng.permutation(np.concatenate(r))) for name, r in rows.items()}
    return parts | {name: found[name] for name in SHIFTS}
