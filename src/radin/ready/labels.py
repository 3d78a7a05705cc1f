"""From what data call their classes to the indices of a model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from radin.errors import TaskError

_SHOWN = 8


def label_indices(
    found: Iterable[Any], names: Sequence[str] | None, classes: int | None, config: Mapping[str, int], where: str
) -> tuple[dict[Any, int], str | None]:
    """({label as in the data: index of the output}, what to say of it) for the distinct labels ``found``.

    names: of integer labels, where the data name them. classes: of the checkpoints; None where it is not known.
    config: {name: index} of the model, empty where it names none. Names go by the config where it has them all
    (whatever their case), else in sorted order. Raises TaskError where they do not fit.
    """
    distinct = sorted(set(found), key=lambda value: (isinstance(value, str), value))
    if not distinct:
        raise TaskError(f"{where}: no labels")
    if names:
        bad = [value for value in distinct if not 0 <= int(value) < len(names)]
        if bad:
            raise TaskError(f"{where}: label {bad[0]} is unknown; the {len(names)} names are {_listed(names)}")
        indices, note = _named(names, classes, config, where, ordered=True)
        return {index: indices[name] for index, name in enumerate(names)}, note
    if all(_is_integer(value) for value in distinct):
        wrong = [value for value in distinct if classes is not None and not 0 <= int(value) < classes]
        if wrong:
            raise TaskError(
                f"{where}: label {wrong[0]}, and the checkpoints have {classes} classes, 0 to {(classes or 0) - 1}"
            )
        if min(map(int, distinct)) < 0:
            raise TaskError(f"{where}: label {min(map(int, distinct))} is negative; classes count from 0")
        return {value: int(value) for value in distinct}, None
    texts = [value for value in distinct if isinstance(value, str) and value.strip()]
    if len(texts) != len(distinct):
        odd = next(value for value in distinct if value not in texts)
        raise TaskError(f"{where}: the label {odd!r} is neither a name nor a whole number")
    return _named(texts, classes, config, where, ordered=False)


def _named(
    names: Sequence[str], classes: int | None, config: Mapping[str, int], where: str, *, ordered: bool
) -> tuple[dict[Any, int], str | None]:
    by_config = {name.casefold(): index for name, index in config.items()}
    if len(by_config) == len(config) and names and all(name.casefold() in by_config for name in names):
        return {name: by_config[name.casefold()] for name in names}, None
    if classes is not None and len(names) != classes:
        has = f"the model's config names {_listed(list(config))}" if config else "the model's config names none"
        raise TaskError(
            f"{where}: {len(names)} classes ({_listed(names)}), and the checkpoints have {classes}; {has}. Which "
            "output stands for which class must be known: write it into the LABELS of the file that 'radin task' prints"
        )
    # Names of a dataset have an order of their own, which is the one that models are trained by.
    chosen = list(names) if ordered else sorted(names)
    said = ", ".join(f"{name} {index}" for index, name in enumerate(chosen[:_SHOWN]))
    more = f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else ""
    how = "in the order in which the data name them" if ordered else "in sorted order"
    return {name: index for index, name in enumerate(chosen)}, f"classes {how}: {said}{more}"


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return value.strip().lstrip("-").isdecimal()
    return isinstance(value, int)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
