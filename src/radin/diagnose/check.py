"""What 'radin check' finds: do these checkpoints fit together, should they be averaged, what will a run cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radin.data.batches import length
from radin.data.task import Task, TaskText
from radin.engine.device import Device
from radin.progress import Progress
from radin.run.preflight import preflight
from radin.weights import Geometry, Pool, geometry
from radin.weights.spread import Spread, spread_of

if TYPE_CHECKING:
    from radin.report.findings import Finding

_BYTES = 4  # of one output on disk


@dataclass(frozen=True)
class CheckedTask:
    """What one batch of one member tells of a task.

    classes: columns of the outputs. first_batch: its examples. batches: of validation(), None where it has no length.
    seconds_per_pass: in the model, without loading the data. batchnorm_layers: those with running statistics.
    seconds: how long the check took.
    """

    metric: str
    members: int
    classes: int
    first_batch: int
    batches: int | None
    seconds_per_pass: float | None
    batchnorm_layers: int
    calibration: bool
    notes: tuple[str, ...]
    seconds: float

    @property
    def seconds_for_outputs(self) -> float | None:
        """For all members' outputs."""
        return self.seconds_per_pass * self.members if self.seconds_per_pass else None

    @property
    def disk_for_outputs(self) -> int | None:
        """Bytes of all members' outputs."""
        if not self.batches:
            return None
        return self.batches * self.first_batch * self.classes * _BYTES * self.members

    def to_json(self) -> dict[str, Any]:
        """The ``task`` of 'radin check --json'."""
        return {
            "metric": self.metric,
            "classes": self.classes,
            "first_batch": self.first_batch,
            "batches": self.batches,
            "seconds_per_pass": self.seconds_per_pass,
            "seconds_for_outputs": self.seconds_for_outputs,
            "disk_for_outputs": self.disk_for_outputs,
            "batchnorm_layers": self.batchnorm_layers,
            "calibration": self.calibration,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False)
class Checked:
    """What headers, content, distances and a batch tell. ``geometry``, ``spread``: None where not measured."""

    pool: Pool
    geometry: Geometry | None
    spread: Spread | None
    task: CheckedTask | None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What the distances mean, in the doctor's words."""
        from radin.report.findings import of_spread

        return () if self.spread is None else tuple(of_spread(self.pool, self.spread, with_task=False))

    @property
    def to_mean(self) -> list[float] | None:
        """Each member's distance to the mean of all, as a share of its norm."""
        if self.geometry is None:
            return None
        lengths: list[float] = np.sqrt(np.maximum(np.diag(self.geometry.gram), 0.0)).tolist()
        return [length / self.geometry.mean_norm if self.geometry.mean_norm > 0 else length for length in lengths]

    def to_json(self) -> dict[str, Any]:
        """The content of 'radin check --json'."""
        pool = self.pool
        found: dict[str, Any] = {
            "members": [
                {
                    "name": member.name,
                    "path": str(member.path),
                    "fingerprint": member.fingerprint,
                    "bytes": member.bytes,
                    "notes": list(member.notes),
                }
                for member in pool
            ],
            "tensors": len(pool.names),
            "parameters": pool.parameters,
            "duplicates": [{"dropped": str(dropped), "kept": str(kept)} for dropped, kept in pool.duplicates],
            "notes": list(pool.notes),
            "findings": [finding.to_json() for finding in self.findings],
        }
        if self.geometry is not None:
            found["distances"] = {
                "norm_of_mean": self.geometry.mean_norm,
                "to_mean": self.to_mean,
                "between": self.geometry.distances.tolist(),
            }
        if self.task is not None:
            found["task"] = self.task.to_json()
        return found


def check_pool(
    pool: Pool,
    task: str | Path | Task | TaskText | None,
    engine: Device,
    *,
    distances: bool = True,
    progress: Progress | None = None,
) -> Checked:
    """Check a pool, and with a task one batch. Raises RadinError for anything unfit; bad distances are findings."""
    shape = None
    if distances and len(pool) > 1:
        report = (lambda done, total: progress("distances", done, total)) if progress else None
        shape = geometry(pool, progress=report)
    spread = spread_of(shape) if shape is not None else None
    checked = _check_task(pool, Task.load(task), engine) if task is not None else None
    pool.require_several()
    return Checked(pool, shape, spread, checked)


def _check_task(pool: Pool, task: Task, engine: Device) -> CheckedTask:
    metric = task.get_metric()
    started = time.monotonic()
    checked = preflight(task, pool.shapes, pool[0].name, lambda: pool.tensors(0), engine, metric)
    first, classes = metric.examples(checked.first_targets), checked.first_outputs.shape[1]
    batches = length(task.batches("validation"))
    return CheckedTask(
        metric=metric.name,
        members=len(pool),
        classes=classes,
        first_batch=first,
        batches=batches,
        seconds_per_pass=checked.seconds_per_batch * batches if batches else None,
        batchnorm_layers=checked.batchnorm_layers,
        calibration=task.calibration is not None,
        notes=checked.notes,
        seconds=time.monotonic() - started,
    )
