"""Results and recipes print themselves, as text and as HTML."""

from html.parser import HTMLParser

from made import NAMES, result
from radin.recipe import Recipe
from radin.report.html import recipe_html

RECIPE = Recipe((0.25, 0.0, 0.75, 0.0))


class Parsed(HTMLParser):
    """The rows of a table, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_recipe_names_its_members():
    assert str(RECIPE) == "#0 0.25, #2 0.75"
    assert RECIPE.describe(NAMES) == "a 0.25, c 0.75"
    assert str(Recipe.uniform(range(3), 3)) == "#0 0.333, #1 0.333, #2 0.333"
    assert repr(RECIPE) == "Recipe(weights=(0.25, 0.0, 0.75, 0.0))"
    again = Recipe.single(1, 2, reestimated=True)
    assert eval(repr(again)) == again


def test_a_recipe_as_html():
    assert Parsed(RECIPE._repr_html_()).rows == [["member", "ratio"], ["#0", "0.25"], ["#2", "0.75"]]
    named = recipe_html(Recipe.single(3, 4), NAMES)
    assert Parsed(named).rows == [["member", "ratio"], ["<d>", "1"]]
    assert "<d>" not in named


def test_a_result_prints_the_closing_table():
    lines = str(result()).split("\n")
    assert lines[0] == "accuracy (higher is better), 100 validation examples"
    (chosen,) = [line for line in lines if line.startswith(" chosen soup")]
    assert "0.8400 ± 0.0100" in chosen
    assert lines[-1] == "soup: run/soup.safetensors"
    assert "\x1b" not in str(result())


def test_a_result_as_html_is_escaped_and_whole():
    found = result(metric="<script>alert(1)</script>", notes=("a < b & c",))
    text = found._repr_html_()
    rows = Parsed(text).rows
    assert [row[0] for row in rows] == ["", "best single", "uniform soup", "chosen soup", "logit ensemble"]
    assert rows[3][2] == "0.8400 ± 0.0100"
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "note: a &lt; b &amp; c" in text
    assert "http" not in text
