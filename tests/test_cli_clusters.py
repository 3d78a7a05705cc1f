"""--engine and what belongs to it: what is asked for, and what does not go together."""

from __future__ import annotations

import pytest

import radin
from radin.cli.clusters import cluster
from radin.errors import RadinError

NOTHING = (None, None, None, None, ())


def test_this_machine_is_the_default_and_has_no_such_options():
    assert cluster("local", *NOTHING) is None
    with pytest.raises(RadinError, match="--workers is for --engine ray or slurm; on this machine --jobs says"):
        cluster("local", 2, None, None, None, ())
    with pytest.raises(RadinError, match="-E is for --engine"):
        cluster("local", None, None, None, None, ("a=1",))


def test_options_become_settings():
    assert cluster("ray", 3, "auto", 0.5, 2.0, ()) == radin.Ray(
        workers=3, address="auto", gpus_per_worker=0.5, cpus_per_worker=2.0
    )
    found = cluster("slurm", 4, None, 1.0, 2.0, ("partition=gpu", "time_minutes=240", "slurm_account=vision"))
    assert found == radin.Slurm(
        workers=4,
        partition="gpu",
        gpus_per_worker=1,
        cpus_per_worker=2,
        time_minutes=240,
        parameters={"slurm_account": "vision"},
    )
    assert cluster("ray", *NOTHING) == radin.Ray()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("slurm", 2, "auto", None, None, ()), "--address is for --engine ray"),
        (("ray", 0, None, None, None, ()), "--workers"),
        (("ray", None, None, None, None, ("color=red",)), "Ray has no setting color"),
        (("slurm", None, None, None, None, ("color=red",)), "Slurm has no setting color; it has .*slurm_account"),
        (("slurm", None, None, None, None, ("partition",)), "-E name=value; got 'partition'"),
    ],
)
def test_what_an_engine_does_not_have_is_said(given, message):
    with pytest.raises(RadinError, match=message):
        cluster(*given)
