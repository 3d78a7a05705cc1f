"""radin figures: the paper's figures and Table 1 from a run."""

from __future__ import annotations

from pathlib import Path

import click

from radin.cli.shared import (
    BASE,
    JSON,
    KEY,
    LOG,
    check_ready,
    console_progress,
    open_pool,
    ready_options,
    show,
    starting,
    task_for,
)
from radin.errors import RadinError

_NUMBERS = ("1", "2", "3", "4", "5", "6")
_KINDS = {"1": {"mixing"}, "2": {"candidates"}, "3": {"methods", "candidates"}, "4": {"methods"}} | {
    "5": {"candidates"},
    "6": {"candidates"},
    "table": {"methods"},
}


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--figure",
    "chosen",
    multiple=True,
    type=click.Choice([*_NUMBERS, "table"]),
    help="1: averaged outputs against soups; 2: estimate and truth; 3: candidates by rank; 4: score by budget; 5: "
    "large and small soups; 6: score by size; table: methods by budget. Several may be given; default all.",
)
@click.option(
    "--evaluate",
    "passes",
    type=int,
    metavar="N",
    help="First spend up to N passes over validation on further soups. They are kept beside the run, never repeated, "
    "and in no budget. Takes --task, --model or --eval as cook was given.",
)
@click.option("--test", is_flag=True, help="With --evaluate: then also score what Table 1's methods chose on test().")
@click.option("--format", "form", type=click.Choice(["png", "svg", "html", "json"]), default="svg", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; default DIRECTORY/figures.")
@click.option("--task", help="Python file (or module:object) with model(), validation(): the run's.")
@ready_options
@click.option("--eval", "command", metavar="CMD", help="The program that scores soups, as cook was given it.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Soups evaluated at once.")
@click.option("--members", multiple=True, metavar="PATH", help="The run's checkpoints, where they were moved.")
@BASE
@KEY
@click.option("--outputs", type=click.Path(path_type=Path), help="Folder of the members' outputs, if not in DIRECTORY.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--batch-size", type=int, help="Cut the task's batches to at most this many examples.")
@LOG
@JSON
def figures(
    directory: Path,
    chosen: tuple[str, ...],
    passes: int | None,
    test: bool,
    form: str,
    out: Path | None,
    task: str | None,
    model: str | None,
    data: str | None,
    columns: str | None,
    command: str | None,
    jobs: int,
    members: tuple[str, ...],
    base_model: Path | None,
    key: str | None,
    outputs: Path | None,
    device: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """The paper's figures and its Table 1, from any run.

    \b
    radin figures run
    radin figures run --evaluate 200 --task task.py --figure 2 --figure 4 --format png
    """
    check_ready(task, model, data, columns)
    if passes is not None and sum(given is not None for given in (task, model, command)) != 1:
        raise RadinError("--evaluate needs what evaluated the run: --task task.py, --model with --data, or --eval CMD")
    if test and passes is None:
        raise RadinError("--test is for --evaluate: it scores soups on test() after that")
    wanted = chosen or (*_NUMBERS, "table")
    with starting():
        import radin
        from radin.data.task import Task
        from radin.report.figures import FIGURES, Unavailable, plain, table, write, write_table
        from radin.report.figures.drawing import altair
        from radin.run.further import evaluate_further
        from radin.run.record import RunRecord

        if set(wanted) - {"table"}:
            altair()  # before anything long
    lines = []
    used = None
    with console_progress() as progress:
        pool = open_pool(members, key, progress, base_model) if members else None
        if model is not None:
            pool = pool or open_pool(_places(RunRecord.read(directory).settings), key, progress, base_model)
            used = task_for(pool, task, model, data, columns, RunRecord.read(directory).metric.name)
        elif task is not None:
            used = task
        if passes is not None:
            jobs_of = {"workers": jobs} if command is None else {}
            higher = RunRecord.read(directory, outputs=outputs).metric.higher_is_better
            evaluator = used if command is None else radin.Command(command, higher, jobs)
            assert evaluator is not None
            found = evaluate_further(
                directory,
                evaluator,
                passes,
                wanted=set().union(*(_KINDS[name] for name in wanted)),
                test=test,
                pool=pool,
                outputs=outputs,
                device=device,
                batch_size=batch_size,
                progress=progress,
                **jobs_of,
            )
            lines.append(_spent(found.passes, found.tests, found.complete))
        progress("reading the run", 0, None)
        record = RunRecord.read(directory, task=None if used is None else Task.load(used), outputs=outputs)
        folder = directory / "figures" if out is None else out
        values = {}
        for name in wanted:
            progress(f"figure {name}" if name != "table" else "Table 1", 0, None)
            if name == "table":
                made = table(record)
                values[name] = plain(made)
                lines += [made.markdown().rstrip("\n"), *(f"table 1: {path}" for path in write_table(made, folder))]
                continue
            drawn = FIGURES[name](record)
            values[name] = plain(drawn)
            if isinstance(drawn, Unavailable):
                lines.append(f"figure {name}: not drawn: {drawn.why}")
            else:
                lines.append(f"figure {name}: {write(drawn, folder, form)}")
    show(
        {"figures": values, "out": str(folder)} if as_json else None,
        *[line for text in lines for line in text.split("\n")],
    )


def _places(settings: object) -> tuple[str, ...]:
    """Where the run's checkpoints are, as its settings say."""
    paths = settings.get("paths", {}) if isinstance(settings, dict) else {}
    return tuple(map(str, paths.values()))


def _spent(passes: int, tests: int, complete: bool) -> str:
    text = f"{passes} passes spent on further soups"
    text += f", and {tests} soups scored on test" if tests else ""
    return text + ("; nothing more is wanted" if complete else "")
