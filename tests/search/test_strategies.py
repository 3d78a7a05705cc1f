"""Every strategy passes the suite that is shipped, on real networks. A new one joins it by being registered."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Annotated

import asking
import numpy as np
import pytest

from radin import metrics
from radin.errors import RadinError
from radin.recipe import Recipe
from radin.search.strategies import base, get, names
from radin.testing import check_strategy, checks_of, make_pool
from radin.testing import strategies as suite

EVERY_CHECK = [
    pytest.param(check, name, id=f"{check.__name__.removeprefix('check_')}, {name}{kind}", marks=asking.marks_of(own))
    for own in names()
    for check, name in checks_of(own)
    for kind in [", outputs hidden" if isinstance(name, suite.Hidden) else ""]
]


def test_the_strategies_are_those_of_the_documentation():
    assert {"paper", "greedy", "uniform", "top-k", "best", "pruned", "random"} <= set(names())


@pytest.mark.parametrize(("check", "name"), EVERY_CHECK)
def test_the_suite(zoo, check, name):
    check(name, zoo)


def test_strategies_that_need_outputs_are_not_asked_to_do_without():
    hidden = {name for name in names() for _, asked in checks_of(name) if isinstance(asked, suite.Hidden)}
    assert hidden == set(names(without_outputs=True))
    assert "paper" not in hidden


def test_the_pool_of_the_suite_is_one_where_soups_help():
    pool = make_pool()
    assert pool.outputs.shape == (10, 600, 6)
    assert 0.6 < pool.singles().max() < 0.95
    assert np.ptp(pool.singles()) > 0.05
    best = np.argsort(-pool.singles(), kind="stable").tolist()
    assert max(pool.score(Recipe.uniform(best[:k], 10)) for k in range(2, 6)) > pool.singles().max()
    assert pool.score(Recipe.uniform(range(10), 10)) < 0.5  # some members harm a soup
    assert pool.singles("nll") == pytest.approx([metrics.get("nll").value(o, pool.targets) for o in pool.outputs])
    again = make_pool()
    assert np.array_equal(again.outputs, pool.outputs)


@pytest.fixture
def registered():
    """Register a strategy for one test."""
    before = dict(base._STRATEGIES)
    yield base.strategy
    base._STRATEGIES.clear()
    base._STRATEGIES.update(before)


def ranked(problem):
    """Pairs of members, by the better of them, to be asked about."""
    return [np.bincount([a, b], minlength=problem.members) / 2 for b in range(1, problem.members) for a in range(b)]


def test_a_strategy_of_others_passes_the_whole_suite(registered):
    @registered("pairs")
    def pairs(problem, *, most: Annotated[int, "how many pairs are asked about"] = 30):
        """Soups of two members each, the best members first."""
        yield from (ratios for ratios in ranked(problem)[:most])

    check_strategy("pairs")


def breaks(registered, function, message):
    registered("broken")(function)
    with pytest.raises(AssertionError, match=message):
        check_strategy("broken")


def test_what_is_random_without_the_seed_is_found_out(registered):
    def broken(problem):
        """Soups of random members, from numbers that no seed gives."""
        while True:
            yield np.random.default_rng().dirichlet(np.ones(problem.members))

    breaks(registered, broken, "recipes asked about with the same seed")


def test_what_depends_on_earlier_searches_is_found_out(registered):
    orders = []

    def broken(problem):
        """Soups of two members, in an order that is remembered."""
        orders.append(1)
        pairs = ranked(problem)
        yield from (ratios for ratios in (pairs if len(orders) % 2 else pairs[::-1]))

    breaks(registered, broken, "the recipes asked about with the same seed, by accuracy: expected ")


def test_a_summary_that_says_nothing_is_found_out(registered):
    def broken(problem):
        """Pairs."""
        yield from (ratios for ratios in ranked(problem))

    breaks(registered, broken, "the first line of the docstring says too little: 'Pairs.'")


def test_what_hides_that_it_spends_is_found_out(registered):
    def broken(problem):
        """A strategy that never asks about a soup."""
        return
        yield

    breaks(registered, broken, r"whether anything is asked \(spends\): expected True; got False")


# Strategies of other packages, as pip leaves them: a module, and a folder of metadata that names it.

GOOD = """
import numpy as np
from radin.search.strategies import strategy

@strategy("pairs")
def pairs(problem):
    \"\"\"Soups of two members each, the best members first.\"\"\"
    for b in range(1, problem.members):
        for a in range(b):
            yield np.bincount([a, b], minlength=problem.members) / 2
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with entry points in the group, as long as the test runs."""
    before = dict(base._STRATEGIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base, "_refused", None)

    def install(module, text, points, package=None):
        package = package or module.replace("_", "-")
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[radin.strategies]\n{lines}")
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield install
    base._STRATEGIES.clear()
    base._STRATEGIES.update(before)


def test_a_strategy_of_another_package_is_found_by_its_entry_point(installed, zoo):
    installed("soup_pairs", GOOD, {"pairs": "soup_pairs:pairs"})
    assert "soup_pairs" not in sys.modules
    get("greedy")  # radin's own: nobody else's code is imported for it
    assert "soup_pairs" not in sys.modules
    assert get("pairs").summary == "Soups of two members each, the best members first."
    assert "pairs" in names()
    first, second = suite.play(suite.start(zoo, "pairs", budget=2), zoo)
    best, next_best, third = np.argsort(-zoo.singles(), kind="stable")[:3]
    assert set(first.members) == {best, next_best}
    assert third in second.members


@pytest.mark.parametrize(
    ("text", "points", "reason"),
    [
        ("import a_library_that_is_not_there", {"pairs": "soup_broken"},
         "importing soup_broken failed with ModuleNotFoundError: No module named 'a_library_that_is_not_there'"),
        ("raise SystemExit(3)", {"pairs": "soup_broken"}, "importing soup_broken failed with SystemExit: 3"),
        (GOOD, {"pairs": "soup_broken:none"}, "importing soup_broken:none failed with AttributeError"),
        (GOOD, {"other": "soup_broken"}, "registered no strategy of this name"),
        (GOOD.replace('"pairs"', '"greedy"'), {"pairs": "soup_broken"}, 
         r"it takes the name of a strategy that is there already \(greedy\)"),
    ],
)  # fmt: skip
def test_one_that_is_broken_is_said_once_and_breaks_nothing(installed, caplog, text, points, reason):
    before = {name: get(name) for name in names()}
    base._refused = None
    installed("soup_broken", text, points)
    (name,) = points
    with caplog.at_level(logging.WARNING, "radin"):
        assert {known: get(known) for known in names()} == before
        assert names() == sorted(before)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"strategy '{name}' of the package soup-broken 1.2 cannot be used: ")
    with pytest.raises(RadinError, match=reason):
        get(name)
    with pytest.raises(RadinError, match="unknown strategy 'magic'; known: adaptive, "):
        get("magic")


def test_radin_s_own_name_is_not_taken(installed, caplog):
    own = get("greedy")
    installed("soup_greedy", GOOD.replace('"pairs"', '"greedy"'), {"greedy": "soup_greedy"})
    with caplog.at_level(logging.WARNING, "radin"):
        names()
    assert get("greedy") is own
    assert "soup_greedy" not in sys.modules
    assert "it takes the name of a strategy that is there already (greedy)" in caplog.text


def test_the_command_lists_it(installed, tmp_path, monkeypatch):
    installed("soup_pairs", GOOD, {"pairs": "soup_pairs"})
    installed("soup_broken", "import nothing_at_all", {"worse": "soup_broken"})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    done = subprocess.run(
        [sys.executable, "-m", "radin", "strategies", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"]["summary"] == "Soups of two members each, the best members first."
    assert done.stderr.count("strategy 'worse' of the package soup-broken 1.2 cannot be used") == 1
    assert "Traceback" not in done.stderr
