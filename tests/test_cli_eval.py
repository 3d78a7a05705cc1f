"""radin cook --eval, with real programs: as a user would run it, interrupted and resumed."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

import toy
from radin.errors import RunError
from radin.run.ledger import Ledger

# No torch and no radin in it: a network by hand, over a file of images.
SCORE = """
import json, sys
import numpy as np
from safetensors.numpy import load_file
w = load_file(sys.argv[1])
data = np.load("digits.npz")
def right(split):
    x = data[split] @ w["0.weight"].T + w["0.bias"]
    x = (x - w["1.running_mean"]) / np.sqrt(w["1.running_var"] + 1e-5) * w["1.weight"] + w["1.bias"]
    x = np.maximum(x, 0) @ w["4.weight"].T + w["4.bias"]
    return (x.argmax(1) == data[split + "_labels"]).astype(float)
values = right("validation")
if len(sys.argv) > 2 and sys.argv[2]:
    values = values[[int(line) for line in open(sys.argv[2])]]
print("scored", len(values), "digits", file=sys.stderr)
print(json.dumps({"score": values.mean(), "values": values.tolist(), "further": {"test": right("test").mean()}}))
"""
PYTHON = f"'{sys.executable}'"


@pytest.fixture
def here(toy_folder, tmp_path, monkeypatch):
    """A folder with the members and a program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score.py").write_text(SCORE)
    arrays = {}
    for name, rows in (("validation", toy.VALIDATION), ("test", toy.TEST)):
        inputs, labels = zip(*toy.batches(rows), strict=True)
        arrays |= {name: torch.cat(inputs).numpy(), f"{name}_labels": torch.cat(labels).numpy()}
    np.savez(tmp_path / "digits.npz", **arrays)
    return toy_folder


def true_values(path):
    model = toy.model().eval()
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) == y for x, y in toy.batches(toy.VALIDATION)]).numpy()


def cook(radin_command, members, command, out, *more, budget=4):
    return radin_command("cook", members, "--eval", command, "--budget", budget, "--out", out, *more)


def test_a_python_program_with_values_and_further_sets(here, radin_command, tmp_path):
    done = cook(radin_command, here, f"{PYTHON} score.py {{soup}}", "run", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passes"].pop("reestimated") == 0
    assert found["passes"] == {"members": 6, "soups": 4, "total": 10, "budget": 4, "started": 4, "failed": 0}
    values = true_values(tmp_path / "run" / "soup.safetensors")
    assert found["best"]["score"] == pytest.approx(values.mean(), abs=1e-12)
    assert found["best"]["score"] >= found["best_single"]["score"]
    assert found["ensemble"] is None
    assert found["gain"]["method"] == "mcnemar"
    assert found["gain"]["better"] - found["gain"]["worse"] == round(600 * found["gain"]["difference"])
    assert found["test"]["best"]["score"] > 0.7
    assert not (tmp_path / "run" / "scratch").exists()
    shown = radin_command("report", "run").stdout
    assert "6 for the members, 4 of 4 for soups" in shown
    assert "McNemar" in shown


def test_a_shell_program_that_prints_one_number_lower_is_better(here, radin_command, tmp_path):
    (tmp_path / "error.sh").write_text(
        f'{PYTHON} score.py "$1" 2>/dev/null | {PYTHON} -c \'import json; print(1 - json.load(open(0))["score"])\'\n'
    )
    done = cook(radin_command, here, "sh error.sh {soup}", "run", "--lower-is-better", "--json", budget=3)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["metric"]["higher_is_better"] is False
    assert found["best"]["score"] == pytest.approx(1 - true_values(tmp_path / "run" / "soup.safetensors").mean())
    assert found["best"]["score"] <= found["best_single"]["score"]
    table = radin_command("report", "run").stdout
    assert "score (lower is better)" in table


def test_saved_outputs_bring_the_estimate_back(here, radin_command, toy_pool, tmp_path):
    (tmp_path / "logits").mkdir()
    for k in range(6):
        model = toy.model().eval()
        model.load_state_dict(toy_pool.tensors(k))
        with torch.no_grad():
            outputs = torch.cat([model(x) for x, _ in toy.batches(toy.VALIDATION)]).numpy()
        np.save(tmp_path / "logits" / f"{toy_pool[k].name}.npy", outputs)
    np.save(tmp_path / "logits" / "targets.npy", torch.cat([y for _, y in toy.batches(toy.VALIDATION)]).numpy())
    command = f"{PYTHON} score.py {{soup}}"
    more = ("--outputs", "logits", "--strategy", "paper", "--no-uniform", "--json")
    done = cook(radin_command, here, command, "run", *more, budget=3)
    assert done.returncode == 0, done.stderr
    by_program = json.loads(done.stdout)
    (tmp_path / "task.py").write_text(
        "import toy\nmodel = toy.model\ndef validation(): return toy.batches(toy.VALIDATION)\n"
    )
    arguments = ("--budget", 3, "--out", "task-run", "--strategy", "paper", "--no-uniform", "--json")
    by_task = json.loads(radin_command("cook", here, "--task", "task.py", *arguments).stdout)
    assert [e["recipe"] for e in by_program["evaluations"]] == [e["recipe"] for e in by_task["evaluations"]]
    assert [e["score"] for e in by_program["evaluations"]] == [e["score"] for e in by_task["evaluations"]]
    refused = cook(radin_command, here, command, "hidden", "--strategy", "paper")
    assert refused.returncode == 2
    assert "strategy 'paper' ranks soups by the members' outputs, and there are none" in refused.stderr


def test_scores_from_a_file_save_the_members_passes(here, radin_command, toy_pool, tmp_path):
    singles = {}
    for k in range(6):
        singles[toy_pool[k].name] = float(true_values(toy_pool[k].path).mean())
    lines = [f"{name},{score}" for name, score in singles.items()]
    (tmp_path / "scores.csv").write_text("\n".join(["name,score", *lines]))
    done = cook(radin_command, here, f"{PYTHON} score.py {{soup}}", "run", "--scores", "scores.csv", "--json", budget=2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passes"]["members"] == 0
    assert found["best_single"]["score"] == max(singles.values())
    (tmp_path / "scores.csv").write_text("\n".join(lines[1:]))
    refused = cook(radin_command, here, f"{PYTHON} score.py {{soup}}", "other", "--scores", "scores.csv")
    assert refused.returncode == 2
    assert "scores.csv: the scores do not fit the pool of 6 members; not in it: run-0" in refused.stderr


def test_a_program_that_fails_every_third_time_needs_a_retry(here, radin_command, tmp_path):
    (tmp_path / "flaky.sh").write_text(
        "n=$(cat count 2>/dev/null || echo 0); n=$((n + 1)); echo $n > count\n"
        'if [ $((n % 3)) -eq 0 ]; then echo "no GPU today" >&2; exit 7; fi\n'
        f'{PYTHON} score.py "$1" 2>/dev/null\n'
    )
    failed = cook(radin_command, here, "sh flaky.sh {soup}", "run", budget=2)
    assert failed.returncode == 2
    assert "run-2 could not be evaluated. the command failed: exit code 7" in failed.stderr
    assert "    no GPU today" in failed.stderr
    again = cook(radin_command, here, "sh flaky.sh {soup}", "run", "--retries", "2", "--json", budget=2)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["passes"] == {
        "members": 6, "reestimated": 0, "soups": 2, "total": 8, "budget": 2, "started": 2, "failed": 0
    }  # fmt: skip


def test_a_program_that_prints_nonsense_is_told_what_was_expected(here, radin_command):
    done = cook(radin_command, here, "echo lovely weather \\# {soup}", "run")
    assert done.returncode == 2
    assert "run-0 could not be evaluated. the command gave no answer" in done.stderr
    assert "lovely weather" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what evaluates a soup: --task task.py"),
        (("--task", "task.py", "--eval", "x {soup}"), "or --eval './score.sh {soup}', any program; not both"),
        (("--eval", "./score.sh"), "where the soup goes: add {soup}"),
        (("--task", "task.py", "--retries", "2", "--lower-is-better"), "--lower-is-better, --retries: only for"),
        (("--eval", "x {soup}", "--jobs", "0"), "jobs must be at least 1; got 0"),
        (("--eval", "x {soup}", "--timeout", "-3"), "timeout must be a number of seconds above 0; got -3"),
        (("--eval", "x {soup}", "--outputs", "nowhere"), "nowhere is no folder of outputs"),
        (("--eval", "x {soup}", "--choose-on-half"), "choosing on half of validation takes a task"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(here, radin_command, tmp_path, arguments, said):
    done = radin_command("cook", here, *arguments, "--budget", 2, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.clock
@pytest.mark.timeout(900)
@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_and_resumed(here, commands, tmp_path, number, code):
    (tmp_path / "slow.sh").write_text(f'sleep 0.3\n{PYTHON} score.py "$1" 2>/dev/null\n')
    command = ["cook", here, "--eval", "sh slow.sh {soup}", "--budget", 5, "--out", "run", "--jobs", 2, "--json"]
    process = commands.start(command)
    until = time.monotonic() + 200
    while (told := _told(tmp_path / "run")) < 2:
        assert time.monotonic() < until
        assert process.poll() is None, process.err
        time.sleep(0.05)
    programs = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(60) == code
    if number != signal.SIGKILL:
        _, alive = psutil.wait_procs(programs, timeout=30)
        assert not alive
        assert not (tmp_path / "run" / "scratch").exists()
        assert "the same command continues from here" in process.err
    done = commands.run(command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["passes"]["soups"], found["passes"]["members"]) == (5, 6)
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True)
    asked = ledger.questions()
    ledger.close()
    assert len(asked) == len({q.identity for q in asked}) == 5
    assert sum(q.session == 1 and q.told is not None for q in asked) >= told
    assert not (tmp_path / "run" / "scratch").exists()


def _told(out):
    if not (out / "ledger.sqlite").exists():
        return 0
    try:
        with closing(Ledger(out / "ledger.sqlite", read_only=True)) as ledger:
            return sum(q.told is not None for q in ledger.questions())
    except RunError:  # not there yet, or just being written
        return 0
