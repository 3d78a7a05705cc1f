"""The doctor: what is the matter with a pool, in plain sentences with numbers and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radin.checks import whole_number
from radin.data.task import Task, TaskText
from radin.diagnose.examine import ALPHAS, History, SliceReport, examine_run, examine_slice
from radin.engine.device import Device
from radin.engine.load import check_fits
from radin.progress import Progress, logged
from radin.weights import Pool, batchnorm_layers
from radin.weights.spread import Spread, spread

if TYPE_CHECKING:
    from radin.report.findings import Finding

__all__ = ["Diagnosis", "doctor"]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was measured: of the weights, of a ``slice`` of the data, of a ``run``. Its ``findings`` say what it means.

    calibration: whether the task has calibration(); None without a task.
    """

    pool: Pool
    spread: Spread
    slice: SliceReport | None
    run: History | None
    calibration: bool | None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """In sentences with numbers and what to do, the most serious first."""
        from radin.report.findings import findings

        return findings(self)

    def to_json(self) -> dict[str, Any]:
        """The content of 'radin doctor --json'. Indices count the members in the pool's order; None where not known."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "members": [self._member(k) for k in range(len(self.pool))],
            "weights": {
                "distances": self.spread.distances.tolist(),
                "cosines": self.spread.cosines.tolist(),
                "typical": self.spread.typical,
                "groups": [list(group) for group in self.spread.groups],
                "outliers": [{"member": k, "times": times} for k, times in self.spread.outliers],
                "alike": [list(pair) for pair in self.spread.alike],
                "unrelated": self.spread.unrelated,
                "duplicates": [{"dropped": str(d), "kept": str(k)} for d, k in self.pool.duplicates],
                "batchnorm_layers": len(batchnorm_layers(self.pool)),
            },
            "slice": None if self.slice is None else _slice_json(self.slice),
            "run": None if self.run is None else _run_json(self.run),
        }

    def _member(self, k: int) -> dict[str, Any]:
        member, found = self.pool[k], self.slice.members[k] if self.slice else None
        return {
            "name": member.name,
            "path": str(member.path),
            "fingerprint": member.fingerprint,
            "to_centre": float(self.spread.to_centre[k]),
            "score": _number(found.score) if found else None,
            "stderr": _number(found.stderr) if found else None,
        }


def doctor(
    pool: Pool | str | Path | Iterable[str | Path],
    task: Task | TaskText | str | Path | None = None,
    run: str | Path | None = None,
    *,
    examples: int = 1000,
    device: str = "auto",
    precision: str = "float32",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Explain a pool: what its weights tell, with a task a slice of the data, with a run directory how that has gone.

    pool: a Pool, or what Pool.open takes. task: a Task, or what Task.load takes; the members, a few interpolations and
    the uniform soup are scored on the first ``examples`` of validation(), one model in memory at a time. run: a run
    directory of ``cook`` over this pool. device, precision, batch_size: as in ``cook``. progress: called with
    (what, done, total or None).

    Raises RadinError (one of its children) for what cannot be examined at all; a bad pool is a finding.
    """
    whole_number("examples, how much of validation() to look at,", examples, 2)
    progress = logged(progress)
    engine = Device.create(device, precision, batch_size)
    loaded = Task.load(task) if task is not None else None
    if not isinstance(pool, Pool):
        pool = Pool.open(pool, progress=lambda done, total: progress("reading checkpoints", done, total))
    pool.require_several()
    if loaded is not None:
        loaded.get_metric()
        check_fits(loaded.build_model(), pool.shapes, pool[0].name)
    history = examine_run(Path(run), pool, loaded) if run is not None else None
    shape = spread(pool, progress=progress)
    seen = examine_slice(loaded, pool, shape, examples, engine, progress) if loaded is not None else None
    return Diagnosis(pool, shape, seen, history, None if loaded is None else loaded.calibration is not None)


def _slice_json(seen: SliceReport) -> dict[str, Any]:
    soups = seen.soups
    return {
        "metric": {"name": seen.metric.name, "higher_is_better": seen.metric.higher_is_better},
        "examples": seen.examples,
        "classes": seen.classes,
        "classes_seen": seen.classes_seen,
        "broken": {str(k): reason for k, reason in seen.broken.items()},
        "agreement": None
        if seen.agreement is None
        else [[_number(share) for share in row] for row in seen.agreement.tolist()],
        "soups": soups
        and {
            "members": list(soups.usable),
            "uniform": {"score": _number(soups.together.score), "stderr": _number(soups.together.stderr)},
            "ensemble": {"score": _number(soups.ensemble.score), "stderr": _number(soups.ensemble.stderr)},
            "core": soups.core and {"score": _number(soups.core.score), "stderr": _number(soups.core.stderr)},
            "subset": {"members": list(soups.subset), "estimate": _number(soups.promised)},
            "alphas": list(ALPHAS),
            "interpolations": [
                {**vars(path), "scores": [_number(score) for score in path.scores]}
                | {
                    name: _number(getattr(path, name))
                    for name in ("barrier", "barrier_stderr", "below", "below_stderr")
                }
                for path in soups.interpolations
            ],
        },
    }


def _run_json(found: History) -> dict[str, Any]:
    return {**vars(found), "path": str(found.path)}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
