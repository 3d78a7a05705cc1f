"""A Slurm queue, through submitit: a job array whose jobs pull work from the run's folder.

Slurm only starts processes; what they do, and what comes back, goes through the folder (``queue_folder``), which must
lie on a file system that this machine and all nodes share.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radin.checks import whole_number
from radin.engine.crew import Cluster, Crew, Plan
from radin.engine.queue_crew import Jobs, QueueCrew
from radin.engine.queue_folder import Timing
from radin.engine.queue_worker import serve
from radin.errors import RadinError, TaskError

_EXECUTORS = ("slurm", "local")
_PATIENCE = 60.0  # seconds that a command of Slurm's may take
_LOG_LINES = 15
_LOG_BYTES = 20_000


@dataclass(frozen=True)
class Slurm(Cluster):
    """Workers that are jobs of a Slurm queue. The run's folder must lie where all nodes see it.

    workers: how many jobs at once. partition: of the queue. time_minutes: how long one worker's job may run; where work
    is left it is submitted again. gpus_per_worker, cpus_per_worker, memory_gb: what each gets. executor: "local" runs
    the same jobs as processes of this machine, to try things out. parameters: any of submitit's for Slurm, such as
    {"slurm_account": "me", "slurm_qos": "low", "slurm_setup": ["module load cuda"]}. patience_minutes: how long to wait
    for a worker while there is none. timing: how often the two sides look at each other's files, in seconds.

    Raises RadinError for settings that cannot be.
    """

    workers: int | None = None
    partition: str | None = None
    time_minutes: int = 60
    gpus_per_worker: int = 0
    cpus_per_worker: int = 1
    memory_gb: float | None = None
    executor: str = "slurm"
    parameters: Mapping[str, object] = field(default_factory=dict)
    patience_minutes: float = 60
    timing: Timing = field(default=Timing(), repr=False)

    name = "slurm"

    def __post_init__(self) -> None:
        if self.workers is not None:
            whole_number("workers", self.workers, 1, 4096)
        whole_number("time_minutes, what one worker's job may take,", self.time_minutes, 1)
        whole_number("gpus_per_worker", self.gpus_per_worker, 0, 64)
        whole_number("cpus_per_worker", self.cpus_per_worker, 1, 4096)
        if self.executor not in _EXECUTORS:
            raise RadinError(f"executor must be one of {', '.join(_EXECUTORS)}; got {self.executor!r}")
        for what, number in (("memory_gb", self.memory_gb), ("patience_minutes", self.patience_minutes)):
            if number is not None and not number > 0:
                raise RadinError(f"{what} must be above 0; got {number!r}")
        for given in self.parameters:
            if not str(given).startswith("slurm_"):
                raise RadinError(
                    f"parameters are those that submitit has for Slurm, such as slurm_account; got {given!r}"
                )

    def crew(self, plan: Plan, folder: Path) -> Crew:
        """Submit the jobs. ``folder``: the run's; the queue is its folder ``slurm``."""
        where = folder.absolute() / "slurm"
        try:
            import cloudpickle  # type: ignore[import-untyped]  # one of submitit's own needs
            import submitit
        except ImportError:
            raise RadinError("a Slurm queue is used through submitit: pip install submitit") from None
        try:
            pickled = cloudpickle.dumps(plan)
        except Exception as error:
            raise TaskError(
                f"this task cannot be sent to other machines ({error}): give it as a file or a module"
            ) from None
        logging.getLogger("submitit").setLevel(logging.ERROR)
        jobs = _Jobs(self, submitit, where / "logs")
        return QueueCrew(
            self.count(),
            plan,
            pickled,
            where,
            jobs,
            threads=self.cpus_per_worker,
            patience=60 * self.patience_minutes,
            timing=self.timing,
        )


class _Jobs(Jobs):
    """submitit's jobs. What they print is in ``logs``; what they return is never read, as it would be unpickled."""

    def __init__(self, asked: Slurm, submitit: Any, logs: Path) -> None:
        self._asked, self._submitit, self._logs = asked, submitit, logs
        self._on_slurm = asked.executor == "slurm"
        self.pace = 10.0 if self._on_slurm else 0.3
        self._jobs: dict[str, Any] = {}
        self._all: dict[str, Any] = {}
        self._why: dict[str, str] = {}

    def submit(self, queue: Path, digest: str, count: int) -> list[str]:
        """A job array of so many. Raises RadinError where Slurm is not here, or refuses."""
        try:
            executor = self._submitit.AutoExecutor(folder=self._logs, cluster=self._asked.executor)
            executor.update_parameters(**self._parameters())
            with executor.batch():
                jobs = [executor.submit(_start, str(queue), digest) for _ in range(count)]
        except (NameError, AssertionError, ValueError, TypeError) as error:
            raise RadinError(f"submitit does not take these parameters: {error}") from None
        except (RuntimeError, OSError) as error:
            if "srun" in str(error) and "detect" in str(error):
                raise RadinError(
                    "Slurm's commands (sbatch, srun) are not found here: give the command on a machine from which jobs "
                    'are submitted, or try it on this one (executor="local")'
                ) from None
            raise RadinError(f"Slurm refused the jobs: {error}") from None
        named = {str(job.job_id): job for job in jobs}
        self._jobs |= named
        self._all |= named
        return list(named)

    def _parameters(self) -> dict[str, Any]:
        asked = self._asked
        given: dict[str, Any] = {
            "name": "radin",
            "timeout_min": asked.time_minutes,
            "cpus_per_task": asked.cpus_per_worker,
            "gpus_per_node": asked.gpus_per_worker or None,
            "mem_gb": asked.memory_gb,
        }
        if self._on_slurm:
            given["slurm_partition"] = asked.partition
            # From 22.05 on srun does not take it from the job.
            given["slurm_srun_args"] = [f"--cpus-per-task={asked.cpus_per_worker}"]
        return {name: value for name, value in given.items() if value is not None} | dict(asked.parameters)

    def ended(self) -> dict[str, str]:
        """Those that Slurm does not list any more, or lists as ended."""
        ended = self._ended_on_slurm() if self._on_slurm else self._ended_here()
        for job in ended:
            del self._jobs[job]
        return ended

    def _ended_here(self) -> dict[str, str]:
        states = {name: job.state for name, job in self._jobs.items()}
        return {name: state.lower() for name, state in states.items() if state != "RUNNING"}

    def _ended_on_slurm(self) -> dict[str, str]:
        """By squeue, which every Slurm has; sacct needs a data base that not all have."""
        if not self._jobs:
            return {}
        listed = _squeue(sorted({name.split("_")[0] for name in self._jobs}))
        if listed is None:  # the controller does not answer now
            return {}
        self._why = {name: f"{state} ({why})" for name, (state, why) in listed.items()}
        over = {name: listed[name][0] for name in self._jobs if name in listed and listed[name][0] in _OVER}
        gone = {name: "the queue lists it no more" for name in self._jobs if name not in listed}
        return {name: state.lower().replace("_", " ") for name, state in over.items()} | gone

    def about(self) -> str:
        """How those that are left are."""
        if not self._jobs:
            return "none of its jobs is left"
        shown = [f"job {name}: {self._why.get(name, 'submitted')}" for name in list(self._jobs)[:3]]
        more = len(self._jobs) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

    def log(self, job: str) -> str:
        """The last lines of what a job printed as errors."""
        if job not in self._all:
            return ""
        with suppress(OSError), open(self._all[job].paths.stderr, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            lines = file.read().decode(errors="replace").rstrip().splitlines()
            return "\n".join(lines[-_LOG_LINES:])
        return ""

    def cancel(self) -> None:
        """All that are left, with one command."""
        if self._on_slurm and self._jobs:
            with suppress(OSError, subprocess.SubprocessError):
                command = ["scancel", *sorted({name.split("_")[0] for name in self._jobs})]
                subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)
        elif not self._on_slurm:
            for process in [job._process for job in self._jobs.values()]:
                # Passed on to the worker, which ends; submitit's own way has its process print a traceback here.
                process.terminate()
            until = time.monotonic() + _CLOSING
            for job in self._jobs.values():
                try:
                    job._process.wait(max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    job.cancel(check=False)
                    with suppress(subprocess.TimeoutExpired):
                        job._process.wait(_CLOSING)
        self._jobs.clear()


_CLOSING = 3.0  # seconds that a job on this machine has to end by itself
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip


def _squeue(jobs: list[str]) -> dict[str, tuple[str, str]] | None:
    """job -> (state, reason) of those in the queue, elements of an array each by itself; None: nobody answers."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(jobs)}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return None
    if told.returncode:
        return {} if "Invalid job id" in told.stderr else None
    lines = [line.strip().split("|") for line in told.stdout.splitlines()]
    return {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}


def _start(queue: str, digest: str) -> None:
    """What a job runs."""
    import submitit

    serve(queue, digest, str(submitit.JobEnvironment().job_id))
