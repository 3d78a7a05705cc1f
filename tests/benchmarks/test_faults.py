"""radin broken from outside, a small share of benchmarks/faults.py; and that the harness notices what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.fault_parts import flips, fuzz, kills, mutate, report, runs, trials
from benchmarks.fault_parts.compare import differences, rows

from benchmarks import faults

pytestmark = pytest.mark.long

AMOUNTS = {"kills": 10, "faults": 8, "flips": 18, "fuzz": 340}


@pytest.fixture(scope="module")
def few_runs() -> Iterator[runs.Runs]:
    with trials.scratch() as folder:
        opened = runs.opened(1, folder)
        yield opened
        opened.servers.close()


@pytest.fixture(scope="module")
def broken(few_runs: runs.Runs) -> faults.Found:
    return faults.broken(few_runs, AMOUNTS)


def complaints(broken: faults.Found, *verdicts: str) -> list[str]:
    found = [*broken.kills, *broken.faults, *broken.flips, *broken.fuzz]
    return [report.complaint(one) for one in found if getattr(one, "verdict", "") in verdicts]


def test_as_much_was_broken_as_asked(broken: faults.Found) -> None:
    summary = broken.summary()
    assert summary["kills"] >= AMOUNTS["kills"]
    assert summary["flips"] == AMOUNTS["flips"]
    assert summary["fuzzed"] >= 0.9 * AMOUNTS["fuzz"]
    assert summary["faults"] == AMOUNTS["faults"] or broken.notes


def test_nothing_finished_is_lost(broken: faults.Found) -> None:
    assert [report.complaint(one) for one in broken.kills if one.lost] == []
    assert complaints(broken, "lost") == []


def test_every_run_ends_as_if_nothing_had_been(broken: faults.Found) -> None:
    assert [report.complaint(one) for one in broken.kills if one.different or one.crash] == []
    assert complaints(broken, "different") == []


def test_no_flipped_bit_goes_unnoticed(broken: faults.Found) -> None:
    assert complaints(broken, "other result", "left damaged", "unnamed") == []


def test_whatever_fails_is_told_in_one_message(broken: faults.Found) -> None:
    assert complaints(broken, "crash", "misleading") == []


def test_no_input_takes_long(broken: faults.Found) -> None:
    assert broken.summary()["slowest_file_s"] < 5


# -- the harness itself


def test_an_evaluation_that_is_paid_twice_is_counted(few_runs: runs.Runs) -> None:
    once = few_runs.reference("task").lines
    soup = next(line for line in once if line.split()[0] not in few_runs.members)
    again = Counter({line: 1 for line in once if line.split()[0] == soup.split()[0]})
    assert few_runs.lost("task", once, sessions=1, kills=0, unread=0) == 0
    assert few_runs.lost("task", once + again, sessions=1, kills=0, unread=0) == 1
    assert few_runs.lost("task", once + again, sessions=2, kills=1, unread=0) == 0  # it was in work
    members = Counter({line: 1 for line in once if line.split()[0] in few_runs.members})
    assert few_runs.lost("task", once + members, sessions=2, kills=1, unread=0) >= len(few_runs.members)
    assert few_runs.lost("task", once + members, sessions=2, kills=1, unread=1) <= 1


def test_another_end_is_told(few_runs: runs.Runs) -> None:
    expected = few_runs.reference("task").content
    out = few_runs.new_folder()
    assert few_runs.start("task", out).verdict == "ok"
    assert differences(few_runs.content("task", out), expected) == []
    result = json.loads((out / "result.json").read_text())
    result["best"]["score"] += 1e-6
    (out / "result.json").write_text(json.dumps(result))
    (out / ".x.partial").touch()
    (out / "recipe.json").unlink()
    said = differences(few_runs.content("task", out), expected)
    assert said[0] == ".x.partial is left over"
    assert said[1] == "recipe.json is missing"
    assert said[2].startswith("result.json: .best.score is ")
    shutil.rmtree(out)


def test_a_row_of_the_ledger_that_is_another_is_told(few_runs: runs.Runs) -> None:
    out = few_runs.new_folder()
    few_runs.start("task", out)
    before = rows(out / "ledger.sqlite")
    data = (out / "ledger.sqlite").read_bytes()
    assert b'"weight": 0.' in data
    (out / "ledger.sqlite").write_bytes(data.replace(b'"weight": 0.', b'"weight": 1.', 1))
    assert rows(out / "ledger.sqlite") != before


@pytest.mark.parametrize(
    ("action", "verdict"), [(trials.COUNT, "ok"), (trials.KILL_BEFORE, "killed"), (trials.KILL_AFTER, "killed")]
)
def test_a_run_ends_at_the_call_that_was_named(few_runs: runs.Runs, action: int, verdict: str) -> None:
    if few_runs.servers.calls is None:
        pytest.skip("there is no C compiler here")
    out = few_runs.new_folder()
    fault = trials.Fault(out, ("rename",), nth=1, action=action, match="run.json")
    assert few_runs.start("program", out, fault=fault, log_calls=True).verdict == verdict
    assert (out / "run.json").exists() == (action != trials.KILL_BEFORE)


def test_names_of_calls_are_the_same_in_every_run() -> None:
    member = "0123456789abcdef" * 2
    assert kills.named(f"write /outputs/{member}.partial") == "write /outputs/MEMBER.partial"
    assert kills.named("sync /.soup.safetensors.5bce98f7-6955-bdf5066e.tmp") == "sync /.soup.safetensors.TOKEN.tmp"
    assert kills.named("create /.tmpWynAkh") == "create /.tmp"
    assert kills.named("mkdir ") == "mkdir the run directory"


def test_a_traceback_is_a_crash_and_a_message_is_none() -> None:
    def ended(code: int, stderr: str) -> trials.Ended:
        return trials.Ended(code, "", stderr, 0.1, timeout=False, fired=False, kilobytes=0)

    assert ended(2, "radin: no space left").verdict == "refused"
    assert ended(2, "radin: one\nradin: two").verdict == "crash"
    assert ended(2, "").verdict == "crash"
    fault = ended(1, "Traceback (most recent call last):\n  x\nKeyError: 'x'\nradin: this is a fault")
    assert (fault.verdict, fault.head) == ("crash", "KeyError: 'x'")
    assert ended(-9, "").verdict == "killed"
    assert ended(-11, "").verdict == "crash"


def test_damage_is_damage_and_the_same_each_time() -> None:
    import random

    data = bytes(range(256)) * 4
    damaged = [mutate.damaged_bytes(random.Random(seed), data) for seed in range(200)]
    assert sum(one != data for one in damaged) > 190
    assert damaged[7] == mutate.damaged_bytes(random.Random(7), data)
    value = {"a": [1, {"b": None}], "c": "d"}
    texts = [mutate.damaged_json(random.Random(seed), value) for seed in range(300)]
    assert sum(text != json.dumps(value).encode() for text in texts) > 250
    assert value == {"a": [1, {"b": None}], "c": "d"}


def test_what_a_reader_lets_through_is_a_crash() -> None:
    def fails() -> None:
        raise KeyError("x")

    from radin.errors import RadinError

    def refuses() -> None:
        raise RadinError("no")

    assert fuzz._probed("", fails)["verdict"] == "crash"
    assert fuzz._probed("", refuses)["verdict"] == "refused"
    assert fuzz._probed("", lambda: None)["verdict"] == "ok"


def test_the_parts_of_the_results_are_kept_apart(tmp_path: Path) -> None:
    from benchmarks.fault_parts.soak import Row, Soaked

    path = tmp_path / "faults.md"
    flipped = flips.Flipped("a state", "run.json", 3, 1, "unnamed", "why")
    report.write(path, found=faults.Found(flips=[flipped]))
    report.write(path, soak=Soaked(72, 200, rows=[Row(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)]))
    report.write(path, found=faults.Found(flips=[flipped, flipped]))
    text = path.read_text()
    assert "| run.json | 0 | 0 | 2 | 0 | 0 | 0 |" in text
    assert "| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8.00 | 9 | 10.00 |" in text
