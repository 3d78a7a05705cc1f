"""The command line: one file per command. Parse, call, print. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from typing import NoReturn

import click

from radin import __version__
from radin.cli.average import average
from radin.cli.check import check
from radin.cli.cook import cook
from radin.cli.demo import demo
from radin.cli.doctor import doctor
from radin.cli.evaluate import evaluate
from radin.cli.metrics import metrics
from radin.cli.rank import rank
from radin.cli.report import report
from radin.cli.strategies import strategies
from radin.errors import RadinError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="radin")
def cli() -> None:
    """Turn a folder of fine-tuned checkpoints into one better model: a model soup, within a budget of evaluations."""


for command in (cook, check, doctor, evaluate, average, rank, strategies, metrics, report, demo):
    cli.add_command(command)


class _Terminated(BaseException):
    """SIGTERM, as an exception: programs and worker processes are ended on the way out."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command line. Exit 0: done; 2: the user can mend it; 1: our fault; 130, 143: interrupted, terminated."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except RadinError as error:
        shown = getattr(error, "traceback", None)
        if shown:
            click.echo(shown, err=True)
        click.echo(f"radin: {error}", err=True)
        if "--json" in sys.argv:
            click.echo(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("radin: interrupted. Nothing finished is lost; the same command continues from here.", err=True)
        sys.exit(130)
    except _Terminated:
        click.echo("radin: terminated. Nothing finished is lost; the same command continues from here.", err=True)
        sys.exit(143)
    except Exception:
        traceback.print_exc()
        click.echo("radin: this is a fault of radin's own. Please report it with the lines above.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
