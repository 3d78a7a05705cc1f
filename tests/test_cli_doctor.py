"""'radin doctor' as a user meets it."""

import json
import sys

import pytest
from safetensors.torch import load_file, save_file

import radin
from radin.cli import main


def test_findings_for_people_and_the_same_as_json(toy_folder, radin_command, tmp_path):
    run = tmp_path / "run"
    task = toy_folder / "task.py"
    radin.cook(toy_folder, task, budget=4, out=run, strategy="paper")
    arguments = ("doctor", toy_folder, "--task", task, "--run", run, "--examples", 200)
    shown = radin_command(*arguments)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(radin_command(*arguments, "--json").stdout)
    assert found["slice"]["examples"] == 200
    assert found["run"]["soups"] == 4
    for finding in found["findings"]:
        assert f"  {finding['title']}: {finding['sentence']}\n" in shown.stdout
        assert finding["advice"] is None or f"    → {finding['advice']}\n" in shown.stdout
    for path in found["slice"]["soups"]["interpolations"]:
        assert f"{path['barrier']:.4f} ± {path['barrier_stderr']:.4f}" in shown.stdout
    for member in found["members"]:
        assert f"{member['score']:.4f} ± {member['stderr']:.4f}" in shown.stdout


def test_a_sick_pool_is_no_error(toy_folder, radin_command, tmp_path):
    weights = load_file(toy_folder / "run-0.safetensors")
    save_file({n: t * 9 if t.is_floating_point() else t for n, t in weights.items()}, tmp_path / "huge.safetensors")
    done = radin_command("doctor", toy_folder, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("outliers: ") < done.stdout.index("one initialisation: ")
    assert "huge (" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--examples", "1"), "examples, how much of validation() to look at, must be at least 2; got 1"),
        (("--run", "nowhere"), "nowhere is not a run directory"),
        (("--task", "nowhere.py"), "no task file nowhere.py"),
    ],
)
def test_what_the_user_can_mend_is_one_message(toy_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["radin", "doctor", str(toy_folder), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.strip().splitlines()[-1].startswith(f"radin: {message}")
    assert "Traceback" not in shown
