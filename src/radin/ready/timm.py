"""timm:NAME: a model of timm with the checkpoints' number of classes, and timm's own preprocessing for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from radin.errors import TaskError
from radin.ready.optional import library
from radin.ready.parts import ModelPart, literal
from radin.ready.specs import ModelSpec

Shapes = Mapping[str, Sequence[int]]

# What preprocessing is made of; the rest of timm's data config has no say in it.
_CONFIG = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")

_CODE = """
PREPROCESSING = {{
{config}
}}
prepare = timm.data.create_transform(**PREPROCESSING, is_training=False)


def model():
    return timm.create_model({arguments})
"""


def timm_part(spec: ModelSpec, shapes: Shapes) -> ModelPart:
    """The code for a model of timm whose checkpoints have these ``shapes``. Raises TaskError for a name it has not.

    Options: img_size, where the model was trained at another size than its usual one.
    """
    timm = library("timm", f"--model {spec.text}")
    spec.only("img_size")
    name = spec.name
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        like = f"; did you mean {', '.join(close)}" if close else ""
        raise TaskError(f"--model {spec.text}: timm {timm.__version__} has no model {name!r}{like}")
    size = spec.number("img_size")
    usual, sized = _built(timm, name, size)
    classes = _classes(usual, shapes, spec)
    arguments = [literal(name)] + ([f"num_classes={classes}"] if classes is not None else [])
    channels = _channels(usual, shapes)
    if channels not in (None, 3):
        raise TaskError(
            f"--model {spec.text}: the checkpoints take pictures of {channels} channels, and ready tasks read RGB; "
            "write a task file"
        )
    if size is not None and sized:
        arguments.append(f"img_size={size}")
    config = timm.data.resolve_data_config({"img_size": size} if size else {}, model=usual)
    lines = [f"    {literal(key)}: {literal(config[key])}," for key in _CONFIG if key in config]
    text = _CODE.format(config="\n".join(lines), arguments=", ".join(arguments))
    return ModelPart("images", ("import timm",), text, classes, {})


def _built(timm: Any, name: str, size: int | None) -> tuple[Any, bool]:
    """The model without memory for its weights, and whether it is built for one size of pictures."""
    import torch

    def build(**more: Any) -> Any:
        try:
            with torch.device("meta"):
                return timm.create_model(name, **more)
        except (NotImplementedError, RuntimeError):  # what looks at its own weights cannot be built without
            return timm.create_model(name, **more)

    if size is not None:
        try:
            return build(img_size=size), True
        except TypeError:
            return build(), False
    return build(), False


def _classes(model: Any, shapes: Shapes, spec: ModelSpec) -> int | None:
    """Rows of the classifier's weight in the checkpoints."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    for layer in (classifier,) if isinstance(classifier, str) else classifier:
        for end in ("weight", "l.weight"):  # NormLinear and the like keep theirs one level deeper
            if f"{layer}.{end}" in shapes:
                return int(shapes[f"{layer}.{end}"][0])
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    lacking = [name for name in own if name not in shapes]
    raise TaskError(
        f"--model {spec.text}: the checkpoints have no classifier of it ({', '.join(lacking[:3]) or 'none named'}); "
        f"theirs are named like {', '.join(list(shapes)[:3])}. Is it this model?"
    )


def _channels(model: Any, shapes: Shapes) -> int | None:
    first = model.pretrained_cfg.get("first_conv")
    shape = shapes.get(f"{first}.weight", ()) if isinstance(first, str) else ()
    return int(shape[1]) if len(shape) == 4 else None
