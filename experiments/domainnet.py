"""DomainNet by its lists of files, one domain left out: chosen by the other domains, tested on the one left out.

    real/aircraft_carrier/real_001_000001.jpg ...
    real_train.txt, real_test.txt      a line each: "real/aircraft_carrier/real_001_000001.jpg 0"

As DomainBed chooses (training-domain validation): a fifth of the training pictures of the other domains is held out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.pictures import Pictures, Splits, held_out
from radin import RadinError

HELD_OUT = 0.2
_LIST = 1 << 28  # bytes of a list; the longest of DomainNet has about 6 MB


def domains(folder: Path) -> list[str]:
    """The domains that have a list of training files. Raises RadinError for fewer than two."""
    found = sorted(path.name.removesuffix("_train.txt") for path in folder.glob("*_train.txt"))
    if len(found) < 2:
        raise RadinError(f"{folder}: expected lists of two domains or more, such as real_train.txt; got {found}")
    return found


def splits(folder: Path, left_out: str, hold_out: float = HELD_OUT, seed: int = 0) -> Splits:
    """Validation from the training lists of the other domains, test: all pictures of the domain left out.

    The other domains' own test pictures are reported as the shift "in domain".
    """
    all_domains = domains(folder)
    if left_out not in all_domains:
        raise RadinError(f"{folder}: no list {left_out}_train.txt; there are {', '.join(all_domains)}")
    others = [name for name in all_domains if name != left_out]
    fitting, validation = [], []
    for name in others:
        pictures = read(folder, name, "train")
        rest, held = held_out(np.zeros_like(pictures.labels), hold_out, seed)  # at random, as DomainBed does
        fitting.append(pictures.take(rest))
        validation.append(pictures.take(held))
    test = joined([read(folder, left_out, part) for part in ("train", "test")])
    inside = joined([read(folder, name, "test") for name in others])
    fit, chosen = joined(fitting), joined(validation)
    classes = 1 + max(int(part.labels.max()) for part in (fit, chosen, test, inside))
    return Splits(fit, chosen, test, {"in domain": inside}, classes)


def read(folder: Path, domain: str, part: str) -> Pictures:
    """The pictures of one list. Raises RadinError for a line that is none, naming it; pictures are opened later."""
    path = folder / f"{domain}_{part}.txt"
    if not path.is_file() or path.stat().st_size > _LIST:
        raise RadinError(f"{path}: no such list of files")
    items, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.rpartition(" ")
        if not label.isdecimal() or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise RadinError(f'{path}, line {number}: expected "{domain}/class/file.jpg 0"; got {line[:80]!r}')
        items.append(folder / name)
        labels.append(int(label))
    if not items:
        raise RadinError(f"{path}: the list is empty")
    if not items[0].is_file():
        raise RadinError(f"{path}, line 1: {items[0]} is not there; unpack {domain}.zip into {folder}")
    return Pictures(items, np.array(labels, np.int64))


def joined(parts: list[Pictures]) -> Pictures:
    return Pictures([item for part in parts for item in part.items], np.concatenate([part.labels for part in parts]))
