"""torch:module:function and python:module:function: the user's own model or data, by name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from radin.errors import TaskError
from radin.ready.parts import DataPart, ModelPart, literal
from radin.ready.specs import DataSpec, ModelSpec
from radin.usercode import import_module

_TRANSFORM = "transform"


def torch_part(spec: ModelSpec) -> ModelPart:
    """The code that takes model() from the user's module; and its ``transform`` of pictures, where it has one."""
    spec.only()
    module, function, lines = _imported(spec.name, f"--model {spec.text}")
    name = module.__name__
    text = f"def model():\n    return {_local(function, 'built_by')}()\n"
    imports = [*lines, f"from {name} import {function} as {_local(function, 'built_by')}"]
    if hasattr(module, _TRANSFORM):
        imports.append(f"from {name} import {_TRANSFORM} as prepare")
    family = "images" if hasattr(module, _TRANSFORM) else "own"
    return ModelPart(family, (_together(imports),), text, None, {}, alone=True)


def python_part(spec: DataSpec) -> DataPart:
    """The code that takes the splits from functions of the user's, or from objects that are data themselves."""
    places = {} if spec.plain is None else {"validation": spec.plain}
    places |= spec.places
    imports: list[str] = []
    functions = []
    for split, place in places.items():
        module, function, lines = _imported(place, f"--data {spec.text}")
        local = f"{split}_data"
        imports += [*lines, f"from {module.__name__} import {function} as {local}"]
        call = (
            "()" if callable(getattr(module, function)) and not hasattr(getattr(module, function), "__iter__") else ""
        )
        functions.append(f"def {split}():\n    return {local}{call}\n")
    return DataPart(tuple(places), (_together(imports),), "", "\n\n".join(functions))


def _local(function: str, other: str) -> str:
    """A name for an imported function that does not hide the task's own."""
    return other if function in ("model", "validation", "test", "calibration", "shifts", "metric") else function


def _imported(name: str, where: str) -> tuple[ModuleType, str, list[str]]:
    """(module, name of its attribute, lines that let it be imported) of "module:attribute" or "file.py:attribute"."""
    place, _, attribute = name.partition(":")
    if not attribute.isidentifier():
        raise TaskError(f"{where}: expected module:function, or file.py:function; got {name!r}")
    path = Path(place)
    folder: Path | None = None
    if path.suffix == ".py":
        if not path.is_file():
            raise TaskError(f"{where}: no such file {place}")
        folder, place = path.resolve().parent, path.stem
    elif Path(*place.split(".")).with_suffix(".py").is_file() or Path(*place.split(".")).is_dir():
        folder = Path.cwd()
    if not all(part.isidentifier() for part in place.split(".")):
        raise TaskError(f"{where}: {place!r} is no name of a module")
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module = import_module(place, f"{where}: no module {place!r}; give one that can be imported here, or a file")
    if not hasattr(module, attribute):
        raise TaskError(f"{where}: {place} has no {attribute!r}")
    return module, attribute, [] if folder is None else [f"sys.path.insert(0, {literal(str(folder))})"]


def _together(lines: list[str]) -> str:
    """One block, in order and each line once: where modules are, before they are imported."""
    first = [line for line in lines if line.startswith("sys.")]
    block = [*dict.fromkeys(first), *dict.fromkeys(line for line in lines if line not in first)]
    return "\n".join((["import sys\n"] if first else []) + block)
