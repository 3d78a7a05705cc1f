"""What a doctor's measurements mean: plain sentences with numbers and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from radin.diagnose.doctor import Diagnosis
from radin.diagnose.examine import History, Interpolation, SliceReport, Soups, contrast
from radin.report import sentences
from radin.report.sentences import named
from radin.run.reasons import outliers, training_runs
from radin.weights import Pool, batchnorm_layers
from radin.weights.spread import Spread

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note", "ok")  # the most serious first

_SURE = 2.0  # standard errors
_SURE_OF_MANY = 3.0  # the same for the largest of a dozen barriers
_SAME = 0.99  # agreement between members above which averaging has nothing to work with
_OUTLYING = 2.0  # times the typical disagreement
_RANKS_WELL = 0.5
_ENOUGH_SOUPS = 5


@dataclass(frozen=True)
class Finding:
    """One thing the doctor has to say: ``sentence`` with its numbers, ``advice`` on what to do, if anything."""

    level: Level
    title: str
    sentence: str
    advice: str | None = None

    @property
    def page(self) -> str:
        """The page of the documentation that explains it, in docs: "findings/near-duplicates"."""
        return "findings/" + self.title.lower().replace("'", "").replace(" ", "-")

    def to_json(self) -> dict[str, str | None]:
        """As 'radin doctor --json' and 'radin check --json' list it."""
        return {**vars(self), "page": self.page}


def findings(diagnosis: Diagnosis) -> tuple[Finding, ...]:
    """All that a doctor has to say, the most serious first."""
    pool, shape = diagnosis.pool, diagnosis.spread
    found = [*of_weights(pool, shape, diagnosis.calibration)]
    if diagnosis.slice is not None:
        found += of_slice(pool, shape, diagnosis.slice)
    if diagnosis.run is not None:
        found += of_run(diagnosis.run)
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def of_weights(pool: Pool, shape: Spread, calibration: bool | None) -> Iterator[Finding]:
    """Initialisation, outliers, duplicates, BatchNorm, and notes on the files.

    calibration: whether the task has calibration(); None without a task.
    """
    yield from of_spread(pool, shape, with_task=calibration is not None)
    if pool.duplicates:
        shown = ", ".join(f"{dropped.name} = {kept.name}" for dropped, kept in pool.duplicates[:5])
        more = f" and {len(pool.duplicates) - 5} more" if len(pool.duplicates) > 5 else ""
        yield Finding(
            "note",
            "duplicates",
            f"{len(pool.duplicates)} files hold the same weights as another and are used once: {shown}{more}",
        )
    yield from _of_batchnorm(len(batchnorm_layers(pool)), calibration)
    for note in pool.notes:
        yield Finding("note", "files", note)


def of_spread(pool: Pool, shape: Spread, *, with_task: bool) -> Iterator[Finding]:
    """What the distances between the members tell: initialisation, outliers, near duplicates."""
    runs, outlying = training_runs(pool.member_names, shape), outliers(pool.member_names, shape)
    if shape.unrelated:
        yield Finding(
            "problem",
            "no common initialisation",
            sentences.unrelated(shape.apart),
            "Average only checkpoints that were fine-tuned from the same pretrained weights; use averaged outputs "
            "(an ensemble) for these.",
        )
    elif runs:
        yield Finding(
            "problem",
            "several training runs",
            sentences.training_runs(runs),
            "Average within one group only: leave the others out, or cook each group by itself.",
        )
    else:
        yield Finding(
            "ok",
            "one initialisation",
            f"all {len(pool)} members look fine-tuned from one initialisation: two of them lie {shape.median:.3g} "
            "times the norm of their mean apart (median), and their differences from the mean stand at "
            f"{_degrees(shape.median_cosine):.0f} degrees to each other "
            f"({_degrees(-1 / (len(pool) - 1)):.0f} if they had nothing in common)",
        )
    if outlying:
        tried = "See below what leaving them out gives." if with_task else "With --task the doctor tries that."
        yield Finding(
            "warning",
            "outliers",
            sentences.outliers(outlying),
            "They had a higher learning rate or more steps than the rest, or another initialisation; averages often "
            f"suffer from them: try without. {tried}",
        )
    if shape.alike:
        shown = ", ".join(
            f"{pool[i].name} and {pool[j].name} ({shape.distances[i, j] / shape.median:.3f})"
            for i, j in shape.alike[:3]
        )
        more = f" and {len(shape.alike) - 3} more pairs" if len(shape.alike) > 3 else ""
        yield Finding(
            "note",
            "near duplicates",
            f"pairs much nearer to each other than the median pair, as shares of its distance: {shown}{more}",
            "One of such a pair adds little, and both together count twice in an average of all.",
        )


def _degrees(cosine: float) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def _of_batchnorm(layers: int, calibration: bool | None) -> Iterator[Finding]:
    if not layers:
        return
    have = f"the model has {layers} BatchNorm layer{'s' * (layers > 1)}, whose statistics do not average"
    how = "Give calibration() in the task: a few batches of training data without augmentation."
    if calibration is None:
        yield Finding("note", "BatchNorm", f"{have}: they must be re-estimated after averaging", how)
    elif not calibration:
        yield Finding("warning", "BatchNorm", f"{have}, and the task has no calibration() to re-estimate them", how)
    else:
        yield Finding("ok", "BatchNorm", f"{have}; they are re-estimated over calibration() for every soup")


def of_slice(pool: Pool, shape: Spread, seen: SliceReport) -> Iterator[Finding]:
    """Scores, agreement, interpolation, the uniform soup and the expected gain, on a slice of the data."""
    for k, reason in seen.broken.items():
        yield Finding("problem", "member diverged", reason, f"Leave {pool[k].name} out.")
    if seen.classes_seen is not None and seen.classes_seen * 2 < seen.classes and seen.examples > 2 * seen.classes:
        yield Finding(
            "warning",
            "slice not representative",
            f"the first {seen.examples} examples of validation() hold {seen.classes_seen} of {seen.classes} classes: "
            "it looks sorted, and what is said of this slice may not hold for the rest",
            "Shuffle validation() once, with a fixed seed, or look at more examples.",
        )
    best, worst = seen.order[0], seen.order[-1]
    middle = float(np.median([seen.score(k).score for k in seen.order]))
    yield Finding(
        "ok",
        "members' scores",
        f"{seen.metric.name} on the first {seen.examples} examples: best {pool[best].name} "
        f"{_pm(seen.score(best).score, seen.score(best).stderr)}, median {middle:.4f}, worst {pool[worst].name} "
        f"{_pm(seen.score(worst).score, seen.score(worst).stderr)}",
    )
    if seen.agreement is not None and len(seen.order) > 1:
        yield _of_agreement(pool, seen)
    if seen.soups is not None:
        yield from _of_interpolations(pool, seen, seen.soups)
        yield from _of_uniform(pool, seen, seen.soups)
        if seen.soups.core is not None:
            yield _of_core(shape, seen, seen.soups)


def _of_agreement(pool: Pool, seen: SliceReport) -> Finding:
    assert seen.agreement is not None
    usable = sorted(seen.order)
    block = seen.agreement[np.ix_(usable, usable)]
    mean = float(block[np.triu_indices(len(usable), 1)].mean())
    each = (block.sum(axis=1) - 1) / (len(usable) - 1)
    outlier = int(each.argmin())
    sentence = f"two members give the same class on {mean:.1%} of the examples (mean over pairs)"
    if len(usable) > 2:
        sentence += f"; {pool[usable[outlier]].name} agrees least with the others, on {each[outlier]:.1%}"
    if mean > _SAME:
        advice = "They hardly differ, so averaging can gain little: train with more varied settings."
        return Finding("note", "agreement", sentence, advice)
    if len(usable) > 2 and 1 - each[outlier] > _OUTLYING * (1 - float(np.median(each))):
        advice = f"Try without {pool[usable[outlier]].name}."
        return Finding("note", "agreement", sentence, advice)
    return Finding("ok", "agreement", sentence)


def _of_interpolations(pool: Pool, seen: SliceReport, soups: Soups) -> Iterator[Finding]:
    bad = [path for path in soups.interpolations if _is_barrier(path)]
    if not bad:
        top = max(soups.interpolations, key=lambda path: path.barrier)
        yield Finding(
            "ok",
            "interpolation",
            f"no barrier between {pool[top.first].name}, the best, and the {len(soups.interpolations)} others tried "
            f"(the next best, the farthest): the lowest average scores {_pm(top.barrier, top.barrier_stderr)} below "
            f"the line between the two, towards {pool[top.second].name}",
        )
    for path in bad:
        worse = not math.isfinite(path.below) or path.below > _SURE * path.below_stderr
        what = "the member farthest from it" if path.farthest else "one of the next best"
        sentence = (
            f"between {pool[path.first].name} and {pool[path.second].name} ({what}) "
            + (
                f"averages score up to {_pm(path.barrier, path.barrier_stderr)} worse than the line between the two"
                if math.isfinite(path.barrier)
                else "averages give outputs that are not finite"
            )
            + (", and worse than either" if worse else "")
        )
        yield Finding(
            "problem" if worse else "warning",
            "barrier",
            sentence,
            f"These two are not in one basin: keep {pool[path.second].name} out of soups with {pool[path.first].name}.",
        )


def _is_barrier(path: Interpolation) -> bool:
    return not math.isfinite(path.barrier) or path.barrier > _SURE_OF_MANY * path.barrier_stderr


def _of_uniform(pool: Pool, seen: SliceReport, soups: Soups) -> Iterator[Finding]:
    metric, together, best = seen.metric, soups.together, seen.order[0]
    sign = 1.0 if metric.higher_is_better else -1.0
    if not math.isfinite(together.score):
        yield Finding("problem", "uniform soup", "the average of all members gives outputs that are not finite")
        return
    gain, gain_stderr = contrast([(1.0, together), (-1.0, seen.score(best))])
    beaten = sum(metric.utility(seen.score(k).score) <= metric.utility(together.score) for k in seen.order)
    count = len(soups.usable)
    sentence = (
        f"the average of all {count} members scores {_pm(together.score, together.stderr)}, "
        f"{_signed(gain, gain_stderr)} against the best member, and at least as well as {beaten} of {count}"
    )
    if sign * gain > 0:
        yield Finding("ok", "uniform soup", sentence)
    elif beaten * 2 >= count:
        yield Finding("note", "uniform soup", sentence, "A choice of members is needed: cook with a budget.")
    else:
        advice = "Averaging all does harm here: cook with a budget to choose the members."
        yield Finding("warning", "uniform soup", sentence, advice)
    short, short_stderr = contrast([(sign, soups.ensemble), (-sign, together)])
    sentence = (
        f"their averaged outputs score {_pm(soups.ensemble.score, soups.ensemble.stderr)}; the soup is "
        f"{_signed(-short, short_stderr)} against that (positive is better)"
    )
    if short > _SURE * short_stderr:
        advice = "The estimate promises more than soups of these members keep; outliers are the usual cause."
        yield Finding("warning", "soup against averaged outputs", sentence, advice)
    else:
        yield Finding("ok", "soup against averaged outputs", sentence)
    top = seen.score(best).score
    yield Finding(
        "note",
        "expected gain",
        f"averaged outputs of all members gain {sign * (soups.ensemble.score - top):+.4f} on the best member, those of "
        f"the best subset found ({len(soups.subset)} members: {named([pool[k].name for k in soups.subset])}) "
        f"{sign * (soups.promised - top):+.4f} (positive is better). An estimate with selection bias: it is of "
        "averaged outputs, not of a soup, and chosen on this very slice",
    )


def _of_core(shape: Spread, seen: SliceReport, soups: Soups) -> Finding:
    assert soups.core is not None
    sign = 1.0 if seen.metric.higher_is_better else -1.0
    gain, stderr = contrast([(1.0, soups.core), (-1.0, soups.together)])
    near = [k for k in soups.usable if k in shape.core]
    sentence = f"the average of the {len(near)} members of the largest group that are no outliers "
    title = "the core of the pool"
    if not math.isfinite(soups.core.score):
        return Finding("warning", title, sentence + "gives outputs that are not finite")
    sentence += f"scores {_pm(soups.core.score, soups.core.stderr)}"
    if not math.isfinite(gain):
        return Finding("note", title, sentence, "Leave the others out.")
    sentence += f", {_signed(gain, stderr)} against the average of all {len(soups.usable)}"
    if sign * gain > _SURE * stderr:
        return Finding("note", title, sentence, "Leaving the others out helps.")
    if sign * gain < -_SURE * stderr:
        return Finding("note", title, sentence, "The others help all the same: keep them.")
    return Finding("note", title, sentence, "On this slice, leaving the others out makes no clear difference.")


def of_run(found: History) -> Iterator[Finding]:
    """How well the estimate predicted the truth in a run, and what the run gained."""
    sign = 1.0 if found.higher_is_better else -1.0
    state = "finished" if found.finished else "not finished"
    if found.diverged:
        yield Finding(
            "warning", "soups diverged", f"{found.diverged} soups of the run gave outputs that are not finite"
        )
    if found.bias is None or found.compared < 2:
        yield Finding(
            "note",
            "estimate against truth",
            f"the run ({state}) has evaluated {found.soups} soups, of which {found.compared} have an estimate: too few "
            "to say how well the estimate predicts",
            None if found.soups >= 2 else "Cook with a larger budget.",
        )
    else:
        assert found.bias_stderr is not None
        rho = "not defined" if found.spearman is None else f"{found.spearman:.2f}"
        sentence = (
            f"over {found.compared} soups evaluated so far (run {state}) the rank correlation (Spearman) of estimate "
            f"and true {found.metric} is {rho}; truth minus estimate is {_signed(found.bias, found.bias_stderr)} "
            "on average"
        )
        weak = found.compared >= _ENOUGH_SOUPS and found.spearman is not None and found.spearman < _RANKS_WELL
        short = -sign * found.bias > _SURE * found.bias_stderr
        hints = []
        if weak:
            hints.append("Among these the estimate tells good soups from bad ones poorly: spend more evaluations.")
        if short:
            hints.append("Read estimates as too high: soups keep less than averaged outputs promise.")
        level: Level = "warning" if weak and short else "note" if weak or short else "ok"
        yield Finding(level, "estimate against truth", sentence, " ".join(hints) or None)
    if found.gain is None or found.gain_stderr is None or found.best_single is None:
        return
    sentence = (
        f"the best soup scores {found.best_soup:.4f}, the best single member {found.best_single:.4f}: "
        f"{_signed(found.gain, found.gain_stderr)} (paired; chosen by this score, so with selection bias)"
    )
    if sign * found.gain > _SURE * found.gain_stderr:
        yield Finding("ok", "gain of the run", sentence)
    elif sign * found.gain > 0:
        advice = "Inside the noise: more validation examples would tell; the test score decides."
        yield Finding("note", "gain of the run", sentence, advice)
    else:
        advice = "No soup beat the best member; the findings above say why."
        yield Finding("warning", "gain of the run", sentence, advice)


def _pm(value: float, stderr: float) -> str:
    return f"{value:.4f} ± {stderr:.4f}" if math.isfinite(stderr) else f"{value:.4f}"


def _signed(value: float, stderr: float) -> str:
    return f"{value:+.4f} ± {stderr:.4f}" if math.isfinite(stderr) else f"{value:+.4f}"
