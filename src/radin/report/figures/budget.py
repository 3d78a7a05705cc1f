"""Figure 4, score by budget, and Table 1, methods by budget: the run's own course beside methods that are replayed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from radin.report.figures.values import About, Unavailable
from radin.run import replay
from radin.run.record import RunRecord

SHOWN = ("greedy", "top-k", "uniform")
"""The methods of Figure 4 beside the run's own; Table 1 has all."""


@dataclass(frozen=True)
class Step:
    """From ``passes`` on the choice has this score on validation, with its standard error, and so many members."""

    passes: float
    score: float
    stderr: float
    size: int


@dataclass(frozen=True)
class Course:
    """One method's steps. ``ends``: the passes up to which it is known. lacking: whether a true score is missing there.

    finished: whether it would ask for nothing more.
    """

    name: str
    steps: tuple[Step, ...]
    ends: float
    lacking: bool
    finished: bool


@dataclass(frozen=True)
class Budget:
    """Figure 4. ``courses``: the run's own first. most: passes that the axis shows."""

    about: About
    courses: tuple[Course, ...]
    most: float


@dataclass(frozen=True)
class Cell:
    """A method's choice at a budget. test: None where the run, and nobody since, has scored it there."""

    validation: float
    stderr: float
    test: float | None
    test_stderr: float | None
    size: int


@dataclass(frozen=True)
class Row:
    """A method; ``cells``: one for each budget, None where true scores are missing."""

    name: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """Table 1. ``reference``: what any soup has to beat, at no pass on soups. ``budgets``: passes spent on soups."""

    about: About
    reference: Cell
    budgets: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def tested(self) -> bool:
        """Whether any score on test is known."""
        return any(cell is not None and cell.test is not None for row in self.rows for cell in row.cells)

    def markdown(self) -> str:
        """The table as Markdown: scores with their standard errors, a dash where one is not known."""
        lines: list[str] = []
        for split in ("validation", "test") if self.tested else ("validation",):
            lines += [_line([split, *(f"B = {budget}" for budget in self.budgets)])]
            lines += [_line(["---", *("---:" for _ in self.budgets)])]
            for row in (Row("best single, no soup", (self.reference,) * len(self.budgets)), *self.rows):
                lines.append(_line([row.name, *(_number(cell, split) for cell in row.cells)]))
            lines.append("")
        about = self.about
        direction = "higher is better" if about.higher_is_better else "lower is better"
        lines += [
            f"{about.metric.replace('|', '/')} ({direction}) of the soup chosen on {about.examples:,} validation "
            f"examples once B passes were spent on soups of {about.members} members, ± one standard error over "
            "examples. A dash: not known without further passes.",
        ]
        return "\n".join(lines) + "\n"


def curves(record: RunRecord) -> Budget | Unavailable:
    """The run's own score by passes spent, and greedy, top-k and the uniform soup as far as true scores are known."""
    found = [replay.own_curve(record)]
    if len(found[0].standings) == 1 and not record.soups:
        return Unavailable("4", "no soup has been fully evaluated yet")
    most = float(max(found[0].ends, record.settings.get("budget", 1), 1))
    longest = max(math.ceil(most), replay.BUDGETS[-1])
    for method in replay.METHODS:
        if method.name in SHOWN and method.strategy != record.settings.get("strategy"):
            found.append(replay.replay(record, method, record.scores, longest))
    # A method that lacks its first soup shows nothing.
    courses = [_course(curve) for curve in found if curve is found[0] or curve.ends > 0]
    most = max(most, *(min(c.ends, longest) for c in courses if not c.finished), 1.0)
    return Budget(About.of(record), tuple(courses), most)


def _course(curve: replay.Curve) -> Course:
    steps = tuple(Step(s.passes, s.score, s.stderr, s.recipe.size) for s in curve.standings)
    finished = math.isinf(curve.ends)
    ends = max((s.passes for s in curve.standings), default=0.0) if finished else curve.ends
    return Course(curve.name, steps, ends, curve.missing is not None, finished)


def table(record: RunRecord) -> Table:
    """What each method has chosen after each budget, on validation, and on test where it is known."""
    own = replay.own_curve(record)
    found = [
        replay.replay(record, method, record.scores, replay.BUDGETS[-1])
        for method in replay.methods(record)
        if method.strategy != record.settings.get("strategy") or method.options
    ]
    rows = [
        Row(curve.name, tuple(_cell(record, curve.at(budget)) for budget in replay.BUDGETS)) for curve in (*found, own)
    ]
    recipe, answer = record.reference
    reference = _cell(record, replay.Standing(0.0, recipe, answer.score, answer.stderr))
    assert reference is not None
    return Table(About.of(record), reference, replay.BUDGETS, tuple(rows))


def _cell(record: RunRecord, standing: replay.Standing | None) -> Cell | None:
    if standing is None:
        return None
    test = record.tests.get(standing.recipe)
    known: tuple[Any, Any] = (None, None) if test is None else (test.score, test.stderr)
    return Cell(standing.score, standing.stderr, *known, standing.recipe.size)


def _number(cell: Cell | None, split: str) -> str:
    if cell is None:
        return "–"
    score, stderr = (cell.validation, cell.stderr) if split == "validation" else (cell.test, cell.test_stderr)
    if score is None or not math.isfinite(score):
        return "–"
    return f"{score:.4f}" + (f" ± {stderr:.4f}" if stderr is not None and math.isfinite(stderr) else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
