"""How far a run is, in lines for people."""

from __future__ import annotations

from radin.run.status import Best, RunStatus

_STATES = {
    "working": "a process works on it",
    "stopped": "stopped; its cook command goes on from here",
    "unfinished": "not finished; whether a process works on it cannot be told on this system",
    "finished": "finished",
    "damaged": "damaged",
}
_STAGES = {
    "members": "the members' passes",
    "search": "search",
    "choice": "choosing on the other half",
    "test": "test and shifts, and what is written at the end",
    "unknown": "not known",
}


def status_lines(status: RunStatus) -> list[str]:
    """What ``radin status`` prints."""
    state = _STATES[status.state]
    state += f" (process {status.process})" if status.process is not None else ""
    lines = [f"run:      {status.path}: {state}"]
    if status.stage != "finished":
        lines.append(f"stage:    {_STAGES[status.stage]}")
    if status.members is not None:
        lines.append(f"members:  {status.members_done} of {status.members} done")
    if status.budget is not None and status.spent is not None:
        text = f"passes:   {status.spent:.1f} of {status.budget:g} spent on soups, {status.left:.1f} left"
        lines.append(f"{text}; {status.started} soups started, {status.complete} fully evaluated, {status.open} open")
    if status.failed:
        lines.append(f"failed:   {status.failed} soups could not be evaluated")
    if status.best is not None:
        lines.append(f"best:     {_scored(status.best, status.metric)}")
    if status.best_single is not None and status.best != status.best_single:
        lines.append(f"          {_scored(status.best_single, status.metric)}, the best single")
    if status.seconds_left is not None and status.stage != "finished":
        lines.append(f"time:     about {_duration(status.seconds_left)} left for this stage")
    if status.idle is not None and status.stage != "finished":
        lines.append(f"written:  last {_duration(status.idle)} ago")
    return [*lines, *(f"damaged:  {problem}" for problem in status.problems)]


def _scored(best: Best, metric: str | None) -> str:
    error = f" ± {best.stderr:.4f}" if best.stderr == best.stderr else ""
    return f"{best.name}: {metric} {best.score:.4f}{error}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
