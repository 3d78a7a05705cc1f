"""open_clip:NAME: a whole CLIP model that classifies by the classes' names, or its image encoder with a head."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from radin.errors import TaskError
from radin.ready.optional import library
from radin.ready.parts import ModelPart, literal
from radin.ready.specs import ModelSpec

Shapes = Mapping[str, Sequence[int]]

_PROMPT = "a photo of a {}"
_HEAD = "classification_head.weight"

_PREPARE = """
prepare = open_clip.create_model_and_transforms({name})[2]
"""

_ZERO_SHOT = '''
PROMPT = {prompt}
tokens = open_clip.get_tokenizer({name})([PROMPT.format(label.replace("_", " ")) for label in LABELS])
order = torch.tensor(list(LABELS.values())).argsort()


def scores(model, images):
    """How near each picture is to the prompt of each class."""
    seen = model.encode_image(images, normalize=True)
    read = model.encode_text(tokens[order].to(images.device), normalize=True)
    return model.logit_scale.exp() * seen @ read.T


def model():
    built = open_clip.create_model({name})
    built.__class__ = type("ZeroShot", (type(built),), {{"forward": scores}})
    return built
'''

_CLASSIFIER = '''
class Classifier(torch.nn.Module):
    """CLIP's image encoder and a linear head, as fine-tuned by the code of the Model Soups paper."""

    def __init__(self):
        super().__init__()
        self.model = open_clip.create_model({name})
        for name in {left}:
            delattr(self.model, name)
        self.classification_head = torch.nn.Linear({width}, {classes}{bias})

    def forward(self, images):
        return self.classification_head(self.model.encode_image(images, normalize=True))


def model():
    return Classifier()
'''


def open_clip_part(spec: ModelSpec, shapes: Shapes) -> ModelPart:
    """The code for a CLIP model whose checkpoints have these ``shapes``.

    Those with "classification_head.weight" are an image encoder with a head ("model.visual...."); others are whole
    models, which classify by prompts with the classes' names. Option: prompt, with {} for the name.
    Raises TaskError for a name that open_clip does not have.
    """
    open_clip = library("open_clip", f"--model {spec.text}")
    name = spec.name
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        like = f"; did you mean {', '.join(close)}" if close else ""
        raise TaskError(f"--model {spec.text}: open_clip has no model {name!r}{like}")
    imports = ("import open_clip", "import torch")
    if _HEAD in shapes:
        spec.only()
        classes, width = map(int, shapes[_HEAD])
        about: dict[str, Any] = {"name": literal(name), "classes": classes, "width": width}
        about["bias"] = "" if "classification_head.bias" in shapes else ", bias=False"
        about["left"] = literal(_left_out(open_clip, name, shapes))
        text = _PREPARE.format(name=literal(name)) + "\n" + _CLASSIFIER.format(**about)
        return ModelPart("images", imports, text, classes, {})
    if not any(key.startswith("visual.") for key in shapes):
        raise TaskError(
            f"--model {spec.text}: expected a whole CLIP model (visual...., transformer....) or one with "
            f"{_HEAD}; the checkpoints' tensors are named like {', '.join(list(shapes)[:3])}"
        )
    spec.only("prompt")
    prompt = spec.options.get("prompt", _PROMPT)
    if "{}" not in prompt:
        raise TaskError(f"--model {spec.text}: the prompt must hold {{}}, where the class's name goes; got {prompt!r}")
    text = _PREPARE.format(name=literal(name)) + "\n" + _ZERO_SHOT.format(name=literal(name), prompt=literal(prompt))
    return ModelPart("images", imports, text, None, {}, named_classes=True)


def _left_out(open_clip: Any, name: str, shapes: Shapes) -> list[str]:
    """Parts of the model of which the checkpoints have nothing, as its text encoder."""
    parts = dict(open_clip.create_model(name, device="meta").named_children())
    held = {key.split(".")[1] for key in shapes if key.startswith("model.")}
    return [part for part, module in parts.items() if part not in held and module.state_dict()]
