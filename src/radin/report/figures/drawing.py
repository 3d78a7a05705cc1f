"""Pictures of the values behind the figures: Altair's charts, which need neither a browser nor a network.

Quiet: one idea to a picture, axes that say what and in which unit, colours that the colour-blind tell apart (Okabe and
Ito's, and viridis). Names go in as data, never into an expression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

from radin.errors import RadinError, printable
from radin.report.figures.budget import Budget
from radin.report.figures.mixed import MixedFigure, MixedPoint
from radin.report.figures.ranking import Estimates, Ranked
from radin.report.figures.size import Halves, Sizes
from radin.report.figures.values import About

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a8a8a"
_WIDTH, _HEIGHT = 420, 300
_PANEL = 250
_NAME = 26  # characters of a member's name that a picture has room for
INSTALL = "pip install 'radin[figures]'"

Values = Estimates | Ranked | Budget | Halves | Sizes | MixedFigure
_Rows = list[dict[str, Any]]


def altair() -> Any:
    """The library. Raises RadinError with the command that installs it."""
    try:
        import altair
        import vl_convert  # noqa: F401 - what makes files of its charts
    except ImportError as error:
        raise RadinError(
            f"figures are drawn with altair and vl-convert-python ({error.name} is missing): {INSTALL}"
        ) from None
    return altair


def chart(values: Values) -> dict[str, Any]:
    """The Vega-Lite specification of a figure, its data within. Raises RadinError where the library is missing."""
    alt = altair()
    drawn = _draw(values, alt)
    # aria: Vega-Lite would put axis titles, and so names, into expressions that describe every mark.
    found: dict[str, Any] = (
        drawn.configure(font="Helvetica, Arial, DejaVu Sans, sans-serif", aria=False)
        .configure_view(stroke=None)
        .configure_axis(
            gridColor="#ececec",
            domainColor="#999999",
            tickColor="#999999",
            labelColor="#333333",
            titleColor="#333333",
            titleFontWeight="normal",
            titleFontSize=12,
            labelFontSize=11,
        )
        .configure_title(
            anchor="start", fontSize=14, fontWeight="bold", subtitleFontSize=12, subtitleColor="#555555", offset=12
        )
        .configure_legend(titleFontWeight="normal", titleFontSize=12, labelFontSize=11, labelLimit=260)
        .to_dict()
    )
    return found


@singledispatch
def _draw(values: Any, alt: Any) -> Any:
    raise TypeError(f"no picture of {type(values).__name__}")


@_draw.register
def _estimates(values: Estimates, alt: Any) -> Any:
    """Figure 2."""
    rows = [
        {"estimate": s.estimate, "truth": s.truth, "members": s.size, "evaluated by": s.origin} for s in values.soups
    ]
    low = min(min(s.estimate, s.truth or s.estimate) for s in values.soups)
    high = max(max(s.estimate, s.truth or s.estimate) for s in values.soups)
    edge = (high - low or abs(high) or 1.0) * 0.05
    scale = alt.Scale(domain=[low - edge, high + edge], nice=False, zero=False)
    label = _score(values.about)
    sizes = alt.Scale(range=[25, 260], zero=False)
    points = (
        alt.Chart(_data(alt, rows))
        .mark_circle(opacity=0.75, stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("estimate:Q", scale=scale, title=f"estimate: {label} of averaged outputs"),
            y=alt.Y("truth:Q", scale=scale, title=f"truth: {label} of the soup"),
            size=alt.Size("members:Q", scale=sizes, legend=_counts(alt, values.about.members)),
            color=alt.Color("members:Q", scale=alt.Scale(scheme="viridis"), legend=_counts(alt, values.about.members)),
            tooltip=[alt.Tooltip(f"{name}:{kind}") for name, kind in _kinds(rows)],
        )
    )
    same = _path(alt, [(low - edge, low - edge), (high + edge, high + edge)], scale)
    rho = "not defined" if values.correlation is None else f"{values.correlation:.2f}"
    title = _title(
        alt,
        f"Estimate and truth, rank correlation {rho}",
        [
            f"{len(values.soups)} soups of {values.about.run}, {values.about.examples:,} validation examples; "
            "on the line both are equal",
            f"truth minus estimate is {values.bias:+.4f} on average",
        ],
    )
    return alt.layer(same, points).properties(width=_HEIGHT + 60, height=_HEIGHT + 60, title=title)


@_draw.register
def _ranked(values: Ranked, alt: Any) -> Any:
    """Figure 3."""
    names = {"the run": "true score, the run's", "since": "true score, evaluated since"}
    kinds = {"estimate": "#bdbdbd", names["the run"]: ORANGE, names["since"]: BLUE}
    rows: _Rows = []
    for soup in values.candidates:
        rows.append({"rank": soup.rank, "score": soup.estimate, "what": "estimate", "members": soup.size})
        if soup.truth is not None:
            rows.append({"rank": soup.rank, "score": soup.truth, "what": names[soup.origin], "members": soup.size})
    used = {name: colour for name, colour in kinds.items() if any(row["what"] == name for row in rows)}
    color = alt.Color("what:N", scale=_colours(alt, used), title=None, legend=alt.Legend(orient="top", symbolOpacity=1))
    points = (
        alt.Chart(_data(alt, rows))
        .mark_circle(opacity=0.9)
        .encode(
            x=alt.X("rank:Q", title="rank by estimate, best first", scale=alt.Scale(nice=False, padding=8)),
            y=_y(alt, "score", _score(values.about)),
            color=color,
            size=alt.condition(alt.datum.what == "estimate", alt.value(14), alt.value(42)),
            tooltip=[alt.Tooltip(f"{name}:{kind}") for name, kind in _kinds(rows)],
        )
    )
    title = _title(
        alt,
        f"Candidates by estimate, {values.evaluated} of {len(values.candidates)} evaluated",
        [f"{values.drawn} drawn as in the paper, and the soups evaluated besides; {values.about.run}"],
    )
    return alt.layer(_reference(alt, values.single), points).properties(width=_WIDTH + 60, height=_HEIGHT, title=title)


@_draw.register
def _budget(values: Budget, alt: Any) -> Any:
    """Figure 4."""
    colours = dict(zip((c.name for c in values.courses), (ORANGE, BLUE, GREEN, PINK), strict=False))
    dashes = dict(zip(colours, ([1, 0], [2, 3], [8, 3], [5, 2, 1, 2]), strict=False))  # they often coincide
    rows: _Rows = []
    for course in values.courses:
        steps = list(course.steps)
        until = values.most if course.finished else min(course.ends, values.most)
        points = [(step.passes, step) for step in steps if step.passes <= until] + [(until, steps[-1])]
        for passes, step in points:
            error = step.stderr if math.isfinite(step.stderr) else 0.0
            rows.append(
                {"passes": passes, "score": step.score, "low": step.score - error, "high": step.score + error}
                | {"method": course.name, "members": step.size}
            )
    own = values.courses[0].name
    title_y = f"{_score(values.about)} of the soup chosen so far"
    x = alt.X("passes:Q", title="passes over validation spent on soups", scale=alt.Scale(nice=False))
    color = alt.Color("method:N", scale=_colours(alt, colours), title=None, legend=alt.Legend(orient="top", columns=4))
    dash = alt.StrokeDash(
        "method:N", scale=_colours(alt, dashes), title=None, legend=alt.Legend(orient="top", columns=4)
    )

    def lines(chosen: bool, width: float) -> Any:
        some = alt.Chart(_data(alt, [row for row in rows if (row["method"] == own) == chosen]))
        line = some.mark_line(interpolate="step-after", strokeWidth=width)
        return line.encode(x=x, y=_y(alt, "score", title_y), color=color, strokeDash=dash)

    band = alt.Chart(_data(alt, [row for row in rows if row["method"] == own]))
    band = band.mark_area(opacity=0.12, interpolate="step-after", color=ORANGE).encode(
        x=x, y=_y(alt, "low", title_y), y2="high:Q"
    )
    layers = [band, lines(True, 3), lines(False, 1.8)]
    notes = ["band: one standard error over examples, of this run"]
    ends = [[row for row in rows if row["method"] == c.name][-1] for c in values.courses if c.lacking]
    if ends:
        stops = alt.Chart(_data(alt, ends)).mark_point(shape="cross", angle=45, filled=True, size=60)
        layers.append(
            stops.encode(x=x, y="score:Q", color=alt.Color("method:N", scale=_colours(alt, colours), legend=None))
        )
        notes[0] += "; ×: the next true score is not known"
    if not values.about.finished:
        notes[0] += "; the run has not finished"
    title = _title(alt, f"Score by budget, {values.about.run}", notes)
    return alt.layer(*layers).properties(width=_WIDTH + 60, height=_HEIGHT, title=title)


@_draw.register
def _halves(values: Halves, alt: Any) -> Any:
    """Figure 5."""
    groups = {
        f"small, under {values.split} members": values.small,
        f"large, {values.split} and more": values.large,
    }
    rows: _Rows = []
    for name, soups in groups.items():
        for place, soup in enumerate(soups):
            # spread by the golden ratio: neighbours in score lie apart, the same every time
            aside = (place * 0.6180339887498949) % 1 - 0.5
            rows.append({"soups": name, "score": soup.score, "members": soup.size, "aside": aside})
    order = list(groups)
    x = alt.X("soups:N", sort=order, title=None, axis=alt.Axis(labelAngle=0))
    base = alt.Chart(_data(alt, rows))
    boxes = base.mark_boxplot(
        size=110, opacity=0.35, color="#9fb8c8", outliers=False, median={"color": "#222222", "strokeWidth": 2}
    ).encode(x=x, y=_y(alt, "score", f"true {_score(values.about)}"))
    points = base.mark_circle(opacity=0.75).encode(
        x=x,
        y="score:Q",
        xOffset=alt.XOffset("aside:Q", scale=alt.Scale(domain=[-1.4, 1.4])),
        color=alt.Color("members:Q", scale=alt.Scale(scheme="viridis"), legend=_counts(alt, values.about.members)),
        size=alt.Size(
            "members:Q", scale=alt.Scale(range=[25, 160], zero=False), legend=_counts(alt, values.about.members)
        ),
    )
    test = values.test
    better = test.larger if values.about.higher_is_better else 1 - test.larger
    title = _title(
        alt,
        f"A large soup beats a small one in {better:.0%} of pairs",
        [
            f"Mann-Whitney p = {test.p_value:.2g}, {len(values.large)} large and {len(values.small)} small soups of "
            f"{values.about.run}",
            _sample(values.random),
        ],
    )
    return alt.layer(boxes, points, _reference(alt, values.single)).properties(
        width=_WIDTH - 20, height=_HEIGHT, title=title
    )


@_draw.register
def _sizes(values: Sizes, alt: Any) -> Any:
    """Figure 6."""
    soups = [{"members": s.size, "score": s.score, "what": "a soup"} for s in values.soups]
    means = []
    for at in values.means:
        error = at.stderr if math.isfinite(at.stderr) else 0.0
        means.append(
            {"members": at.size, "score": at.mean, "low": at.mean - error, "high": at.mean + error, "what": "mean"}
        )
    colours = {"a soup": BLUE, "mean": ORANGE}
    x = alt.X("members:Q", title="members of the soup", scale=alt.Scale(nice=False, padding=12), axis=_whole(alt))
    color = alt.Color(
        "what:N", scale=_colours(alt, colours), title=None, legend=alt.Legend(orient="top", symbolOpacity=1)
    )
    points = (
        alt.Chart(_data(alt, soups))
        .mark_circle(opacity=0.45, size=36)
        .encode(x=x, y=_y(alt, "score", f"true {_score(values.about)}"), color=color)
    )
    base = alt.Chart(_data(alt, means)).encode(x=x)
    band = base.mark_area(opacity=0.2, color=ORANGE).encode(y="low:Q", y2="high:Q")
    line = base.mark_line(strokeWidth=2, point=True).encode(y="score:Q", color=color)
    title = _title(
        alt,
        f"Score by size, {len(values.soups)} soups of {values.about.run}",
        [f"band: one standard error of the mean over soups; {_sample(values.random)}"],
    )
    return alt.layer(_reference(alt, values.single), band, points, line).properties(
        width=_WIDTH, height=_HEIGHT, title=title
    )


@_draw.register
def _mixed(values: MixedFigure, alt: Any) -> Any:
    """Figure 1."""
    panels = [_line_scores(values, alt), _line_distances(values, alt)]
    shares = f"{values.line_fit.explained:.1%} on the line"
    if values.simplex and values.simplex_fit is not None:
        panels += _triangles(values, alt)
        shares += f", {values.simplex_fit.explained:.1%} in the simplex"
    lines = [f"of the squared difference of outputs, which is 0 to first order, second-order theory explains {shares}"]
    if values.reestimated:
        lines.append("members with their BatchNorm statistics estimated again, as the soups' are")
    title = _title(alt, f"Averaged outputs against the soup, best members of {values.about.run}", lines)
    together = alt.hconcat(*panels, spacing=40)
    return together.resolve_scale(color="independent").properties(title=title)


def _line_scores(values: MixedFigure, alt: Any) -> Any:
    """Scores of soup and of averaged outputs along the line."""
    ratio = f"ratio of the best, {_short(values.names[0])}"
    colours = {"soup": ORANGE, "averaged outputs": BLUE}
    rows: _Rows = []
    ends = [(1.0, values.ends[0]), (0.0, values.ends[1])]
    for name in colours:
        rows += [{"p": p, "score": score, "what": name, "low": score, "high": score} for p, score in ends]
    for point in values.line:
        error = point.gap_stderr if math.isfinite(point.gap_stderr) else 0.0
        rows.append(_at(point, "soup", point.soup, error))
        rows.append(_at(point, "averaged outputs", point.averaged, 0.0))
    base = alt.Chart(_data(alt, rows)).encode(
        x=alt.X("p:Q", title=ratio, scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("what:N", scale=_colours(alt, colours), title=None, legend=_below(alt)),
    )
    bars = base.mark_rule(opacity=0.5).encode(y=_y(alt, "low", _score(values.about)), y2="high:Q")
    line = base.mark_line(point=True, strokeWidth=1.5).encode(y="score:Q")
    note = _title(alt, "Score on the line", ["bars: standard error of the gap, paired"], 12)
    return alt.layer(bars, line).properties(width=_PANEL, height=_PANEL, title=note)


def _at(point: MixedPoint, what: str, score: float, error: float) -> dict[str, Any]:
    return {"p": point.ratios[0], "score": score, "what": what, "low": score - error, "high": score + error}


def _line_distances(values: MixedFigure, alt: Any) -> Any:
    """How far the soup's outputs are from averaged ones along the line, and what theory says."""
    measured = [{"p": point.ratios[0], "apart": point.apart, "what": "measured"} for point in values.line]
    # the fitted constant is that of any point: theory is h p (1 - p)
    middle = values.line[len(values.line) // 2]
    h = middle.second_order / (middle.ratios[0] * (1 - middle.ratios[0]))
    theory: _Rows = []
    for step in range(51):
        p = step / 50
        theory.append({"p": p, "apart": h * p * (1 - p), "what": "second order"})
        theory.append({"p": p, "apart": 0.0, "what": "first order, 0"})
    colours = {"measured": ORANGE, "second order": BLUE, "first order, 0": GREY}
    x = alt.X("p:Q", title=f"ratio of the best, {_short(values.names[0])}", scale=alt.Scale(domain=[0, 1]))
    color = alt.Color("what:N", scale=_colours(alt, colours), title=None, legend=_below(alt))
    y = alt.Y("apart:Q", title="root mean square of the outputs' difference")
    lines = alt.Chart(_data(alt, theory)).mark_line(strokeWidth=2).encode(x=x, y=y, color=color)
    points = alt.Chart(_data(alt, measured)).mark_circle(size=60, opacity=1).encode(x=x, y=y, color=color)
    title = _title(alt, "Outputs on the line", ["averaged minus the soup's; second order is h p(1 − p)"], 12)
    return alt.layer(lines, points).properties(width=_PANEL, height=_PANEL, title=title)


def _triangles(values: MixedFigure, alt: Any) -> list[Any]:
    """The same in the simplex of three: measured, and the second-order theory, in the same colours."""
    corners = [(0.5, math.sqrt(3) / 2), (0.0, 0.0), (1.0, 0.0)]
    names = [
        {"x": x, "y": y, "name": f"{place}. {_short(name)}", "up": y > 0}
        for place, (name, (x, y)) in enumerate(zip(values.names, corners, strict=True), start=1)
    ]
    high = max(max(point.apart, point.second_order) for point in values.simplex)
    found = []
    for title, field in (("Outputs in the simplex", "apart"), ("Second-order theory", "second_order")):
        rows = []
        for point in values.simplex:
            x = sum(p * corner[0] for p, corner in zip(point.ratios, corners, strict=True))
            y = sum(p * corner[1] for p, corner in zip(point.ratios, corners, strict=True))
            rows.append({"x": x, "y": y, "apart": getattr(point, field)})
        xs = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.25, 1.25]))
        ys = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-0.15, 1.05]))
        legend = alt.Legend(orient="bottom", gradientLength=140, title="root mean square") if field == "apart" else None
        color = alt.Color("apart:Q", scale=alt.Scale(scheme="viridis", domain=[0, high]), legend=legend)
        points = alt.Chart(_data(alt, rows)).mark_circle(size=330, opacity=1).encode(x=xs, y=ys, color=color)
        edges = alt.Chart(_data(alt, [{"x": x, "y": y, "n": n} for n, (x, y) in enumerate([*corners, corners[0]])]))
        outline = edges.mark_line(color="#bbbbbb", strokeWidth=1).encode(x=xs, y=ys, order="n:O")
        layers = [outline, points]
        for up, offset in ((True, -14), (False, 20)):
            at = alt.Chart(_data(alt, [row for row in names if row["up"] == up]))
            layers.append(
                at.mark_text(dy=offset, fontSize=10, color="#333333", limit=150).encode(x=xs, y=ys, text="name:N")
            )
        text = "measured" if field == "apart" else "its six constants fitted to them"
        found.append(alt.layer(*layers).properties(width=_PANEL, height=_PANEL, title=_title(alt, title, [text], 12)))
    return found


# -- parts


def _data(alt: Any, rows: _Rows) -> Any:
    return alt.Data(values=[{name: _value(value) for name, value in row.items()} for row in rows])


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kinds(rows: _Rows) -> list[tuple[str, str]]:
    return [(name, "N" if isinstance(value, str) else "Q") for name, value in rows[0].items()]


def _title(alt: Any, text: str, lines: Sequence[str], size: int = 14) -> Any:
    return alt.TitleParams(printable(text), subtitle=[printable(line) for line in lines], fontSize=size)


def _score(about: About) -> str:
    return printable(about.metric) if about.higher_is_better else f"{printable(about.metric)} (lower is better)"


def _y(alt: Any, field: str, title: str) -> Any:
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False))


def _colours(alt: Any, colours: Mapping[str, Any]) -> Any:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def _whole(alt: Any) -> Any:
    return alt.Axis(format="d", tickMinStep=1)


def _below(alt: Any) -> Any:
    """A legend under a panel, so that panels side by side begin at the same height."""
    return alt.Legend(orient="bottom", symbolOpacity=1)


def _counts(alt: Any, members: int) -> Any:
    """The legend of numbers of members: a few whole ones."""
    few = sorted({2, members, *(round(2 + (members - 2) * share) for share in (0.25, 0.5, 0.75))})
    return alt.Legend(title="members", values=few, format="d")


def _path(alt: Any, points: Sequence[tuple[float, float]], scale: Any) -> Any:
    rows = [{"x": x, "y": y} for x, y in points]
    return (
        alt.Chart(_data(alt, rows))
        .mark_line(color="#bbbbbb", strokeDash=[4, 4], strokeWidth=1)
        .encode(x=alt.X("x:Q", scale=scale), y=alt.Y("y:Q", scale=scale))
    )


def _reference(alt: Any, score: float) -> Any:
    """A dashed line at the score of the best single member, with its name."""
    at = alt.Chart(_data(alt, [{"score": score, "name": "best single"}]))
    rule = at.mark_rule(color="#444444", strokeDash=[4, 3], strokeWidth=1).encode(y="score:Q")
    text = at.mark_text(align="right", baseline="bottom", dy=-3, fontSize=10, color="#444444").encode(
        x=alt.value("width"), y="score:Q", text="name:N"
    )
    return alt.layer(rule, text)


def _sample(random: bool) -> str:
    return "random candidates" if random else "what search and methods chose to evaluate: no random sample"


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _NAME else shown[: _NAME - 1] + "…"
