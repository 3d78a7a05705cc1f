"""Options that say where workers run: --engine and what belongs to it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from radin.checks import whole_number
from radin.errors import RadinError

_OF = {
    "--address": ("ray",),
    "--workers": ("ray", "slurm"),
    "--gpus-per-worker": ("ray", "slurm"),
    "--cpus-per-worker": ("ray", "slurm"),
    "-E": ("ray", "slurm"),
}


def cluster_options(command: Any) -> Any:
    """--engine, --workers, --address, --gpus-per-worker, --cpus-per-worker, -E."""
    for option in (
        click.option(
            "-E",
            "engine_settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="Any other setting of the engine, such as partition=gpu or time_minutes=240 (--engine slurm).",
        ),
        click.option("--cpus-per-worker", type=float, help="Processor cores of each worker (--engine)."),
        click.option("--gpus-per-worker", type=float, help="GPUs of each worker, or a share of one (--engine)."),
        click.option(
            "--address", help="A Ray cluster that runs: auto, HOST:PORT or ray://HOST:PORT; else one is started here."
        ),
        click.option("--workers", type=int, help="How many workers (--engine); default what there is room for."),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray", "slurm"]),
            default="local",
            show_default=True,
            help="Where models and programs run: this machine, a Ray cluster (also several GPUs here), or jobs of a "
            "Slurm queue.",
        ),
    ):
        command = option(command)
    return command


def cluster(
    engine: str,
    workers: int | None,
    address: str | None,
    gpus_per_worker: float | None,
    cpus_per_worker: float | None,
    settings: tuple[str, ...],
) -> Any:
    """What the options stand for, as ``cook(engine=...)`` takes it; None: this machine.

    Raises RadinError for options that the engine does not have.
    """
    given = {
        "--address": address,
        "--workers": workers,
        "--gpus-per-worker": gpus_per_worker,
        "--cpus-per-worker": cpus_per_worker,
        "-E": settings or None,
    }
    for name, value in given.items():
        if value is not None and engine not in _OF[name]:
            here = "; on this machine --jobs says how many work at once" if name == "--workers" else ""
            raise RadinError(f"{name} is for --engine {' or '.join(_OF[name])}{here}")
    if engine == "local":
        return None
    if workers is not None:
        whole_number("--workers", workers, 1)
    import radin

    kind: Any = radin.Ray if engine == "ray" else radin.Slurm
    known = {field.name: field for field in fields(kind)}
    asked: dict[str, Any] = {
        "workers": workers,
        "address": address,
        "gpus_per_worker": _whole(gpus_per_worker),
        "cpus_per_worker": _whole(cpus_per_worker),
    }
    more: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RadinError(f"settings of an engine are given as -E name=value; got {text!r}")
        place = asked if name in known else more
        place[name] = _value(value)
    own = "slurm_" if "parameters" in known else None
    unknown = [name for name in more if own is None or not name.startswith(own)]
    if unknown:
        also = "" if own is None else f", and those of submitit, such as {own}account"
        raise RadinError(
            f"{kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}{also}"
        )
    if more:
        asked["parameters"] = more
    return kind(**{name: value for name, value in asked.items() if value is not None})


def _value(text: str) -> Any:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _whole(number: float | None) -> float | None:
    """A whole number as such: a queue gives no share of a processor."""
    return int(number) if number is not None and number == int(number) else number
