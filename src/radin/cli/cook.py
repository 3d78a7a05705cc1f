"""radin cook: find the best soup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from radin.checks import whole_number
from radin.cli import log
from radin.cli.clusters import cluster, cluster_options
from radin.cli.shared import (
    BASE,
    FILES_FROM,
    JSON,
    KEY,
    LOG,
    PATHS,
    PUSH,
    UPLOAD,
    check_ready,
    console_progress,
    engine_options,
    open_pool,
    push,
    ready_options,
    require_hub,
    require_upload,
    show,
    starting,
    task_for,
    typed,
    uploaded,
)
from radin.errors import RadinError


@click.command()
@PATHS
@click.option("--task", help="Python file (or module:object) with model(), validation(). This, --model or --eval.")
@ready_options
@click.option(
    "--budget",
    type=int,
    required=True,
    help="Passes over the validation data to spend on soups in all, resumed sessions included. A soup evaluated on "
    "some of the examples costs its share. With BatchNorm, a pass is the validation and the calibration examples.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory; the same again resumes.")
@click.option(
    "--eval",
    "command",
    metavar="CMD",
    help="Any program that scores a checkpoint, such as './score.sh {soup}': it prints a number, or JSON, last. "
    "{soup}: the checkpoint's path; {slot}: the number of the job; {out}: a folder to write to; {examples}: a file of "
    "indices, where it can score some of the examples.",
)
@click.option("--lower-is-better", is_flag=True, help="Of the program's scores (--eval).")
@click.option("--timeout", type=float, help="Seconds that one run of the program may take (--eval).")
@click.option("--retries", type=int, default=0, show_default=True, help="Further runs of one that failed (--eval).")
@click.option("--scores", type=click.Path(path_type=Path), help="CSV or JSON: the members' own scores (--eval).")
@click.option(
    "--metric",
    help="What soups are scored by, of 'radin metrics' (--model; default the usual one of such models), or what saved "
    "--outputs are scored by to estimate recipes (--eval; default accuracy).",
)
@click.option(
    "--jobs", type=int, default=1, show_default=True, help="Soups evaluated at once: programs, or worker processes."
)
@click.option(
    "--strategy",
    help="How to spend the budget; see 'radin strategies'. Default: learned-by-layer from a budget of 8 on, where a "
    "model here scores soups; else adaptive; paper with its options below.",
)
@click.option("--prior", type=float, help="lambda: what each further member adds to the estimate when ranking (paper).")
@click.option("--candidates", type=int, help="How many subsets to draw and rank (paper).")
@click.option("-O", "--option", "options", multiple=True, metavar="NAME=VALUE", help="Any option of the strategy.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--uniform/--no-uniform",
    default=None,
    help="Spend one pass on the uniform soup first; by default from a budget of 8 on.",
)
@click.option(
    "--choose-on-half",
    is_flag=True,
    help="Search on half of the validation examples and choose on the others: less selection bias in the score.",
)
@click.option("--members-at-once", type=int, help="Members sharing one reading of the data; default what fits.")
@click.option(
    "--outputs",
    help="Folder of cached outputs, or its URL, that several runs share; with --eval, of outputs saved elsewhere: "
    "NAME.npy for each member, and targets.npy.",
)
@click.option(
    "--keep-outputs/--no-keep-outputs",
    default=True,
    show_default=True,
    help="Without: compile outputs while they are made and store none (accuracy, top-k, pixels). Gives up resuming a "
    "reading, other metrics, and adding members without new passes.",
)
@click.option("--outputs-dtype", default="float32", show_default=True, help="float16 halves the cache on disk.")
@click.option(
    "--integers-from", help="Member whose integer tensors the soup takes; default the one of the largest ratio."
)
@click.option(
    "--track",
    "trackers",
    multiple=True,
    metavar="NAME[:PLACE]",
    help="Also log the run to mlflow[:EXPERIMENT], wandb[:PROJECT], tensorboard[:FOLDER] or trackio[:PROJECT]; may be "
    "given more than once.",
)
@FILES_FROM
@BASE
@PUSH
@UPLOAD
@KEY
@cluster_options
@engine_options
@LOG
@JSON
def cook(
    paths: tuple[str, ...],
    task: str | None,
    model: str | None,
    data: str | None,
    columns: str | None,
    command: str | None,
    lower_is_better: bool,
    timeout: float | None,
    retries: int,
    scores: Path | None,
    metric: str | None,
    jobs: int,
    budget: int,
    out: Path,
    strategy: str | None,
    prior: float | None,
    candidates: int | None,
    options: tuple[str, ...],
    seed: int,
    uniform: bool | None,
    choose_on_half: bool,
    members_at_once: int | None,
    outputs: str | None,
    keep_outputs: bool,
    outputs_dtype: str,
    integers_from: str | None,
    trackers: tuple[str, ...],
    files_from: str | None,
    base_model: Path | None,
    repository: str | None,
    upload: str | None,
    key: str | None,
    engine: str,
    workers: int | None,
    address: str | None,
    gpus_per_worker: float | None,
    cpus_per_worker: float | None,
    engine_settings: tuple[str, ...],
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Find the best soup that BUDGET passes can buy and write it to OUT.

    \b
    radin cook runs/*/best.safetensors --task task.py --budget 10 --out run
    radin cook runs/* --model hf --data csv:validation.csv --budget 10 --out run
    radin cook runs/*/best.safetensors --eval './score.sh {soup}' --budget 10 --out run
    """
    given: dict[str, Any] = dict(_split_option(text) for text in options)
    given |= {name: value for name, value in (("prior", prior), ("candidates", candidates)) if value is not None}
    if strategy is None and not (prior is None and candidates is None):
        strategy = "paper"
    whole_number("the budget, the number of passes to spend on soups,", budget, 1)
    whole_number("--seed", seed, 0, None)
    require_hub(repository)
    require_upload(upload, force=True)
    check_ready(task, model, data, columns)
    _check_evaluator(
        task or model,
        command,
        {
            "--lower-is-better": lower_is_better,
            "--timeout": timeout,
            "--retries": retries,
            "--scores": scores,
            "--metric": None if model is not None else metric,
        },
    )
    with starting():
        import radin
        from radin.integrations.trackers import tracker
        from radin.report.tables import closing_lines, closing_table
        from radin.search.strategies import base

        search = radin.cook  # imported before anything is started

    if strategy is not None:
        base.get(strategy).settings(given)
    listeners = [tracker(text, out) for text in trackers]
    elsewhere = cluster(engine, workers, address, gpus_per_worker, cpus_per_worker, engine_settings)
    if elsewhere is not None and jobs > 1:
        raise RadinError("--jobs is for this machine; with --engine, --workers says how many work at once")
    program = None if command is None else radin.Command(command, not lower_is_better, jobs, timeout, retries)
    with console_progress() as progress:
        pool = open_pool(paths, key, progress, base_model)
        evaluator = program or task_for(pool, task, model, data, columns, metric)
        assert evaluator is not None
        result = search(
            pool,
            evaluator,
            budget=budget,
            out=out,
            strategy=strategy,
            options=given,
            seed=seed,
            uniform=uniform,
            choose_on_half=choose_on_half,
            workers=jobs if command is None else 1,
            engine=elsewhere,
            device=device,
            precision=precision,
            batch_size=batch_size,
            members_at_once=members_at_once,
            outputs=outputs,
            keep_outputs=keep_outputs,
            scores=scores,
            metric="accuracy" if metric is None or model is not None else metric,
            outputs_dtype=outputs_dtype,
            integers_from=integers_from,
            files_from=files_from,
            command=typed(),
            progress=progress,
            on_event=_listener(listeners),
        )
    show(
        result.to_json() if as_json else None,
        closing_table(result),
        *closing_lines(result),
        *push(result.soup, repository),
        *uploaded(result.soup, upload, force=True),
    )


def _check_evaluator(task: str | None, command: str | None, of_commands: dict[str, Any]) -> None:
    """Raise RadinError unless there is one evaluator, and only options that it has."""
    if (task is None) == (command is None):
        raise RadinError(
            "say what evaluates a soup: --task task.py, a Python file with model() and validation(), --model with "
            "--data for models that radin knows, or --eval './score.sh {soup}', any program"
            + ("; not both" if task else "")
        )
    given = [name for name, value in of_commands.items() if value not in (None, False, 0)]
    if task is not None and given:
        raise RadinError(f"{', '.join(given)}: only for a program given with --eval")


def _listener(trackers: list[Any]) -> Any:
    """Who is told what happens: the log that was asked for, and trackers."""
    from radin.events import several

    listeners = [listener for listener in (log.current, *trackers) if listener is not None]
    return several(*listeners) if trackers else log.current


def _split_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise RadinError(f"options of a strategy are given as -O name=value; got {text!r}")
    return name, value
