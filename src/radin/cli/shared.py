"""What several commands share: options, opening a pool, progress, and how a finding is shown."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from radin.errors import RadinError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from radin.data.task import TaskText
    from radin.progress import Progress
    from radin.weights import Pool

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
TASK = click.option("--task", "task", help="Python file (or module:object) with model(), validation().")
KEY = click.option("--key", help="Take the tensors nested under this name, e.g. state_dict_ema.")
BASE = click.option(
    "--base",
    "base_model",
    type=click.Path(path_type=Path),
    help="Folder of the model that LoRA adapters are merged into first.",
)
FILES_FROM = click.option(
    "--files-from",
    help="Member whose config, tokenizer and other files a soup that is a folder gets; default the largest ratio's.",
)
PUSH = click.option("--push-to-hub", "repository", metavar="REPO", help="Upload the soup's folder, as a private model.")


UPLOAD = click.option(
    "--upload",
    metavar="URL",
    help="Copy the soup there too: s3://bucket/soup.safetensors; a folder as one.",
)


def _log_target(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Refuse a log that the command line could not open before it began."""
    from radin.cli import log

    if value is not None and log.current is None:
        if (name := log.target(value)) is not None:
            from radin.files import told

            with told(doing="opened"):
                open(name, "a").close()
        raise RadinError(f"--log {value} must stand alone on the command line, as it is given here")


LOG = click.option(
    "--log",
    metavar="json[:FILE]",
    expose_value=False,
    callback=_log_target,
    help="One JSON object a line for each event, on standard error (and nothing else there) or added to FILE.",
)
PATHS = click.argument("paths", nargs=-1, required=True)


def engine_options(command: Any) -> Any:
    """Where and how models run: --device, --precision, --batch-size."""
    for option in (
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ..."),
        click.option(
            "--precision", default="float32", show_default=True, help="float32, bfloat16 or float16 (autocast)."
        ),
        click.option("--batch-size", type=int, help="Cut the task's batches to at most this many examples."),
    ):
        command = option(command)
    return command


def ready_options(command: Any) -> Any:
    """A task without a file: --model, --data, --columns."""
    for option in (
        click.option("--columns", metavar="ROLE=NAME,...", help="Of --data, such as text=review,label=stars."),
        click.option(
            "--data",
            help="The validation data, imagefolder:DIR, csv:FILE, parquet:FILES, datasets:SAVED_DIR or "
            "python:module:function; more splits as ,test=PLACE and ,train=PLACE (for BatchNorm).",
        ),
        click.option(
            "--model",
            help="timm:NAME, hf (as config.json beside the checkpoints says), open_clip:NAME or torch:module:function; "
            "with --data, in place of --task.",
        ),
    ):
        command = option(command)
    return command


def check_ready(task: str | None, model: str | None, data: str | None, columns: str | None) -> None:
    """Raise RadinError unless --model and --data come together, and without --task."""
    if (model is None) != (data is None):
        given, lacking = ("--model", "--data") if data is None else ("--data", "--model")
        raise RadinError(f"{given} needs {lacking}: together they stand for a task file")
    if model is not None and task is not None:
        raise RadinError("--task, or --model with --data; not both")
    if columns is not None and data is None:
        raise RadinError("--columns is for the tables of --data")


def task_for(
    pool: Pool, task: str | None, model: str | None, data: str | None, columns: str | None, metric: str | None = None
) -> str | TaskText | None:
    """What was given as --task, or the task that --model and --data stand for; None where there is neither."""
    check_ready(task, model, data, columns)
    if model is None or data is None:
        return task
    from radin.cli import streams
    from radin.errors import printable
    from radin.ready import ready_task

    found = ready_task(pool, model, data, columns=columns, metric=metric)
    for note in found.notes:
        streams.say(printable(f"note: {note}"))
    return found


def require_task(task: str | None, model: str | None) -> None:
    """Raise RadinError where nothing says what to evaluate with."""
    if task is None and model is None:
        raise RadinError("say what evaluates: --task task.py, a Python file, or --model timm:NAME|hf|... --data ...")


def open_pool(paths: Iterable[str | Path], key: str | None, progress: Progress, base: Path | None = None) -> Pool:
    """The checkpoints behind what was typed."""
    from radin.weights import Pool
    from radin.weights.paths import look_for

    def report(done: int, total: int) -> None:
        progress("reading checkpoints", done, total)

    return Pool.open(look_for(paths, progress), key=key, base=base, progress=report)


def typed() -> str:
    """What was typed, as a shell takes it, for a model card."""
    return shlex.join(["radin", *sys.argv[1:]])


def require_hub(repository: str | None) -> None:
    """Raise RadinError where a soup could not be pushed there, before anything long begins."""
    if repository is not None:
        from radin.integrations.hub import require_hub

        require_hub(repository)


def push(folder: Path, repository: str | None) -> list[str]:
    """Push a soup where that was asked for; what to say of it."""
    if repository is None:
        return []
    from radin.integrations.hub import push

    return [f"pushed to {push(folder, repository)}"]


def require_upload(url: str | None, *, force: bool = False) -> None:
    """Raise RadinError, before anything long, where a soup cannot be uploaded to a URL."""
    if url is not None:
        from radin.weights.uploads import require_target

        require_target(url, force=force)


def uploaded(soup: Path, url: str | None, *, force: bool = False) -> list[str]:
    """Upload a soup where that was asked for; what to say of it."""
    if url is None:
        return []
    from radin.weights.uploads import upload

    return [f"uploaded to {upload(soup, url, force=force)}"]


@contextmanager
def starting() -> Iterator[None]:
    """Say so on a terminal while a command imports what it needs: torch alone takes seconds."""
    from radin import interrupts
    from radin.cli import streams

    if not sys.stderr.isatty():
        yield
        return
    streams.say_briefly("radin: starting ...")
    with interrupts.at_once(streams.unsay):
        try:
            yield
        finally:
            streams.unsay()


@contextmanager
def console_progress() -> Iterator[Progress]:
    """Progress on standard error and in logging, for as long as the context is open.

    To be opened once a command has imported what it needs: from here on it ends in order when it is interrupted.
    """
    from radin import interrupts
    from radin.cli import log
    from radin.progress import logged
    from radin.report.progress import ConsoleProgress

    name = click.get_current_context().info_name
    if log.current is not None:
        if name != "cook":  # which tells of more
            log.current.start(str(name))
        if log.current.alone:
            with closing(logged(log.current.progress)) as progress:
                interrupts.running()
                yield progress
            return
    with ConsoleProgress() as shown, interrupts.at_once(shown.stop), closing(logged(_both(shown))) as progress:
        interrupts.running()
        yield progress


def _both(shown: Progress) -> Progress:
    """Progress that is shown, and told to a log in a file where there is one."""
    from radin.cli import log

    if (kept := log.current) is None:
        return shown

    def both(what: str, done: float, total: float | None) -> None:
        shown(what, done, total)
        kept.progress(what, done, total)

    return both


def show(value: dict[str, Any] | None, *parts: RenderableType) -> None:
    """JSON on standard output when ``value`` is given, else the parts for people."""
    from radin.cli import streams

    if value is not None:
        streams.write(json.dumps(value) + "\n")
        return
    from rich.console import Console

    from radin.errors import printable

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    with console.capture() as captured:
        for part in parts:
            console.print(printable(part), markup=False) if isinstance(part, str) else console.print(part)
    streams.write(captured.get())
