"""What 'radin check' found, for people."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from radin.diagnose.check import Checked, CheckedTask
from radin.errors import printable
from radin.report.sentences import size
from radin.report.tables import plain_table

_NAMED = 5


def check_parts(found: Checked) -> list[RenderableType]:
    """Everything 'radin check' shows: the members, what to know about them, the cost of a run, and a verdict."""
    pool, to_mean = found.pool, found.to_mean
    outliers = dict(found.spread.outliers) if found.spread is not None else {}
    columns = ["member", "size", "fingerprint"] + (["distance to the mean"] if to_mean else [])
    rows = []
    for k, member in enumerate(pool):
        row = [member.name, size(member.bytes), member.fingerprint[:12]]
        rows.append([*row, f"{to_mean[k]:.4f}" + (" (outlier)" if k in outliers else "")] if to_mean else row)
    title = f"{len(pool)} checkpoints, {len(pool.names)} tensors, {pool.parameters:,} parameters each"
    parts: list[RenderableType] = [plain_table(title, columns, rows)]
    if to_mean:
        parts.append("distances are shares of the norm of the mean weights; outliers harm an average")
    for finding in found.findings:
        if finding.level != "ok":
            style = (
                "bold red" if finding.level == "problem" else "bold yellow" if finding.level == "warning" else "bold"
            )
            parts.append(Text.assemble((f"{finding.level}: {finding.title}: ", style), printable(finding.sentence)))
    parts += [f"note: {dropped} has the same weights as {kept}; used once" for dropped, kept in pool.duplicates]
    parts += [f"note: {note}" for note in pool.notes]
    if found.task is not None:
        parts += _task_lines(found.task)
    parts.append(verdict(found))
    return parts


def verdict(found: Checked) -> str:
    """The last line: can they be averaged, and should they."""
    spread, names = found.spread, found.pool.member_names
    if spread is None:
        return (
            "these checkpoints have the same tensors; whether they were fine-tuned from one initialisation was not "
            "looked at (--distances does)"
        )
    if spread.unrelated:
        return (
            "averages of these will not work: the checkpoints have the same tensors, but they were not fine-tuned from "
            "one initialisation"
        )
    if len(spread.groups) > 1:
        sizes = ", ".join(str(len(group)) for group in spread.groups)
        return (
            f"averages across these will not work: the checkpoints come from {len(spread.groups)} training runs with "
            f"different initialisations ({sizes} members); average within one of them only"
        )
    if spread.outliers:
        shown = ", ".join(names[k] for k, _ in spread.outliers[:_NAMED])
        count, (_, times) = len(spread.outliers), spread.outliers[0]
        if count == 1:
            what = (
                f"{shown} is an outlier: {times:.1f} times as far from their mean as the median member. Try without it"
            )
        else:
            more = f" and {count - _NAMED} more" if count > _NAMED else ""
            what = (
                f"{shown}{more} are outliers: up to {times:.1f} times as far from their mean as the median member. "
                "Try without them"
            )
        return f"these checkpoints fit together; {what}, or see 'radin doctor'"
    return "these checkpoints can be averaged"


def _task_lines(task: CheckedTask) -> list[RenderableType]:
    lines: list[RenderableType] = [f"task: the model fits; {task.metric} over {task.classes} outputs"]
    if task.seconds_per_pass is not None:
        assert task.seconds_for_outputs is not None
        assert task.disk_for_outputs is not None
        lines.append(
            f"one pass over validation: about {task.seconds_per_pass:.1f} s in the model "
            f"({task.batches} batches); all members' outputs: about {task.seconds_for_outputs:.0f} s "
            f"and {size(task.disk_for_outputs)} of disk"
        )
        if task.calibration and task.batchnorm_layers:
            lines.append(
                "besides, every soup has its BatchNorm statistics estimated again over calibration(): a part of each "
                "pass that is not in this time"
            )
    return [*lines, *(f"note: {note}" for note in task.notes)]
