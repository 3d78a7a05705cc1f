"""What a model returns for a batch, as rows: one per example, or one per position that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radin.data.batches import Batch
from radin.data.task import Task, user_code
from radin.engine.forward import forward, memory_errors, outputs_of, tensor_of
from radin.errors import OutputsError, TaskError
from radin.metrics import Metric, check_labels, get
from radin.positions import UNCOUNTED, counted

_AT_ONCE = 1 << 24  # numbers of which the softmax is taken together
_BELOW = 30.0  # how far below an example's lowest choice those lie that it does not have


@dataclass(frozen=True)
class Rows:
    """``call``: the task's outputs(model, inputs), where calling the model is not enough."""

    metric: Metric
    call: Callable[[torch.nn.Module, Any], Any] | None = None

    @classmethod
    def of(cls, task: Task) -> Rows:
        """Of a task's metric and outputs()."""
        return cls(task.get_metric(), task.outputs)

    def targets(self, batch: Batch, first: int = 0) -> NDArray[Any]:
        """The batch's targets on the CPU, (b, ...), or (P, 2) by position; ``first``: its first example's number."""
        assert batch.targets is not None
        if not self.metric.by_position:
            return batch.targets.cpu().numpy()
        return counted(self._labels(batch), self.metric.ignore_index, first)[1]

    def outputs(self, model: torch.nn.Module, inputs: Any, batch: Batch) -> torch.Tensor:
        """The model's rows on the inputs, which are the batch's on its device: float32, (b, C) or (P, C) or (P, 1).

        Raises TaskError when they are of another form than the metric and the targets.
        """
        result = forward(model, inputs) if self.call is None else self._called(model, inputs, batch.size)
        if not self.metric.by_position:
            rows = outputs_of(result, batch.size).float()
            return _without_gaps(rows) if self.metric.choices else rows
        assert batch.targets is not None
        labels = self._labels(batch)
        places, targets = counted(labels, self.metric.ignore_index, 0)
        dense = self._by_position(tensor_of(result), batch)
        check_labels(self.metric, targets[:, 0], dense.shape[-1])
        flat = dense.reshape(-1, dense.shape[-1])
        at = torch.from_numpy(places).to(flat.device)
        if not self.metric.target_only:
            return flat[at].float()
        chosen = torch.from_numpy(np.maximum(targets[:, :1], 0).astype(np.int64)).to(flat.device)
        step = max(1, _AT_ONCE // flat.shape[1])
        found = [
            flat[part].float().log_softmax(dim=1).gather(1, label)
            for part, label in zip(at.split(step), chosen.split(step), strict=True)
        ]
        result_rows = torch.cat(found)
        result_rows[torch.from_numpy(targets[:, 0] == UNCOUNTED).to(flat.device)] = 0
        return result_rows

    def _called(self, model: torch.nn.Module, inputs: Any, examples: int) -> Any:
        assert self.call is not None
        with user_code("outputs()"), memory_errors(examples):
            return self.call(model, inputs)

    def _labels(self, batch: Batch) -> NDArray[Any]:
        """The class at each position, (b, L), that the outputs there are to say."""
        assert batch.targets is not None
        if batch.targets.ndim < 2 or batch.targets.is_floating_point() or not batch.targets[0].numel():
            raise TaskError(
                f"metric {self.metric.name!r} needs a class index at each position, integers (examples, tokens) or "
                f"(examples, height, width); the targets are {batch.targets.dtype} {tuple(batch.targets.shape)}"
            )
        labels: NDArray[Any] = batch.targets.cpu().numpy().reshape(batch.size, -1)
        if self.metric.target_only and self._repeats(batch):
            # A causal language model's labels, as transformers takes them: the output at a token says the next one.
            ignored = np.full((batch.size, 1), self.metric.ignore_index, labels.dtype)
            return np.concatenate([labels[:, 1:], ignored], axis=1)
        return labels

    def _repeats(self, batch: Batch) -> bool:
        """Whether the labels are the inputs themselves wherever they count."""
        given = batch.inputs.get("input_ids") if isinstance(batch.inputs, Mapping) else batch.inputs
        labels = batch.targets
        if not isinstance(given, torch.Tensor) or labels is None or given.shape != labels.shape:
            return False
        counts = labels != self.metric.ignore_index
        return not given.is_floating_point() and bool((given.to(labels.device) == labels)[counts].all())

    def _by_position(self, found: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Outputs (b, T, C) of targets (b, T), or (b, C, H, W) of (b, H, W), as (b, ..., C)."""
        assert batch.targets is not None
        shape = tuple(batch.targets.shape)
        if len(shape) == 3 and found.ndim == 4:
            if found.shape[2:] != shape[1:]:  # at a coarser resolution, as transformers' segmentation models give them
                found = torch.nn.functional.interpolate(
                    found.float(), size=shape[1:], mode="bilinear", align_corners=False
                )
            found = found.permute(0, 2, 3, 1)
        if found.shape[:-1] != shape:
            raise TaskError(
                f"metric {self.metric.name!r} needs outputs at each position of the targets: (b, T, C) for targets "
                f"(b, T), or (b, C, H, W) for (b, H, W); the model returns {tuple(found.shape)}, the targets are "
                f"{shape}"
            )
        return found


def _without_gaps(rows: torch.Tensor) -> torch.Tensor:
    """Outputs (b, C) with what marks a choice that an example does not have, -inf or NaN, in numbers that never win.

    Each lies 30 below the lowest that the example has, so that it stays below it in every average of members.
    """
    gaps = rows.isnan() | rows.isneginf()
    if not bool(gaps.any()):
        return rows
    if bool(gaps.all(dim=1).any()):
        raise OutputsError("an example has no choice at all: all its outputs are -inf or NaN")
    lowest = rows.masked_fill(gaps, torch.inf).amin(dim=1, keepdim=True) - _BELOW
    return torch.where(gaps, lowest, rows)


def widened(rows: NDArray[Any], columns: int) -> NDArray[Any]:
    """Outputs of choices (b, C) with columns for more that these examples do not have, (b, columns)."""
    more = columns - rows.shape[1]
    if more <= 0:
        return rows
    return np.concatenate([rows, np.repeat(rows.min(axis=1, keepdims=True) - _BELOW, more, axis=1)], axis=1)


def joined(parts: list[NDArray[Any]], metric: Metric) -> NDArray[Any]:
    """Rows of one batch after the other as one array."""
    if metric.choices:
        columns = max(part.shape[1] for part in parts)
        parts = [widened(part, columns) for part in parts]
    return np.concatenate(parts)


PLAIN = Rows(get("accuracy"))
"""One row of each example, by calling the model."""
