"""This machine: CPU or CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import psutil
import torch

from radin.data.batches import Batch, to_device
from radin.engine.forward import forward, outputs_of
from radin.errors import RadinError, TaskError

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Members share memory with the batch, its activations and the user's loader workers.
_SHARE_OF_MEMORY = 0.4


@dataclass(frozen=True)
class Device:
    """Runs models on one device.

    device: "auto" (CUDA if there is one), or any torch device. precision: "float32", or "bfloat16" / "float16" by
    autocast. batch_size: cut the user's batches to at most this many examples. members_at_once: how many members
    share one reading of the data; by default as many as fit in 40 % of the free memory.
    """

    device: torch.device
    precision: str = "float32"
    batch_size: int | None = None
    members_at_once: int | None = None

    @classmethod
    def create(
        cls,
        device: str = "auto",
        precision: str = "float32",
        batch_size: int | None = None,
        members_at_once: int | None = None,
    ) -> Device:
        """Raises RadinError for an unknown device, precision or a size below 1."""
        if precision not in PRECISIONS:
            raise RadinError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
        for name, number in (("batch size", batch_size), ("members at once", members_at_once)):
            if number is not None and number < 1:
                raise RadinError(f"{name} must be at least 1; got {number}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.device(device)
            torch.empty(1, device=place)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise RadinError(f"device {device!r} cannot be used here: {reason}") from None
        return cls(place, precision, batch_size, members_at_once)

    def capacity(self, bytes_per_member: int, members: int) -> int:
        """How many of ``members`` may share one reading of the data."""
        if self.members_at_once is not None:
            return min(self.members_at_once, members)
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = psutil.virtual_memory().available
        return max(1, min(members, int(free * _SHARE_OF_MEMORY) // max(bytes_per_member, 1)))

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on this engine's device, in evaluation mode."""
        return model.to(self.device).eval()

    @torch.inference_mode()
    def outputs(self, models: Sequence[torch.nn.Module], batch: Batch) -> list[torch.Tensor]:
        """Each model's outputs on one batch: float32 tensors (b, C) on the CPU. The batch is moved once."""
        inputs = to_device(batch.inputs, self.device)
        dtype = PRECISIONS[self.precision]
        results = []
        for model in models:
            with torch.autocast(self.device.type, dtype) if dtype else nullcontext():
                results.append(outputs_of(forward(model, inputs), batch.size).float())
        if len({tuple(r.shape) for r in results}) > 1:
            raise TaskError(f"the members return outputs of different shapes: {[tuple(r.shape) for r in results]}")
        return [r.cpu() for r in results]
