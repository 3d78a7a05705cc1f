"""What the distances between the members say, and why no soup beat the best single member."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radin.metrics import Metric
from radin.run.result import Scored
from radin.weights import Pool
from radin.weights.spread import Spread, spread

_BROKEN_PROMISE = 2.0  # standard errors between estimate and truth
_NAMED = 5


def reasons_for_no_gain(
    pool: Pool, evaluations: Sequence[Scored], metric: Metric, *, batchnorm_layers: int, calibrated: bool
) -> tuple[str, ...]:
    """Plain sentences, the likeliest cause first; never empty."""
    found = list(distance_reasons(pool))
    if batchnorm_layers and not calibrated:
        found.append(
            f"{batchnorm_layers} BatchNorm layers kept averaged statistics: give calibration() in the task, "
            "so that they are re-estimated after averaging"
        )
    known = [(e.score, e.estimate, e.stderr) for e in evaluations if e.score is not None and e.estimate is not None]
    if known:
        shortfall = float(np.mean([metric.utility(e) - metric.utility(s) for s, e, _ in known]))
        noise = float(np.mean([stderr or 0.0 for _, _, stderr in known]))
        if shortfall > _BROKEN_PROMISE * noise:
            found.append(
                f"soups scored {shortfall:.4f} worse than their averaged outputs promised: averaging the weights of "
                "these members is not like averaging their outputs; leave out those with the highest learning rates"
            )
        else:
            found.append(
                "soups scored about as their averaged outputs promised, so the averages themselves are no better than "
                "the best member: the others are much weaker, or too alike to add anything"
            )
    if not found:
        found.append("no soup was evaluated; give a larger budget")
    return tuple(found)


def distance_reasons(pool: Pool) -> tuple[str, ...]:
    """What the distances between the members say: no common initialisation, several runs, or outliers."""
    found = spread(pool)
    sentences = (unrelated_sentence(found), groups_sentence(pool, found), outliers_sentence(pool, found))
    return tuple(sentence for sentence in sentences if sentence)


def unrelated_sentence(found: Spread) -> str | None:
    """One sentence when the members have no initialisation in common."""
    if not found.unrelated:
        return None
    return (
        f"two members lie {found.median:.2f} times the norm of their mean apart: they do not look fine-tuned from one "
        "initialisation, and averages of such models do not work"
    )


def groups_sentence(pool: Pool, found: Spread) -> str | None:
    """One sentence when members look like several training runs; names those outside the largest group."""
    if len(found.groups) < 2:
        return None
    main = list(found.groups[0])
    parts = []
    for group in found.groups[1:]:
        gap = float(np.median(found.distances[np.ix_(group, main)]))
        parts.append(f"{named(pool, group)} ({gap:.2f} from the largest group)")
    inside = float(np.median([found.distances[i, j] for i in main for j in main if i < j] or [0.0]))
    return (
        f"the members look like {len(found.groups)} training runs with different initialisations. Apart from the "
        f"largest group of {len(main)}, whose members lie {inside:.2f} apart: {'; '.join(parts)}, in shares of the "
        "norm of the mean weights"
    )


def outliers_sentence(pool: Pool, found: Spread) -> str | None:
    """One sentence naming the outliers."""
    if not found.outliers:
        return None
    shown = ", ".join(f"{pool[k].name} ({times:.1f} times)" for k, times in found.outliers[:_NAMED])
    return f"outliers, in times the median distance to the members' mean: {shown}{_more(len(found.outliers))}"


def named(pool: Pool, members: Sequence[int]) -> str:
    """The names of some members, the first few of many."""
    return ", ".join(pool[k].name for k in members[:_NAMED]) + _more(len(members))


def _more(count: int) -> str:
    return f" and {count - _NAMED} more" if count > _NAMED else ""
