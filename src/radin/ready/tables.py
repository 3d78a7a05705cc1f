"""Data in rows: CSV, Parquet and folders saved by datasets. Read once to find columns; the code that reads them."""

from __future__ import annotations

import csv
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radin.errors import TaskError
from radin.ready.optional import library
from radin.ready.parts import literal, mapping
from radin.ready.specs import DataSpec, split_name

# A field of a CSV file may hold a whole document.
_FIELD = 2**27

_CODE = {
    "csv": """
def rows(file):
    csv.field_size_limit({field})
    with open(file, newline="", encoding="utf-8-sig") as opened:
        return list(csv.DictReader(opened{delimiter}))
""",
    "parquet": """
def rows(files):
    return [row for file in files for row in parquet.read_table(file, columns=COLUMNS).to_pylist()]
""",
    "datasets": """
def rows(folder):
    return load_from_disk(folder)
""",
}
# The same where the column {column} holds paths that start at the folder of their table.
_CODE_OF_PATHS = {
    "csv": """
def rows(file):
    csv.field_size_limit({field})
    folder = Path(file).parent
    with open(file, newline="", encoding="utf-8-sig") as opened:
        return [row | {{column}: folder / row[{column}]} for row in csv.DictReader(opened{delimiter})]
""",
    "parquet": """
def rows(files):
    found = []
    for file in files:
        folder = Path(file).parent
        table = parquet.read_table(file, columns=COLUMNS).to_pylist()
        found += [row | {{column}: folder / row[{column}]} for row in table]
    return found
""",
}
_IMPORTS = {
    "csv": "import csv",
    "parquet": "from pyarrow import parquet",
    "datasets": "from datasets import load_from_disk",
}


@dataclass(frozen=True)
class Table:
    """One split: its ``place`` as the task's code is given it, the number of rows, and a way to have a column."""

    place: Any
    columns: tuple[str, ...]
    size: int
    names: Mapping[str, tuple[str, ...]]  # of the columns whose integers stand for names
    _read: Any
    _parts: tuple[tuple[Path, int], ...] = ()  # the files it is made of, and their rows

    def first(self, column: str) -> Any:
        """The first value of a column."""
        return self._read(column, 1)[0]

    def files(self, column: str) -> list[Path]:
        """The files whose paths a column holds, in order; they start at the folder of the table's own file."""
        values = iter(self.values(column))
        return [part.parent / str(next(values)) for part, rows in self._parts for _ in range(rows)]

    def values(self, column: str) -> list[Any]:
        """All of one column, in order."""
        return list(self._read(column, None))


@dataclass(frozen=True)
class Tables:
    """Splits of one kind, with the same columns."""

    kind: str
    splits: Mapping[str, Table]

    @property
    def columns(self) -> tuple[str, ...]:
        """Of validation."""
        return self.splits["validation"].columns

    @property
    def imports(self) -> tuple[str, ...]:
        """What the code of ``rows`` needs."""
        return (_IMPORTS[self.kind],)

    def constants(self, used: Sequence[str]) -> str:
        """Where the splits are, and for Parquet which columns are ``used``."""
        lines = [mapping("SPLITS", {name: table.place for name, table in self.items()})]
        if self.kind == "parquet":
            lines.append(f"COLUMNS = {literal(list(used))}")
        return "\n".join(lines)

    def items(self) -> list[tuple[str, Table]]:
        """(split, table), validation first."""
        return list(self.splits.items())

    def code(self, paths: str | None = None) -> str:
        """The function ``rows``: from a place to rows that are read by the name of a column.

        ``paths``: a column of paths, which become those of files.
        """
        first = self.splits["validation"].place
        tabs = self.kind == "csv" and str(first).endswith(".tsv")
        delimiter = ', delimiter="\\t"' if tabs else ""
        code = _CODE[self.kind] if paths is None else _CODE_OF_PATHS[self.kind].replace("{column}", literal(paths))
        return code.replace("{field}", str(_FIELD)).replace("{delimiter}", delimiter).strip("\n")


def open_tables(spec: DataSpec) -> Tables:
    """The splits that ``spec`` names. Raises TaskError for what is not there, empty, or cannot be read."""
    reader = {"csv": _csv, "parquet": _parquet, "datasets": _datasets}[spec.kind]
    places = {} if spec.plain is None else {"validation": spec.plain}
    places |= spec.places
    if spec.kind == "datasets" and spec.plain is not None:
        places = _saved_splits(spec.plain) | dict(spec.places)
    found = {split: reader(place) for split, place in sorted(places.items(), key=lambda item: item[0] != "validation")}
    for split, table in found.items():
        if not table.size:
            raise TaskError(f"{places[split]}: no rows")
        lacking = [name for name in found["validation"].columns if name not in table.columns]
        if lacking:
            raise TaskError(
                f"{places[split]} has no column {lacking[0]!r}, which {places['validation']} has; it has "
                f"{', '.join(table.columns)}"
            )
    return Tables(spec.kind, found)


def _csv(place: str) -> Table:
    path = _file(place, "a CSV file with a line of column names")
    csv.field_size_limit(_FIELD)
    try:
        with path.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows = list(reader)
            columns = tuple(reader.fieldnames or ())
    except UnicodeDecodeError:
        raise TaskError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except csv.Error as error:
        raise TaskError(f"{path}: not a CSV file that can be read: {error}") from None
    for number, row in enumerate(rows, start=2):
        if None in row or any(value is None for value in row.values()):
            raise TaskError(
                f"{path}: row {number} has another number of fields than the first line, {len(columns)} "
                f"({', '.join(columns)}); put text with commas in quotes"
            )
    path = path.resolve()
    return Table(
        str(path), columns, len(rows), {}, lambda name, most: [row[name] for row in rows[:most]], ((path, len(rows)),)
    )


def _parquet(place: str) -> Table:
    parquet = library("pyarrow.parquet", "--data parquet:FILES")
    path = Path(place)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    else:
        files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(place, recursive=True))]
    if not files:
        raise TaskError(f"{place}: no such Parquet file, nor a pattern or folder with any")
    tables = []
    for file in files:
        try:
            tables.append(parquet.ParquetFile(file))
        except Exception as error:
            raise TaskError(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from None
    columns = tuple(tables[0].schema_arrow.names)
    parts = tuple((file.resolve(), table.metadata.num_rows) for file, table in zip(files, tables, strict=True))

    def read(name: str, most: int | None) -> list[Any]:
        if most is not None:
            batches = (batch for table in tables for batch in table.iter_batches(most, columns=[name]))
            return next(batches).column(name).to_pylist()  # type: ignore[no-any-return]
        return [value for table in tables for value in table.read(columns=[name]).column(name).to_pylist()]

    places = [str(file) for file, _ in parts]
    return Table(places, columns, sum(n for _, n in parts), _names_in(tables[0].schema_arrow), read, parts)


def _names_in(schema: Any) -> dict[str, tuple[str, ...]]:
    """Names of classes that datasets leaves in the metadata of a Parquet file."""
    import json

    held = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(held)["info"]["features"] if held else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: tuple(names) for name, value in features.items() if (names := _class_names(value))}


def _class_names(feature: Any) -> Any:
    if not isinstance(feature, dict):
        return None
    inner = feature.get("feature")
    return feature.get("names") or (inner.get("names") if isinstance(inner, dict) else None)


def _saved_splits(place: str) -> dict[str, str]:
    folder = Path(place)
    if not (folder / "dataset_dict.json").is_file():
        return {"validation": place}
    found: dict[str, str] = {}
    for inner in sorted(entry.name for entry in folder.iterdir() if entry.is_dir()):
        split = split_name(inner)
        if split is not None:
            found.setdefault(split, str(folder / inner))
    if "validation" not in found:
        raise TaskError(
            f"{place} has no split validation, by which recipes are chosen; give one of its folders for it: "
            f"--data datasets:{folder / 'NAME'}"
        )
    return found


def _datasets(place: str) -> Table:
    datasets = library("datasets", "--data datasets:SAVED_DIR")
    folder = Path(place)
    if not folder.is_dir():
        raise TaskError(f"{place}: no such folder; give one that save_to_disk has written")
    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise TaskError(f"{place}: no folder that save_to_disk has written: {str(error).splitlines()[0]}") from None
    if isinstance(data, datasets.DatasetDict):
        raise TaskError(f"{place} holds several splits ({', '.join(data)}); give the folder of one: {folder / 'NAME'}")
    names = {}
    for column, feature in data.features.items():
        inner = getattr(feature, "feature", None)  # of a list
        found = getattr(feature, "names", None) or getattr(inner, "names", None)
        if found:
            names[column] = tuple(found)

    def read(name: str, most: int | None) -> Any:
        return data[name] if most is None else data[:most][name]

    return Table(str(folder.resolve()), tuple(data.column_names), len(data), names, read)


def _file(place: str, what: str) -> Path:
    path = Path(place)
    if not path.is_file():
        raise TaskError(f"{place}: no such file; expected {what}")
    return path
