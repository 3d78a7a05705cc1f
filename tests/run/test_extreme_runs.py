"""The whole path at the edge of what there is: one example, scores that are no numbers, logits beyond float16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import toy
from radin import cook
from radin.errors import OutputsError
from radin.metrics import BOOTSTRAP_CALLS
from radin.search.screening import FITTED, RANKED
from radin.search.strategies import names

PLAIN = """
import torch, toy
model = toy.model
def validation(): return {validation}
{more}
"""


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return toy.build(tmp_path_factory.mktemp("pool"), members=4)


def run(members, folder: Path, *, validation="toy.batches(toy.VALIDATION)", more="", **settings):
    """A finished run and its result.json, read by the letter: no NaN, no infinity."""
    folder.mkdir(exist_ok=True)
    (folder / "task.py").write_text(PLAIN.format(validation=validation, more=more))
    result = cook(members, folder / "task.py", out=folder / "run", device="cpu", **{"budget": 3, **settings})

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in result.json")

    return result, json.loads((folder / "run" / "result.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("strategy", names())
@pytest.mark.parametrize("rows", ["slice(700, 701)", "slice(700, 704)"])
def test_fewer_examples_than_classes(members, tmp_path, strategy, rows):
    result, found = run(members, tmp_path, validation=f"toy.batches({rows})", strategy=strategy)
    assert found["best"]["score"] >= found["best_single"]["score"]
    assert result.passes.soups <= 3


@pytest.mark.parametrize("strategy", ["adaptive", "greedy", "paper"])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("higher", [True, False])
def test_a_metric_that_is_no_number_for_some_soups(members, tmp_path, strategy, bad, higher):
    more = f"""
calls = 0
def metric(outputs, targets):
    found = float((outputs.argmax(dim=1) == targets).double().mean())
    return float("{bad}") if {"found > 0.93" if higher else "found < 0.8"} else found
higher_is_better = {higher}
"""
    result, found = run(members, tmp_path, more=more, strategy=strategy)
    sign = 1 if higher else -1
    assert np.isfinite(result.best.score)
    assert sign * found["best"]["score"] >= sign * found["best_single"]["score"]


def test_a_function_is_called_a_bounded_number_of_times(members, tmp_path):
    more = f"""
from pathlib import Path
def metric(outputs, targets):
    with Path({str(tmp_path / "calls")!r}).open("a") as file:
        file.write(".")
    return float((outputs.argmax(dim=1) == targets).double().mean())
higher_is_better = True
"""
    told = []
    result, _ = run(members, tmp_path, more=more, progress=lambda what, done, total: told.append(what))
    soups, each = result.passes.started, 1 + BOOTSTRAP_CALLS
    # members; candidates; soups; then what the result says of them: estimates, and averaged outputs with their error
    most = len(members) + BOOTSTRAP_CALLS + FITTED + RANKED + soups * each + (soups + 1) + each
    assert 0 < len((tmp_path / "calls").read_text()) <= most + 10
    assert any("recipes with metric" in what for what in told)
    assert any("members with metric" in what for what in told)


def test_logits_beyond_float16_are_refused_by_name(members, tmp_path):
    more = """
class Loud(torch.nn.Sequential):
    def forward(self, x): return 1e6 * super().forward(x)
def model(): return Loud(*toy.model())
"""
    with pytest.raises(OutputsError, match=r"more than float16 holds: store them as float32"):
        run(members, tmp_path, more=more, outputs_dtype="float16")
    _, found = run(members, tmp_path / "again", more=more)
    assert found["best"]["score"] >= found["best_single"]["score"]
