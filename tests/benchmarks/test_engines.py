"""The trace of what was asked before: it is played again, and a change would show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmarks.engine_parts import trace

import pools

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mine = tmp_path_factory.mktemp("trace") / "demo"
    shutil.copytree(pools.demo_pool().folder, mine)
    return trace.with_recorded_weights(mine)


@pytest.mark.parametrize("runs", [slice(0, 2), slice(5, 6), slice(8, 9)], ids=["adaptive", "paper", "greedy"])
def test_the_same_is_asked_and_answered_as_before(folder: Path, runs: slice) -> None:
    with trace.as_it_was():
        assert trace.compared(folder, trace.TRACES / "demo.json", runs=runs) == []


def test_another_answer_would_be_noticed(folder: Path, tmp_path: Path) -> None:
    recorded = json.loads((trace.TRACES / "demo.json").read_text())
    recorded["runs"][8]["steps"][3]["right"] += 1
    (tmp_path / "demo.json").write_text(json.dumps(recorded))
    found = trace.compared(folder, tmp_path / "demo.json", runs=slice(8, 9))
    assert len(found) == 1
    assert found[0].startswith("greedy {}, budget 12: question 4 was ")


def test_other_weights_are_refused(folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "members").mkdir()
    for path in toy_folder.glob("*.safetensors"):
        shutil.copy(path, tmp_path / "members")
    with pytest.raises(ValueError, match=r"holds other weights than those of demo\.json"):
        trace.compared(tmp_path, trace.TRACES / "demo.json")
