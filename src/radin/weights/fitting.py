"""Whether checkpoints fit together: the same tensors, and floats to be averaged; and what their average is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from radin.errors import PoolError
from radin.weights.content import Content
from radin.weights.formats import Checkpoint
from radin.weights.layout import Shape, is_averaged, kind, promote, short

_SHOWN = 5


def common_dtypes(checkpoints: Sequence[Checkpoint]) -> dict[str, torch.dtype]:
    """Each tensor's dtype in an average: the one that holds all members' values; the first member's if copied."""
    first = checkpoints[0].dtypes
    return {
        name: promote(checkpoint.dtypes[name] for checkpoint in checkpoints) if is_averaged(dtype) else dtype
        for name, dtype in first.items()
    }


def common_aliases(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """{alias: kept name} of the tensors tied in every one of these checkpoints; the first name in order is kept."""
    kept: dict[tuple[str, ...], str] = {}
    aliases = {}
    for name in checkpoints[0].names:
        places = tuple(checkpoint.aliases.get(name, name) for checkpoint in checkpoints)
        if places in kept:
            aliases[name] = kept[places]
        else:
            kept[places] = name
    return aliases


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise PoolError unless all have the same names, shapes and kinds of dtype.

    The most common layout is taken as the expected one, so that the message names the odd one out.
    """
    layouts = [_layout(checkpoint) for checkpoint in checkpoints]
    common = Counter(layouts).most_common(1)[0][0]
    expected = checkpoints[layouts.index(common)]
    odd = [checkpoint for checkpoint, layout in zip(checkpoints, layouts, strict=True) if layout != common]
    if odd:
        others = f" ({len(odd) - 1} more of the {len(checkpoints)} do not fit either.)" if len(odd) > 1 else ""
        raise PoolError(_difference(odd[0], expected) + others)


def check_copied(checkpoints: Sequence[Checkpoint], contents: Sequence[Content]) -> None:
    """Raise PoolError where weights are integers: a soup would have one member's, whatever its recipe.

    Integer and bool tensors are copied, which is right for what all members share (position indices, masks) and for
    counters of one value (BatchNorm's number of batches). Those of several values that differ are weights in a
    quantized form, or say which weights are where: the average of the rest would be nobody's.
    """
    if not any(is_averaged(dtype) for dtype in checkpoints[0].dtypes.values()):
        names = _listed(checkpoints[0].names, "holds")
        raise PoolError(f"{checkpoints[0].path} {names}, none of floats: there is nothing to average")
    first = dict(contents[0].copied)
    differing: dict[str, Checkpoint] = {}
    for checkpoint, content in zip(checkpoints, contents, strict=True):
        for name, digest in content.copied:
            if digest != first.get(name, digest) and not _same_values(name, checkpoints[0], checkpoint):
                differing.setdefault(name, checkpoint)
    if differing:
        name, other = next(iter(differing.items()))
        raise PoolError(
            f"integers cannot be averaged, and {_listed(sorted(differing), 'there are')} of them that differ between "
            f"members ({name!r} is {short(other.dtypes[name])} and differs in {checkpoints[0].path} and {other.path}). "
            "If they are quantized weights, average the checkpoints from before quantization and quantize the soup; if "
            "a buffer that no result depends on, take it out of the state dicts."
        )
    _refuse_scaled(checkpoints[0])


def _same_values(name: str, one: Checkpoint, other: Checkpoint) -> bool:
    """Whether integers stored in different dtypes are equal; in the same dtype their hashes have decided."""
    if one.dtypes[name] == other.dtypes[name] or torch.uint64 in (one.dtypes[name], other.dtypes[name]):
        return False
    with one.open() as left, other.open() as right:
        return torch.equal(left[name].to(torch.int64), right[name].to(torch.int64))


def _refuse_scaled(checkpoint: Checkpoint) -> None:
    """Raise PoolError for float8 weights with scales beside them: the average of products is not that of factors."""
    scaled = [
        name
        for name, dtype in checkpoint.dtypes.items()
        if is_averaged(dtype)
        and dtype.itemsize == 1
        and any(name + ending in checkpoint.dtypes for ending in ("_scale", "_scale_inv"))
    ]
    if scaled:
        raise PoolError(
            f"{_listed(scaled, 'there are')} of float8 with a scale beside each in {checkpoint.path}: quantized "
            "weights, which cannot be averaged. Average the checkpoints from before quantization, then quantize that."
        )


def _layout(checkpoint: Checkpoint) -> tuple[tuple[str, Shape, str], ...]:
    return tuple((name, shape, kind(checkpoint.dtypes[name])) for name, shape in checkpoint.shapes.items())


def _difference(odd: Checkpoint, expected: Checkpoint) -> str:
    missing = [name for name in expected.names if name not in odd.shapes]
    unexpected = [name for name in odd.names if name not in expected.shapes]
    if missing or unexpected:
        parts = [_listed(names, what) for names, what in ((missing, "lacks"), (unexpected, "adds")) if names]
        return (
            f"{odd.path} does not fit {expected.path}: it {' and '.join(parts)}. "
            "All checkpoints must come from the same architecture."
        )
    for name in expected.names:
        for what, want, got in (
            ("shape", expected.shapes[name], odd.shapes[name]),
            ("dtype", short(expected.dtypes[name]), short(odd.dtypes[name])),
        ):
            if want != got and (what == "shape" or kind(expected.dtypes[name]) != kind(odd.dtypes[name])):
                return (
                    f"tensor {name!r} has {what} {got} in {odd.path}; expected {want} as in {expected.path}. "
                    "All checkpoints must come from the same architecture, with the same head."
                )
    raise AssertionError("the layouts differ in names, shapes or kinds")


def _listed(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{what} {len(names)} tensor{'s' * (len(names) > 1)} ({shown})"
