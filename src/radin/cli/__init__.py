"""The command line: one function per command. Parse, call, print. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from radin import __version__
from radin.errors import RadinError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from radin.progress import Progress
    from radin.weights import Pool

_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
_TASK = click.option("--task", "task", required=True, help="Python file (or module:object) with model(), validation().")
_KEY = click.option("--key", help="Take the tensors nested under this name, e.g. state_dict_ema.")
_PATHS = click.argument("paths", nargs=-1, required=True)


def _engine_options(command: Any) -> Any:
    for option in (
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ..."),
        click.option(
            "--precision", default="float32", show_default=True, help="float32, bfloat16 or float16 (autocast)."
        ),
        click.option("--batch-size", type=int, help="Cut the task's batches to at most this many examples."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="radin")
def cli() -> None:
    """Turn a folder of fine-tuned checkpoints into one better model: a model soup, within a budget of evaluations."""


@cli.command()
@_PATHS
@_TASK
@click.option(
    "--budget",
    type=int,
    required=True,
    help="Passes over validation() to spend on soups in all, resumed sessions included. A soup evaluated on some of "
    "the examples costs its share. With BatchNorm, a pass is the validation and the calibration examples.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory; the same again resumes.")
@click.option(
    "--strategy",
    help="How to spend the budget; see 'radin strategies'. Default: adaptive; paper with its options below.",
)
@click.option("--prior", type=float, help="lambda: worth of each further member when ranking (paper).")
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
    help="Search on half of the validation examples and choose on the others, which then flatter the soup less.",
)
@click.option("--members-at-once", type=int, help="Members sharing one reading of the data; default what fits.")
@click.option("--outputs", type=click.Path(path_type=Path), help="Folder of cached outputs that several runs share.")
@click.option(
    "--keep-outputs/--no-keep-outputs",
    default=True,
    show_default=True,
    help="Without: compile outputs while they are made and store none (accuracy, top-k). Gives up resuming inside a "
    "reading, other metrics, and adding members without new passes.",
)
@click.option("--outputs-dtype", default="float32", show_default=True, help="float16 halves the cache on disk.")
@click.option("--integers-from", help="Member whose integer tensors the soup takes; default the heaviest.")
@_KEY
@_engine_options
@_JSON
def cook(
    paths: tuple[str, ...],
    task: str,
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
    outputs: Path | None,
    keep_outputs: bool,
    outputs_dtype: str,
    integers_from: str | None,
    key: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Find the best soup that BUDGET passes can buy and write it to OUT/soup.safetensors."""
    given: dict[str, Any] = dict(_split_option(text) for text in options)
    given |= {name: value for name, value in (("prior", prior), ("candidates", candidates)) if value is not None}
    strategy = strategy or ("adaptive" if prior is None and candidates is None else "paper")
    if budget < 1:
        raise RadinError(f"the budget is the number of passes to spend on soups and must be at least 1; got {budget}")
    import radin
    from radin.report.tables import closing_lines, closing_table
    from radin.search.strategies import base

    base.get(strategy).settings(given)
    with _progress() as progress:
        pool = _open_pool(paths, key, progress)
        result = radin.cook(
            pool,
            task,
            budget=budget,
            out=out,
            strategy=strategy,
            options=given,
            seed=seed,
            uniform=uniform,
            choose_on_half=choose_on_half,
            device=device,
            precision=precision,
            batch_size=batch_size,
            members_at_once=members_at_once,
            outputs=outputs,
            keep_outputs=keep_outputs,
            outputs_dtype=outputs_dtype,
            integers_from=integers_from,
            progress=progress,
        )
    _show(result.to_json() if as_json else None, closing_table(result), *closing_lines(result))


@cli.command()
@_PATHS
@click.option("--task", help="Also check the task: architecture, data, metric; estimate time and disk.")
@click.option("--distances/--no-distances", default=True, show_default=True, help="Distances between the members.")
@_KEY
@_engine_options
@_JSON
def check(
    paths: tuple[str, ...],
    task: str | None,
    distances: bool,
    key: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Can these checkpoints be averaged? Headers, fingerprints, shapes, distances; nothing long."""
    from radin.diagnose.check import check_pool
    from radin.engine.device import Device
    from radin.report.check import check_parts

    engine = Device.create(device, precision, batch_size)
    with _progress() as progress:
        pool = _open_pool(paths, key, progress)
        found = check_pool(pool, task, engine, distances=distances, progress=progress)
    _show(found.to_json() if as_json else None, *check_parts(found))


@cli.command()
@_PATHS
@click.option("--task", help="Also look at a slice of validation(): scores, agreement, interpolation, expected gain.")
@click.option("--run", "directory", type=click.Path(path_type=Path), help="Also a run of cook over these checkpoints.")
@click.option("--examples", type=int, default=1000, show_default=True, help="How much of validation() to look at.")
@_KEY
@_engine_options
@_JSON
def doctor(
    paths: tuple[str, ...],
    task: str | None,
    directory: Path | None,
    examples: int,
    key: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Explain a pool: what is the matter with it, with numbers, and what to do."""
    import radin
    from radin.report.doctor import doctor_parts

    with _progress() as progress:
        pool = _open_pool(paths, key, progress)
        found = radin.doctor(
            pool,
            task,
            directory,
            examples=examples,
            device=device,
            precision=precision,
            batch_size=batch_size,
            progress=progress,
        )
    _show(found.to_json() if as_json else None, *doctor_parts(found))


@cli.command()
@_PATHS
@_TASK
@click.option("--split", default="validation", show_default=True, help="validation, test or shifts/NAME.")
@_KEY
@_engine_options
@_JSON
def evaluate(
    paths: tuple[str, ...],
    task: str,
    split: str,
    key: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """True scores of checkpoints as they are, one full pass each."""
    from radin.engine.device import Device
    from radin.report.sentences import number
    from radin.report.tables import plain_table
    from radin.run.commands import evaluate_pool

    engine = Device.create(device, precision, batch_size)
    with _progress() as progress:
        pool = _open_pool(paths, key, progress)
        found = evaluate_pool(pool, task, split, engine, progress=progress)
    rows = [[m["name"], number(m["score"], m["stderr"]), f"{m['seconds']:.1f}"] for m in found["members"]]
    title = f"{found['metric']} on {split}, {found['examples']} examples"
    _show(found if as_json else None, plain_table(title, ["checkpoint", "score", "seconds"], rows))


@cli.command()
@_PATHS
@click.option("--weights", help="Comma-separated mixing weights in the order shown by check; scaled to sum 1.")
@click.option("--recipe", type=click.Path(path_type=Path), help="recipe.json of a run.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A .safetensors or .pt file.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--integers-from", help="Member whose integer tensors the soup takes; default the heaviest.")
@_KEY
@_JSON
def average(
    paths: tuple[str, ...],
    weights: str | None,
    recipe: Path | None,
    output: Path,
    force: bool,
    integers_from: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Average checkpoints without any data: uniformly, by --weights, or by a --recipe."""
    if output.exists() and not force:
        raise RadinError(f"{output} exists; give another name, or --force to replace it")
    from radin.run.commands import average_pool

    with _progress() as progress:
        pool = _open_pool(paths, key, progress)
        found = average_pool(pool, weights, recipe, output, integers_from, progress)
    _show(found if as_json else None, f"averaged {found['size']} checkpoints into {output}", *found["notes"])


@cli.command()
@click.option(
    "--outputs",
    "outputs",
    multiple=True,
    required=True,
    help="A member's outputs (.npy or .safetensors), or the outputs folder of a run; repeat.",
)
@click.argument("more", nargs=-1)
@click.option("--targets", type=click.Path(path_type=Path), help="Targets (.npy, .safetensors); a run has its own.")
@click.option("--metric", default="accuracy", show_default=True)
@click.option("--top", type=int, default=10, show_default=True, help="How many recipes to show.")
@click.option("--count", type=int, default=10_000, show_default=True, help="Recipes that each random source draws.")
@click.option("--source", "sources", multiple=True, help="Only these sources of candidates; repeat. Default all.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@_JSON
def rank(
    outputs: tuple[str, ...],
    more: tuple[str, ...],
    targets: Path | None,
    metric: str,
    top: int,
    count: int,
    sources: tuple[str, ...],
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Recipes by estimate, from saved outputs alone: no model, no pass. More outputs files may follow the options."""
    from radin.report.tables import plain_table
    from radin.run.commands import rank_files

    with _progress() as progress:
        found = rank_files(
            [*outputs, *more],
            targets,
            metric,
            top=top,
            count=count,
            sources=sources,
            seed=seed,
            device=device,
            progress=progress,
        )
    rows = [
        [
            f"{index + 1}",
            f"{r['estimate']:.5f}",
            str(r["size"]),
            r["source"],
            ", ".join(f"{m['name']} {m['weight']:.3g}" for m in r["recipe"]["members"]),
        ]
        for index, r in enumerate(found["recipes"])
    ]
    title = f"estimated {metric} of averaged outputs; the best member alone has {found['best_single']['score']:.5f}"
    _show(found if as_json else None, plain_table(title, ["", "estimate", "size", "source", "members"], rows))


@cli.command()
@_JSON
def strategies(as_json: bool) -> None:
    """The ways to spend a budget, and their options."""
    from radin.report.tables import plain_table
    from radin.search.strategies import base

    found = [base.get(name) for name in base.names()]
    value = {
        s.name: {"summary": s.summary, "options": {o.name: {"default": o.default, "help": o.help} for o in s.options}}
        for s in found
    }
    rows = [[s.name, s.summary, "\n".join(f"{o.name}={o.default}: {o.help}" for o in s.options)] for s in found]
    _show(
        value if as_json else None, plain_table("strategies", ["name", "what it does", "options (-O name=value)"], rows)
    )


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_JSON
def report(directory: Path, as_json: bool) -> None:
    """Show a finished run again."""
    from radin.report.tables import closing_lines, closing_table
    from radin.run.result import Result

    result = Result.load(directory)
    _show(result.to_json() if as_json else None, closing_table(result), *closing_lines(result))


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-run"), show_default=True)
@click.option(
    "--data", default="auto", show_default=True, help="mnist, fashion, a folder with Fashion-MNIST files, or auto."
)
@click.option("--budget", type=int, default=8, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@_JSON
def demo(out: Path, data: str, budget: int, seed: int, as_json: bool) -> None:
    """Train a real pool on real images, cook it, and compare with greedy at the same number of passes."""
    if budget < 1:
        raise RadinError(f"the budget must be at least 1; got {budget}")
    from radin.demo.run import run_demo

    with _progress() as progress:
        found, shown = run_demo(out, data=data, budget=budget, seed=seed, progress=progress)
    _show(found if as_json else None, *shown)


def _split_option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise RadinError(f"options of a strategy are given as -O name=value; got {text!r}")
    return name, value


def _open_pool(paths: tuple[str, ...], key: str | None, progress: Progress) -> Pool:
    from radin.weights import Pool

    return Pool.open(paths, key=key, progress=lambda done, total: progress("reading checkpoints", done, total))


@contextmanager
def _progress() -> Iterator[Progress]:
    from radin.progress import logged
    from radin.report.progress import ConsoleProgress

    with ConsoleProgress() as shown, closing(logged(shown)) as progress:
        yield progress


def _show(value: dict[str, Any] | None, *parts: RenderableType) -> None:
    """JSON on standard output when ``value`` is given, else the parts for people."""
    if value is not None:
        click.echo(json.dumps(value))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)


def main() -> NoReturn:
    """Run the command line. Exit 0: done; 2: the user can mend it; 1: our fault; 130: interrupted."""
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
        click.echo("radin: interrupted. Nothing finished is lost; the same command goes on from here.", err=True)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        click.echo("radin: this is a fault of radin's own. Please report it with the lines above.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
