"""The average of LoRA adapters as one adapter: of the products of their matrices, exact or at a rank of your choice."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radin.errors import PoolError, printable
from radin.files import replacing_folder, told
from radin.recipe import Recipe
from radin.weights.adapters import CONFIG, PREFIX, Adapter, adapter_of, is_adapter, require_one_base
from radin.weights.alike import companions, require_replaceable
from radin.weights.formats import Reader, open_checkpoint
from radin.weights.layout import is_averaged, promote
from radin.weights.members import Members
from radin.weights.paths import short_names
from radin.weights.remembered import remembered_content
from radin.weights.saving import FOLDER_METADATA, write_safetensors

_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class AdapterMember:
    """One adapter. fingerprint: of its tensors and the scales that its JSON gives them."""

    name: str
    path: Path
    fingerprint: str
    adapter: Adapter


class Adapters(Members[AdapterMember]):
    """N LoRA adapters of one base, one rank and the same modules, no two the same."""

    @classmethod
    def open(
        cls, paths: Sequence[Path], *, found: Sequence[str] = (), progress: Callable[[int, int], None] | None = None
    ) -> Adapters:
        """The adapters at these paths (``find_checkpoints``); ``found``: what to say of the search for them.

        Raises PoolError when they do not fit together, CheckpointError when one is damaged or not plain LoRA.
        """
        checkpoints = [open_checkpoint(path) for path in paths]
        other = next((one for one in checkpoints if not is_adapter(one)), None)
        if other is not None:
            raise PoolError(
                f"{other.path} is no adapter, as others are that were given: average adapters with adapters, or give "
                "--base FOLDER to merge them into their model first"
            )
        adapters = [adapter_of(one) for one in checkpoints]
        _require_alike(adapters)
        total, done = sum(one.bytes for one in checkpoints), 0

        def report(read: int) -> None:
            nonlocal done
            done += read
            if progress is not None:
                progress(done, total)

        first: dict[str, Adapter] = {}
        duplicates = []
        for adapter in adapters:
            scales = sorted((module, factors.scale) for module, factors in adapter.factors.items())
            content = remembered_content(adapter.checkpoint, report).fingerprint
            digest = hashlib.sha256(json.dumps([content, scales]).encode()).hexdigest()
            if digest in first:
                duplicates.append((adapter.folder, first[digest].folder))
            else:
                first[digest] = adapter
        names = short_names([adapter.folder for adapter in first.values()])
        members = [
            AdapterMember(name, adapter.folder, digest, adapter)
            for name, (digest, adapter) in zip(names, first.items(), strict=True)
        ]
        return cls(members, duplicates, found)


def _require_alike(adapters: Sequence[Adapter]) -> None:
    """Raise PoolError unless base, modules, ranks and what was trained whole are the same."""
    require_one_base(adapters)
    first = adapters[0]
    expected = {module: (found.rank, found.embedding) for module, found in first.factors.items()}
    for other in adapters[1:]:
        got = {module: (found.rank, found.embedding) for module, found in other.factors.items()}
        for what, left, right in (
            ("target modules", expected.keys(), got.keys()),
            ("tensors trained whole", first.whole.keys(), other.whole.keys()),
        ):
            if left != right:
                names = ", ".join(sorted(left ^ right)[:3])
                raise PoolError(f"{other.folder} has other {what} than {first.folder}: {names} in one of them alone")
        module = next((module for module in expected if expected[module] != got[module]), None)
        if module is not None:
            raise PoolError(
                f"{other.folder} has rank {got[module][0]} in {module!r}; expected {expected[module][0]} as in "
                f"{first.folder}. Adapters of different ranks are not averaged; with --base FOLDER each is merged into "
                "the model that they were trained on, where ranks do not matter."
            )
        for one, theirs in _shapes(first).items():
            if _shapes(other).get(one) != theirs:
                raise PoolError(f"{other.folder}: {one!r} is {_shapes(other).get(one)}; expected {theirs}")
        if bool(first.config.get("fan_in_fan_out")) != bool(other.config.get("fan_in_fan_out")):
            raise PoolError(f"{other.folder} and {first.folder} do not agree in fan_in_fan_out")


def _shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    shapes = adapter.checkpoint.shapes
    found = {f"{module}: {part}": shapes[name] for module, f in adapter.factors.items() for part, name in _names(f)}
    return found | {place: shapes[name] for place, name in adapter.whole.items()}


def _names(factors: Any) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("A", factors.a), ("B", factors.b)


@dataclass(frozen=True)
class AveragedAdapter:
    """One adapter, ready to be written. error: how far an SVD took it from the exact average, as a share of its
    Frobenius norm over all modules; None where it is exact. ranks: the largest and smallest rank of its modules."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    error: float | None
    ranks: tuple[int, int]


def average_adapters(
    pool: Adapters, recipe: Recipe, *, rank: int | None = None, like: Adapter | None = None
) -> AveragedAdapter:
    """sum_k p_k s_k B_k A_k of each module, as one pair of factors with scale 1; the rest averaged plainly.

    Exact by laying the factors side by side: B' = [p_1 s_1 B_1, ...] and A' = [A_1; ...], of rank n r for n members.
    ``rank``: the best approximation of this rank instead (Eckart and Young 1936), where it is smaller. Sums are in
    float64, rounded once to the members' dtype. ``like``: whose other settings the result has. A recipe's groups name
    modules of the model; a module's n are the members that have a ratio in it. Raises PoolError for a group without.
    """
    used = [(pool[k].adapter, k) for k in recipe.members]
    like = like or used[0][0]
    _require_held(recipe, [*(f"{module}.weight" for module in like.factors), *like.whole])
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    lost = norm = 0.0
    with ExitStack() as stack:
        read = [(stack.enter_context(adapter.checkpoint.open()), adapter, k) for adapter, k in used]

        def shares(name: str) -> list[tuple[Reader, Adapter, float]]:
            ratios = recipe.of(name)
            return [(reader, adapter, ratios[k]) for reader, adapter, k in read if ratios[k]]

        for module, found in like.factors.items():
            mixed = [(reader, adapter.factors[module], p) for reader, adapter, p in shares(f"{module}.weight")]
            parts_a = [reader[f.a] for reader, f, _ in mixed]
            parts_b = [reader[f.b] for reader, f, _ in mixed]
            scaled = [b.double() * (p * f.scale) for b, (_, f, p) in zip(parts_b, mixed, strict=True)]
            a, b = torch.cat([part.double() for part in parts_a]), torch.cat(scaled, dim=1)
            if rank is not None and rank < len(a):
                a, b, short, whole = _reduced(a, b, rank)
                lost, norm = lost + short, norm + whole
            ranks[module] = len(a)
            dtype = promote(part.dtype for part in (*parts_a, *parts_b))
            kind, end = ("lora_embedding_", "") if found.embedding else ("lora_", ".weight")
            tensors[f"{PREFIX}{module}.{kind}A{end}"] = a.to(dtype).contiguous()
            tensors[f"{PREFIX}{module}.{kind}B{end}"] = b.to(dtype).contiguous()
        for place in like.whole:
            values = [(reader[adapter.whole[place]], p) for reader, adapter, p in shares(place)]
            tensors[like.saved_name(place)] = _plain_average(place, *map(list, zip(*values, strict=True)))
    error = None if norm == 0.0 else math.sqrt(lost / norm)
    return AveragedAdapter(tensors, _config(like, ranks), error, (max(ranks.values()), min(ranks.values())))


def _require_held(recipe: Recipe, names: Sequence[str]) -> None:
    held = {recipe.group_of(name) for name in names}
    if idle := [group.name for group in recipe.groups if group.name not in held]:
        raise PoolError(
            f"the recipe's group {printable(idle[0])} names no module that the adapters change; they change "
            f"{', '.join(map(printable, names[:3]))}{', ...' * (len(names) > 3)}"
        )


def _plain_average(place: str, values: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    if not is_averaged(values[0].dtype):
        if any(not torch.equal(values[0], value) for value in values[1:]):
            raise PoolError(f"{place!r} holds integers that differ between the adapters: they cannot be averaged")
        return values[0].clone()
    total = sum(
        (value.double() * ratio for value, ratio in zip(values, ratios, strict=True)), torch.tensor(0.0).double()
    )
    return total.to(promote(value.dtype for value in values))


def _reduced(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best factors of this rank of b @ a; the squared Frobenius norm of what is lost, and of the product."""
    left, right = b.reshape(len(b), -1), a.reshape(len(a), -1)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T)
    squares = values.square()
    root, found = values[:rank].sqrt(), min(rank, len(values))
    new_b, new_a = left.new_zeros(len(left), rank), right.new_zeros(rank, right.shape[1])
    new_b[:, :found] = q_left @ u[:, :found] * root
    new_a[:found] = root[:, None] * (v[:found] @ q_right.T)
    return (
        new_a.reshape(rank, *a.shape[1:]),
        new_b.reshape(len(b), rank, *b.shape[2:]),
        float(squares[rank:].sum()),
        float(squares.sum()),
    )


def _config(like: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The member's configuration with the ranks of the average, and alpha = r so that its scale is 1."""
    most = max(ranks.values(), key=list(ranks.values()).count)
    odd = {module: rank for module, rank in ranks.items() if rank != most}
    changed = {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "use_rslora": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    return {**like.config, **changed}


def save_adapter(found: AveragedAdapter, like: Adapter, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a folder that PeftModel.from_pretrained opens, whole or not at all; a folder that radin wrote is replaced.

    Files of ``like``'s folder that are not weights, such as a tokenizer's, are copied.
    """
    require_replaceable(path)
    needs = sum(tensor.numel() * tensor.dtype.itemsize for tensor in found.tensors.values())
    with told(path, needs=needs), replacing_folder(path) as temporary:
        for source in companions(like.folder):
            target = temporary / source.relative_to(like.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        file = temporary / _FILE
        file.touch()
        mode = file.stat().st_mode
        write_safetensors(found.tensors, file, metadata)
        file.chmod(mode)  # safetensors puts a file of its own there, which only the owner may read
        (temporary / CONFIG).write_text(json.dumps(found.config, indent=2) + "\n", encoding="utf-8")
        (temporary / FOLDER_METADATA).write_text(json.dumps(dict(metadata), indent=2) + "\n", encoding="utf-8")
