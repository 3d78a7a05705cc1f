"""What surrounds the code: ranges and constraints, the package index's page, the files that others read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    return dict(line.split("==") for line in (ROOT / name).read_text().splitlines() if "==" in line)


def test_the_oldest_versions_are_the_lower_ends_of_the_ranges():
    lower = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", needed).groups() for needed in PROJECT["dependencies"])
    oldest = pins("constraints-oldest.txt")
    for name, version in lower.items():
        parts = [int(part) for part in version.split(".")]
        assert [int(part) for part in oldest[name].split(".")] == parts + [0] * (3 - len(parts)), name
    assert PROJECT["requires-python"] == ">=3.11"


def test_what_development_uses_is_within_the_ranges():
    packaging = pytest.importorskip("packaging.requirements")
    pinned = pins("constraints.txt")
    needed = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    for text in needed:
        requirement = packaging.Requirement(text)
        if requirement.name in pinned:
            assert requirement.specifier.contains(pinned[requirement.name]), text
    assert "pytest-timeout" in pinned


@pytest.fixture
def build(monkeypatch):
    """hatch_build.py, with a stand-in for what it is called by, which only builds have."""
    hook = types.ModuleType("hatchling.metadata.plugin.interface")
    hook.MetadataHookInterface = object
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, hook.__name__, hook)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


README = """![a picture](docs/one.png) and [a page](docs/two.md#part), [away](https://example.org/x), [below](#use-it)
```python
radin.cook(pool)[0](docs/two.md)
```
"""


def test_links_and_pictures_are_absolute_where_the_repository_is_known(build):
    assert build.absolute(README, "https://example.org/own/radin", "1.2").splitlines() == [
        "![a picture](https://example.org/own/radin/raw/v1.2/docs/one.png) and "
        "[a page](https://example.org/own/radin/blob/v1.2/docs/two.md#part), [away](https://example.org/x), "
        "[below](#use-it)",
        *README.splitlines()[1:],
    ]
    assert build.addresses("https://example.org/own/radin", "1.2")["Changelog"].endswith("/blob/v1.2/CHANGELOG.md")


def test_they_are_plain_words_where_it_is_not(build):
    first = build.absolute(README, None, "1.2").splitlines()[0]
    assert first == " and a page, [away](https://example.org/x), [below](#use-it)"
    assert build.addresses(None, "1.2") == {"Paper": "https://arxiv.org/abs/2401.17790"}


def test_the_repository_is_an_address(build):
    assert build.repository_given("https://example.org/own/radin/") == "https://example.org/own/radin"
    assert build.repository_given("") is None
    for wrong in ("example.org/own/radin", "https://example.org", "https://example.org/own radin"):
        with pytest.raises(ValueError, match="RADIN_REPOSITORY must be like"):
            build.repository_given(wrong)


def test_every_relative_link_of_the_readme_leads_to_a_file(build):
    targets = [target for _, _, target in build._LINK.findall((ROOT / "README.md").read_text())]
    assert len(targets) > 15
    assert [target for target in targets if not (ROOT / target.split("#")[0]).is_file()] == []


def test_the_citation_and_the_templates_can_be_read():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert {found["url"][-10:] for found in citation["references"]} == {"2401.17790", "2203.05482"}
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(template)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]


def test_every_change_meets_both_parts_of_the_tests_and_the_week_the_rest():
    yaml = pytest.importorskip("yaml")
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make ci"

    def made(target):
        env = {
            name: value for name, value in os.environ.items() if not name.startswith("MAKE")
        }  # of a make around this
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
        return done.stdout

    assert [how for how in ("ruff check", "mypy", '-m "not long"', "-m long", "sphinx") if how not in made("ci")] == []
    assert made("ci").count("--rerun-clock") == 2
    assert "--rerun-clock" not in made("test")
    assert "-m long" not in made("test")
    jobs = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())["jobs"]
    assert [job["steps"][-1]["run"] for job in jobs.values()] == ["make oldest", "make coverage"]
    assert "--cov-fail-under" in made("coverage")
    assert "--rerun-clock" not in made("oldest")  # whose environment has no such plugin


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)


@pytest.mark.long
def test_the_strategy_of_the_documentation_passes_as_it_stands(tmp_path):
    (tmp_path / "soup_pairs.py").write_text(BLOCKS[0])
    (tmp_path / "check.py").write_text(BLOCKS[1])
    done = subprocess.run([sys.executable, tmp_path / "check.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "check.py").write_text(BLOCKS[1].replace('"pairs"', '"pears"'))
    done = subprocess.run([sys.executable, tmp_path / "check.py"], capture_output=True, text=True, check=False)
    assert "unknown strategy 'pears'" in done.stderr


def test_the_engine_case_of_the_documentation_names_real_arguments():
    seen = []
    names = {"make_my_engine": None, "score_of_a_file": None}
    source = BLOCKS[2].replace("check_engine(EngineCase", "seen.append(EngineCase")
    exec(source, names | {"seen": seen})
    assert seen[0].members == 6
