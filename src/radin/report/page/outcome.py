"""What the chosen soup bought, as the page shows it: by class, in tiers, on other data. Axis names: examples M."""

from __future__ import annotations

import math

import numpy as np

from radin.errors import OutputsError
from radin.outputs.files import open_targets
from radin.question import Answer
from radin.recipe import Recipe
from radin.report.page.soups import Rows, code, known
from radin.run.record import RunRecord
from radin.run.result import Result
from radin.stats.paired import paired_difference, unpaired_difference

CLASSES = 40  # that the picture has room for
TIERED = 30  # soups that are compared


def by_class(record: RunRecord, winner: Recipe) -> Rows:
    """Examples that the winner has better, and worse, than what it had to beat, by class, the most changed first.

    Empty where there are no classes, no values per example, or where no soup won.
    """
    reference, single = record.reference
    answer = record.scores.get(winner)
    if winner == reference or answer is None or answer.values is None or single.values is None:
        return []
    try:
        targets = np.asarray(open_targets(record.path / "outputs" / "targets.safetensors"))
    except OutputsError:
        return []
    shapes = {targets.shape, answer.values.shape, single.values.shape}
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer) or len(shapes) > 1:
        return []
    sign = 1 if record.metric.higher_is_better else -1
    gain = sign * (answer.values - single.values)
    found = []
    for label in np.unique(targets):
        of = gain[targets == label]
        found.append((int(label), int((of > 0).sum()), int((of < 0).sum()), len(of)))
    found.sort(key=lambda row: (-(row[1] + row[2]), row[0]))
    rows: Rows = []
    for label, won, lost, count in found[:CLASSES]:
        rows.append({"class": str(label), "count": won, "what": "won", "signed": won, "of": count})
        rows.append({"class": str(label), "count": lost, "what": "lost", "signed": -lost, "of": count})
    return rows


def tiers(record: RunRecord) -> Rows:
    """The best soups and what they had to beat, in tiers of what cannot be told apart.

    The best begins the first tier. Each that follows is in it unless its 95% interval against the one that began it
    leaves out zero (paired where there are values per example); that one begins the next. Many comparisons are made, so
    the boundaries are rather too eager.
    """
    reference, single = record.reference
    found = [*known(record)[:TIERED], (reference, single)]
    utility = record.metric.utility
    found = [pair for pair in found if math.isfinite(pair[1].score)]
    found.sort(key=lambda pair: -utility(pair[1].score))
    rows: Rows = []
    tier, leader = 0, None
    for place, (recipe, answer) in enumerate(found, start=1):
        if leader is None or _apart(record, answer, leader):
            tier, leader = tier + 1, answer
        error = answer.stderr if math.isfinite(answer.stderr) else 0.0
        rows.append(
            {
                "place": place,
                "tier": f"tier {tier}",
                "score": float(f"{answer.score:.6g}"),
                "low": float(f"{answer.score - error:.6g}"),
                "high": float(f"{answer.score + error:.6g}"),
                "members": recipe.size,
                "what": "best single member" if recipe == reference else "soup",
                "recipe": code(recipe),
            }
        )
    return rows


def _apart(record: RunRecord, one: Answer, leader: Answer) -> bool:
    higher = record.metric.higher_is_better
    if one.values is not None and leader.values is not None and one.values.shape == leader.values.shape:
        return not paired_difference(one.values, leader.values, higher).inside_noise
    examples = min(one.examples, leader.examples)
    if examples < 1 or not (math.isfinite(one.stderr) and math.isfinite(leader.stderr)):
        return False
    pair = (one.score, one.stderr), (leader.score, leader.stderr)
    return not unpaired_difference(*pair, examples, higher).inside_noise


def other_data(result: Result) -> Rows:
    """Best single, uniform and chosen soup on test, on shifts, and on further sets that a program scored."""
    models = [("best single", result.best_single), ("uniform soup", result.uniform), ("chosen", result.best)]
    rows: Rows = []
    for name, scored in models:
        sets = {"validation": (scored.score, scored.stderr), **scored.splits, **scored.further}
        for split, (score, stderr) in sets.items():
            if score is None or not math.isfinite(score):
                continue
            error = stderr if stderr is not None and math.isfinite(stderr) else 0.0
            row = {"set": split.removeprefix("shifts/"), "model": name, "score": float(f"{score:.6g}")}
            rows.append(row | {"low": float(f"{score - error:.6g}"), "high": float(f"{score + error:.6g}")})
    return rows if len({row["set"] for row in rows}) > 1 else []
