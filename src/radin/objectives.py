"""What ratios are learned by: smooth functions of a soup's outputs that stand for a metric. Higher is better.

Each is a mean over a batch's examples, of outputs (b, C) and targets (b, ...) as torch tensors. Softened accuracy and
cross-entropy at a free temperature do not change when all outputs are multiplied by a number: without that, the average
is drawn to members that are less sure, not to those that are right. Axis names: examples b, classes C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from radin.errors import TaskError
from radin.metrics import Metric
from radin.positions import UNCOUNTED
from radin.usercode import user_code

if TYPE_CHECKING:
    from torch import Tensor

SOFTENED, FREE = "softened accuracy", "cross-entropy, free temperature"
LOSS = "the metric's loss"
_MEANS = {
    "nll": "cross-entropy",
    "brier": "Brier score",
    "mse": "squared error",
    "r2": "squared error",
    "mae": "absolute error",
    "nll_calibrated": FREE,
}

SOFTNESS = 0.1
"""Of the mean size of a margin, over which an answer goes from wrong to right."""
_COLDEST, _HOTTEST = 0.02, 50.0  # temperatures, in mean sizes of a margin
_HALVINGS = 40


def objectives(metric: Metric) -> tuple[str, ...]:
    """What can be learned by for a metric: first for many examples, last for few. Empty where there is nothing.

    A metric of the user's has one where it gives ``loss``.
    """
    if metric.loss is not None:
        return (LOSS,)
    if metric.family in ("accuracy", "position_accuracy"):
        return (SOFTENED, FREE)
    if metric.family in ("balanced_accuracy", "macro_f1"):
        return (f"{SOFTENED} by class",)
    if metric.family == "mixture":
        return ("log-likelihood",)
    name = metric.family if metric.family in _MEANS else metric.name
    return (_MEANS[name],) if name in _MEANS else ()


def value(objective: str, metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor:
    """The objective of outputs (b, C) and targets (b, ...), one number that can be differentiated.

    By position, (P, C) and (P, 2), those that do not count are left out.

    Raises TaskError for an objective that the metric does not have.
    """
    import torch.nn.functional as F

    if objective not in objectives(metric):
        raise TaskError(f"nothing can be learned for metric {metric.name!r} by {objective!r}")
    if metric.loss is not None:
        with user_code(f"the loss of the metric {metric.name!r}"):
            found = metric.loss(outputs, targets)
        if getattr(found, "shape", None) is None or found.numel() != 1 or not found.requires_grad:
            raise TaskError(f"the loss of the metric {metric.name!r} must return one torch number that has a gradient")
        result: Tensor = -found.reshape(())
        return result
    if metric.by_position:
        counts = targets[:, 0] != UNCOUNTED
        outputs, targets = outputs[counts], targets[counts, 0]
    if objective == "log-likelihood":
        return outputs.mean()
    if objective in ("squared error", "absolute error"):
        wanted = targets.reshape(len(targets), -1).to(outputs.dtype)
        difference = outputs - wanted
        return -(difference.square() if objective == "squared error" else difference.abs()).mean()
    if objective == "cross-entropy":
        return -F.cross_entropy(outputs, targets)
    if objective == "Brier score":
        return -(outputs.softmax(dim=1) - F.one_hot(targets, outputs.shape[1])).square().sum(dim=1).mean()
    soft: Tensor
    margins, size = _margins(outputs, targets, metric.top)
    if objective == FREE:
        return -F.cross_entropy(outputs / (_temperature(outputs / size, targets) * size), targets)
    soft = (margins / (SOFTNESS * size)).sigmoid()
    if objective == SOFTENED:
        return soft.mean()
    classes, place = targets.unique(return_inverse=True)
    sums = soft.new_zeros(len(classes)).index_add(0, place, soft)
    by_class: Tensor = sums / place.bincount()
    return by_class.mean()


def _margins(outputs: Tensor, targets: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """By how much each true class exceeds the best of its rivals, or the ``top``-th best, (b,); and their mean size."""
    import torch

    truth = outputs.gather(1, targets[:, None])
    rivals = outputs.scatter(1, targets[:, None], -torch.inf)
    margins: Tensor = (truth - rivals.topk(top, dim=1).values[:, -1:])[:, 0]
    return margins, margins.abs().mean().clamp_min(torch.finfo(outputs.dtype).tiny)


def _temperature(outputs: Tensor, targets: Tensor) -> float:
    """The temperature with the least cross-entropy. As it is the least, the gradient need not pass through it."""
    import torch

    with torch.no_grad():
        logits = outputs.double()
        truth = logits.gather(1, targets[:, None]).mean()
        low, high = _COLDEST, _HOTTEST
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            # the slope of the loss by 1 / temperature, in which it is convex
            hotter = bool(((logits / middle).softmax(dim=1) * logits).sum(dim=1).mean() > truth)
            low, high = (middle, high) if hotter else (low, middle)
    return float((low * high) ** 0.5)
