"""What the page holds, from a run directory: finished, unfinished, or with members still to be evaluated."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radin.errors import RadinError, printable
from radin.question import VALIDATION
from radin.recipe import Recipe
from radin.report import sentences
from radin.report.page import charts, outcome, pool, soups
from radin.report.page.charts import Figure
from radin.report.sentences import number
from radin.report.tables import chosen_row, closing_rows, closing_sentences
from radin.run.directory import RunDirectory
from radin.run.journal import is_empty
from radin.run.ledger import Ledger
from radin.run.record import RunRecord
from radin.run.result import Result
from radin.stats.ranks import spearman

if TYPE_CHECKING:
    from radin.diagnose.doctor import Diagnosis


@dataclass(frozen=True)
class Table:
    """``rows`` of text; ``values``: what a column is sorted by where it is no text. stressed: rows that stand out."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    stressed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Content:
    """Everything on the page. names: of the members in the recipes' order. missing: what cannot be shown, and why.

    findings: of the doctor, (level, title, sentence with advice). finished: whether nothing more is to come.
    """

    title: str
    verdict: str
    lines: tuple[str, ...]
    closing: Table | None
    figures: tuple[Figure, ...]
    members: Table | None
    evaluated: Table | None
    findings: tuple[tuple[str, str, str], ...]
    settings: Table | None
    commands: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    names: tuple[str, ...]
    finished: bool


def content(directory: str | Path, diagnosis: Diagnosis | None = None, outputs: str | Path | None = None) -> Content:
    """What there is to show of a run. diagnosis: of the run's pool, where its weights were read.

    Raises RunError where there is no run, or it is damaged.
    """
    path = Path(directory)
    waiting = _waiting(path)
    if waiting is not None:
        return waiting
    record = RunRecord.read(path, outputs=outputs)
    result = _result(record) if record.finished else None
    winner = _winner(record, result)
    order = None if diagnosis is None else _order(record, diagnosis.pool.fingerprints)
    centre = None if diagnosis is None or order is None else diagnosis.spread.to_centre[order]
    apart = None if diagnosis is None or order is None else diagnosis.spread.distances[order][:, order]
    rows = pool.members(record, winner, centre)
    missing: list[str] = []
    figures = _figures(record, result, winner, rows, apart, missing)
    findings = () if diagnosis is None or order is None else diagnosis.findings
    if diagnosis is None or order is None:
        missing.append(
            "map of the pool, distances and what doctor says: the members' weights were not read (--no-weights), or "
            "are no longer where they were"
        )
    name = printable(path.resolve().name)
    return Content(
        title=name,
        verdict=_verdict(record, result, winner),
        lines=() if result is None else tuple(line for line, _ in closing_sentences(result)),
        closing=None if result is None else _closing(result),
        figures=figures,
        members=_members_table(rows, record.metric.name),
        evaluated=_evaluated_table(record),
        findings=tuple((f.level, f.title, f"{f.sentence} {f.advice or ''}".strip()) for f in findings),
        settings=_settings(record, result),
        commands=_commands(record, result, path),
        missing=tuple(missing),
        names=record.names,
        finished=record.finished,
    )


def _waiting(path: Path) -> Content | None:
    """The page of a run whose members are not all evaluated; None where they are, or where there is no run."""
    if not (path / "run.json").is_file():
        return None
    found = RunDirectory(path, {}).read()
    prints = tuple(map(str, found["identity"]["members"]))
    names = tuple(printable(name) for name in found["identity"]["members"].values())
    entries = {}
    if not is_empty(path / "ledger.sqlite"):
        ledger = Ledger(path / "ledger.sqlite", run=found["run"], read_only=True)
        try:
            entries = {entry.identity: entry.evaluation for entry in ledger.entries("member", VALIDATION)}
        finally:
            ledger.close()
    known = {k: entries.get(Recipe.single(k, len(prints)).identity(prints)) for k in range(len(prints))}
    done = {k: answer for k, answer in known.items() if answer is not None}
    if len(done) == len(prints):
        return None
    rows = tuple((names[k], number(answer.score, answer.stderr), prints[k][:12]) for k, answer in done.items())
    table = Table("members", "Members evaluated so far", ("member", "score", "content"), rows) if rows else None
    verdict = f"The run has not finished: {len(done)} of {len(prints)} members are evaluated so far, and no soup yet."
    nothing: tuple[Any, ...] = ()
    title = printable(path.resolve().name)
    return Content(title, verdict, (), None, (), table, None, nothing, None, (), (), names, False)


def _result(record: RunRecord) -> Result:
    """The run's result, over the record's order of the members."""
    result = Result.load(record.path)
    return result.reordered([result.fingerprints.index(f) for f in record.fingerprints])


def _winner(record: RunRecord, result: Result | None) -> Recipe:
    if result is not None:
        return result.best.recipe
    recipe, answer = record.reference
    best = [(record.metric.utility(s.found.score), s.recipe) for s in record.own if math.isfinite(s.found.score)]
    better = [pair for pair in best if pair[0] > record.metric.utility(answer.score)]
    return max(better, key=lambda pair: pair[0])[1] if better else recipe


def _order(record: RunRecord, fingerprints: tuple[str, ...]) -> list[int] | None:
    """Where the record's members are in the pool that was read; None where it is another."""
    if set(fingerprints) != set(record.fingerprints):
        return None
    return [fingerprints.index(f) for f in record.fingerprints]


def _verdict(record: RunRecord, result: Result | None, winner: Recipe) -> str:
    if result is None:
        best = record.scores.get(winner)
        so_far = "no soup is better than the best single member yet"
        if best is not None and winner.size > 1:
            gain = best.score - record.reference[1].score
            so_far = f"the best so far is a soup of {winner.size} members with {record.metric.name} {best.score:.4f}"
            so_far += f", {gain:+.4f} over the best single"
        soups = f"{len(record.own)} soup{' is' if len(record.own) == 1 else 's are'} evaluated"
        return f"The run has not finished: {soups}, and {so_far}."
    if result.best.recipe.is_single:
        return f"{sentences.no_soup(result).capitalize()}."
    over = "the best single" + (" re-estimated" if result.reference is result.reestimated else "")
    scored = number(result.best.score)
    text = f"The soup of {winner.size} of {record.members} members has {result.metric} {scored} on validation"
    if result.paired is None:
        return f"{text}: {result.gain.difference:+.4f} over {over}."
    paired = result.paired
    text += f": {paired.difference:+.4f} over {over}, {paired.confidence:.0%} interval {paired.low:+.4f} to "
    text += f"{paired.high:+.4f}"
    return f"{text}. That is inside the noise." if paired.inside_noise else f"{text}."


def _closing(result: Result) -> Table:
    title, columns, rows = closing_rows(result)
    return Table("closing", title, tuple(columns), tuple(map(tuple, rows)), stressed=(chosen_row(result),))


def _figures(
    record: RunRecord,
    result: Result | None,
    winner: Recipe,
    members: list[pool.MemberRow],
    apart: Any,
    missing: list[str],
) -> tuple[Figure, ...]:
    """Those that the run knows enough for; of the others ``missing`` is told why."""
    metric = printable(record.metric.name) + ("" if record.metric.higher_is_better else " (lower is better)")
    single = record.reference[1].score
    scored = soups.evaluated(record)
    both = [row for row in scored if row["estimate"] is not None]
    found: list[Figure] = []

    def take(make: Callable[[], Figure], enough: object, what: str, why: str) -> None:
        if enough:
            found.append(make())
        else:
            missing.append(f"{what}: {why}")

    none = "no soup has been fully evaluated yet"
    no_values = "there are no values per example"
    steps, stops = soups.course(record)
    take(lambda: charts.budget(steps, stops, metric), scored, "score by budget", none)
    outputs = none if record.estimator is not None else "there are no outputs of the members to estimate from"
    rho = spearman([row["truth"] for row in both], [row["estimate"] for row in both]) if len(both) > 2 else None  # type: ignore[arg-type]
    take(lambda: charts.truth(both, metric, rho), both, "estimate against truth", outputs)
    ranking, count = soups.ranking(record)
    take(lambda: charts.ranked(ranking, count, metric, single), ranking, "candidates by rank", outputs)
    take(lambda: charts.sizes(scored, metric, single), scored, "score by size", none)
    grades = outcome.tiers(record) if scored else []
    take(lambda: charts.tiers(grades, metric), grades, "tiers", none)
    places = _member_rows(members)
    found.append(charts.member_scores(places, metric, apart is not None))
    weighty = sorted((row for row in places if "importance" in row), key=lambda row: -row["importance"])
    take(lambda: charts.importance(weighty, metric), weighty, "importance", "no soup won, or it has no estimate")
    if apart is not None and record.members > 2:
        found.append(charts.pool_map(*pool.pool_map(record, winner, apart), metric))
    lines, known = soups.ratios(record)
    take(lambda: charts.parallel(lines, known, metric), lines, "ratios side by side", none)
    alike = pool.agreement(record)
    if alike is None:
        missing.append(f"agreement between members: {no_values}")
    else:
        found.append(charts.agreement(*alike))
    classes = outcome.by_class(record, winner)
    why = f"no soup won, {no_values}, or examples have no classes"
    take(lambda: charts.classes(classes), classes, "won and lost by class", why)
    if result is not None:
        other = outcome.other_data(result)
        take(lambda: charts.other_data(other, metric), other, "test and shifts", "none were scored")
        spent = [{"stage": k, "seconds": round(v, 3)} for k, v in result.seconds.items() if k != "total"]
        take(lambda: charts.seconds(spent), spent, "time per stage", "it was not kept")
    else:
        missing.append("test, shifts and time per stage: they are known once the run has finished")
    return tuple(found)


def _member_rows(members: list[pool.MemberRow]) -> soups.Rows:
    rows: soups.Rows = []
    for place, member in enumerate(members, start=1):
        error = member.stderr if math.isfinite(member.stderr) else 0.0
        row: dict[str, Any] = {"place": place, "name": member.name, "score": float(f"{member.score:.6g}")}
        row |= {"low": float(f"{member.score - error:.6g}"), "high": float(f"{member.score + error:.6g}")}
        row |= {"ratio": float(f"{member.ratio:.4g}")}
        row |= {} if member.distance is None else {"distance": float(f"{member.distance:.4g}")}
        row |= {} if member.importance is None else {"importance": float(f"{member.importance:.4g}")}
        rows.append(row)
    return rows


def _members_table(members: list[pool.MemberRow], metric: str) -> Table:
    again = any(member.reestimated is not None for member in members)
    columns = ["member", printable(metric), *(["re-estimated"] if again else []), "distance", "ratio in the winner"]
    rows = []
    for m in members:
        distance = "–" if m.distance is None else f"{m.distance:.4f}"
        lost = "–" if m.importance is None else f"{m.importance:+.4f}"
        extra = [number(m.reestimated)] if again else []
        cells = (m.name, number(m.score, m.stderr), *extra, distance, f"{m.ratio:.4g}", lost, m.fingerprint[:12])
        rows.append(cells)
    note = (
        "Distance: to the pool's centre, in norms of its mean. Importance: what the winner's estimate loses without it."
    )
    return Table("members", "Members", (*columns, "importance", "content"), tuple(rows), note)


def _evaluated_table(record: RunRecord) -> Table | None:
    """The best hundred soups with their recipes."""
    found = soups.known(record)[:100]
    if not found:
        return None
    guesses = record.estimates([recipe for recipe, _ in found])
    rows = tuple(
        (str(recipe.size), number(a.score, a.stderr), number(float(guess)), _described(record, recipe))
        for (recipe, a), guess in zip(found, guesses, strict=True)
    )
    return Table("soups", f"The best {len(rows)} soups evaluated", ("members", "score", "estimate", "recipe"), rows)


def _described(record: RunRecord, recipe: Recipe) -> str:
    if recipe.is_uniform and not recipe.groups:
        return f"equal parts of {', '.join(record.names[k] for k in recipe.members)}"
    return recipe.describe(record.names)


def _settings(record: RunRecord, result: Result | None) -> Table:
    rows = [("run", record.run), ("directory", str(record.path.resolve()))]
    rows += [(f"setting: {k}", _short(v)) for k, v in record.settings.items() if k not in ("paths", "versions")]
    rows += [(f"identity: {k}", _short(v)) for k, v in record.identity.items() if k != "members"]
    versions = record.settings.get("versions", {}) if result is None else result.versions
    rows += [(f"version: {k}", str(v)) for k, v in dict(versions).items()]
    if result is not None:
        rows.append(("seconds in all", f"{result.seconds.get('total', math.nan):.1f}"))
    return Table("settings", "Settings, hashes, versions", ("what", "value"), tuple(rows))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "none"
    return "none" if value is None else str(value)


def _commands(record: RunRecord, result: Result | None, path: Path) -> tuple[tuple[str, str], ...]:
    """How to go on with the run or make it again, and how to load its soup. A run does not keep its task's name."""
    settings, out = record.settings, shlex.quote(str(path.resolve()))
    paths = [shlex.quote(str(place)) for place in dict(settings.get("paths", {})).values()]
    options = "".join(
        f" -O {shlex.quote(f'{name}={value}')}"
        for name, value in dict(settings.get("options", {})).items()
        if value is not None and not isinstance(value, list | tuple | dict)
    )
    evaluates = "--task TASK" if record.identity.get("the metric's code") else "--eval PROGRAM"
    again = f"radin cook {' '.join(paths) or 'CHECKPOINTS'} {evaluates} --budget {settings.get('budget', 1)} "
    again += f"--strategy {shlex.quote(str(settings.get('strategy')))}{options} --seed {record.seed} --out {out}"
    found = [("To go on with this run, or to make it again with another --out", again)]
    found.append(("To draw the paper's figures of it", f"radin figures {out}"))
    if result is not None and result.soup.suffix == ".safetensors":
        load = f"from safetensors.torch import load_file\n\nmodel.load_state_dict(load_file({str(result.soup)!r}))"
        found.append(("To load the soup", load))
        found.append(
            ("To read the recipe", f"from radin import Result\n\nResult.load({str(path.resolve())!r}).best.recipe")
        )
    return tuple((title, _plain(text)) for title, text in found)


def _plain(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def weighed(directory: str | Path, progress: Any = None) -> Diagnosis | None:
    """What doctor says of the run's pool, its weights read once; None where they are not all as they were."""
    from radin.diagnose.doctor import doctor
    from radin.weights import Pool

    path = Path(directory)
    try:
        record = RunRecord.read(path)
        paths = dict(record.settings.get("paths", {}))
        where = [paths[fingerprint] for fingerprint in record.fingerprints]
        if not all(Path(place).exists() for place in where):
            return None
        found = Pool.open(where)
        return doctor(found, None, path, progress=progress)
    except (RadinError, KeyError):  # a pool that cannot be opened any more: the page says that it was not read
        return None
