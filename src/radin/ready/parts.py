"""What a task file is made of: a model's part and the data's, put together as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radin.errors import printable


@dataclass(frozen=True)
class ModelPart:
    """Code that defines model() and what the data need of it.

    family: what an example is: "images", "texts", "tokens", "choices" or "language". imports: lines. text: the code.
    classes: how many the checkpoints have; None where they have no such number. labels: {name: index} by the model's
    config, empty where it names none. regression: whether targets are numbers. metric: what it is scored by.
    named_classes: whether the model's code reads LABELS. alone: whether pictures are prepared by code of the user's,
    which several threads may not share. notes: what to say to the user.
    """

    family: str
    imports: tuple[str, ...]
    text: str
    classes: int | None
    labels: Mapping[str, int]
    metric: str = "accuracy"
    regression: bool = False
    named_classes: bool = False
    alone: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataPart:
    """Code that defines a function for each of ``splits``. ``constants`` come before the model's code."""

    splits: tuple[str, ...]
    imports: tuple[str, ...]
    constants: str
    text: str
    notes: tuple[str, ...] = ()


def task_text(model: str, data: str, columns: str | None, parts: tuple[ModelPart, DataPart], metric: str) -> str:
    """The task file as text. ``model``, ``data``, ``columns``: as they were typed; ``metric``: a name."""
    made, read = parts
    scored, needs = _metric(metric, made)
    asked = [f"#   --model {printable(model)}", f"#   --data {printable(data)}"]
    asked += [f"#   --columns {printable(columns)}"] if columns else []
    blocks = [
        "\n".join(
            [
                '"""A task for radin, written by \'radin task\'. Change what you like and give the file as --task."""',
                "",
                *asked,
            ]
        ),
        _imports((*made.imports, *read.imports, *needs)),
        read.constants.strip("\n"),
        made.text.strip("\n") + "\n",
        read.text.strip("\n") + "\n",
        f"metric = {scored}",
    ]
    text = "\n\n".join(block for block in blocks if block.strip()) + "\n"
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text


def _metric(name: str, model: ModelPart) -> tuple[str, tuple[str, ...]]:
    """The metric as code, and its imports: that of spans has to know which tag each output stands for."""
    if name == "span_f1" and model.family == "tokens" and model.labels:
        tags = sorted(model.labels, key=lambda tag: model.labels[tag])
        return f"span_f1({literal(tags)})", ("from radin.metrics import span_f1",)
    return literal(name), ()


def literal(value: Any) -> str:
    """A value as code, its text in double quotes where that needs no escaping."""
    if isinstance(value, str):
        plain = repr(value)
        return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in plain and "\\'" not in plain else plain
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def mapping(name: str, values: Mapping[Any, Any]) -> str:
    """A mapping as code, one entry a line."""
    lines = [f"    {literal(key)}: {literal(value)}," for key, value in values.items()]
    return "\n".join([f"{name} = {{", *lines, "}"])


def _imports(lines: tuple[str, ...]) -> str:
    """Sorted as ruff sorts them: Python's own first, "import" before "from"; paths and what they are for at the end."""
    own = ("csv", "functools", "io", "pathlib", "sys", "types")
    plain = sorted({line for line in lines if line.startswith(("import ", "from "))}, key=_order)
    last = list(dict.fromkeys(line for line in lines if not line.startswith(("import ", "from "))))
    standard = [line for line in plain if line.split()[1].split(".")[0] in own]
    others = [line for line in plain if line not in standard]
    return "\n\n".join("\n".join(group) for group in (standard, others, last) if group)


def _order(line: str) -> tuple[bool, str]:
    return line.startswith("from "), line.lower()
