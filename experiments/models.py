"""The task file of an experiment: radin's ready part for the model, and the experiment's own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from radin import RadinError
from radin.files import write_text
from radin.ready.open_clip import open_clip_part
from radin.ready.optional import library
from radin.ready.own import torch_part
from radin.ready.parts import ModelPart, literal
from radin.ready.specs import read_model
from radin.ready.timm import timm_part

ROOT = Path(__file__).resolve().parents[1]
Shapes = Mapping[str, Sequence[int]]

_TASK = '''"""{title}, as written by python -m experiments: a task file like any other, for every command of radin."""

import sys
from pathlib import Path

sys.path.insert(0, {root})

import torch
{imports}

from experiments import {module}
from experiments.pictures import Loaded, outputs  # noqa: F401

{model}

SPLITS = {module}.splits({arguments})
LOADED = Loaded(SPLITS, prepare, {batch_size}, {workers})
validation, test = LOADED.validation, LOADED.test
shifts = LOADED.shifts
{calibration}metric = "accuracy"
'''


def model_part(text: str, shapes: Shapes) -> ModelPart:
    """The code for a model by its --model and the shapes of its checkpoints. Raises RadinError for one not of pictures.

    "timm:NAME[,img_size=S]", "open_clip:NAME" with a head as Model Soups has, or "torch:module:function" with a
    ``transform`` of pictures beside it.
    """
    spec = read_model(text)
    if spec.kind == "timm":
        part = timm_part(spec, shapes)
    elif spec.kind == "open_clip":
        part = open_clip_part(spec, shapes)
    elif spec.kind == "torch":
        part = torch_part(spec)
    else:
        raise RadinError(f"--model {text}: experiments take timm:NAME, open_clip:NAME or torch:module:function")
    if part.named_classes:
        raise RadinError(
            f"--model {text}: the checkpoints are whole CLIP models; expected an image encoder with a head "
            "(model.visual...., classification_head.weight), as the Model Soups paper released"
        )
    if part.family != "images":
        raise RadinError(f"--model {text}: put a `transform` (PIL picture to tensor) beside the function")
    return part


def built(part: ModelPart) -> tuple[Callable[[], torch.nn.Module], Callable[[Any], torch.Tensor]]:
    """(model(), preprocessing of a PIL picture) of a part, as the task file will have them."""
    space: dict[str, Any] = {}
    exec(compile("\n".join(["import torch", *part.imports, part.text]), "<model>", "exec"), space)  # radin's own text
    return space["model"], space["prepare"]


def new_shapes(text: str, classes: int) -> dict[str, tuple[int, ...]]:
    """The shapes that a checkpoint of this model with so many classes has, for members that are yet to be trained."""
    spec = read_model(text)
    if spec.kind == "timm":
        made = library("timm", f"--model {text}").create_model(spec.name, num_classes=classes)
        return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    if spec.kind == "open_clip":
        clip = library("open_clip", f"--model {text}").create_model(spec.name)
        inside = {
            f"model.{n}": tuple(t.shape) for n, t in clip.state_dict().items() if not n.startswith("transformer.")
        }
        width = int(clip.visual.output_dim)
        return {**inside, "classification_head.weight": (classes, width), "classification_head.bias": (classes,)}
    own = built(model_part(text, {}))[0]()
    return {name: tuple(tensor.shape) for name, tensor in own.state_dict().items()}


def write_task(
    path: Path,
    module: str,
    places: Sequence[Any],
    part: ModelPart,
    shapes: Shapes,
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> Path:
    """Write the task file. ``module``: the experiment's; ``places``: the arguments of its splits()."""
    batchnorm = any(name.endswith("running_mean") for name in shapes)
    arguments = ", ".join(f"Path({literal(str(a))})" if isinstance(a, Path) else literal(a) for a in places)
    write_text(
        path,
        _TASK.format(
            title=f"The experiment {module}",
            root=literal(str(ROOT)),
            imports="\n".join(line for line in part.imports if line not in ("import torch", "import sys")),
            module=module,
            model=part.text.strip("\n"),
            arguments=arguments,
            batch_size=batch_size,
            workers=workers,
            calibration="calibration = LOADED.calibration\n" if batchnorm else "",
        ),
    )
    return path


def head_names(model: torch.nn.Module) -> set[str]:
    """Names of the tensors of the classifier: those that a pretrained start may lack."""
    head = getattr(model, "classification_head", None)
    if head is None and hasattr(model, "get_classifier"):
        head = model.get_classifier()
    if not isinstance(head, torch.nn.Module):
        return set()
    return {name for name, p in model.named_parameters() if any(p is own for own in head.parameters())}
