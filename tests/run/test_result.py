"""result.json gives the same values back, or says in one sentence why not."""

import copy
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from made import SPLITS, result, scored
from radin.checksums import sealed
from radin.errors import RunError
from radin.recipe import Recipe
from radin.run.reasons import Outlier, Reasons, TrainingRun
from radin.run.result import Gain, Result
from radin.stats.paired import paired_difference, unpaired_difference

REASONS = Reasons(
    1.5, (TrainingRun(("a", "b"), 0.1), TrainingRun(("c",), 0.9)), (Outlier("c", 3.5),), 2, 3, 2, 0.1, 0.01
)

UNPAIRED = unpaired_difference((0.84, 0.01), (0.8, 0.01), 100, True)

AGAIN = scored(
    "best single re-estimated (b)",
    Recipe.single(1, 4, reestimated=True),
    0.9,
    splits=SPLITS,
    further={"wer": (0.1, 0.01)},
)


def again(found: Result) -> Result:
    return Result.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))


@pytest.mark.parametrize(
    "found",
    [
        result(),
        result(ensemble=None, searched=50),
        result(best=result().best_single, paired=None, gain=Gain(0.0, 0.0), optimism=None, reasons=REASONS),
        result(reasons=Reasons()),
        result(paired=UNPAIRED, gain=Gain(UNPAIRED.difference, UNPAIRED.stderr)),
        result(passes=replace(result().passes, members=0, failed=2)),
        result(reestimated=AGAIN, reestimation=UNPAIRED),
        result(best=AGAIN, reestimated=AGAIN, reestimation=UNPAIRED, paired=None, gain=Gain(0.0, 0.0)),
    ],
)
def test_what_was_written_is_read(found):
    read = again(found)
    for field in fields(Result):
        assert getattr(read, field.name) == getattr(found, field.name), field.name
    assert read.to_json() == found.to_json()


def test_numbers_that_are_none_come_back():
    single = [[1.0], [0.5]]
    one = paired_difference(*single, False)
    diverged = scored("uniform soup", Recipe.uniform(range(4), 4), math.nan, splits={"test": (math.nan, math.nan)})
    read = again(result(paired=one, gain=Gain(one.difference, one.stderr), uniform=diverged))
    assert math.isnan(read.gain.stderr)
    assert math.isnan(read.paired.low)
    assert read.paired.inside_noise
    assert math.isnan(read.uniform.score)
    assert math.isnan(read.uniform.splits["test"][0])
    assert again(result()).uniform.score is None


def test_top_level_keys():
    assert set(result().to_json()) == {
        *("metric", "examples", "searched", "best", "best_single", "reestimated", "reestimation", "uniform"),
        *("ensemble", "gain", "optimism"),
        *("confidence", "passes", "evaluations", "test", "shifts", "further", "strategy", "seconds", "notes"),
        *("reasons", "versions", "soup"),
    }
    found = result().to_json()
    assert found["passes"].pop("reestimated") == 0
    assert found["passes"] == {"members": 4, "soups": 2.5, "total": 6.5, "budget": 3, "started": 5, "failed": 0}
    assert found["gain"]["over"] == "best single (b)"
    assert found["gain"]["expected"]["difference"] == pytest.approx(result().expected_gain.difference)
    assert found["further"] == {
        "wer": {"best_single": {"score": 0.2, "stderr": 0.01}, "best": {"score": 0.1, "stderr": 0.01}}
    }


KEYS = [(), ("metric",), ("best",), ("passes",), ("gain",), ("optimism",), ("evaluations", 0), ("reasons",)]
KEYS += [("reestimated",), ("reestimation",)]


@pytest.mark.parametrize("place", KEYS)
def test_any_missing_or_unknown_key_is_one_error(place):
    value = json.loads(json.dumps(result(reasons=REASONS, reestimated=AGAIN, reestimation=UNPAIRED).to_json()))
    at = value
    for key in place:
        at = at[key]
    for name in list(at):
        held = at.pop(name)
        with pytest.raises(RunError):
            Result.from_json(copy.deepcopy(value))
        at[name] = held
    Result.from_json(copy.deepcopy(value))
    at["colour"] = "red"
    with pytest.raises(RunError, match="colour"):
        Result.from_json(copy.deepcopy(value))


@pytest.mark.parametrize(
    ("key", "value"),
    [("best", None), ("passes", 3), ("shifts", None), ("uniform", {}), ("test", {"best": {}}), ("gain", None)],
)
def test_any_other_kind_of_value_is_one_error(key, value):
    with pytest.raises(RunError, match="no result of this version of radin"):
        Result.from_json(result().to_json() | {key: value})


@pytest.mark.parametrize("value", [[], None, "result", 3])
def test_what_is_no_object_is_one_error(value):
    with pytest.raises(RunError, match="no JSON object"):
        Result.from_json(value)


def test_it_is_read_from_where_the_run_is_now(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(sealed(result().to_json())))
    found = Result.load(tmp_path)
    assert found.soup == tmp_path / "soup.safetensors"
    assert Result.from_json(result().to_json()).soup == Path("run/soup.safetensors")
    (tmp_path / "soup.safetensors").write_bytes(b"soup")
    assert found.save(tmp_path / "copy" / "it.safetensors").read_bytes() == b"soup"
    with pytest.raises(RunError, match=r"must end in \.safetensors"):
        found.save(tmp_path / "it.pt")


def test_no_result_and_a_damaged_one_say_what_to_do(tmp_path):
    with pytest.raises(RunError, match="no finished run in"):
        Result.load(tmp_path)
    (tmp_path / "result.json").write_text('{"metric": ')
    with pytest.raises(RunError, match=r"result\.json is damaged .*run 'radin cook' again"):
        Result.load(tmp_path)
