"""Pools of small networks on Fashion-MNIST: one pretraining, then 24 or 72 members fine-tuned from it.

    python -m benchmarks.pools.fashion --kind gentle|rough|large [--data FOLDER] [--out FOLDER] [--jobs 2]

Writes members/*.safetensors, task.py, hyperparameters.json, data.npz, and the members' logits and the labels as .npy
(logits-validation.npy is members x examples x classes). Goes on where it stopped. Data: Debian's package
dataset-fashion-mnist (apt-get install dataset-fashion-mnist), or a folder with its four .gz files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from radin import RadinError
from radin.demo import data
from radin.demo.data import BATCH_SIZE, Images
from radin.demo.pool import rotated
from radin.demo.training import Augmentation, Hyperparameters, logits, network, train
from radin.estimate.threads import one_thread
from radin.weights import save

POOLS = Path(__file__).parents[2] / ".pools"
CLASSES = 10
WIDTH = 12
HELD_OUT = 10_000
VALIDATION = 5_000  # of those held out, what recipes are chosen by; thousands of soups are evaluated on it
CALIBRATION = 500
SHIFTED = 2_000  # of each shift's images
SHIFTS = ("rotated", "blurred", "noisy")


@dataclass(frozen=True)
class Kind:
    """What distinguishes a pool. ``rates``: powers of ten between which learning rates are drawn, log-uniformly.

    ``epochs``: from the first up to, not including, the second. ``pretraining``, ``finetuning``: images, none in both.
    ``wrong_labels``: share of the fine-tuning labels that are wrong, the same ones for all members: what each learns of
    them differs, so averaging forgets them. ``duplicates``: how many of the last members are exact copies of the first.
    """

    members: int
    rates: tuple[float, float]
    epochs: tuple[int, int] = (4, 11)
    pretraining: int = 3_000
    finetuning: int = 5_000
    wrong_labels: float = 0.15
    duplicates: int = 0


KINDS = {
    "gentle": Kind(members=24, rates=(-3.0, -2.4)),
    "rough": Kind(members=24, rates=(-4.0, -1.0), duplicates=2),
    "large": Kind(members=72, rates=(-3.3, -2.2), epochs=(3, 9)),
}

TASK = '''"""Fashion-MNIST: {kind} pool, built by benchmarks/pools/fashion.py."""

from pathlib import Path

from radin.demo.data import batches
from radin.demo.training import network

DATA = Path(__file__).with_name("data.npz")


def model():
    return network(width={width})


def validation():
    return batches(DATA, "validation")[:{validation}]


def test():
    return batches(DATA, "test")


def shifts():
    return {{name: batches(DATA, name)[:{shifted}] for name in {shifts}}}


def calibration():
    return batches(DATA, "finetuning")[:{calibration}]


metric = "accuracy"
'''


def splits(kind: Kind, folder: Path | None, seed: int) -> dict[str, Images]:
    """Validation is held out of the training images first, by seed 0: all pools share it, and the official test."""
    training, test = data.fashion(folder)
    outer = data.split(training, {"validation": HELD_OUT, "rest": len(training) - HELD_OUT}, seed=0)
    sizes = {"pretraining": kind.pretraining, "finetuning": kind.finetuning}
    parts = data.split(outer["rest"], sizes, seed) | {"validation": outer["validation"], "test": test}
    parts["finetuning"] = data.with_wrong_labels(parts["finetuning"], kind.wrong_labels, CLASSES, seed)
    return parts | {"rotated": rotated(test, 20.0), "blurred": blurred(test), "noisy": noisy(test)}


def blurred(part: Images, sigma: float = 1.5) -> Images:
    """A Gaussian blur of ``sigma`` pixels."""
    offsets = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    pixels = torch.from_numpy(part.images).float().unsqueeze(1)
    across = torch.nn.functional.conv2d(pixels, kernel.view(1, 1, 1, -1), padding=(0, 4))
    both = torch.nn.functional.conv2d(across, kernel.view(1, 1, -1, 1), padding=(4, 0))
    return Images(both[:, 0].round().byte().numpy(), part.labels)


def noisy(part: Images, deviation: float = 40.0) -> Images:
    """Gaussian noise of ``deviation`` grey levels of 255, always the same."""
    noise = np.random.default_rng(0).normal(0, deviation, part.images.shape)
    return Images((part.images + noise).round().clip(0, 255).astype(np.uint8), part.labels)


def hyperparameters(kind: Kind, seed: int) -> list[Hyperparameters]:
    """One per trained member (duplicates are copies, not trained): drawn at random, rounded as in the file's name."""
    found = []
    augmentations: tuple[Augmentation, ...] = ("none", "shift", "affine")
    for index in range(kind.members - kind.duplicates):
        rng = np.random.default_rng([seed, index])
        found.append(
            Hyperparameters(
                learning_rate=float(f"{10 ** rng.uniform(*kind.rates):.1e}"),
                epochs=int(rng.integers(*kind.epochs)),
                weight_decay=float(f"{10 ** rng.uniform(-4, -1):.0e}"),
                label_smoothing=float(rng.choice([0.0, 0.1])),
                augmentation=augmentations[rng.integers(3)],
                batch_size=int(rng.choice([32, 64])),
                seed=1000 * seed + index + 1,
            )
        )
    return found


def pretrain(folder: Path, seed: int) -> None:
    """Train on few images with true labels until they are learned: a good start, below what the members reach."""
    torch.manual_seed(seed)
    how = Hyperparameters(3e-3, epochs=20, augmentation="affine", schedule="cosine", batch_size=64, seed=seed)
    with one_thread():
        model = train(network(WIDTH), data.load(folder / "data.npz", "pretraining"), how)
    save(model.state_dict(), folder / "pretrained.safetensors")


def finetune(folder: Path, path: Path, how: Hyperparameters) -> float:
    """Train one member and write it; returns the seconds it took."""
    started = time.monotonic()
    model = network(WIDTH)
    model.load_state_dict(load_file(folder / "pretrained.safetensors"))
    with one_thread():
        train(model, data.load(folder / "data.npz", "finetuning"), how)
    save(model.state_dict(), path)
    return time.monotonic() - started


def write_logits(folder: Path, paths: Sequence[Path]) -> None:
    """logits-SPLIT.npy (members, examples, classes) float32 and labels-SPLIT.npy, for every split that is scored."""
    model = network(WIDTH)
    states = [load_file(path) for path in paths]
    for name in ("validation", "test", *SHIFTS):
        part = data.load(folder / "data.npz", name)
        if name != "test":
            part = part.take(np.arange(VALIDATION if name == "validation" else SHIFTED))
        inputs = data.tensor(part.images)
        found = np.empty((len(paths), len(part), CLASSES), np.float32)
        for row, state in zip(found, states, strict=True):
            model.load_state_dict(state)
            row[:] = logits(model, inputs).numpy()
        np.save(folder / f"logits-{name}.npy", found)
        np.save(folder / f"labels-{name}.npy", part.labels)


def build(name: str, folder: Path, source: Path | None, *, seed: int = 0, jobs: int = 2) -> None:
    """Build the pool, or what is missing of it. Raises RadinError when Fashion-MNIST is not found."""
    kind = KINDS[name]
    members = folder / "members"
    members.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"kind": name, "seed": seed, "width": WIDTH, **asdict(kind)}, indent=2)
    settings_file = folder / "settings.json"
    if settings_file.exists() and settings_file.read_text() != settings:
        raise RadinError(f"{folder} holds a pool of other settings: remove it or give another --out")
    settings_file.write_text(settings)
    if not (folder / "data.npz").exists():
        data.save(folder / "data.npz", splits(kind, source, seed))
    if not (folder / "pretrained.safetensors").exists():
        say("pretraining")
        pretrain(folder, seed)
    recipes = hyperparameters(kind, seed)
    paths = [members / f"{index:02d}-{how.name}.safetensors" for index, how in enumerate(recipes)]
    todo = [(path, how) for path, how in zip(paths, recipes, strict=True) if not path.exists()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as workers:
        futures = {workers.submit(finetune, folder, path, how): path for path, how in todo}
        for done, (future, path) in enumerate(futures.items(), start=1):
            say(f"{done}/{len(todo)} {path.stem}: {future.result():.0f} s")
    for index in range(kind.duplicates):
        copy = members / f"{len(recipes) + index:02d}-copy-of-{paths[index].stem}.safetensors"
        shutil.copyfile(paths[index], copy)
        paths.append(copy)
        recipes.append(recipes[index])
    table = {path.name: asdict(how) for path, how in zip(paths, recipes, strict=True)}
    (folder / "hyperparameters.json").write_text(json.dumps(table, indent=2) + "\n")
    (folder / "task.py").write_text(
        TASK.format(
            kind=name,
            width=WIDTH,
            shifts=SHIFTS,
            shifted=SHIFTED // BATCH_SIZE,
            validation=VALIDATION // BATCH_SIZE,
            calibration=CALIBRATION // BATCH_SIZE,
        )
    )
    say("logits")
    write_logits(folder, paths)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(KINDS), required=True)
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's .gz files; default Debian's package")
    parser.add_argument("--out", type=Path, help="default .pools/fashion-KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="members trained at once, one thread each")
    given = parser.parse_args()
    started = time.monotonic()
    folder = given.out or POOLS / f"fashion-{given.kind}"
    try:
        build(given.kind, folder, given.data, seed=given.seed, jobs=given.jobs)
    except RadinError as error:
        sys.exit(str(error))
    say(f"{folder}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
