"""Every block of code in README.md and docs runs as it stands, in a folder laid out as its page says."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import worlds
from blocks import PAGES, ROOT, Block, blocks, python, run
from safetensors.torch import load_file

from radin.search.strategies import base

FAST = {"--evaluate 200": "--evaluate 4", "--budget 16": "--budget 3", "--budget 10": "--budget 2"}
# Where the pages' code runs, on what, and what holds afterwards. ``elsewhere``: by a test of its own.
ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/clusters-slurm.md": "tests/engine/test_slurm.py",
    "docs/clusters.md": "tests/engine/test_ray.py",
    "docs/evaluators.md": "tests/test_docs.py",
    "docs/ready-tasks.md": "tests/integrations/test_ready_docs.py",
}


def found(run: str) -> dict[str, Any]:
    return dict(json.loads(Path(run, "result.json").read_text()))


def quickstart(names: dict[str, Any]) -> None:
    assert found("run")["passes"]["budget"] == 12
    assert names["result"].best.score == found("run-from-python")["best"]["score"] >= names["result"].best_single.score
    assert torch.equal(names["net"].state_dict()["0.weight"], load_file("run/soup.safetensors")["0.weight"])


def choosing(names: dict[str, Any]) -> None:
    assert found("run")["strategy"]["name"] == "pruned"
    assert found("run-half")["examples"] == 300


def extending(names: dict[str, Any]) -> None:
    assert base.get("pairs").options[0].name == "most"
    del base._STRATEGIES["pairs"], sys.modules["soup_pairs"]  # other tests name all strategies that there are


def tasks(names: dict[str, Any]) -> None:
    assert names["result"].metric == "nll"
    assert names["result"].best.score <= names["result"].best_single.score


def failing(names: dict[str, Any]) -> None:
    pages = {finding.page for finding in names["found"].findings}
    assert {"findings/one-initialisation", "findings/batchnorm"} <= pages
    assert all((ROOT / "docs" / f"{page}.md").is_file() for page in pages)


def folders(names: dict[str, Any]) -> None:
    assert {"config.json", "README.md", "model.safetensors"} <= set(os.listdir("run/soup"))
    assert Path("linear.yml").read_text().count("weight:") == 3
    soup, again = (load_file(f"{name}/model.safetensors") for name in ("soup", "soup-again"))
    assert all(torch.allclose(soup[name], again[name], atol=1e-6) for name in soup)
    small, exact = (load_file(f"{name}/adapter_model.safetensors") for name in ("adapter-of-8", "adapter"))
    name = next(name for name in exact if "lora_A" in name)
    assert (len(exact[name]), len(small[name])) == (12, 8)


def language_models(names: dict[str, Any]) -> None:
    with_logs, without = found("run-logs"), found("run")
    assert with_logs["passes"]["members"] == 4
    assert with_logs["best_single"]["score"] == pytest.approx(without["best_single"]["score"])
    soup, again = (load_file(f"{run}/model.safetensors")["w"] for run in ("run-logs/soup", "soup-again"))
    assert torch.allclose(soup, again, atol=1e-6)


def recipes(names: dict[str, Any]) -> None:
    weights = names["weights"]
    assert weights["embed.weight"].tolist() == [1.75, 1.75]
    assert weights["encoder.layer.11.key"].tolist() == [2.75, 2.75]
    assert weights["encoder.layer.11.output.weight"].tolist() == [3.0, 3.0]
    assert names["further"]["embed.weight"].tolist() == [1.0, 1.0]


def metrics(names: dict[str, Any]) -> None:
    assert names["metric"].name == "huber"
    assert names["within_one"](torch.eye(3).numpy(), torch.tensor([0, 2, 0]).numpy()).tolist() == [True, True, False]


def trainings(names: dict[str, Any]) -> None:
    assert names["cook"].problem is None
    assert type(names["soup"]).__name__ == "MyModule"
    assert type(names["model"]).__name__ == "BertForSequenceClassification"
    assert Path("out/soup").is_dir()


def figures(names: dict[str, Any]) -> None:
    assert {"figure-4-budget.png", "table-1.md", "figure-2-estimate-and-truth.svg"} <= set(os.listdir("pictures"))
    assert len(names["found"].soups) >= 3


def nothing(names: dict[str, Any]) -> None:
    """Running is all there is to say."""


HERE: dict[str, tuple[worlds.World, Callable[[dict[str, Any]], None]]] = {
    "docs/api.md": (worlds.sweep, nothing),
    "docs/batchnorm.md": (worlds.sweep, nothing),
    "docs/choosing.md": (worlds.sweep, choosing),
    "docs/doctor.md": (worlds.cooked, nothing),
    "docs/extending.md": (worlds.empty, extending),
    "docs/figures.md": (worlds.sweep, figures),
    "docs/folders.md": (worlds.folders, folders),
    "docs/how-it-works.md": (worlds.sweep, nothing),
    "docs/inputs.md": (worlds.files, nothing),
    "docs/language-models.md": (worlds.language_models, language_models),
    "docs/metrics.md": (worlds.metrics, metrics),
    "docs/quickstart.md": (worlds.empty, quickstart),
    "docs/recipes.md": (worlds.encoder, recipes),
    "docs/report.md": (worlds.cooked, nothing),
    "docs/tasks.md": (worlds.sweep, tasks),
    "docs/training.md": (worlds.trainings, trainings),
    "docs/watching.md": (worlds.cooked, nothing),
    "docs/when-soups-fail.md": (worlds.sweep, failing),
}


def test_every_block_is_run_somewhere_or_says_why_not() -> None:
    code = [block for page in PAGES for block in blocks(page)]
    assert {block.page for block in code} == set(HERE) | set(ELSEWHERE)
    assert {block.language for block in code} <= {"sh", "python"}
    left_out = [(block.page, block.reason.split(";")[0]) for block in code if block.reason]
    assert left_out == [
        ("docs/clusters-slurm.md", "it needs a Slurm queue"),
        ("docs/clusters.md", "it needs a cluster"),
        ("docs/clusters.md", "as above"),
        ("docs/extending.md", "the engine is the reader's"),
        ("docs/inputs.md", "it needs a bucket and the hub"),
        ("docs/language-models.md", "it needs lm_eval and a language model"),
        ("docs/watching.md", "standard error goes to a file"),
    ]


def test_what_the_readme_types_is_run_too() -> None:
    """Its Python is by test_readme.py; its lines for a shell are those of pages, up to the budget."""

    def lines(page: str) -> set[str]:
        typed = [line for b in blocks(page) if b.language == "sh" and not b.reason for line in b.text.splitlines()]
        return {re.sub(r"--budget \d+", "--budget B", " ".join(line.split(" #")[0].split())) for line in typed}

    pages = {line for page in PAGES if page != "README.md" for line in lines(page)}
    assert len(lines("README.md")) == 7
    assert sorted(lines("README.md") - pages) == ["make demo", "make test"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", HERE, ids=lambda page: Path(page).stem)
def test_page(page: str, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, check = HERE[page]
    folder = tmp_path / "reader"
    folder.mkdir()
    python(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "task", raising=False)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__", **world(folder, toy_folder)}
    try:
        for block in blocks(page):
            if not block.reason:
                run(block, folder, names, FAST)
        check(names)
    finally:
        sys.modules.pop("task", None)


def test_a_block_that_is_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, text, error in (
        ("python", "import radin\nradin.bake", AttributeError),
        ("sh", "radin cook --temperature 200", click.NoSuchOption),
        ("sh", "pip install 'radin[salt]'", AssertionError),
        ("sh", "make tea", AssertionError),
    ):
        with pytest.raises(error):
            run(Block("a page", 1, language, text, ""), tmp_path, {}, {})
