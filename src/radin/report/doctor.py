"""What a doctor found, for people: findings by seriousness, then the members and the interpolations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from radin.report.tables import number, plain_table

Json = Mapping[str, Any]

_HEADINGS = {
    "problem": ("problems", "bold red"),
    "warning": ("warnings", "bold yellow"),
    "note": ("notes", "bold"),
    "ok": ("in order", "bold green"),
}


def doctor_parts(found: Json) -> list[RenderableType]:
    """Everything 'radin doctor' shows, from its JSON form."""
    parts: list[RenderableType] = []
    for level, (heading, style) in _HEADINGS.items():
        findings = [finding for finding in found["findings"] if finding["level"] == level]
        if findings:
            parts.append(Text(heading, style=style))
        for finding in findings:
            parts.append(Text.assemble("  ", (f"{finding['title']}: ", "bold"), finding["sentence"]))
            if finding["advice"]:
                parts.append(Text(f"    → {finding['advice']}"))
    parts.append("")
    parts.append(_members(found))
    if found["slice"] and found["slice"]["soups"]:
        parts.append(_interpolations(found))
    return parts


def _members(found: Json) -> RenderableType:
    outliers = {entry["member"]: entry["times"] for entry in found["weights"]["outliers"]}
    groups = {k: place + 1 for place, group in enumerate(found["weights"]["groups"]) for k in group}
    columns = ["member", "distance to the mean"]
    columns += ["group"] if len(found["weights"]["groups"]) > 1 else []
    columns += [f"{found['slice']['metric']['name']} on the slice"] if found["slice"] else []
    columns += ["agreement"] if found["slice"] and found["slice"]["agreement"] else []
    rows = []
    for k, member in enumerate(found["members"]):
        cells = {
            "member": member["name"],
            "distance to the mean": f"{member['to_centre']:.4f}" + (f" ({outliers[k]:.1f} x)" if k in outliers else ""),
            "group": str(groups[k]),
            "agreement": _agreement(found, k),
        }
        rows.append([cells.get(column, number(member["score"], member["stderr"])) for column in columns])
    return plain_table(f"{len(rows)} members; distances are shares of the norm of the mean weights", columns, rows)


def _agreement(found: Json, k: int) -> str:
    """A member's mean share of examples on which it gives the same class as another."""
    if not found["slice"] or not found["slice"]["agreement"]:
        return ""
    row = found["slice"]["agreement"][k]
    shares = [share for j, share in enumerate(row) if j != k and share is not None]
    return f"{sum(shares) / len(shares):.1%}" if shares else "–"


def _interpolations(found: Json) -> RenderableType:
    soups, names = found["slice"]["soups"], [member["name"] for member in found["members"]]
    columns = ["from the best to", "its score", *(f"{alpha:g} of it" for alpha in soups["alphas"]), "barrier"]
    rows = []
    for path in soups["interpolations"]:
        end = names[path["second"]] + (" (farthest)" if path["farthest"] else "")
        score = number(found["members"][path["second"]]["score"])
        rows.append([end, score, *map(number, path["scores"]), number(path["barrier"], path["barrier_stderr"])])
    best = names[soups["interpolations"][0]["first"]]
    return plain_table(f"averages of two members, from {best}, the best on the slice", columns, rows)
