"""What a doctor found, for people: findings by seriousness, then the members and the interpolations."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata

from rich.console import RenderableType
from rich.text import Text

from radin.diagnose.doctor import Diagnosis
from radin.diagnose.examine import ALPHAS, SliceReport, Soups
from radin.errors import printable
from radin.report.sentences import number
from radin.report.tables import plain_table

_HEADINGS = {
    "problem": ("problems", "bold red"),
    "warning": ("warnings", "bold yellow"),
    "note": ("notes", "bold"),
    "ok": ("in order", "bold green"),
}


def doctor_parts(found: Diagnosis) -> list[RenderableType]:
    """Everything 'radin doctor' shows."""
    parts: list[RenderableType] = []
    for level, (heading, style) in _HEADINGS.items():
        findings = [finding for finding in found.findings if finding.level == level]
        if findings:
            parts.append(Text(heading, style=style))
        for finding in findings:
            parts.append(Text.assemble("  ", (f"{finding.title}: ", "bold"), printable(finding.sentence)))
            if finding.advice:
                parts.append(Text(f"    → {printable(finding.advice)}"))
    explained = [finding.page for finding in found.findings if finding.level in ("problem", "warning")]
    if explained:
        pages = [f"{_documentation()}/{page}.md" for page in dict.fromkeys(explained)]
        parts.append(f"explained in the documentation: {', '.join(pages)}")
    parts.append("")
    parts.append(_members(found))
    if found.slice is not None and found.slice.soups is not None:
        parts.append(_interpolations(found, found.slice, found.slice.soups))
    return parts


def _documentation() -> str:
    """Where this version's documentation is: its address, where the package was built with one; else the folder."""
    with suppress(PackageNotFoundError):
        for entry in metadata("radin").get_all("Project-URL") or ():
            name, _, address = entry.partition(", ")
            if name == "Documentation":
                return str(address)
    return "docs"


def _members(found: Diagnosis) -> RenderableType:
    spread, seen = found.spread, found.slice
    outliers = dict(spread.outliers)
    groups = {k: place + 1 for place, group in enumerate(spread.groups) for k in group}
    several, agreement = len(spread.groups) > 1, seen.agreement if seen is not None else None
    columns = ["member", "distance to the mean"] + (["group"] if several else [])
    columns += [f"{seen.metric.name} on the slice"] if seen is not None else []
    columns += ["agreement"] if agreement is not None else []
    rows = []
    for k, member in enumerate(found.pool):
        row = [member.name, f"{spread.to_centre[k]:.4f}" + (f" ({outliers[k]:.1f} x)" if k in outliers else "")]
        row += [str(groups[k])] if several else []
        if seen is not None:
            score = seen.members[k]
            row.append("–" if score is None else number(score.score, score.stderr))
        if agreement is not None:
            shares = [share for j, share in enumerate(agreement[k].tolist()) if j != k and share == share]
            row.append(f"{sum(shares) / len(shares):.1%}" if shares else "–")
        rows.append(row)
    return plain_table(f"{len(rows)} members; distances are shares of the norm of the mean weights", columns, rows)


def _interpolations(found: Diagnosis, seen: SliceReport, soups: Soups) -> RenderableType:
    names = found.pool.member_names
    columns = ["from the best to", "its score", *(f"{alpha:g} of it" for alpha in ALPHAS), "barrier"]
    rows = []
    for path in soups.interpolations:
        end = names[path.second] + (" (farthest)" if path.farthest else "")
        scores = [number(score) for score in path.scores]
        rows.append([end, number(seen.score(path.second).score), *scores, number(path.barrier, path.barrier_stderr)])
    best = names[soups.interpolations[0].first]
    return plain_table(f"averages of two members, from {best}, the best on the slice", columns, rows)
