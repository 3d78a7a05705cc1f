"""The page's figures as Vega-Lite, from the rows of ``soups``, ``pool`` and ``outcome``.

Widths are the page's own. Data are named "points", and "more" where a layer has others; names of the user's go in as
data, never into an expression. Blue, orange, green and pink are Okabe and Ito's; the page's style gives the rest its
colours, light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from radin.report.page.soups import Rows

BLUE, ORANGE, GREEN, PINK, VIOLET, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C7AE6", "#8a8a8a"
_LINES = (ORANGE, BLUE, GREEN, PINK, VIOLET, "#E69F00")
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
Spec = dict[str, Any]

_SOUP = {"what": "", "truth": "true score", "error": "± one standard error", "estimate": "estimate"}
_SOUP |= {"rank": "rank by estimate", "members": "members"}


@dataclass(frozen=True)
class Figure:
    """One figure. labels: field -> what a reader is told of a point, in this order; a recipe is told always.

    options: label -> value of the parameter ``share``, where readers may choose.
    """

    key: str
    title: str
    note: str
    spec: Spec
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, float] = field(default_factory=dict)


def budget(steps: Rows, stops: Rows, metric: str) -> Figure:
    """Score by passes spent, the run's own with a band of one standard error."""
    names = list(dict.fromkeys(row["method"] for row in steps))
    colour = _colour("method", dict(zip(names, _LINES, strict=False)))
    x = _q("passes", "passes over validation spent on soups", zero=True)
    line = {"type": "line", "interpolate": "step-after", "strokeWidth": 2}
    own = {"filter": {"field": "own", "equal": True}}
    layers = [
        _mark(
            {"type": "area", "interpolate": "step-after", "opacity": 0.15, "color": ORANGE},
            {"x": x, "y": _q("low", metric), "y2": {"field": "high"}},
            transform=[own],
        ),
        _mark(line, {"x": x, "y": _q("score", metric), "color": colour, "strokeDash": _dash(names)}),
        _points({"x": x, "y": _q("score", metric), "color": colour}, size=45),
    ]
    if stops:
        cross = {"type": "point", "shape": "cross", "angle": 45, "size": 90, "filled": True}
        layers.append(_mark(cross, {"x": x, "y": _q("score", metric), "color": colour}, data="more"))
    note = "The score of the soup chosen so far. Band: one standard error over examples, of this run."
    note += " A cross: the next true score that the method needs is not known." if stops else ""
    labels = {"method": "", "passes": "after passes", "score": "score", "members": "members"}
    return Figure("budget", "Score by budget", note, _spec(steps, layers, stops), labels)


def truth(rows: Rows, metric: str, correlation: float | None) -> Figure:
    """Estimate against truth, size as marker."""
    values = [row[name] for row in rows for name in ("truth", "estimate")]
    low, high = min(values), max(values)
    edge = (high - low or abs(high) or 1.0) * 0.04
    scale = {"domain": [low - edge, high + edge], "nice": False, "zero": False}
    x = {
        "field": "estimate",
        "type": "quantitative",
        "scale": scale,
        "title": f"estimate: {metric} of averaged outputs",
    }
    y = {"field": "truth", "type": "quantitative", "scale": scale, "title": f"truth: {metric} of the soup"}
    ends: Rows = [{"estimate": value, "truth": value} for value in (low - edge, high + edge)]
    dashed = {"type": "line", "strokeDash": [4, 4], "color": GREY, "strokeWidth": 1}
    layers = [_mark(dashed, {"x": x, "y": y}, data="more"), _points({"x": x, "y": y, **_size("members")})]
    rho = "" if correlation is None else f" Rank correlation {correlation:.2f}."
    note = f"On the dashed line both are equal.{rho}"
    return Figure("truth", "Estimate and truth", note, _spec(rows, layers, ends), _SOUP)


def ranked(rows: Rows, count: int, metric: str, single: float) -> Figure:
    """Candidates by rank, those evaluated marked with their true score."""
    x = _q("rank", "rank by estimate, best first", padding=8)
    true = {"filter": {"field": "truth", "valid": True}}
    ends = {"not evaluated": GREY, "evaluated by the run": ORANGE, "evaluated since": BLUE}
    colour = _colour("what", {name: ends[name] for name in ends if any(row["what"] == name for row in rows)})
    layers = [
        _reference("single"),
        _points({"x": x, "y": _q("estimate", metric)}, size=14, color=GREY),
        _points({"x": x, "y": _q("truth", metric), "color": colour}, size=60, transform=[true]),
    ]
    shown = "" if len(rows) == count else f"; {len(rows):,} of them drawn: the best, those evaluated, and evenly others"
    note = f"{count:,} candidates by estimate (grey){shown}. In colour: the true score of those evaluated."
    return Figure("ranked", "Candidates by rank", note, _spec(rows, layers, [_single(single)]), _SOUP)


def sizes(rows: Rows, metric: str, single: float) -> Figure:
    """True score by the number of members, with the mean of each size."""
    x = _q("members", "members of the soup", padding=10, whole=True)
    mean = {"aggregate": "mean", "field": "truth", "type": "quantitative", "title": metric, "scale": {"zero": False}}
    layers = [
        _reference("single"),
        _mark({"type": "line", "color": ORANGE, "strokeWidth": 2, "tooltip": None}, {"x": x, "y": mean}),
        _points({"x": x, "y": _q("truth", metric)}, size=50, color=BLUE),
    ]
    note = (
        "A point is a soup, the line their mean by size. They are what the search chose to evaluate: no random sample."
    )
    return Figure("sizes", "Score by size", note, _spec(rows, layers, [_single(single)]), _SOUP)


def member_scores(rows: Rows, metric: str, measured: bool) -> Figure:
    """The members' scores by distance to the centre of the pool, or by rank, with their ratios in the winner."""
    x = _q("distance", "distance to the pool's centre") if measured else _q("place", "rank")
    bars = {"type": "rule", "strokeWidth": 1, "color": GREY}
    layers = [
        _mark(bars, {"x": x, "y": _q("low", metric), "y2": {"field": "high"}}),
        _points({"x": x, "y": _q("score", metric), **_size("ratio", "ratio in the winner", zero=True)}),
    ]
    note = "A point is a member, larger the more of it is in the winner; bars: one standard error."
    note += " Distances are in norms of the mean weights." if measured else ""
    labels = {"name": "", "score": "score", "ratio": "ratio in the winner", "importance": "importance"}
    labels |= {"distance": "distance"} if measured else {}
    return Figure("members-figure", "Members: score and place", note, _spec(rows, layers), labels)


def importance(rows: Rows, metric: str) -> Figure:
    """What the winner's estimate loses without each of its members."""
    x = _q("importance", f"estimated {metric} lost without it", zero=True)
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 150}}
    colour = {"condition": {"test": "datum.importance < 0", "value": ORANGE}, "value": BLUE}
    layers = [_mark({"type": "bar", "height": {"band": 0.7}}, {"x": x, "y": y, "color": colour})]
    note = "Each member of the winner left out in turn, the others' ratios in proportion: below zero it seems to hurt."
    labels = {"name": "", "importance": "lost without it", "ratio": "ratio", "score": "its own score"}
    return Figure("importance", "Importance in the winner", note, _spec(rows, layers, height=_rows(rows)), labels)


def pool_map(rows: Rows, share: float, metric: str) -> Figure:
    """The members in the plane that shows most of their distances, and the soup among them."""
    axis = {"labels": False, "ticks": False, "grid": False, "domain": False, "title": None}
    x = {"field": "x", "type": "quantitative", "axis": axis, "scale": {"padding": 20, "zero": False}}
    y = {"field": "y", "type": "quantitative", "axis": axis, "scale": {"padding": 20, "zero": False}}
    score = _size("ratio", "ratio in the winner", zero=True)
    score["color"] = {
        "field": "score",
        "type": "quantitative",
        "scale": {"scheme": "viridis", "zero": False},
        "legend": {"title": metric, "orient": "bottom", "gradientLength": 120},
    }
    member = {"filter": {"field": "what", "equal": "member"}}
    soup = {"filter": {"field": "what", "equal": "chosen soup"}}
    star = {"type": "point", "filled": True, "shape": _STAR, "size": 260, "color": ORANGE, "opacity": 1}
    layers = [
        _points({"x": x, "y": y, **score}, transform=[member]),
        _mark(star, {"x": x, "y": y}, transform=[soup]),
    ]
    note = f"Distances between weights, {share:.0%} of their variance in this plane; the star is the chosen soup."
    labels = {"what": "", "name": "name", "score": "score", "ratio": "ratio in the winner"}
    return Figure("map", "Map of the pool", note, _spec(rows, layers, height=320), labels)


def parallel(rows: Rows, count: int, metric: str) -> Figure:
    """The ratios of the best soups side by side."""
    flat: list[Spec] = [{"filter": "datum.share <= share || datum.soup == 1"}, {"flatten": ["place", "ratio"]}]
    colour = {
        "field": "score",
        "type": "quantitative",
        "scale": {"scheme": "viridis", "zero": False},
        "legend": {"title": metric, "orient": "bottom", "gradientLength": 120},
    }
    encoding = {
        "x": _q("place", "member, best first", padding=6, whole=True),
        "y": _q("ratio", "mixing ratio", zero=True),
        "color": colour,
        "detail": {"field": "soup"},
    }
    layers = [_mark({"type": "line", "strokeWidth": 1.6, "opacity": 0.6}, encoding, transform=flat)]
    spec = _spec(rows, layers)
    spec["params"] = [{"name": "share", "value": 100}]
    note = f"A line is a soup: the ratio of every member. The best {len(rows)} of {count} soups evaluated."
    options = {"all that are drawn": 100.0, "the best tenth": 10.0, "the best hundredth": 1.0}
    labels = {"soup": "place", "score": "score", "members": "members"}
    return Figure("parallel", "Mixing ratios side by side", note, spec, labels, options)


def agreement(rows: Rows, what: str) -> Figure:
    """How alike members answer, pair by pair."""
    member: Spec = {"type": "ordinal", "title": "member, best first"}
    member["axis"] = {"grid": False, "format": "d", "labelOverlap": True}
    encoding = {
        "x": {"field": "b", **member},
        "y": {"field": "a", **member},
        "color": {
            "field": "v",
            "type": "quantitative",
            "scale": {"scheme": "viridis", "zero": False},
            "legend": {"title": None, "orient": "bottom", "gradientLength": 160},
        },
    }
    layers = [_mark({"type": "rect"}, encoding)]
    labels = {"a": "member", "b": "and member", "v": "agreement"}
    note = f"Pair by pair: {what}."
    return Figure("agreement", "Agreement between members", note, _spec(rows, layers, height=320), labels)


def classes(rows: Rows) -> Figure:
    """Examples won and lost against the best single, by class."""
    colour = _colour("what", {"won": BLUE, "lost": ORANGE})
    y = {"field": "class", "type": "nominal", "sort": None, "title": "class"}
    x = _q("signed", "examples lost (left) and won (right) against the best single", zero=True)
    layers = [_mark({"type": "bar", "height": {"band": 0.7}}, {"x": x, "y": y, "color": colour})]
    labels = {"class": "class", "what": "", "count": "examples", "of": "of"}
    note = (
        "Examples that the chosen soup has better, or worse, than the best single member, the most changed class first."
    )
    return Figure("classes", "Won and lost by class", note, _spec(rows, layers, height=_rows(rows, 2)), labels)


def tiers(rows: Rows, metric: str) -> Figure:
    """The best soups in tiers of what cannot be told apart."""
    names = list(dict.fromkeys(row["tier"] for row in rows))
    colour = _colour("tier", dict(zip(names, _LINES * (1 + len(names) // len(_LINES)), strict=False)))
    legend = {"title": None, "orient": "bottom", "symbolFillColor": GREY, "symbolStrokeColor": GREY}
    shape = {"field": "what", "type": "nominal", "legend": legend}
    axis = {"labels": False, "ticks": False, "grid": False}
    y = {"field": "place", "type": "ordinal", "title": "place, within a tier of no meaning", "axis": axis}
    rule = {"type": "rule", "strokeWidth": 2, "opacity": 0.6}
    layers = [
        _mark(rule, {"x": _q("low", metric), "x2": {"field": "high"}, "y": y, "color": colour}),
        _points({"x": _q("score", metric), "y": y, "color": colour, "shape": shape}, size=60, kind="point"),
    ]
    note = (
        "Within a tier the 95% interval against the best of it contains zero: these cannot be told apart on this data. "
        "Bars: one standard error."
    )
    labels = {"tier": "", "what": "", "score": "score", "members": "members"}
    return Figure("tiers", "Tiers, not ranks", note, _spec(rows, layers, height=_rows(rows, 1, 11)), labels)


def other_data(rows: Rows, metric: str) -> Figure:
    """Best single, uniform and chosen on every set that was scored."""
    colours = {"best single": GREY, "uniform soup": BLUE, "chosen": ORANGE}
    colour = _colour("model", colours)
    y = {"field": "set", "type": "nominal", "sort": None, "title": None}
    offset = {"field": "model", "sort": list(colours)}
    rule = {"type": "rule", "strokeWidth": 2, "opacity": 0.6}
    layers = [
        _mark(rule, {"x": _q("low", metric), "x2": {"field": "high"}, "y": y, "yOffset": offset, "color": colour}),
        _points({"x": _q("score", metric), "y": y, "yOffset": offset, "color": colour}, size=70),
    ]
    labels = {"set": "", "model": "model", "score": "score"}
    note = "Bars: one standard error. Only validation was used to choose."
    return Figure("other-data", "On other data", note, _spec(rows, layers, height=_rows(rows, 3, 46)), labels)


def seconds(rows: Rows) -> Figure:
    """Where the time went."""
    y = {"field": "stage", "type": "nominal", "sort": None, "title": None}
    layers = [
        _mark(
            {"type": "bar", "color": BLUE, "height": {"band": 0.6}}, {"x": _q("seconds", "seconds", zero=True), "y": y}
        )
    ]
    labels = {"stage": "", "seconds": "seconds"}
    return Figure(
        "seconds", "Time per stage", "Of the last session.", _spec(rows, layers, height=_rows(rows, 1, 26)), labels
    )


_STAR = "M0,-1L0.24,-0.32L0.95,-0.31L0.38,0.12L0.59,0.81L0,0.4L-0.59,0.81L-0.38,0.12L-0.95,-0.31L-0.24,-0.32Z"


def _spec(rows: Rows, layers: Sequence[Spec], more: Rows | None = None, height: int = 280) -> Spec:
    data = {"points": [{k: v for k, v in row.items() if v is not None} for row in rows], "more": more or []}
    used = {layer["data"]["name"] for layer in layers if "data" in layer} | {"points"}
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "datasets": {name: data[name] for name in data if name in used},
        "layer": list(layers),
    }


def _mark(mark: Spec, encoding: Spec, *, data: str = "points", transform: Sequence[Spec] = ()) -> Spec:
    found: Spec = {"data": {"name": data}, "mark": {"tooltip": {"content": "data"}, **mark}, "encoding": encoding}
    return found | ({"transform": list(transform)} if transform else {})


def _points(
    encoding: Spec, *, size: int = 60, color: str | None = None, transform: Sequence[Spec] = (), kind: str = "circle"
) -> Spec:
    mark: Spec = {"type": kind, "opacity": 0.8, "size": size} | ({"filled": True} if kind == "point" else {})
    return _mark(mark | ({"color": color} if color else {}), encoding, transform=transform)


def _q(name: str, title: str, *, zero: bool = False, padding: int | None = None, whole: bool = False) -> Spec:
    scale: Spec = {"zero": zero} | ({"padding": padding, "nice": False} if padding is not None else {})
    found: Spec = {"field": name, "type": "quantitative", "title": title, "scale": scale}
    return found | ({"axis": {"format": "d", "tickMinStep": 1}} if whole else {})


def _size(name: str, title: str | None = None, *, zero: bool = False) -> Spec:
    """Area and colour by a number."""
    legend = {"title": title or name, "orient": "bottom", "symbolFillColor": BLUE, "tickCount": 4}
    scale = {"range": [30, 280], "zero": zero}
    found: Spec = {"size": {"field": name, "type": "quantitative", "scale": scale, "legend": legend}}
    return found | {"color": {"value": BLUE}}


def _colour(name: str, colours: Mapping[str, str]) -> Spec:
    scale = {"domain": list(colours), "range": list(colours.values())}
    legend = {"title": None, "orient": "bottom", "columns": 2, "labelLimit": 150}
    return {"field": name, "type": "nominal", "scale": scale, "legend": legend}


def _dash(names: Sequence[str]) -> Spec:
    """A dash for each line, for those that lie on each other, without a legend of its own."""
    dashes = [[1, 0], [2, 3], [8, 3], [5, 2, 1, 2], [3, 3], [10, 4]]
    scale = {"domain": list(names), "range": dashes[: len(names)]}
    return {"field": "method", "type": "nominal", "scale": scale, "legend": None}


def _single(score: float) -> dict[str, Any]:
    return {"single": float(f"{score:.6g}"), "what": "best single member"}


def _reference(name: str) -> Spec:
    """A dashed line at what a soup has to beat."""
    return _mark(
        {"type": "rule", "strokeDash": [4, 3], "color": GREY, "tooltip": None},
        {"y": {"field": name, "type": "quantitative"}},
        data="more",
    )


def _rows(rows: Rows, per: int = 1, step: int = 20) -> int:
    """Points high for so many rows, ``per`` to a line."""
    return max(120, 60 + step * (len(rows) // per))
