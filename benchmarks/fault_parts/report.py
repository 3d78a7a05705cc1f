"""The counts as tables, and a line for each thing that must not be."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fault_parts import failing, flips, fuzz, kills
from benchmarks.fault_parts.soak import Soaked

if TYPE_CHECKING:
    from benchmarks.faults import Found

_SOAK = "## Half an hour of kills"


def complaint(one: Any) -> str:
    """What went wrong with one trial, and how to have it again; empty where nothing did."""
    if isinstance(one, kills.Killed) and (one.lost or one.different or one.crash):
        what = one.crash or "; ".join(one.different) or f"{one.lost} evaluations made again"
        return f"kill: {one.kind}, seed {one.seed}, {', then '.join(one.places)}: {what}"
    if isinstance(one, failing.Failed) and one.verdict not in ("endured", "refused"):
        return f"fault: {one.verdict}: {one.kind}, {one.what}, {one.error}: {one.why}"
    if isinstance(one, flips.Flipped) and (one.silent or one.verdict == "crash"):
        return f"flip: {one.verdict}: {one.state}, {one.file}, byte {one.byte}, bit {one.bit}: {one.why[:300]}"
    if isinstance(one, fuzz.Fuzzed) and one.verdict == "crash":
        return f"fuzz: {one.reader}, {one.label}: {one.why}"
    return ""


def text(found: Found) -> str:
    """All counts, as Markdown."""
    return "\n".join(_tables(found))


def _tables(found: Found) -> list[str]:
    summary = found.summary()
    lines = ["| " + " | ".join(summary) + " |", "|" + "---:|" * len(summary)]
    lines += ["| " + " | ".join(f"{value:,}" for value in summary.values()) + " |", ""]
    lines += [f"{note[0].upper()}{note[1:]}." for note in found.notes]
    lines += [_seconds(found.seconds), ""]
    if found.kills:
        lines += [
            "## Kills",
            "",
            "| kind of run | runs | kills | lost | different | not resumed |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for kind in dict.fromkeys(one.kind for one in found.kills):
            mine = [one for one in found.kills if one.kind == kind]
            row = (len(mine), sum(o.kills for o in mine), sum(o.lost for o in mine))
            row += (sum(bool(o.different) for o in mine), sum(bool(o.crash) for o in mine))
            lines.append(f"| {kind} | " + " | ".join(map(str, row)) + " |")
        lines += ["", "| place of the kill | kills |", "|---|---:|"]
        lines += [f"| {place} | {count} |" for place, count in kills.tally(found.kills).most_common()] + [""]
    if found.faults:
        rows = failing.tally(found.faults)
        lines += _matrix("Faults", "cause", rows, ("endured", "refused", "misleading", "crash", "lost", "different"))
    if found.flips:
        columns = ("same", "refused", "unnamed", "left damaged", "other result", "crash")
        lines += _matrix("Flipped bits", "file", flips.tally(found.flips), columns)
    if found.fuzz:
        slowest = {one.reader: 0.0 for one in found.fuzz}
        for one in found.fuzz:
            slowest[one.reader] = max(slowest[one.reader], one.seconds)
        counts = fuzz.tally(found.fuzz)
        lines += [
            "## Fuzzed readers",
            "",
            "| reader | read | refused | crash | slowest, s |",
            "|---|---:|---:|---:|---:|",
        ]
        for reader, seconds in slowest.items():
            row = " | ".join(f"{counts[reader, verdict]:,}" for verdict in ("ok", "refused", "crash"))
            lines.append(f"| {reader} | {row} | {seconds:.2f} |")
        lines.append("")
    return lines


def _matrix(title: str, first: str, counts: Counter[tuple[str, str]], columns: tuple[str, ...]) -> list[str]:
    lines = [f"## {title}", "", f"| {first} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in sorted({name for name, _ in counts}):
        lines.append(f"| {name} | " + " | ".join(str(counts[name, column]) for column in columns) + " |")
    return [*lines, ""]


def _seconds(seconds: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    return f"Seconds: {parts}."


def soak_text(table: Soaked) -> str:
    """The table of a soak."""
    columns = ("minute", "sessions", "kills", "finished", "memory at the first answer, MB", "most memory, MB")
    columns += ("open files", "run directory, MB", "files in it", "cache, MB")
    lines = [
        f"{table.kills} kills in {table.sessions} sessions, {table.finished} runs of {table.members} members and a "
        f"budget of {table.budget} finished; {table.different} ended otherwise than undisturbed, {table.lost} "
        f"evaluations were lost, {table.crashes} sessions failed.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---:|" * len(columns),
    ]
    for row in table.rows:
        values = (f"{row.minute:.0f}", row.sessions, row.kills, row.finished, f"{row.at_start:.0f}", f"{row.most:.0f}")
        values += (row.open_files, f"{row.disk:.2f}", row.files, f"{row.cache:.2f}")
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines)


def write(path: Path, *, found: Found | None = None, soak: Soaked | None = None) -> None:
    """Replace the part of the file that was measured anew; the other stays."""
    before = path.read_text() if path.exists() else ""
    head, _, tail = before.partition(_SOAK)
    if found is not None:
        head = "\n".join(["# radin broken from outside", "", _machine(), "", text(found)]).rstrip() + "\n\n"
    if soak is not None:
        tail = "\n\n" + _machine() + "\n\n" + soak_text(soak) + "\n"
    path.write_text(head + (_SOAK + tail if tail else ""))


def _machine() -> str:
    import numpy
    import torch

    import radin

    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cpu = next(iter(re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())), platform.machine())
    return (
        f"`python benchmarks/faults.py`, radin {radin.__version__} at {done.stdout.strip() or '?'}, {cpu}, "
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, numpy {numpy.__version__}."
    )
