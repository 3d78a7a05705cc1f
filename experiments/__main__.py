"""The command: which experiment, on which files.

    python -m experiments cifar10   --data cifar-10-batches-bin --checkpoints DIR --out OUT
    python -m experiments imagenet  --data DIR --checkpoints DIR --out OUT
    python -m experiments shifts    --data DIR --checkpoints DIR --out OUT
    python -m experiments domainnet --data DIR --checkpoints DIR --out OUT
    python -m experiments pool .pools/fashion-gentle --out OUT

--train N --start FILE in the place of --checkpoints fine-tunes N members. For domainnet, DIR has a
folder for each domain left out: DIR/real/*.pt. All goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="experiment", required=True)
    for name in ("cifar10", "imagenet", "domainnet", "shifts"):
        command = commands.add_parser(name, help=f"on the files of {name} as they are distributed")
        command.add_argument("--data", type=Path, required=True, help="folder of the data")
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--checkpoints", type=Path, help="folder of fine-tuned checkpoints")
        source.add_argument("--train", type=int, metavar="N", help="fine-tune N members into OUT/members")
        command.add_argument("--model", default="open_clip:ViT-B-32-quickgelu", help="timm:NAME, open_clip:NAME, ...")
        command.add_argument("--hold-out", type=float, help="share of the training data, or number of each class")
        command.add_argument("--seed", type=int, default=0, help="of what is held out, and of training")
        command.add_argument("--workers", type=int, default=0, help="processes that read pictures")
        command.add_argument(
            "--start", type=Path, help="with --train: the pretrained checkpoint that members start from"
        )
        command.add_argument("--rates", type=float, nargs=2, help="with --train: exponents of the learning rate")
        command.add_argument("--epochs", type=int, nargs=2, help="with --train: fewest and most")
        command.add_argument("--train-batch", type=int, help="with --train: examples in a step")
        command.add_argument("--start-epochs", type=int, help="with --train: for the head, or a start without --start")
        if name == "domainnet":
            command.add_argument("--domains", nargs="+", help="domains to leave out, one after the other; default all")
        _common(command)
    pool = commands.add_parser("pool", help="a folder with task.py and members/, as benchmarks/pools makes them")
    pool.add_argument("folder", type=Path)
    _common(pool)
    return made


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    command.add_argument("--draws", type=int, default=20, help="random sub-pools; seeds where the pool is no larger")
    command.add_argument("--members", type=int, default=13, help="members of a sub-pool")
    command.add_argument("--most", type=int, default=25, help="the largest budget B")
    command.add_argument("--device", default="auto")
    command.add_argument("--batch-size", type=int, help="examples run at once")
    command.add_argument("--json", action="store_true", help="end with one line of JSON")


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run what the command line says; what table.json holds, for each table. Exits with a message for what is wrong."""
    given = parser().parse_args(arguments)
    from experiments.running import shown
    from radin import RadinError

    try:
        found = _pool(given) if given.experiment == "pool" else _distributed(given)
    except RadinError as error:
        sys.exit(str(error))
    if given.json:
        print(shown({"tables": found}))
    return found


def _plan(given: argparse.Namespace) -> Any:
    from experiments.running import Plan

    return Plan(given.draws, given.members, given.most, given.device, given.batch_size)


def _pool(given: argparse.Namespace) -> list[dict[str, Any]]:
    from experiments.running import run
    from radin import RadinError

    task, members = given.folder / "task.py", given.folder / "members"
    if not task.is_file() or not members.is_dir():
        raise RadinError(f"{given.folder}: expected task.py and members/ in it")
    given.out.mkdir(parents=True, exist_ok=True)
    found = run(given.folder.resolve().name, task, sorted(members.glob("*.safetensors")), given.out, _plan(given))
    print((given.out / "table.md").read_text(encoding="utf-8"))
    return [found]


def _distributed(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One table, or for DomainNet one for each domain left out."""
    if given.experiment != "domainnet":
        return [_one(given, (), given.out, given.checkpoints, given.experiment)]
    from experiments.domainnet import domains

    left_out = given.domains or domains(given.data)
    return [
        _one(
            given,
            (name,),
            given.out / name,
            None if given.checkpoints is None else given.checkpoints / name,
            f"domainnet without {name}",
        )
        for name in left_out
    ]


def _one(
    given: argparse.Namespace, more: tuple[str, ...], out: Path, checkpoints: Path | None, title: str
) -> dict[str, Any]:
    """From the folders to the table: the task file, members where they are to be trained, and the run."""
    from experiments import models, training
    from experiments.running import run, say
    from radin import Pool
    from radin.engine.device import Device

    module = importlib.import_module(f"experiments.{given.experiment}")
    data = given.data.resolve()
    hold_out = module.HELD_OUT if given.hold_out is None else given.hold_out
    out.mkdir(parents=True, exist_ok=True)
    places = [data, *more, hold_out, given.seed]
    if checkpoints is not None:
        pool = Pool.open(checkpoints)
        members = [member.path for member in pool]
        shapes: models.Shapes = pool.shapes
        part = models.model_part(given.model, shapes)
    else:
        splits = module.splits(*places)
        shapes = models.new_shapes(given.model, splits.classes)
        part = models.model_part(given.model, shapes)
        trainer = training.Trainer(
            *models.built(part),
            splits.fitting,
            splits.classes,
            _ranges(given),
            given.seed,
            Device.create(given.device).device,
            given.workers,
            say,
        )
        about = {"experiment": title, "model": given.model, "pictures": len(splits.fitting), "hold out": hold_out}
        members = trainer.members(out, given.train, given.start, about)
    task = models.write_task(
        out / "task.py",
        given.experiment,
        places,
        part,
        shapes,
        batch_size=given.batch_size or 64,
        workers=given.workers,
    )
    found = run(title, task, members, out, _plan(given))
    print((out / "table.md").read_text(encoding="utf-8"))
    return found


def _ranges(given: argparse.Namespace) -> Any:
    """Those of Model Soups, where nothing else is asked for."""
    from experiments.training import Ranges

    asked = {
        "rates": given.rates and tuple(given.rates),
        "epochs": given.epochs and tuple(given.epochs),
        "batch_size": given.train_batch,
        "start_epochs": given.start_epochs,
    }
    return Ranges(**{name: value for name, value in asked.items() if value})


if __name__ == "__main__":
    main()
