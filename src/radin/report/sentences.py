"""Sentences from typed values: how sure a gain is, why there is none, how the members lie to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from radin.errors import printable
from radin.run.reasons import Outlier, Reasons, TrainingRun
from radin.run.result import Passes, Result, Scored
from radin.stats.optimism import Optimism, expected_gain
from radin.stats.paired import PairedDifference

if TYPE_CHECKING:
    from radin.run.average import Averaged

_HOW = {"mcnemar": "McNemar, mid-p", "bootstrap": "paired bootstrap", "normal": "two standard errors, unpaired"}
_BROKEN_PROMISE = 2.0  # standard errors between estimate and truth
_NAMED = 5


def confidence(result: Result) -> tuple[str, ...]:
    """The gain, whether it is noise, where it comes from, and what to expect on new data.

    Nothing where the best single member was chosen as it is. Where validation was halved, the examples that chose are
    not those that were searched on, and a note of the run says what bias is left.
    """
    if result.best.recipe.reestimated:
        return reestimation_sentences(result)
    if result.paired is None:
        return ()
    over = "the best single"
    if result.reference is result.reestimated:
        over = f"{_member(result, result.reestimated)} re-estimated"
    told = [*gain_sentences(result.paired, over), *origin_sentences(result)]
    if result.optimism is not None and result.searched is None:
        told += bias_sentences(result.optimism, result.paired)
    return tuple(told)


def gain_sentences(found: PairedDifference, over: str = "the best single") -> tuple[str, ...]:
    """The gain over a single member, ``over``, with its interval; a second sentence where it is inside the noise."""
    gain = f"gain over {over} on validation: {_difference(found)}"
    if not found.inside_noise:
        return (gain,)
    text = f"inside the noise: the interval contains zero, so the soup may be no better than {over}"
    more = (found.needed or 0) - found.examples
    if more > 0:
        about = round(more, 2 - len(str(more)))
        text += f". If the difference is truly this large, about {about:,} more examples would show it 4 times in 5"
    return gain, text


def _difference(found: PairedDifference) -> str:
    text = f"{found.difference:+.4f}"
    text += "" if found.higher_is_better else " (lower is better)"
    text += f", {found.confidence:.0%} interval {found.low:+.4f} to {found.high:+.4f}"
    text += f" ({_HOW[found.method]}, p = {found.p_value:.2g})"
    if found.better is not None:
        text += f"; better on {found.better:,} and worse on {found.worse:,} of {found.examples:,} examples"
    return text


def origin_sentences(result: Result) -> tuple[str, ...]:
    """How much of a soup's gain over the best single as it is comes from BatchNorm statistics, how much from averaging.

    Nothing where no member was evaluated with its statistics re-estimated.
    """
    again, single, best = result.reestimated, result.best_single.score, result.best.score
    if again is None or single is None or best is None:
        return ()
    name = _member(result, again)
    if again.score is None or again.score != again.score:
        return (f"estimating BatchNorm statistics again gives {name} alone outputs that are not finite",)
    share = again.score - single
    if again is not result.reference:
        return (
            f"this is not from estimating BatchNorm statistics again, as is done for soups: with that, {name} alone "
            f"scores {again.score:.4f}, {share:+.4f} against the best single as it is",
        )
    return (
        f"of {best - single:+.4f} over the best single as it is, {share:+.4f} comes from estimating BatchNorm "
        f"statistics again, as is done for soups ({name} alone: {again.score:.4f}), and {best - again.score:+.4f} from "
        "averaging",
    )


def _member(result: Result, single: Scored) -> str:
    return result.member_names[single.recipe.members[0]]


def reestimation_sentences(result: Result) -> tuple[str, ...]:
    """What estimating BatchNorm statistics again gave, where a member with them was chosen."""
    found = result.reestimation
    if found is None:
        return ()
    told = [f"gain of estimating its BatchNorm statistics again, over the best single as it is: {_difference(found)}"]
    if found.inside_noise:
        told.append(
            "inside the noise: the interval contains zero, so it may be no better than the best single as it is"
        )
    return (*told, "averaging gave nothing beyond that")


def bias_sentences(found: Optimism, gain: PairedDifference | None = None) -> tuple[str, ...]:
    """What to expect on new data, once the choice is counted; nothing where there was nothing to choose.

    gain: of the soup that was chosen. A second sentence where only the choice brings it inside the noise.
    """
    if found.candidates < 2:
        return ()
    text = f"expected on new data: score {found.corrected:.4f}"
    expected = None if gain is None or found.gain_optimism is None else expected_gain(gain, found)
    if expected is not None:
        text += f", gain {expected.difference:+.4f} (95% interval {expected.low:+.4f} to {expected.high:+.4f})"
    text += (
        f". Chosen as the best of {found.candidates} on these same examples, the score has a selection bias of about "
        f"{max(found.optimism, 0):.4f}, not counting what the search learned from them"
    )
    if expected is None or found.gain_optimism is None:
        return (text,)
    if found.gain_optimism > 0:
        text += f", and the gain one of {found.gain_optimism:.4f}"
    else:
        text += "; the gain has none, since the single member was chosen by its score on them too"
    if expected.difference == 0 or (expected.difference > 0) != found.higher_is_better:
        return (f"{text}: nothing of it is left",)
    assert gain is not None
    if expected.inside_noise and not gain.inside_noise:
        return text, "inside the noise once the choice is counted: the interval expected on new data contains zero"
    return (text,)


def no_soup(result: Result) -> str:
    """That no soup won, and what the result is instead."""
    if result.best.recipe.reestimated:
        name = _member(result, result.best)
        return (
            f"no soup beat {name} with its BatchNorm statistics re-estimated: the result is that member, re-estimated"
        )
    return "no soup beat the best single member: the result is that member"


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
    lines = [f"averaged {recipe.size} checkpoint{'s' * (recipe.size > 1)} into {found.output}"]
    if recipe.is_uniform and recipe.size == len(paths):
        lines.append(f"{recipe.weights[0]:.6g} each of {', '.join(map(printable, paths))}")
    else:
        used = recipe.members
        lines += [f"{recipe.ratio_text(k, 6)} of {paths[k]}" for k in used]
        unused = [printable(path) for k, path in enumerate(paths) if k not in used]
        lines += [f"nothing of {', '.join(unused)}"] if unused else []
        if recipe.groups:
            count = len(recipe.groups)
            lines.append(f"in brackets: over {count} group{'s' * (count > 1)} of tensors that have ratios of their own")
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
    if found.reestimated:
        members += f", {found.reestimated} for members re-estimated"
    spent = f"{share(found.soups)} of {found.budget} for soups"
    if found.soups > found.budget + 1e-6:
        spent = f"{share(found.soups)} for soups, by an earlier budget: it is {found.budget} now"
    text = f"passes over validation: {share(found.total)} ({members}, {spent}"
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
