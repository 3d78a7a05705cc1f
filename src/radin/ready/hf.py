"""hf: a model of transformers, its class by the architecture that the folder's config names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radin.errors import TaskError
from radin.files import read_json
from radin.ready.optional import library
from radin.ready.parts import ModelPart, literal
from radin.ready.specs import ModelSpec

Shapes = Mapping[str, Sequence[int]]

CONFIG = "config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
# What a tokenizer says that knows no longest text.
_NO_LIMIT = 1_000_000
_LANGUAGE_LENGTH = 1024  # tokens of a piece of text, where the model could take longer ones


@dataclass(frozen=True)
class _Kind:
    """The architectures that end in ``endings``: what transformers builds them with, and what an example is."""

    endings: tuple[str, ...]
    auto: str
    family: str
    metric: str
    words: str


KINDS = (
    _Kind(
        ("ForSequenceClassification",),
        "AutoModelForSequenceClassification",
        "texts",
        "accuracy",
        "sequence classification",
    ),
    _Kind(("ForImageClassification",), "AutoModelForImageClassification", "images", "accuracy", "image classification"),
    _Kind(
        ("ForTokenClassification",),
        "AutoModelForTokenClassification",
        "tokens",
        "token_accuracy",
        "token classification",
    ),
    _Kind(("ForMultipleChoice",), "AutoModelForMultipleChoice", "choices", "accuracy", "multiple choice"),
    _Kind(
        ("ForCausalLM", "LMHeadModel"), "AutoModelForCausalLM", "language", "perplexity", "causal language modelling"
    ),
)

_MODEL = """
def model():
    config = AutoConfig.from_pretrained({folder}{classes}, local_files_only=True, trust_remote_code=False)
    built = {auto}.from_config(config, trust_remote_code=False).float()
{more}    return built
"""

# transformers 5 calls some tensors otherwise in its models than in the files that it reads and writes.
_RENAMED = '''
def with_names_of_files(built):
    """The model with its tensors named as save_pretrained writes them, where that is not as the model calls them."""
    state = built.state_dict()
    in_file = {own: next(iter(revert_weight_conversion(built, {own: rows}))) for own, rows in state.items()}
    in_model = {name: own for own, name in in_file.items()}

    def saved(module, state, prefix, metadata):
        for own in [own for own in state if in_file.get(own, own) != own]:
            state[in_file[own]] = state.pop(own)

    def loaded(module, state, *more):
        for name in [name for name in state if in_model.get(name, name) != name]:
            state[in_model[name]] = state.pop(name)

    built.register_state_dict_post_hook(saved)
    built.register_load_state_dict_pre_hook(loaded)
'''
_REVERT = "from transformers.core_model_loading import revert_weight_conversion"

_TRIMMED = '''
def without_padding(model, positional, inputs):
    """Cut off the columns in which no text of the batch has a token: they only take time."""
    longest = max(1, int(inputs["attention_mask"].sum(1).max()))
    return positional, {name: rows[:, :longest] for name, rows in inputs.items()}
'''

_TOKENIZER_CODE = """
MAX_LENGTH = {length}
tokenizer = AutoTokenizer.from_pretrained({folder}, local_files_only=True, trust_remote_code=False)
"""

_PROCESSOR_CODE = """
processor = AutoImageProcessor.from_pretrained({folder}, local_files_only=True, trust_remote_code=False)


def prepare(picture):
    return processor(picture, return_tensors="pt")["pixel_values"][0]
"""


def hf_part(spec: ModelSpec, shapes: Shapes, folders: Sequence[Path]) -> ModelPart:
    """The code for what the folders' config.json describe. ``folders``: where the members are, in order.

    Option: max_length, tokens of a text. hf:FOLDER takes config and tokenizer from there. Raises TaskError where there
    is no config, where members' configs contradict each other, or where it is no kind of model that is known here.
    """
    transformers = library("transformers", f"--model {spec.text}")
    places = [Path(spec.name)] if spec.name else list(dict.fromkeys(folders))
    configs = {place: _config(place) for place in places if (place / CONFIG).is_file()}
    if not configs:
        where = places[0] if len(places) == 1 else f"{places[0]} or any of the {len(places)} members' folders"
        raise TaskError(
            f"--model {spec.text}: no {CONFIG} in {where}. It takes folders as save_pretrained and Trainer write them; "
            "for weights alone give the folder that has the config and the tokenizer: --model hf:FOLDER"
        )
    folder, found = next(iter(configs.items()))
    _check_same(configs)
    kind = _kind(folder, found)
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        classes, fitted, renamed = _against(transformers, kind, config, shapes)
    except TaskError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise TaskError(
            f"{folder / CONFIG}: transformers {transformers.__version__} cannot build it: {reason}. Models with code "
            "of their own (trust_remote_code) take a task file"
        ) from None
    labels = {} if fitted else _labels(config)
    auto = kind.auto
    about: dict[str, Any] = {"folder": literal(str(folder.resolve())), "auto": auto}
    about["classes"] = f", num_labels={classes}" if fitted else ""
    about["more"] = "    with_names_of_files(built)\n" if renamed else ""
    before = _RENAMED + "\n" if renamed else ""
    extra = (_REVERT,) if renamed else ()
    if kind.family == "images":
        spec.only()
        text = _PROCESSOR_CODE.format(folder=literal(str(_holding(_PROCESSOR, places, spec, "an image processor"))))
        imports = ("AutoConfig", "AutoImageProcessor", auto)
        text += "\n" + before + _MODEL.format(**about)
        return ModelPart("images", (_import(imports), *extra), text, classes, labels)
    spec.only("max_length")
    place = _holding(_TOKENIZER, places, spec, "a tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
    trimmed = (
        kind.family == "texts" and tokenizer.padding_side == "right" and "attention_mask" in tokenizer.model_input_names
    )
    if kind.family != "language" and tokenizer.pad_token is None:
        raise TaskError(f"{place}: its tokenizer has no padding token; set one and save it there")
    length = spec.number("max_length") or _length(tokenizer, config, kind.family)
    text = _TOKENIZER_CODE.format(folder=literal(str(place)), length=length)
    if trimmed:
        before += _TRIMMED + "\n"
        about["more"] += "    built.register_forward_pre_hook(without_padding, with_kwargs=True)\n"
    text += "\n" + before + _MODEL.format(**about)
    regression = kind.family == "texts" and classes == 1
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise TaskError(f"{folder / CONFIG}: several labels for one text take a task file with a metric for them")
    return ModelPart(
        kind.family,
        (_import(("AutoConfig", "AutoTokenizer", auto)), *extra),
        text,
        classes if kind.family in ("texts", "tokens") else None,
        labels,
        "mse" if regression else kind.metric,
        regression,
    )


def _import(names: Sequence[str]) -> str:
    return f"from transformers import {', '.join(sorted(names))}"


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / CONFIG)
    except ValueError as error:
        raise TaskError(f"{folder / CONFIG}: no JSON that can be read: {error}") from None
    if not isinstance(found, dict):
        raise TaskError(f"{folder / CONFIG}: expected a mapping; got {type(found).__name__}")
    return found


def _check_same(configs: Mapping[Path, dict[str, Any]]) -> None:
    """Raise TaskError where members name other architectures, or classes in another order."""
    first, expected = next(iter(configs.items()))
    for folder, found in configs.items():
        for entry in ("architectures", "id2label"):
            if found.get(entry) != expected.get(entry):
                raise TaskError(
                    f"{folder / CONFIG} and {first / CONFIG} differ in {entry!r}: {_short(found.get(entry))} and "
                    f"{_short(expected.get(entry))}. Their outputs do not mean the same; leave the odd ones out"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(folder: Path, config: Mapping[str, Any]) -> _Kind:
    architectures = config.get("architectures") or ()
    for name in architectures:
        for kind in KINDS:
            if str(name).endswith(kind.endings):
                return kind
    known = ", ".join(kind.words for kind in KINDS)
    named = ", ".join(map(str, architectures)) or "none"
    raise TaskError(f"{folder / CONFIG} names the architecture {named}; ready tasks are there for {known}")


def _against(transformers: Any, kind: _Kind, config: Any, shapes: Shapes) -> tuple[int, bool, bool]:
    """(classes of the checkpoints, by the rows of the head's weight; whether the config has another number of them;
    whether the model calls its tensors otherwise than the files do)."""
    import torch

    with torch.device("meta"):
        built = getattr(transformers, kind.auto).from_config(config, trust_remote_code=False)
    own = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    renamed = False
    if any(name not in shapes for name in own) and any(name not in own for name in shapes):
        in_files = _names_in_files(built)
        renamed = sum(name in shapes for name in in_files.values()) > sum(name in shapes for name in own)
        own = {in_files[name]: shape for name, shape in own.items()} if renamed else own
    classes = int(config.num_labels)
    if kind.family in ("choices", "language"):
        return classes, False, renamed
    odd = {name: tuple(shapes[name]) for name in own if name in shapes and tuple(shapes[name]) != own[name]}
    rows = {shape[0] if shape else 0 for shape in odd.values()}
    heads = all(own[name][:1] == (classes,) for name in odd)
    if odd and heads and len(rows) == 1:
        return int(rows.pop()), True, renamed
    return classes, False, renamed


def _names_in_files(built: Any) -> dict[str, str]:
    """{name in the model: name in its files}; the same where this transformers has no such thing."""
    state = built.state_dict()
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return {name: name for name in state}
    return {name: next(iter(revert_weight_conversion(built, {name: tensor}))) for name, tensor in state.items()}


def _labels(config: Any) -> dict[str, int]:
    """{name: index}; empty where the config only counts (LABEL_0, LABEL_1, ...)."""
    found = {str(name): int(index) for index, name in (config.id2label or {}).items()}
    return {} if all(name == f"LABEL_{index}" for name, index in found.items()) else found


def _holding(names: Sequence[str], places: Sequence[Path], spec: ModelSpec, what: str) -> Path:
    """The first of the members' folders, then of the folders around them, that holds one of these files."""
    for place in (*places, *dict.fromkeys(place.resolve().parent for place in places)):
        if any((place / name).is_file() for name in names):
            return place.resolve()
    raise TaskError(
        f"--model {spec.text}: no {what.split(' ', 1)[1]} in {places[0]} ({', '.join(names[:2])}, ...): save it there "
        f"(Trainer does with processing_class=...), or give a folder that has {what} and the config: --model hf:FOLDER"
    )


def _length(tokenizer: Any, config: Any, family: str) -> int:
    """Tokens that the model can take."""
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 512
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet"):
        most -= 2  # positions count from behind the padding's
    if tokenizer.model_max_length < _NO_LIMIT:
        most = min(most, tokenizer.model_max_length)
    return min(int(most), _LANGUAGE_LENGTH) if family == "language" else int(most)
