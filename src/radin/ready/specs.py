"""What --model, --data and --columns say, taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from radin.errors import TaskError

MODELS = {
    "timm": "timm:NAME",
    "hf": "hf",
    "open_clip": "open_clip:NAME",
    "torch": "torch:module:function",
}
DATA = {
    "imagefolder": "imagefolder:DIR",
    "csv": "csv:FILE",
    "parquet": "parquet:FILES",
    "datasets": "datasets:SAVED_DIR",
    "python": "python:module:function",
}
_SPLITS = {
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "train": "calibration",
    "training": "calibration",
    "calibration": "calibration",
}


@dataclass(frozen=True)
class ModelSpec:
    """A model: ``kind`` of MODELS, ``name`` of it, and further ``options``. ``text``: as it was typed."""

    kind: str
    name: str
    options: Mapping[str, str]
    text: str

    def only(self, *names: str) -> None:
        """Raise TaskError for an option that this kind of model does not have."""
        odd = [name for name in self.options if name not in names]
        if odd:
            has = f"it has {', '.join(names)}" if names else "it has none"
            raise TaskError(f"--model {self.text}: {self.kind} has no option {odd[0]!r}; {has}")

    def number(self, name: str) -> int | None:
        """An option that is a positive whole number; None where it is not given."""
        given = self.options.get(name)
        if given is None:
            return None
        if not given.isdecimal() or int(given) < 1:
            raise TaskError(f"--model {self.text}: {name} must be a positive whole number; got {given!r}")
        return int(given)


@dataclass(frozen=True)
class DataSpec:
    """Data: ``kind`` of DATA, and ``places``: {"validation": ..., "test": ..., "calibration": ...} as they are given.

    ``plain``: a place without a split's name, which may hold several splits. ``text``: as it was typed.
    """

    kind: str
    plain: str | None
    places: Mapping[str, str]
    text: str


def split_name(name: str) -> str | None:
    """What radin calls a split that others call val, valid, dev or train; None for other names."""
    return _SPLITS.get(name.lower())


def read_model(text: str) -> ModelSpec:
    """KIND[:NAME][,OPTION=VALUE...]. Raises TaskError for a kind that is not known."""
    head, *more = text.split(",")
    kind, colon, name = head.partition(":")
    if kind not in MODELS:
        raise TaskError(f"--model {text}: no such kind of model {kind!r}; there are {', '.join(MODELS.values())}")
    if kind != "hf" and not name:
        raise TaskError(f"--model {text}: expected {MODELS[kind]}")
    if kind == "hf" and colon and not name:
        raise TaskError(f"--model {text}: expected hf, or hf:FOLDER with the config and the tokenizer to take")
    return ModelSpec(kind, name, _pairs(more, f"--model {text}", "OPTION=VALUE"), text)


def read_data(text: str) -> DataSpec:
    """KIND:PLACE[,test=PLACE][,train=PLACE]. Raises TaskError for a kind or a split that is not known."""
    kind, _, rest = text.partition(":")
    if kind not in DATA:
        raise TaskError(f"--data {text}: no such kind of data {kind!r}; there are {', '.join(DATA.values())}")
    if not rest:
        raise TaskError(f"--data {text}: expected {DATA[kind]}")
    parts = rest.split(",")
    plain = parts.pop(0) if "=" not in parts[0] else None
    places: dict[str, str] = {}
    for name, place in _pairs(parts, f"--data {text}", "test=PLACE").items():
        split = split_name(name)
        if split is None:
            raise TaskError(f"--data {text}: no such split {name!r}; there are validation, test and train")
        if split in places or (split == "validation" and plain is not None):
            raise TaskError(f"--data {text}: {split} is given twice")
        places[split] = place
    if plain is None and "validation" not in places:
        raise TaskError(f"--data {text}: no validation data, by which recipes are chosen: {DATA[kind]}[,test=...]")
    return DataSpec(kind, plain, places, text)


def read_columns(text: str | None) -> dict[str, tuple[str, ...]]:
    """ROLE=COLUMN[+COLUMN...][,...] as {role: columns}. Raises TaskError for another form."""
    if text is None:
        return {}
    pairs = _pairs(text.split(","), f"--columns {text}", "text=COLUMN,label=COLUMN")
    return {role: tuple(columns.split("+")) for role, columns in pairs.items()}


def _pairs(parts: list[str], where: str, form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise TaskError(f"{where}: expected {form}; got {part!r}")
        if name in found:
            raise TaskError(f"{where}: {name} is given twice")
        found[name] = value
    return found
