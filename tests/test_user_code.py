"""What a user's own code may do wrong: told as its own, with its frames, before anything long; never as radin's."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch

import radin
import toy
from radin import Metric, Task, TaskError
from radin.data.task import UserCodeError
from radin.metrics import get, number_of
from radin.usercode import user_code


def bad_metrics():
    def raises(outputs, targets):
        raise KeyError("no such label")

    return {
        "raises": (raises, r"the metric 'raises'.* failed with KeyError: 'no such label'"),
        "text": (lambda o, t: "0.5", r"must return one number; got str '0.5'"),
        "none": (lambda o, t: None, r"must return one number; got NoneType"),
        "array": (lambda o, t: (o.argmax(1) == t).float(), r"must return one number; got Tensor of shape \(100,\)"),
        "empty": (lambda o, t: np.empty(0), r"must return one number; got ndarray of shape \(0,\)"),
        "complex": (lambda o, t: 1j, r"must return one number; got complex 1j"),
        "exits": (lambda o, t: __import__("sys").exit(3), r"the metric '<lambda>'.* failed with SystemExit: 3"),
    }


@pytest.mark.parametrize("kind", [*bad_metrics()])
def test_a_metric_function_that_does_not_work_is_found_before_any_pass(toy_pool, toy_task, tmp_path, kind):
    function, words = bad_metrics()[kind]
    task = Task(toy_task.model, toy_task.validation, metric=function, higher_is_better=True)
    with pytest.raises(TaskError, match=words) as caught:
        radin.cook(toy_pool, task, budget=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if kind == "raises":
        assert "in raises" in caught.value.traceback
        assert "radin/metrics" not in caught.value.traceback


@pytest.mark.parametrize(
    ("per_example", "words"),
    [
        (lambda o, t: np.ones(3), r"an array of 100 numbers, one per example; got float64 \(3,\)"),
        (lambda o, t: np.ones((len(t), 1)), r"got float64 \(100, 1\)"),
        (lambda o, t: np.array(["a"] * len(t)), r"got <U1 \(100,\)"),
        (lambda o, t: np.full(len(t), 1j), r"got complex128"),
        (lambda o, t: [1.0] * len(t), r"got list"),
        (lambda o, t: 1 / 0, r"failed with ZeroDivisionError"),
    ],
)
def test_a_metric_with_a_wrong_number_per_example(toy_pool, toy_task, tmp_path, per_example, words):
    mine = Metric("mine", True, "classes", lambda o, t: 0.5, per_example)
    task = Task(toy_task.model, toy_task.validation, metric=mine)
    with pytest.raises(TaskError, match=words):
        radin.cook(toy_pool, task, budget=2, out=tmp_path / "run")


def test_what_counts_as_one_number():
    for found in (0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5]), np.array([[0.5]])):
        assert number_of("f", found) == 0.5
    assert number_of("f", True) == 1.0
    assert number_of("f", 2) == 2.0
    assert np.isnan(number_of("f", float("nan")))


def test_nan_on_the_first_batch_is_no_reason_to_refuse(toy_pool):
    outputs, targets = np.ones((2, 3), np.float32), np.zeros(2, np.int64)
    get(lambda o, t: float("nan"), True).probe(outputs, targets)


TASKS = {
    "sys.exit at import": ("import sys; sys.exit(0)", "failed with SystemExit: 0"),
    "sys.exit in model": (
        "import sys\ndef model(): sys.exit()\ndef validation(): return []",
        "model() failed with SystemExit",
    ),
    "sys.exit in validation": (
        "import toy, sys\nmodel = toy.model\ndef validation():\n    yield from ()\n    sys.exit('stop')",
        "validation() failed with SystemExit: stop",
    ),
    "interrupt at import": ("raise KeyboardInterrupt", "failed with KeyboardInterrupt"),
    "interrupt in model": (
        "def model(): raise KeyboardInterrupt\nvalidation = list",
        "model() failed with KeyboardInterrupt",
    ),
    "syntax": ("def model(:\n", "SyntaxError"),
    "null": ("a\0b", "failed with"),
    "not text": ("\udcff = 1", "failed with"),
    "deep": ("(" * 10000, "failed with"),
    "text labels": (
        "import toy\nmodel = toy.model\n"
        "def validation(): return [(x, ['cat'] * len(x)) for x, _ in toy.batches(toy.VALIDATION)]",
        "the targets are no numbers",
    ),
    "objects": (
        "import toy, numpy\nmodel = toy.model\n"
        "def validation(): return [(x, numpy.array([{}] * len(x))) for x, _ in toy.batches(toy.VALIDATION)]",
        "the targets are no numbers",
    ),
    "one label": (
        "import toy\nmodel = toy.model\ndef validation(): return [(x, 3) for x, _ in toy.batches(toy.VALIDATION)]",
        "the targets must be one for each example",
    ),
    "metric raises": (toy.TASK + "higher_is_better = True\ndef metric(o, t): return o.nothing", "the metric 'metric'"),
    "metric text": (
        toy.TASK + "higher_is_better = True\ndef metric(o, t): return 'x'",
        "must return one number; got str 'x'",
    ),
}


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from radin.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["radin", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", [*TASKS])
@pytest.mark.parametrize("command", ["cook", "check"])
def test_a_task_file_that_does_not_work_is_one_message(toy_folder, tmp_path, run_here, kind, command):
    text, words = TASKS[kind]
    (tmp_path / "task.py").write_bytes(text.encode(errors="surrogateescape"))
    more = ["--budget", 1, "--out", tmp_path / "run"] if command == "cook" else ["--no-distances"]
    code, out, err = run_here(command, toy_folder, "--task", tmp_path / "task.py", *more, "--json")
    assert code == 2, err
    assert err.count("radin: ") == 1
    assert words in err.splitlines()[-1]
    assert words in json.loads(out)["error"]["message"]
    assert "fault of radin's" not in err
    assert "/radin/src" not in err
    assert not (tmp_path / "run").exists()


PRINTING = (
    toy.TASK
    + """
import os, sys
print("at import")
def model():
    print("in model")
    os.system("echo from a program")
    return toy.model()
def metric(outputs, targets):
    print("in metric")
    os.write(1, b"past Python\\n")
    return float((outputs.argmax(1) == targets).float().mean())
higher_is_better = True
"""
)


def test_with_json_standard_output_is_one_object_whatever_a_task_prints(toy_folder, radin_command, tmp_path):
    (tmp_path / "task.py").write_text(PRINTING)
    how = ["--task", tmp_path / "task.py"]
    for arguments in (
        ["check", toy_folder, *how],
        ["evaluate", toy_folder / "run-0.safetensors", *how],
        ["cook", toy_folder, *how, "--budget", 2, "--out", tmp_path / "run", "--jobs", 2],
    ):
        done = radin_command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        for words in ("at import", "in model", "in metric", "past Python", "from a program"):
            assert words in done.stderr, words


def test_a_real_interrupt_and_a_programs_own_way_out_are_not_the_users_code():
    with pytest.raises(KeyboardInterrupt), user_code("model()"):
        signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(3)))
    try:
        with pytest.raises(SystemExit), user_code("model()"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(UserCodeError, match="SystemExit: 3"), user_code("model()"):
        raise SystemExit(3)


COOK = ["cook", "{pool}", "--task", "{task}", "--budget", "2", "--out", "{out}"]
RANK = ["rank", "--outputs", "{out}/0.npy", "--outputs", "{out}/1.npy", "--targets"]
EVAL = ["cook", "{pool}", "--eval", "echo 0.5 {{soup}}", "--budget", "2", "--out", "{out}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*COOK, "--seed", "-1"], "--seed must be at least 0; got -1"),
        ([*COOK, "--budget", str(10**30)], "must be at most 1,000,000,000"),
        ([*COOK, "--budget", "nan"], "'nan' is not a valid integer"),
        ([*COOK, "--candidates", "0"], "must be at least 1; got 0"),
        ([*COOK, "--candidates", str(10**30)], "must be at most 10,000,000"),
        ([*COOK, "--prior", "nan"], "expected float; got nan"),
        ([*COOK, "--prior", "inf"], "expected float; got inf"),
        ([*COOK, "-O", "prior=1" + "0" * 400, "--strategy", "paper"], "expected float"),
        ([*COOK, "-O", "keep=0"], "must be at least 1; got 0"),
        ([*COOK, "-O", "count=-3"], "must be at least 1; got -3"),
        ([*COOK, "-O", "count"], "given as -O name=value"),
        ([*COOK, "--jobs", "0"], "must be at least 1; got 0"),
        ([*COOK, "--jobs", str(10**9)], "must be at most 1,024"),
        ([*COOK, "--batch-size", "0"], "batch size must be at least 1; got 0"),
        ([*COOK, "--batch-size", "-1"], "batch size must be at least 1; got -1"),
        ([*COOK, "--members-at-once", "0"], "members at once must be at least 1; got 0"),
        ([*COOK, "--strategy", ""], "unknown strategy ''"),
        ([*COOK, "--device", "meta"], "device 'meta' cannot be used here"),
        ([*COOK, "--precision", "int8"], "unknown precision 'int8'"),
        ([*COOK, "--choose-on-half", "--no-keep-outputs"], "needs the outputs kept"),
        ([*EVAL, "--metric", ""], "unknown metric ''"),
        ([*EVAL, "--jobs", str(10**9)], "jobs must be at most 1,024"),
        ([*EVAL, "--retries", "-1"], "retries must be at least 0; got -1"),
        ([*EVAL, "--timeout", "nan"], "timeout must be a number of seconds above 0; got nan"),
        ([*EVAL, "--timeout", "0"], "timeout must be a number of seconds above 0; got 0"),
        (["doctor", "{pool}", "--task", "{task}", "--examples", "0"], "must be at least 2; got 0"),
        (["evaluate", "{pool}", "--task", "..x"], "no task file or module '..x'"),
        (["evaluate", "{pool}", "--task", ""], "no task file or module ''"),
        ([*RANK, "{out}/t.npy", "--top", "0"], "top must be at least 1"),
        ([*RANK, "{out}/t.npy", "--count", str(10**30)], "count must be at most"),
        ([*RANK, "{out}/t.npy", "--seed", "-1"], "seed must be at least 0"),
        ([*RANK, "{out}/t.npy", "--metric", "top" + "9" * 5000], "unknown metric"),
        ([*RANK, "{out}/words.npy"], "needs integer class indices"),
        ([*RANK, "{out}/single.npy"], "one for each example; got a single one"),
        ([*RANK, "{out}/complex.npy", "--metric", "mse"], "needs numbers as targets"),
        (["demo", "--seed", "-1", "--out", "{out}"], "--seed must be at least 0; got -1"),
        (["average", "{pool}", "-o", "{out}/soup.pt", "--ratios", "1e308,nan,1,1,1,1"], "ratio 1 is nan"),
        (["average", "~nobody/x", "-o", "{out}/soup.pt"], "~nobody/x: no such file or folder"),
        (["average", "a" * 5000, "-o", "{out}/soup.pt"], "cannot be looked up: File name too long"),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_one_message(toy_folder, tmp_path, run_here, arguments, words):
    out = tmp_path / "out"
    if arguments[0] not in ("cook", "demo"):
        out.mkdir()
        rng = np.random.default_rng(0)
        for k in range(2):
            np.save(out / f"{k}.npy", rng.normal(size=(20, 4)))
        np.save(out / "t.npy", rng.integers(0, 4, 20))
        np.save(out / "words.npy", np.array(["a"] * 20))
        np.save(out / "single.npy", np.array(3))
        np.save(out / "complex.npy", np.zeros((20, 4), complex))
    given = [a.format(pool=toy_folder, task=toy_folder / "task.py", out=out) for a in arguments]
    code, _, err = run_here(*given)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err
    assert err.count("radin: ") + err.count("Error: ") == 1
    assert not (out / "run.json").exists()


def test_a_signal_that_an_import_made_an_error_of_is_a_signal_still():
    from radin.interrupts import Stopped

    error = ImportError("initialization failed")
    error.__cause__ = Stopped(15)
    with pytest.raises(Stopped) as caught, user_code("importing a compiled module"):
        raise error
    assert caught.value.number == 15
