"""Sentences from typed values: how sure a gain is, why there is none, how the members lie to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from radin.errors import printable
from radin.run.reasons import Outlier, Reasons, TrainingRun
from radin.run.result import Passes, Result
from radin.stats.optimism import Optimism
from radin.stats.paired import PairedDifference

if TYPE_CHECKING:
    from radin.run.commands import Averaged

_HOW = {"mcnemar": "McNemar, mid-p", "bootstrap": "paired bootstrap", "normal": "two standard errors, unpaired"}
_BROKEN_PROMISE = 2.0  # standard errors between estimate and truth
_NAMED = 5


def confidence(result: Result) -> tuple[str, ...]:
    """The gain, whether it is noise, and the selection bias; nothing where the best single member was chosen.

    Where validation was halved, the examples that chose are not those that were searched on, and a note of the run
    says what bias is left.
    """
    if result.paired is None:
        return ()
    gain = gain_sentences(result.paired)
    if result.optimism is None or result.searched is not None:
        return gain
    return (*gain, *bias_sentences(result.optimism))


def gain_sentences(found: PairedDifference) -> tuple[str, ...]:
    """The gain with its interval, and a second sentence where it is inside the noise."""
    gain = f"gain over the best single on validation: {found.difference:+.4f}"
    gain += "" if found.higher_is_better else " (lower is better)"
    gain += f", {found.confidence:.0%} interval {found.low:+.4f} to {found.high:+.4f}"
    gain += f" ({_HOW[found.method]}, p = {found.p_value:.2g})"
    if found.better is not None:
        gain += f"; better on {found.better:,} and worse on {found.worse:,} of {found.examples:,} examples"
    if not found.inside_noise:
        return (gain,)
    text = "inside the noise: the interval contains zero, so the soup may be no better than the best single member"
    more = (found.needed or 0) - found.examples
    if more > 0:
        about = round(more, 2 - len(str(more)))
        text += f". If the difference is truly this large, about {about:,} more examples would show it 4 times in 5"
    return gain, text


def bias_sentences(found: Optimism) -> tuple[str, ...]:
    """What choosing by the score did to it; nothing where there was nothing to choose."""
    if found.candidates < 2:
        return ()
    text = (
        f"chosen as the best of {found.candidates} on these same examples: selection bias of about "
        f"{max(found.optimism, 0):.4f}, not counting what the search learned from them; corrected score "
        f"{found.corrected:.4f}"
    )
    if found.corrected_gain is not None:
        text += f", corrected gain {found.corrected_gain:+.4f}"
        if found.corrected_gain == 0 or (found.corrected_gain > 0) != found.higher_is_better:
            text += ": nothing of it is left"
    return (text,)


def reasons(found: Reasons) -> tuple[str, ...]:
    """Why no soup beat the best single member, the likeliest cause first; never empty."""
    told = []
    if found.unrelated is not None:
        told.append(unrelated(found.unrelated))
    if found.runs:
        told.append(training_runs(found.runs))
    if found.outliers:
        told.append(outliers(found.outliers))
    if found.averaged_statistics:
        told.append(
            f"{found.averaged_statistics} BatchNorm layers kept averaged statistics: give calibration() in the task, "
            "so that they are re-estimated after averaging"
        )
    if found.shortfall is not None and found.shortfall > _BROKEN_PROMISE * (found.noise or 0.0):
        told.append(
            f"soups scored {found.shortfall:.4f} worse than their averaged outputs promised: averaging the weights of "
            "these members is not like averaging their outputs; leave out those with the highest learning rates"
        )
    elif found.shortfall is not None:
        told.append(
            "soups scored about as their averaged outputs promised, so the averages themselves are no better than "
            "the best member: the others are much weaker, or too alike to add anything"
        )
    elif not found.soups:
        told.append("no soup was fully evaluated; give a larger budget")
    return tuple(told) or (
        f"none of the {found.soups} soups evaluated was better: the other members are much weaker, or too alike to add "
        "anything",
    )


def average_lines(found: Averaged) -> tuple[str, ...]:
    """What 'radin average' says: which ratio went to which file."""
    recipe, paths = found.recipe, found.paths
    lines = [f"averaged {recipe.size} checkpoints into {found.output}"]
    if recipe.is_uniform and recipe.size == len(paths):
        lines.append(f"{recipe.weights[0]:.6g} each of {', '.join(map(printable, paths))}")
    else:
        lines += [f"{recipe.weights[k]:.6g} of {paths[k]}" for k in recipe.members]
        unused = [printable(path) for path, ratio in zip(paths, recipe.weights, strict=True) if not ratio]
        lines += [f"nothing of {', '.join(unused)}"] if unused else []
    return (*lines, *found.notes)


def unrelated(apart: float) -> str:
    """That the members have no initialisation in common. apart: median distance, in norms of their mean's matrices."""
    return (
        f"two members lie {apart:.2f} times the norm of their mean (biases and scales aside) apart: they do not look "
        "fine-tuned from one initialisation, and averages of such models do not work"
    )


def training_runs(found: Sequence[TrainingRun]) -> str:
    """That the members look like several training runs; names those outside the largest."""
    largest, *others = found
    parts = [f"{named(run.members)} ({run.apart:.2f} from the largest group)" for run in others]
    return (
        f"the members look like {len(found)} training runs with different initialisations. Apart from the "
        f"largest group of {len(largest.members)}, whose members lie {largest.apart:.2f} apart: {'; '.join(parts)}, in "
        "shares of the norm of the mean weights"
    )


def outliers(found: Sequence[Outlier]) -> str:
    """Which members are outliers, and how far they lie."""
    shown = named([f"{outlier.name} ({outlier.times:.1f} times)" for outlier in found])
    return f"outliers, in times the median distance to the members' mean: {shown}"


def named(names: Sequence[str]) -> str:
    """Some names in a row, the first few of many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def passes(found: Passes, fully_evaluated: int) -> str:
    """What a run has spent, in passes over validation."""
    members = f"{found.members} for the members" if found.members else "none for the members"
    text = f"passes over validation: {share(found.total)} ({members}, {share(found.soups)} of {found.budget} for soups"
    if found.started != fully_evaluated:
        text += f": {found.started} started, {fully_evaluated} fully evaluated"
    if found.failed:
        text += f"; {found.failed} got no answer"
    return text + ")"


def share(passes: float) -> str:
    """Passes, with one decimal where they are not whole."""
    return f"{passes:.0f}" if abs(passes - round(passes)) < 1e-6 else f"{passes:.1f}"


def number(value: float | None, stderr: float | None = None) -> str:
    """A score with its standard error, four decimals; a dash when there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:.4f}"
    return text if stderr is None or stderr != stderr else f"{text} ± {stderr:.4f}"


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
