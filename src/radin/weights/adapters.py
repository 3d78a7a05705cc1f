"""PEFT's LoRA adapters as they lie on disk: what each changes in its model, read from its tensors and its JSON.

An adapter adds s B A to each matrix W that it targets, with s = alpha / r, or alpha / sqrt(r) where it is
rank-stabilised (Hu et al. 2021, Kalajdzievski 2023). So what may be averaged is B A, and never A and B apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.errors import CheckpointError, PoolError
from radin.files import read_json
from radin.weights.formats import ADAPTER_FILES, Checkpoint, Reader, folder_file, open_checkpoint
from radin.weights.layout import Shape, count
from radin.weights.limits import METADATA_BYTES

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # PEFT's two wrappers around the model

_KINDS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
# q_proj.lora_A.weight as saved; q_proj.lora_A.default.weight as a PeftModel's own state dict has it.
_FACTOR = re.compile(rf"(?P<module>.+)\.(?P<kind>{'|'.join(_KINDS)})(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?")
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)")
_LAYER = re.compile(r"\.base_layer(?=\.)")  # the model's own layer, inside the one that PEFT puts around it

# What makes an adapter more than W + s B A, by its entry in the JSON.
_MORE = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
# Initialisations that leave the base's own weights as they are; pissa, olora, corda and loftq take something off them.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")
_PLAIN_KEY = re.compile(r"[\w.]+")
_ROWS = 1 << 22  # elements of a merged matrix computed at a time, in float64


@dataclass(frozen=True)
class Factors:
    """The two factors of one module's change: their names in the adapter's checkpoint, rank, and scale s."""

    a: str
    b: str
    rank: int
    scale: float
    embedding: bool


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter. factors: by module of the model. whole: {tensor of the model: its name in the checkpoint}, of
    what was trained whole, such as a new head."""

    folder: Path
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    factors: Mapping[str, Factors]
    whole: Mapping[str, str]

    @property
    def base(self) -> str:
        """The name or path of the model that it was trained on."""
        return str(self.config.get("base_model_name_or_path"))

    def saved_name(self, place: str) -> str:
        """What PEFT calls a tensor that was trained whole in an adapter's file."""
        return PREFIX + _SAVED.sub("", self.whole[place].removeprefix(PREFIX))


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether these are an adapter's own files, or hold factors like an adapter's."""
    return any(file.name in ADAPTER_FILES for file in checkpoint.files) or any(map(_is_factor, checkpoint.names))


def _is_factor(name: str) -> bool:
    return any(f".{kind}" in name for kind in _KINDS)


def refuse_factors(checkpoints: Iterable[Checkpoint]) -> None:
    """Raise PoolError where factors would be averaged one by one."""
    for checkpoint in checkpoints:
        if not is_adapter(checkpoint):
            continue
        why = f"{checkpoint.path} is an adapter: the average of its factors A and B is not that of their products B A. "
        if (_folder(checkpoint) / CONFIG).is_file():
            raise PoolError(
                why + "'radin average' on the adapters' folders averages the products and writes one adapter. With "
                "--base FOLDER, the model that they were trained on (in Python: Pool.open(..., base=FOLDER)), each "
                "is merged into it, and members are whole models, which can be evaluated and cooked."
            )
        raise PoolError(
            why + f"Give PEFT's own folders, which hold {CONFIG} beside the weights, or merge each adapter into its "
            "model first (PEFT: merge_and_unload)."
        )


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def adapter_of(checkpoint: Checkpoint) -> Adapter:
    """The adapter that these tensors are, by the JSON beside them. Raises CheckpointError unless it is plain LoRA."""
    folder = _folder(checkpoint)
    config = _config(folder)
    _require_plain(folder, config)
    factors: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in checkpoint.names:
        place = _SAVED.sub("", name.removeprefix(PREFIX))
        found = _FACTOR.fullmatch(place)
        if found is not None:
            factors.setdefault(found["module"], {})[found["kind"]] = name
        elif "lora_" in place or "token_adapter" in place:
            raise _not_plain(folder, f"it holds {name!r}")
        else:
            whole[_LAYER.sub("", place)] = name
    if not factors:
        raise CheckpointError(f"{folder}: no adapter: none of its {len(checkpoint.names)} tensors is a LoRA factor")
    read = {module: _factors(checkpoint, config, module, names) for module, names in factors.items()}
    return Adapter(folder, checkpoint, config, read, whole)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        found = read_json(path, METADATA_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not there; an adapter cannot be read without it. Copy it too.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not an adapter's configuration; expected a JSON object")
    return found


def _require_plain(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _not_plain(folder, f"its peft_type is {str(config.get('peft_type'))[:40]!r}")
    more = next((name for name in _MORE if config.get(name)), None)
    if more is not None:
        raise _not_plain(folder, f"it has {more}")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_INIT:
        raise _not_plain(
            folder, f"init_lora_weights {str(start)[:40]!r} changed its base; save it as PEFT says for such (LoRA form)"
        )


def _not_plain(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: not a plain LoRA adapter ({why}), and only such are W + s B A and can be averaged as products. "
        "Merge each adapter into its model with PEFT (merge_and_unload), save the models, and average those."
    )


def _factors(checkpoint: Checkpoint, config: Mapping[str, Any], module: str, names: Mapping[str, str]) -> Factors:
    folder = _folder(checkpoint)
    embedding = "lora_embedding_A" in names
    a, b = (names.get(kind) for kind in (_KINDS[2:] if embedding else _KINDS[:2]))
    if a is None or b is None or len(names) > 2:
        raise CheckpointError(f"{folder}: module {module!r} has {', '.join(names)}; expected one A and one B")
    rank = checkpoint.shapes[a][0] if checkpoint.shapes[a] else 0
    shape = checkpoint.shapes[b]
    if len(shape) > 2 and rank > shape[1] > 0 and rank % shape[1] == 0:
        raise CheckpointError(
            f"{folder}: module {module!r} is a convolution in {rank // shape[1]} groups, whose change is no product of "
            "the two matrices: it can neither be averaged nor merged (nor can PEFT)"
        )
    if len(shape) < 2 or rank < 1 or shape[1] != rank or math.prod(shape[2:]) != 1:
        raise CheckpointError(
            f"{folder}: the factors of {module!r} do not fit each other: A is {checkpoint.shapes[a]}, B is {shape}"
        )
    expected = _pattern(folder, config, "rank_pattern", module, config.get("r"))
    if expected != rank:
        raise CheckpointError(f"{folder}: module {module!r} has rank {rank}; {CONFIG} says {expected}")
    alpha = _pattern(folder, config, "alpha_pattern", module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{folder / CONFIG}: lora_alpha is {str(alpha)[:40]!r}; expected a number")
    return Factors(a, b, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), embedding)


def _pattern(folder: Path, config: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    """What a pattern gives a module. PEFT takes its keys for regular expressions; here they are module names' ends."""
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict) or not all(_PLAIN_KEY.fullmatch(str(key)) for key in patterns):
        raise CheckpointError(f"{folder / CONFIG}: {name} is not made of modules' names, as it must be to be read here")
    return next((value for key, value in patterns.items() if f".{module}".endswith(f".{key}")), default)


@dataclass(frozen=True, eq=False)
class Merged(Checkpoint):
    """A base model with an adapter merged into it, W + s B A rounded once to the base's dtype, as tensors are read."""

    base: Checkpoint
    adapter: Adapter
    _whole: Mapping[str, str]  # tensor of the base -> what takes its place
    _factors: Mapping[str, Factors]  # tensor of the base -> what is added to that

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the base and the adapter, whose JSON decides about its tensors too."""
        return (*self.base.files, *self.adapter.checkpoint.files, self.adapter.folder / CONFIG)

    @property
    def form(self) -> Checkpoint:
        """The base: the form of a whole model."""
        return self.base

    def stretch(self, name: str) -> None:
        """No tensor lies in a file as it is."""
        return

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """As Checkpoint's."""
        with ExitStack() as stack:
            base = stack.enter_context(self.base.open())
            factors = stack.enter_context(self.adapter.checkpoint.open())
            reader = _MergedReader(self, stack, base, factors)
            try:
                yield reader
            finally:
                reader.close()


class _MergedReader(Reader):
    def __init__(self, checkpoint: Merged, stack: ExitStack, base: Reader, factors: Reader) -> None:
        super().__init__(checkpoint, stack)
        self._merged, self._base, self._tensors = checkpoint, base, factors
        self._last: tuple[str, Tensor] | None = None  # a large tensor is asked for once for each of its pieces

    def __getitem__(self, name: str) -> Tensor:
        name = self._merged.aliases.get(name, name)
        weight = self._base[name]
        whole, factors = self._merged._whole.get(name), self._merged._factors.get(name)
        if whole is None and factors is None:
            return weight
        if self._last is None or self._last[0] != name:
            merged = weight if whole is None else self._tensors[whole].to(weight.dtype)
            if factors is not None:
                left, right = _sides(factors, self._tensors, tuple(weight.shape), self._merged.adapter.config)
                merged = _added(merged, left, right, factors.scale)
            self._last = (name, merged)
        return self._last[1]

    def close(self) -> None:
        self._last = None
        super().close()


def _sides(
    factors: Factors, tensors: Mapping[str, Tensor], shape: Shape, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Float64 (rows, r) and (r, columns) whose product is B A in the layout of a weight of this shape.

    Embeddings, and layers that store their matrix by input (GPT-2's Conv1D, fan_in_fan_out), have it transposed.
    """
    a = tensors[factors.a].double().reshape(factors.rank, -1)
    b = tensors[factors.b].double().reshape(-1, factors.rank)
    rows = shape[0]
    straight, turned = (rows == len(b) and count(shape) == len(b) * a.shape[1]), shape == (a.shape[1], len(b))
    if turned and (factors.embedding or bool(config.get("fan_in_fan_out")) or not straight):
        return a.T, b.T
    return b, a


def _added(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    result = torch.empty(weight.shape, dtype=weight.dtype)
    flat, rows = result.view(len(left), -1), weight.reshape(len(left), -1)
    step = max(1, _ROWS // flat.shape[1])
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        flat[part] = (rows[part].double() + scale * (left[part] @ right)).to(weight.dtype)
    return result


def merged(base: Checkpoint, adapter: Adapter) -> Merged:
    """The base with the adapter merged into it. Raises PoolError when the adapter is not one of this base's."""
    factors = {f"{module}.weight": found for module, found in adapter.factors.items()}
    targets = [*factors, *(name for name in adapter.whole if name not in factors)]
    missing = [name for name in targets if name not in base.shapes]
    if missing:
        raise PoolError(
            f"{adapter.folder}: {len(missing)} of the {len(targets)} tensors that it changes are not in the base "
            f"{base.path} (first {missing[0]}). --base must be the very model that was given to PEFT (the adapter "
            f"names {adapter.base!r}), its head included, saved by save_pretrained."
        )
    for name in targets:
        shape = base.shapes[name]
        whole = name not in adapter.whole or adapter.checkpoint.shapes[adapter.whole[name]] == shape
        if not whole or (name in factors and not _fits(adapter, factors[name], shape)):
            raise PoolError(f"{adapter.folder}: its change of {name!r} does not fit the base's shape {shape}")
    # A tensor that the adapter changes under a tied name changes under both: it is one in the model too.
    return Merged(
        path=adapter.folder,
        shapes=base.shapes,
        dtypes=base.dtypes,
        aliases=base.aliases,
        notes=(f"merged into {base.path}",),
        mapped=base.mapped and adapter.checkpoint.mapped,
        _files=base._files + adapter.checkpoint._files,
        _places=base._places,
        _listed=base._listed,
        base=base,
        adapter=adapter,
        _whole={base.aliases.get(name, name): stored for name, stored in adapter.whole.items()},
        _factors={base.aliases.get(name, name): found for name, found in factors.items()},
    )


def _fits(adapter: Adapter, factors: Factors, shape: Shape) -> bool:
    a, b = adapter.checkpoint.shapes[factors.a], adapter.checkpoint.shapes[factors.b]
    columns, rows = count(a) // factors.rank, b[0]
    return (bool(shape) and shape[0] == rows and count(shape) == rows * columns) or shape == (columns, rows)


def as_members(checkpoints: list[Checkpoint], base: str | Path | None) -> list[Checkpoint]:
    """The same as members of a pool: adapters merged into ``base``, and refused where there is none."""
    if base is None:
        refuse_factors(checkpoints)
        return checkpoints
    whole = open_checkpoint(base)
    if is_adapter(whole):
        raise PoolError(
            f"{base}: is an adapter itself; --base is the folder of the model that adapters were trained on"
        )
    adapters = [adapter_of(found) if is_adapter(found) else None for found in checkpoints]
    if not any(adapters):
        raise PoolError(
            f"--base {base} is for adapters; none of the {len(checkpoints)} checkpoints is one. Leave it out."
        )
    require_one_base([adapter for adapter in adapters if adapter is not None])
    return [
        found if adapter is None else merged(whole, adapter)
        for found, adapter in zip(checkpoints, adapters, strict=True)
    ]


def require_one_base(adapters: Sequence[Adapter]) -> None:
    """Raise PoolError unless all were trained on one model."""
    first = adapters[0]
    for other in adapters[1:]:
        if other.base != first.base:
            raise PoolError(
                f"{other.folder} was trained on {other.base!r}; expected {first.base!r} as {first.folder} was: "
                "adapters of different base models cannot be averaged. If it is one model under two names, write "
                f"the same base_model_name_or_path into each {CONFIG}."
            )


def is_adapter_path(path: Path) -> bool:
    """Whether a path that was found is an adapter's folder or file, by its name."""
    file = folder_file(path) if path.is_dir() else path
    return file is not None and file.name in ADAPTER_FILES
