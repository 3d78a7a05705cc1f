"""This machine's device: the CPU, CUDA, or any other that torch knows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from radin.checks import whole_number
from radin.data.batches import Batch, rows_between, to_device
from radin.engine.forward import OutOfMemoryError, memory_errors
from radin.engine.rows import PLAIN, Rows
from radin.errors import RadinError, TaskError, printable
from radin.memory import free_memory

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Members share memory with the batch, its activations and the user's loader workers.
_SHARE_OF_MEMORY = 0.4

_LOG = logging.getLogger("radin")


class TooLittleMemoryError(RadinError):
    """Not even one example fits beside the models that are in memory."""


@dataclass(frozen=True)
class Device:
    """Runs models on one device.

    device: "auto" (CUDA if there is one), or any torch device. precision: "float32", or "bfloat16" / "float16" by
    autocast. batch_size: cut the user's batches to at most this many examples. members_at_once: how many members
    share one reading of the data; by default as many as fit in 40 % of the free memory. A batch that does not fit in
    the device's memory is halved until it does, and so are those after it; ``notes`` says so.
    """

    device: torch.device
    precision: str = "float32"
    batch_size: int | None = None
    members_at_once: int | None = None
    _fits: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _said: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

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
            if number is not None:
                whole_number(name, number, 1)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.device(device)
            torch.zeros(1, device=place).item()  # a place that computes, which "meta" is not
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise RadinError(f"device {device!r} cannot be used here: {reason}") from None
        return cls(place, precision, batch_size, members_at_once)

    @property
    def name(self) -> str:
        """What kind of device it is: "cpu", or a GPU by its model; on another one outputs differ by more."""
        if self.device.type != "cuda":
            return self.device.type
        return f"cuda, {torch.cuda.get_device_name(self.device)}"

    def capacity(self, bytes_per_member: int, members: int) -> int:
        """How many of ``members`` may share one reading of the data."""
        if self.members_at_once is not None:
            return min(self.members_at_once, members)
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()
        return max(1, min(members, int(free * _SHARE_OF_MEMORY) // max(bytes_per_member, 1)))

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on this engine's device, in evaluation mode."""
        return model.to(self.device).eval()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found out about the device's memory, in sentences."""
        return tuple(self._said.values())

    def fitting(self, work: str) -> int | None:
        """The largest batch for this work ("outputs" or "calibration"), as far as is known; None: no limit."""
        return self._fits.get(work, self.batch_size)

    @property
    def said(self) -> dict[str, str]:
        """The notes, by what they are about."""
        return dict(self._said)

    def say(self, key: str, note: str) -> None:
        """Add to the notes, and to the log, once for each key."""
        if key not in self._said:
            self._said[key] = note
            _LOG.warning(printable(note))

    def forget(self, work: str) -> None:
        """Batches may be larger again: what filled the memory beside them is gone."""
        self._fits.pop(work, None)

    def halve(self, examples: int, work: str) -> None:
        """A batch of so many examples did not fit: use half from now on. Raises RadinError when it was one example."""
        if examples <= 1:
            raise TooLittleMemoryError(
                f"device {str(self.device)!r} has too little memory for a single example: use a device with more, "
                "--precision bfloat16, or fewer models side by side (--members-at-once 1, --jobs 1)"
            )
        self._fits[work] = examples // 2
        release = getattr(getattr(torch, self.device.type, None), "empty_cache", None)
        if release is not None:
            release()

    def fitted(self, work: str) -> None:
        """A batch did fit after all: say once what size."""
        if work in self._fits:
            self.say(
                work,
                f"a batch did not fit in the memory of device {str(self.device)!r}; batches of at most "
                f"{self._fits[work]} examples are used for the {work}",
            )

    def outputs(self, models: Sequence[torch.nn.Module], batch: Batch, rows: Rows | None = None) -> list[torch.Tensor]:
        """Each model's rows of outputs on one batch: float32 tensors (b, C) on the CPU. The batch is moved once.

        ``rows``: how they are made of what a model returns; by default one of each example.

        In several parts where it does not fit. Raises RadinError when a single example does not.
        """
        parts: list[list[torch.Tensor]] = []
        start = 0
        while start < batch.size:
            stop = min(start + (self.fitting("outputs") or batch.size), batch.size)
            part = batch if stop - start == batch.size else rows_between(batch, start, stop)
            try:
                parts.append(self._outputs(models, part, rows or PLAIN))
            except OutOfMemoryError:
                pass  # the memory is free again only after this block, with the error's frames
            else:
                self.fitted("outputs")
                start = stop
                continue
            self.halve(part.size, "outputs")
        return parts[0] if len(parts) == 1 else [torch.cat(found) for found in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _outputs(self, models: Sequence[torch.nn.Module], batch: Batch, rows: Rows) -> list[torch.Tensor]:
        dtype = PRECISIONS[self.precision]
        results = []
        with memory_errors(batch.size):
            inputs = to_device(batch.inputs, self.device)
            for model in models:
                with torch.autocast(self.device.type, dtype) if dtype else nullcontext():
                    results.append(rows.outputs(model, inputs, batch))
        if len({tuple(r.shape) for r in results}) > 1:
            raise TaskError(f"the members return outputs of different shapes: {[tuple(r.shape) for r in results]}")
        return [r.cpu() for r in results]
