"""The commands together. Heavy imports wait until one of them runs."""

from __future__ import annotations

import os

import click

from radin.cli.average import average
from radin.cli.cache import cache
from radin.cli.check import check
from radin.cli.cook import cook
from radin.cli.demo import demo
from radin.cli.doctor import doctor
from radin.cli.evaluate import evaluate
from radin.cli.export import export
from radin.cli.figures import figures
from radin.cli.metrics import metrics
from radin.cli.rank import rank
from radin.cli.report import report
from radin.cli.status import status
from radin.cli.strategies import strategies
from radin.cli.task import task
from radin.errors import RadinError


def _version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        import radin  # looked up only here: it takes a while

        click.echo(f"radin, version {radin.__version__}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def cli() -> None:
    """Turn a folder of fine-tuned checkpoints into one better model: a model soup, within a budget of evaluations."""
    try:
        os.getcwd()
    except OSError:  # not even torch's libraries would load
        raise RadinError("the working directory was removed; change to one that is there") from None


for command in (
    cook,
    check,
    doctor,
    evaluate,
    task,
    average,
    rank,
    strategies,
    metrics,
    report,
    status,
    figures,
    export,
    cache,
    demo,
):
    cli.add_command(command)
