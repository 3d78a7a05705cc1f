"""Whether a model gives the same outputs again, up to rounding; and where in it they begin to differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves

# By how much two runs of one model may differ, as a share of the largest output: several times what threads, batch
# sizes, memory formats and other kernels of one machine were seen to make of it (docs/numbers.md has the figures).
ROUNDING = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
# The same where the device is another one, or not known: GPUs multiply float32 with the digits of float16 (TF32).
_ANOTHER_DEVICE = {"float32": 5e-3, "bfloat16": 2e-2, "float16": 5e-3}
_STORED = {"float32": 0.0, "float16": 2.0**-11}


@dataclass(frozen=True)
class Difference:
    """Two outputs for the same inputs that rounding does not explain.

    largest: difference, in the outputs' units; scale: the largest output; answers: examples whose largest output is
    another one, of ``examples``.
    """

    largest: float
    scale: float
    answers: int
    examples: int

    def __str__(self) -> str:
        text = f"they differ by up to {self.largest:.3g}, where the largest output is {self.scale:.3g}"
        return f"{text}, and {self.answers} of {self.examples} answers are others" if self.answers else text


def tolerance(precision: str, *, same_device: bool = True, stored: str = "float32") -> float:
    """The share of the largest output by which two runs may differ. stored: the dtype that one of them was kept in."""
    return (ROUNDING if same_device else _ANOTHER_DEVICE)[precision] + _STORED[stored]


def difference(before: NDArray[Any], now: NDArray[Any], share: float) -> Difference | None:
    """How two outputs (b, C) of one model on one batch differ by more than a share of the largest; None: not at all."""
    first, second = before.astype(np.float64), now.astype(np.float64)
    scale = float(np.abs(first).max(initial=0.0))
    largest = float(np.abs(first - second).max(initial=0.0))
    if largest <= share * scale:  # False for NaN
        return None
    answers = int((first.argmax(axis=1) != second.argmax(axis=1)).sum()) if first.shape[1] > 1 else 0
    return Difference(largest, scale, answers, len(first))


def undecided(outputs: NDArray[Any], targets: NDArray[Any], top: int, share: float) -> NDArray[np.bool_]:
    """Which examples (b,) a difference of a share of the largest output may turn from right to wrong, or back.

    outputs (b, C), targets (b,) class indices; right: the target is among the ``top`` largest outputs.
    """
    rows = np.arange(len(outputs))
    others = outputs.astype(np.float64)
    mine = others[rows, targets]
    others[rows, targets] = -np.inf
    rivals = np.sort(others, axis=1)[:, -top] if top < outputs.shape[1] else np.full(len(outputs), -np.inf)
    result: NDArray[np.bool_] = np.abs(mine - rivals) <= 2 * share * np.abs(outputs).max(initial=0.0)
    return result


def close_calls(outputs: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """At which rows (b,) a difference of a share of the largest output may make another output the largest one."""
    best = np.partition(outputs.astype(np.float64), -2, axis=1)
    result: NDArray[np.bool_] = best[:, -1] - best[:, -2] <= 2 * share * np.abs(outputs).max(initial=0.0)
    return result


def origin(model: torch.nn.Module, run: Callable[[], object]) -> str:
    """Where outputs that differ from one ``run`` of the model to the next come from, in a sentence; runs it twice."""
    training = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if name and m.training]
    if training:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        return (
            f"These are in training mode though the model was put in evaluation mode: {', '.join(training[:3])}{more}."
        )
    first, second = _calls(model, run), _calls(model, run)
    for (name, kind, given, result), (_, _, given_again, result_again) in zip(first, second, strict=False):
        if given != given_again:
            return (
                f"The inputs of {name or 'the model'} ({kind}) differ: what comes before it in the forward is random."
            )
        if result != result_again:
            where = f"{name} ({kind})" if name else f"the forward of the model itself ({kind})"
            return f"The first that gives other outputs for the same inputs is {where}."
    return ""


def _calls(model: torch.nn.Module, run: Callable[[], object]) -> list[tuple[str, str, bytes, bytes]]:
    """Each module called, innermost first: its name, type, and digests of what it was given and what it gave."""
    calls: list[tuple[str, str, bytes, bytes]] = []

    def watch(name: str, module: torch.nn.Module) -> Any:
        def called(_: Any, args: Any, kwargs: Any, result: Any) -> None:
            calls.append((name, type(module).__name__, _digest((args, kwargs)), _digest(result)))

        return module.register_forward_hook(called, with_kwargs=True)

    handles = [watch(name, module) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _digest(value: Any) -> bytes:
    digest = hashlib.sha256()
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            digest.update(leaf.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()
