"""--log json: what happens in a run, a line each, and nothing else on that stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from radin.events import KINDS

NOISY = """
import sys
import toy
model = toy.model
def validation():
    print("reading", file=sys.stderr)
    return toy.batches(toy.VALIDATION)
def calibration(): return toy.batches(toy.TRAINING)
"""


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def logged(toy_folder, radin_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    (folder / "task.py").write_text(NOISY)
    done = radin_command(
        *("cook", toy_folder, "--task", folder / "task.py", "--budget", 2, "--out", folder / "run"), "--log", "json"
    )
    assert done.returncode == 0, done.stderr
    return folder, done, events(done.stderr)


def test_each_event_of_a_run_is_a_line_with_its_keys(logged):
    folder, _, found = logged
    assert {e["event"] for e in found} <= set(KINDS)
    result = json.loads((folder / "run" / "result.json").read_text())
    by_kind = {kind: [e for e in found if e["event"] == kind] for kind in KINDS}
    (started,), (finished,) = by_kind["started"], by_kind["finished"]
    assert (started["format"], started["budget"], started["resumed"]) == (1, 2, False)
    assert sorted(e["name"] for e in by_kind["member_evaluated"] if not e["reestimated"]) == sorted(started["members"])
    asked, answered = by_kind["question_asked"], by_kind["question_answered"]
    assert sorted(e["question"] for e in asked) == sorted(e["question"] for e in answered)
    assert answered[-1]["spent"] == result["passes"]["soups"]
    assert finished["score"] == result["best"]["score"] == by_kind["best_changed"][-1]["score"]
    assert found[-1] == finished
    times = [e["time"] for e in found]
    assert all(isinstance(t, float) for t in times)


def test_what_others_print_to_standard_error_is_a_note_and_the_table_stays_on_standard_output(logged):
    _, done, found = logged
    assert "reading" in [e["text"] for e in found if e["event"] == "note"]
    assert "best single" in done.stdout


def test_again_and_in_a_file_with_the_json_beside_it(logged, toy_folder, radin_command):
    folder, _, _ = logged
    path = folder / "events.jsonl"
    done = radin_command(
        *("cook", toy_folder, "--task", folder / "task.py", "--budget", 2, "--out", folder / "run"),
        *(f"--log=json:{path}", "--json"),
    )
    assert json.loads(done.stdout)["best"]
    found = events(Path(path).read_text())
    assert [e["resumed"] for e in found if e["event"] == "started"] == [True]
    assert not [e for e in found if e["event"] == "question_asked"]
    assert found[-1]["event"] == "finished"
    assert "reading" in done.stderr


def test_a_failure_is_an_event_with_the_message_and_the_exit_code(toy_folder, radin_command, tmp_path):
    arguments = ("cook", toy_folder, "--task", tmp_path / "none.py", "--budget", 2, "--out", tmp_path / "run")
    done = radin_command(*arguments, "--log", "json")
    found = events(done.stderr)
    assert done.returncode == found[-1]["code"] == 2
    assert found[-1]["event"] == "failed"
    assert "none.py" in found[-1]["message"]
    assert len([e for e in found if e["event"] == "failed"]) == 1


def test_another_command_starts_has_stages_and_finishes(toy_folder, radin_command):
    done = radin_command("check", toy_folder, "--log", "json")
    found = events(done.stderr)
    assert (found[0]["event"], found[0]["command"]) == ("started", "check")
    assert "reading checkpoints" in [e.get("stage") for e in found]
    assert found[-1]["event"] == "finished"


@pytest.mark.parametrize("given", ["text", "json:"])
def test_another_form_is_refused(toy_folder, radin_command, given):
    done = radin_command("check", toy_folder, "--log", given)
    assert done.returncode == 2
    assert "--log takes json" in done.stderr
