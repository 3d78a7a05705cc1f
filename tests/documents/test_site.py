"""The site: it builds without a warning, and the reference holds all that the code has."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import radin
from radin.cli.group import cli
from radin.report.findings import Finding
from radin.search.strategies import base

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    words = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "kept"), "docs", str(folder / "html")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


def words(site: Path, page: str) -> str:
    """The text of a page, without markup."""
    text = re.sub(r"<[^>]+>", "", (site / f"{page}.html").read_text(encoding="utf-8"))
    return (
        text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
        .replace("&quot;", '"')
    )


@pytest.mark.long
def test_every_command_and_option_is_there(site: Path) -> None:
    text = words(site, "commands")
    options = [
        name
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option, click.Option)
        for name in [*option.opts, *option.secondary_opts]
    ]
    assert len(options) > 60
    assert [
        f"radin {name}" for name in cli.commands if f'id="radin-{name}"' not in (site / "commands.html").read_text()
    ] == []
    assert [name for name in options if name not in text] == []


@pytest.mark.long
def test_every_strategy_with_its_options_is_there(site: Path) -> None:
    text = words(site, "strategies")
    for name in base.names():
        assert all(f"-O {option.name}={option.default}" in text for option in base.get(name).options)
        assert base.get(name).summary in text


@pytest.mark.long
def test_every_public_name_is_there(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    assert [name for name in radin.__all__ if f'id="radin.{name}"' not in text and name != "__version__"] == []


@pytest.mark.long
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), page
    assert (site / "how-it-works.html").read_text(encoding="utf-8").count("<math") > 20


def test_each_finding_has_a_page_and_each_page_a_finding() -> None:
    tree = ast.parse((ROOT / "src/radin/report/findings.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Finding"]
    titles = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    titles.add("the core of the pool")  # said in several ways
    made = {f"docs/{Finding('note', title, '').page}.md" for title in titles}
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "findings").glob("*.md")} - {
        "docs/findings/index.md"
    }
    assert made == pages
    assert len(pages) == 21


@pytest.mark.parametrize("name", [name for name in radin.__all__ if name != "__version__"])
def test_every_argument_is_explained(name: str) -> None:
    thing = getattr(radin, name)
    described = {name: thing}
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        public = [method for method in vars(thing) if not method.startswith("_")]
        described |= {f"{name}.{method}": inspect.getattr_static(thing, method) for method in public}
    lacking: list[str] = []
    for where, what in described.items():
        what = getattr(what, "__func__", what)
        if isinstance(what, property) or not callable(what):
            continue
        text = inspect.getdoc(what) or ""
        assert text, where
        if "." in where or (inspect.isclass(what) and issubclass(what, Exception)):
            continue
        names = list(inspect.signature(what).parameters)
        names += [field.name for field in dataclasses.fields(what)] if dataclasses.is_dataclass(what) else []
        lacking += [f"{where}: {n}" for n in dict.fromkeys(names) if not re.search(rf"\b{n}\b", text) and n != "self"]
    assert lacking == []


def test_every_definition_that_others_see_has_a_docstring() -> None:
    """Modules, classes, functions and methods whose names have no underscore; not what is inside of functions."""
    lacking = []
    for path in sorted((ROOT / "src" / "radin").rglob("*.py")):
        open_ = [ast.parse(path.read_text(encoding="utf-8"))]
        while open_:
            node = open_.pop()
            lacking += [] if ast.get_docstring(node) else [f"{path}: {getattr(node, 'name', 'the module')}"]
            if not isinstance(node, ast.FunctionDef):
                open_ += [n for n in node.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name[0] != "_"]
    assert lacking == []
