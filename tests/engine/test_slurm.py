"""Jobs through submitit: its executor for this machine does what Slurm would, with the same jobs and files."""

from __future__ import annotations

import sys

import pytest

import radin
from radin.engine.crew import Plan
from radin.engine.slurm import Slurm
from radin.errors import RadinError


@pytest.mark.long
def test_jobs_of_submitit_give_what_one_process_gives(toy_pool, toy_folder, tmp_path):
    task = toy_folder / "task.py"
    cluster = Slurm(workers=2, executor="local", time_minutes=5)
    there = radin.cook(toy_pool, task, budget=3, strategy="paper", out=tmp_path / "there", engine=cluster)
    here = radin.cook(toy_pool, task, budget=3, strategy="paper", out=tmp_path / "here")
    assert there.best.recipe == here.best.recipe
    assert {e.recipe: e.score for e in there.evaluations} == {e.recipe: e.score for e in here.evaluations}
    assert (tmp_path / "there/soup.safetensors").read_bytes() == (tmp_path / "here/soup.safetensors").read_bytes()
    assert [path.name for path in (tmp_path / "there/slurm").iterdir()] == ["logs"]


def test_without_submitit(toy_pool, toy_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RadinError, match="pip install submitit"):
        Slurm().crew(Plan(toy_pool, str(toy_folder / "task.py")), tmp_path)


def test_without_slurm(toy_pool, toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RadinError, match=r"sbatch, srun\) are not found here"):
        Slurm().crew(Plan(toy_pool, str(toy_folder / "task.py")), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"executor": "pbs"}, "executor must be one of slurm, local; got 'pbs'"),
        ({"parameters": {"account": "me"}}, "such as slurm_account; got 'account'"),
        ({"memory_gb": -1}, "memory_gb must be above 0"),
        ({"time_minutes": 0}, "time_minutes"),
    ],
)
def test_settings_are_checked_at_once(settings, message):
    with pytest.raises(RadinError, match=message):
        Slurm(**settings)


def test_a_parameter_that_submitit_does_not_have(toy_pool, toy_folder, tmp_path):
    cluster = Slurm(executor="local", parameters={"slurm_colour": "red"})
    with pytest.raises(RadinError, match="colour"):
        cluster.crew(Plan(toy_pool, str(toy_folder / "task.py")), tmp_path / "run")
