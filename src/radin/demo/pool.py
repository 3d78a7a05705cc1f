"""The demo's pool: one network pretrained on few images, then fine-tuned many times on others.

What makes averaging pay here, as in practice: the members share a good starting point, the fine-tuning
set is small and one label in five is wrong, so each member learns mistakes of its own and the average forgets them.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file

from radin.demo import data as images
from radin.demo.data import Images
from radin.demo.training import Augmentation, Hyperparameters, affine, network, train
from radin.errors import RadinError
from radin.estimate.threads import one_thread
from radin.files import write_text
from radin.progress import Progress
from radin.weights import save

CLASSES = 10
WRONG_LABELS = 0.2
SIZES = {
    "mnist": {"pretraining": 150, "finetuning": 850, "validation": 2000, "test": 2000},
    "fashion": {"pretraining": 300, "finetuning": 1000, "validation": 3000, "test": 3000},
}
SHIFT_NAMES = {"mnist": "scanned digits", "fashion": "rotated by 20 degrees"}
# every sixth member is trained too fast: a pool from real life has such runs, and a good search leaves them out
ROUGH_EVERY = 6

_TASK = '''"""The demo's task: what radin must know beyond the checkpoints. A first example to copy from.

Each function returns batches of (inputs, targets): here 28x28 grey images and their classes.
"""

from pathlib import Path

from radin.demo.data import batches
from radin.demo.training import network

DATA = Path(__file__).with_name("data.npz")


def model():
    """The architecture of the pool; radin loads the weights."""
    return network()


def validation():
    """Recipes are chosen by these. The same order at every call."""
    return batches(DATA, "validation")


def test():
    """Evaluated once, at the end."""
    return batches(DATA, "test")


def shifts():
    """The same classes from another source: reported, never used to choose."""
    return {{"{shift}": batches(DATA, "shift")}}


def calibration():
    """The network has BatchNorm; after averaging, its statistics are estimated again on these."""
    return batches(DATA, "finetuning")


metric = "accuracy"
'''


@dataclass(frozen=True)
class DemoPool:
    """``paths``: the members' files, in order. ``task_path``: the task file. ``hyperparameters``: one per member.

    ``data``: "mnist" or "fashion". ``seconds``: time the training took in this call; near zero if all was there.
    """

    folder: Path
    paths: tuple[Path, ...]
    task_path: Path
    hyperparameters: tuple[Hyperparameters, ...]
    data: str
    seconds: float


def build(
    folder: str | Path,
    *,
    seed: int = 0,
    members: int = 12,
    data: str | Path = "mnist",
    progress: Progress | None = None,
) -> DemoPool:
    """Train the demo's pool into ``folder``, or continue where an earlier call stopped.

    ``data``: "mnist" (MNIST-5k), "fashion" (Debian's package), a folder with Fashion-MNIST's files, or "auto":
    Fashion-MNIST if Debian's package is there, else MNIST-5k. The same seed gives the same weights on one machine.
    Several processes may call this at once with the same arguments: one trains, the others wait.
    Raises RadinError when the data are missing or the folder holds a pool of other settings.
    """
    if members < 2:
        raise RadinError(f"a pool needs at least 2 members; got {members}")
    folder = Path(folder).absolute()
    name, place = _which(data)
    (folder / "members").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with FileLock(folder / ".lock"), one_thread():
        _claim(folder, {"data": name, "seed": seed, "sizes": SIZES[name], "wrong_labels": WRONG_LABELS})
        if not (folder / "data.npz").exists():
            images.save(folder / "data.npz", _splits(name, place, seed))
        recipes = tuple(hyperparameters(seed, index) for index in range(members))
        paths = tuple(folder / "members" / f"{index:02d}-{how.name}.safetensors" for index, how in enumerate(recipes))
        _train_missing(folder, paths, recipes, seed, progress)
        write_text(folder / "task.py", _TASK.format(shift=SHIFT_NAMES[name]))
        table = {path.name: asdict(how) for path, how in zip(paths, recipes, strict=True)}
        write_text(folder / "hyperparameters.json", json.dumps(table, indent=2) + "\n")
    return DemoPool(folder, paths, folder / "task.py", recipes, name, time.monotonic() - started)


def hyperparameters(seed: int, index: int) -> Hyperparameters:
    """Those of member ``index``: drawn at random, the same whatever the number of members."""
    rng = np.random.default_rng([seed, index])
    rate = 10 ** rng.uniform(-3.3, -2.7)
    if index % ROUGH_EVERY == ROUGH_EVERY - 1:
        rate *= 6
    augmentations: tuple[Augmentation, ...] = ("none", "shift", "affine")
    return Hyperparameters(
        # rounded, so that the file's name says exactly what was done
        learning_rate=float(f"{rate:.1e}"),
        epochs=int(rng.integers(4, 13)),
        weight_decay=float(f"{10 ** rng.uniform(-4, -1):.0e}"),
        label_smoothing=float(rng.choice([0.0, 0.1])),
        augmentation=augmentations[rng.integers(3)],
        seed=1000 * seed + index + 1,
    )


def _which(data: str | Path) -> tuple[str, Path | None]:
    if data == "auto":
        return ("fashion", None) if images.find_fashion() else ("mnist", None)
    if data in SIZES:
        return str(data), None
    if not Path(data).is_dir():
        raise RadinError(f"data must be mnist, fashion, auto or a folder with Fashion-MNIST's files; got {data}")
    return "fashion", Path(data)


def _splits(name: str, place: Path | None, seed: int) -> dict[str, Images]:
    if name == "mnist":
        splits = images.split(images.mnist_5k(), SIZES[name], seed)
        splits["shift"] = images.scanned_digits()
    else:
        training, test = images.fashion(place)
        sizes = {part: size for part, size in SIZES[name].items() if part != "test"}
        splits = images.split(training, sizes, seed)
        splits |= images.split(images.without_duplicates(test, training), {"test": SIZES[name]["test"]}, seed)
        splits["shift"] = rotated(splits["test"], 20.0)
    splits["finetuning"] = images.with_wrong_labels(splits["finetuning"], WRONG_LABELS, CLASSES, seed)
    return splits


def rotated(data: Images, degrees: float) -> Images:
    """The images turned by ``degrees``, alternately left and right."""
    pixels = torch.from_numpy(data.images).float().unsqueeze(1)
    turn = torch.full((len(data),), degrees)
    turn[::2] *= -1
    still, same = torch.zeros(len(data)), torch.ones(len(data))
    turned = affine(pixels, turn, same, still, still)
    return Images(turned[:, 0].round().clamp(0, 255).byte().numpy(), data.labels)


def _train_missing(
    folder: Path,
    paths: tuple[Path, ...],
    recipes: tuple[Hyperparameters, ...],
    seed: int,
    progress: Progress | None,
) -> None:
    def report(done: int) -> None:
        if progress is not None:
            progress("training the demo's members", done, len(paths))

    start = folder / "pretrained.safetensors"
    if not start.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = network()
        how = Hyperparameters(3e-3, epochs=40, augmentation="affine", schedule="cosine", seed=seed)
        save(train(model, images.load(folder / "data.npz", "pretraining"), how).state_dict(), start)
    part = images.load(folder / "data.npz", "finetuning")
    model = network()
    for done, (path, how) in enumerate(zip(paths, recipes, strict=True)):
        report(done)
        if not path.exists():
            model.load_state_dict(load_file(start))
            save(train(model, part, how).state_dict(), path)
    report(len(paths))


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds another pool; note the settings in a new one."""
    file = folder / "settings.json"
    if file.exists():
        found = json.loads(file.read_text())
        if found != settings:
            raise RadinError(
                f"{folder} holds a demo pool of other settings ({found}; asked for {settings}): "
                "choose another folder or remove it"
            )
    else:
        write_text(file, json.dumps(settings, indent=2) + "\n")
