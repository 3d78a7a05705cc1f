"""Why no soup beat the best single member: what the numbers of the run point to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radin.metrics import Metric
from radin.run.result import Scored
from radin.weights import Pool, geometry

_FAR = 2.0  # times the median distance to the pool's mean
_UNRELATED = 1.0  # median distance between two members, over the norm of the mean
_BROKEN_PROMISE = 2.0  # standard errors between estimate and truth


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
    """What the distances between the members say: no common initialisation, or members far out."""
    shape = geometry(pool)
    median = float(np.median(shape.distances[np.triu_indices(len(pool), 1)]))
    if median > _UNRELATED:
        return (
            f"two members lie {median:.2f} times the norm of their mean apart: they do not look fine-tuned from one "
            "initialisation, and averages of such models do not work",
        )
    from_mean = np.sqrt(np.maximum(np.diag(shape.gram), 0.0))
    typical = float(np.median(from_mean))
    far = [k for k in np.argsort(-from_mean) if typical > 0 and from_mean[k] > _FAR * typical]
    if not far:
        return ()
    named = ", ".join(f"{pool[int(k)].name} ({from_mean[k] / typical:.1f} times)" for k in far[:3])
    return (f"members far from the rest, in times the median distance to the pool's mean: {named}",)
