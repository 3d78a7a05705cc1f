"""The command line as a user meets it: each command, --json, and one clear message for bad input."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import radin.cli
import toy
from radin import metrics
from radin.cli.group import cli


@pytest.fixture(scope="module")
def cooked(toy_folder, radin_command, tmp_path_factory):
    out = tmp_path_factory.mktemp("cooked") / "run"
    done = radin_command("cook", toy_folder, "--task", toy_folder / "task.py", "--budget", 4, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


def test_cook_prints_the_closing_table(cooked):
    _, done = cooked
    for words in (
        "best single",
        "best single re-estimated",
        "uniform soup",
        "chosen soup",
        "logit ensemble",
        "validation",
        "test",
        "noisy",
        "±",
    ):
        assert words in done.stdout
    passes = r"passes over validation: (\d+\.?\d?) \(6 for the members, (\d) for members re-estimated, "
    found = re.search(passes + r"(\d\.?\d?) of 4 for soups: (\d+) started, (\d) fully evaluated\)", done.stdout)
    assert found, done.stdout
    total, again, soups, started, full = map(float, found.groups())
    assert total == pytest.approx(6 + again + soups)
    assert 3 < soups <= 4
    assert started > full >= 1
    assert "Traceback" not in done.stderr


def test_the_same_command_again_spends_nothing_and_report_shows_it(cooked, toy_folder, radin_command):
    out, first = cooked
    again = radin_command("cook", toy_folder, "--task", toy_folder / "task.py", "--budget", 4, "--out", out, "--json")
    found = json.loads(again.stdout)
    rows = sqlite3.connect(out / "ledger.sqlite").execute("SELECT COUNT(DISTINCT identity) FROM questions")
    assert found["passes"]["started"] == rows.fetchone()[0]
    assert 3 < found["passes"]["soups"] <= 4
    report = radin_command("report", out, "--json")
    assert json.loads(report.stdout) == found
    table = radin_command("report", out).stdout.split("\n")
    assert table[:8] == first.stdout.split("\n")[:8]


def test_the_soup_loads_into_the_model_and_names_its_recipe(cooked):
    out, _ = cooked
    toy.model().load_state_dict(load_file(out / "soup.safetensors"))
    recipe = json.loads((out / "recipe.json").read_text())["recipe"]["members"]
    assert sum(member["weight"] for member in recipe) == pytest.approx(1.0)


def test_check(toy_folder, radin_command, tmp_path):
    shutil.copy(toy_folder / "run-1.safetensors", tmp_path / "copy.safetensors")
    arguments = ("check", toy_folder, tmp_path / "copy.safetensors", "--task", toy_folder / "task.py")
    found = json.loads(radin_command(*arguments, "--json").stdout)
    assert len(found["members"]) == 6
    assert len(found["duplicates"]) == 1
    weights = []
    for path in toy_folder.glob("*.safetensors"):
        kept = [t for name, t in load_file(path).items() if "running" not in name and t.is_floating_point()]
        weights.append(torch.cat([t.double().flatten() for t in kept]))
    mean = torch.stack(weights).mean(0)
    by_hand = sorted(float((w - mean).norm() / mean.norm()) for w in weights)
    assert sorted(found["distances"]["to_mean"]) == pytest.approx(by_hand, rel=1e-5)
    assert found["task"]["batches"] == 6
    text = radin_command(*arguments).stdout
    assert "these checkpoints can be averaged" in text
    assert "copy.safetensors" in text


def test_average_equals_five_lines_of_torch(toy_folder, radin_command, tmp_path):
    files = sorted(toy_folder.glob("*.safetensors"))[:3]
    weights = (0.5, 0.3, 0.2)
    out = tmp_path / "soup.safetensors"
    done = radin_command("average", *files, "--ratios", "5,3,2", "-o", out)
    assert done.returncode == 0, done.stderr
    members, soup = [load_file(f) for f in files], load_file(out)
    for name, tensor in soup.items():
        if tensor.is_floating_point():
            expected = sum(w * m[name].double() for w, m in zip(weights, members, strict=True)).to(tensor.dtype)
        else:
            expected = members[0][name]
        assert torch.equal(tensor, expected), name
    again = radin_command("average", *files, "-o", out)
    assert again.returncode == 2
    assert f"{out} exists" in again.stderr


def test_average_takes_the_recipe_of_a_run(cooked, toy_folder, radin_command, tmp_path):
    run, _ = cooked
    out = tmp_path / "again.safetensors"
    done = radin_command("average", toy_folder, "--recipe", run / "recipe.json", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    ours, theirs = load_file(out), load_file(run / "soup.safetensors")
    assert torch.equal(ours["0.weight"], theirs["0.weight"])


def test_evaluate_scores_checkpoints_as_they_are(toy_folder, radin_command):
    files = sorted(toy_folder.glob("*.safetensors"))[:2]
    done = radin_command("evaluate", *files, "--task", toy_folder / "task.py", "--split", "test", "--json")
    found = json.loads(done.stdout)
    for member, file in zip(found["members"], files, strict=True):
        model = toy.model().eval()
        model.load_state_dict(load_file(file))
        with torch.no_grad():
            hits = torch.cat([(model(x).argmax(1) == y) for x, y in toy.batches(toy.TEST)])
        assert member["score"] == pytest.approx(float(hits.double().mean()), abs=1e-12)
    single = radin_command("evaluate", files[0], "--task", toy_folder / "task.py")
    assert single.returncode == 0


def test_rank_reads_the_outputs_of_a_run(cooked, radin_command, tmp_path):
    run, _ = cooked
    found = json.loads(radin_command("rank", "--outputs", run / "outputs", "--top", 5, "--json").stdout)
    names = json.loads((run / "run.json").read_text())["identity"]["members"]
    outputs = [run / "outputs" / f"{fingerprint[:32]}.safetensors" for fingerprint in names]
    assert len(found["recipes"]) == 5
    estimates = [r["estimate"] for r in found["recipes"]]
    assert estimates == sorted(estimates, reverse=True)
    arrays = {name: load_file(p)["outputs"].double() for name, p in zip(names.values(), outputs, strict=True)}
    targets = load_file(run / "outputs" / "targets.safetensors")["targets"]
    for ranked in found["recipes"]:
        mixed = sum(m["weight"] * arrays[m["name"]] for m in ranked["recipe"]["members"])
        assert float((mixed.argmax(1) == targets).double().mean()) == pytest.approx(ranked["estimate"], abs=2 / 600)
    for k, array in enumerate(arrays.values()):
        np.save(tmp_path / f"{k}.npy", array.numpy())
    np.save(tmp_path / "targets.npy", targets.numpy())
    files = [tmp_path / f"{k}.npy" for k in range(6)]
    same = radin_command("rank", "--targets", tmp_path / "targets.npy", "--outputs", *files, "--top", 5, "--json")
    assert [r["estimate"] for r in json.loads(same.stdout)["recipes"]] == estimates


def test_strategies_are_listed_with_their_options(radin_command):
    found = json.loads(radin_command("strategies", "--json").stdout)
    assert {"paper", "greedy", "uniform", "top-k", "best", "pruned", "random"} <= set(found)
    assert found["paper"]["options"]["candidates"]["default"] == 200


def test_metrics_are_listed_with_their_direction_and_targets(radin_command):
    found = json.loads(radin_command("metrics", "--json").stdout)
    about = [entry.pop("about") for entry in found.values()]
    assert all(about)
    assert len(set(about)) == len(found)
    assert found["accuracy"] == {"higher_is_better": True, "targets": "classes", "mean_over_examples": True}
    assert found["r2"] == {"higher_is_better": True, "targets": "values", "mean_over_examples": False}
    assert found["mean_iou"] == {"higher_is_better": True, "targets": "positions", "mean_over_examples": False}
    assert set(found) == set(metrics.names())
    text = radin_command("metrics").stdout
    assert re.search(r"nll +lower +one class index per example +yes", text)
    assert "top-K accuracy" in text


def test_every_command_has_a_file_and_explains_itself(radin_command):
    listed = radin_command("--help").stdout.split("Commands:")[1]
    names = {line.split()[0] for line in listed.strip().splitlines()}
    files = {path.stem for path in Path(radin.cli.__file__).parent.glob("*.py")} - {
        "__init__",
        "group",
        "log",
        "shared",
        "clusters",
        "streams",
    }
    assert names == files
    for name in names:
        assert cli.commands[name].help


def test_help_is_quick_and_importing_radin_leaves_torch_alone(radin_command):
    def seconds():
        """Of the processor, which other processes do not lengthen as they do those of the clock."""
        before = os.times()
        assert radin_command("--help", started=True).returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.6  # 0.25 on a busy machine, where importing torch takes 5
    code = "import radin, radin.cli, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    # ... and the check can fail: using the names does load torch
    code = "import radin, sys; radin.Pool; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


class RunsCode:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def spoil(kind: str, folder: Path) -> None:
    """Make one thing wrong with the pool in ``folder``."""
    last = folder / "run-5.safetensors"
    tensors = load_file(last)
    task = folder / "task.py"
    if kind == "truncated":
        os.truncate(last, last.stat().st_size - 50)
    elif kind == "pickle":
        torch.save({"0.weight": RunsCode(folder / "ran")}, folder / "run-6.pt")
    elif kind == "shape":
        save_file(tensors | {"4.weight": torch.zeros(12, 32)}, last)
    elif kind == "missing":
        save_file({n: t for n, t in tensors.items() if n != "4.bias"}, last)
    elif kind == "nan":
        tensors["0.weight"][3, 5] = float("nan")
        save_file(tensors, last)
    elif kind == "architecture":
        task.write_text(task.read_text() + "\ndef model():\n    return torch.nn.Linear(64, 10)\n")
    elif kind == "labels":
        task.write_text(
            task.read_text() + "\ndef validation(): return [(x, y + 4) for x, y in toy.batches(toy.VALIDATION)]\n"
        )
    elif kind == "shuffled":
        task.write_text(
            task.read_text()
            + "\ncalls = []\ndef validation():\n    calls.append(1)\n    batches = toy.batches(toy.VALIDATION)\n"
            + "    return batches[len(calls) % 6 :] + batches[: len(calls) % 6]\n"
        )
    elif kind == "test is validation":
        task.write_text(task.read_text() + "\ntest = validation\n")
    elif kind == "metric":
        task.write_text(task.read_text() + "\nmetric = 'acc'\n")
    elif kind == "task error":
        task.write_text(task.read_text() + "\ndef helper():\n    return undefined_name\nhelper()\n")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", ["run-5.safetensors"]),
        ("pickle", ["run-6.pt", "would run code", "safetensors"]),
        ("shape", ["4.weight", "run-5.safetensors", "(12, 32)", "(10, 32)"]),
        ("missing", ["run-5.safetensors", "lacks 1 tensor", "4.bias"]),
        ("nan", ["run-5.safetensors", "0.weight", "NaN"]),
        ("architecture", ["model() does not have the architecture"]),
        ("labels", ["labels out of range"]),
        ("shuffled", ["validation() gave two different first batches"]),
        ("test is validation", ["validation() and test() start with the same"]),
        ("metric", ["unknown metric 'acc'", "accuracy"]),
        ("task error", ["task.py", "NameError", "in helper", "undefined_name"]),
    ],
)
def test_bad_input_gets_one_clear_message(toy_folder, radin_command, tmp_path, kind, words):
    folder = tmp_path / "pool"
    shutil.copytree(toy_folder, folder)
    spoil(kind, folder)
    out = tmp_path / "run"
    done = radin_command("cook", folder, "--task", folder / "task.py", "--budget", 2, "--out", out)
    assert done.returncode == 2, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert "radin/passes" not in done.stderr
    assert "radin/run" not in done.stderr
    if kind != "task error":
        assert "Traceback" not in done.stderr
        assert done.stderr.count("radin: ") == 1
    assert not out.exists()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/*.safetensors"], "nowhere/*.safetensors"),
        (["{pool}/run-0.safetensors"], "at least two checkpoints"),
        (["{pool}", "--budget", "0"], "must be at least 1; got 0"),
        (["{pool}", "--strategy", "radish"], "unknown strategy 'radish'"),
        (["{pool}", "-O", "colour=red"], "has no option 'colour'"),
        (["{pool}", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["{pool}", "--task", "nowhere.py"], "no task file nowhere.py"),
        (["{pool}", "--integers-from", "nobody"], "nobody"),
    ],
)
def test_bad_arguments_get_one_clear_message(toy_folder, radin_command, tmp_path, arguments, words):
    given = [a.format(pool=toy_folder) for a in arguments]
    defaults = {"--task": toy_folder / "task.py", "--budget": 2, "--out": tmp_path / "run"}
    for name, value in defaults.items():
        if name not in given:
            given += [name, value]
    done = radin_command("cook", *given, "--json")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert words in json.loads(done.stdout)["error"]["message"]
    assert not (tmp_path / "run").exists()
