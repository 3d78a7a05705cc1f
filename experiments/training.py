"""``--train N``: members fine-tuned from one start over the ranges of Model Soups, appendix J; resumable, one device.

Each member draws its own: learning rate 10^-x, x in [4, 6]; weight decay 10^-x, x in [0.2, 4.1]; 4 to 16 epochs; label
smoothing 0, or by a coin's toss up to 0.25; mixup 0, or by another up to 0.9; and with a chance of 2/3 RandAugment of
magnitude 0 to 20 and 0 to 2 operations beside the random crop that all have. AdamW, cosine decay after 500 steps of
warm-up, gradients clipped at norm 1. The members that were released (hparam_info.json) lie in these ranges; the end
4.1 of the weight decay is theirs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from experiments.models import head_names
from experiments.pictures import Pictures
from radin import RadinError
from radin.files import read_json, replacing, write_json
from radin.ready.optional import library
from radin.weights import open_checkpoint

_CLIP = 1.0
_CROP = (0.9, 1.0)  # share of a picture's area that the random crop keeps
_SHAPE = (3 / 4, 4 / 3)
_START_RATE = 1e-3


@dataclass(frozen=True)
class Ranges:
    """What members are drawn from, and how they are trained. rates, decays: exponents of 10."""

    rates: tuple[float, float] = (-6.0, -4.0)
    decays: tuple[float, float] = (-4.1, -0.2)
    epochs: tuple[int, int] = (4, 16)
    smoothing: float = 0.25
    mixup: float = 0.9
    batch_size: int = 512
    warmup: int = 500
    start_epochs: int = 5


@dataclass(frozen=True)
class Hyperparameters:
    """One member's. augmentation: as timm calls it, such as "rand-m9-n1"; None for the random crop alone."""

    rate: float
    decay: float
    epochs: int
    smoothing: float
    mixup: float
    augmentation: str | None


def drawn(number: int, ranges: Ranges, seed: int) -> Hyperparameters:
    """Those of member ``number``, whatever the number of members."""
    rng = np.random.default_rng([seed, number])
    return Hyperparameters(
        float(10 ** rng.uniform(*ranges.rates)),
        float(10 ** rng.uniform(*ranges.decays)),
        int(rng.integers(ranges.epochs[0], ranges.epochs[1] + 1)),
        float(rng.uniform(0, ranges.smoothing)) if rng.random() < 0.5 else 0.0,
        float(rng.uniform(0, ranges.mixup)) if rng.random() < 0.5 else 0.0,
        f"rand-m{rng.integers(0, 21)}-n{rng.integers(0, 3)}" if rng.random() < 2 / 3 else None,
    )


class Augmented(Dataset[Any]):
    """Pictures cropped at random and augmented, as the model takes them, with their labels."""

    def __init__(self, pictures: Pictures, prepare: Callable[[Any], torch.Tensor], augmentation: str | None) -> None:
        self.pictures, self.prepare = pictures, prepare
        self._augment = None
        if augmentation is not None and not augmentation.endswith("-n0"):
            self._augment = _rand_augment(augmentation)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        picture = _cropped(self.pictures.open(place))
        if self._augment is not None:
            picture = self._augment(picture)
        return self.prepare(picture), int(self.pictures.labels[place])


def _rand_augment(name: str) -> Callable[[Any], Any]:
    """timm's, by the name in which the released members' are written."""
    made = library("timm", "RandAugment").data.auto_augment.rand_augment_transform(name, {})
    for op in made.ops:
        if op.name == "Posterize":  # at small magnitudes timm asks for 0 bits, which Pillow refuses by now
            op.level_fn = partial(_at_least_one_bit, op.level_fn)
    return made


def _at_least_one_bit(bits: Callable[[float, Any], tuple[int]], level: float, options: Any) -> tuple[int]:
    return (max(1, bits(level, options)[0]),)


def _cropped(picture: Any) -> Any:
    """A random part of a picture, square: what torchvision's RandomResizedCrop does before it scales to one size."""
    width, height = picture.size
    area = width * height * random.uniform(*_CROP)
    ratio = math.exp(random.uniform(math.log(_SHAPE[0]), math.log(_SHAPE[1])))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    left, top = random.randint(0, width - w), random.randint(0, height - h)
    side = max(w, h)
    return picture.resize((side, side), box=(left, top, left + w, top + h), resample=3)  # 3: bicubic


@dataclass(frozen=True)
class Trainer:
    """Trains members on pictures. ``build``: the model, its weights at random; ``prepare``: its preprocessing."""

    build: Callable[[], torch.nn.Module]
    prepare: Callable[[Any], torch.Tensor]
    pictures: Pictures
    classes: int
    ranges: Ranges
    seed: int
    device: torch.device
    workers: int = 0
    say: Callable[[str], None] = print

    def members(self, folder: Path, count: int, start: Path | None, about: dict[str, Any]) -> list[Path]:
        """``count`` members in ``folder``/members; what was trained before is kept, what was begun goes on.

        start: a checkpoint of the pretrained model, with or without a classifier; None: the start is trained too, from
        random weights. about: what they are of (model, data), which may not change. Raises RadinError where it has.
        """
        settings = folder / "training.json"
        asked = {**about, "seed": self.seed, "start": None if start is None else str(start)}
        asked |= {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.ranges).items()}
        if settings.is_file() and (before := read_json(settings)) != asked:
            changed = [name for name in asked if before.get(name) != asked[name]]
            raise RadinError(f"{folder} holds members trained otherwise ({', '.join(changed)}); give another --out")
        (folder / "members").mkdir(parents=True, exist_ok=True)
        write_json(settings, asked)
        first = self._start(folder / "start.pt", start)
        found, all_drawn = [], {}
        for k in range(count):
            path = folder / "members" / f"model_{k}.pt"
            one = drawn(k, self.ranges, self.seed)
            all_drawn[path.stem] = asdict(one)
            if not path.is_file():
                self.say(f"training {path.stem}, {k + 1} of {count}: {one}")
                model = self.build()
                model.load_state_dict(first)
                self._fit(model, one, path, self.seed * 1000 + k + 1)
            found.append(path)
        write_json(folder / "hyperparameters.json", all_drawn)
        return found

    def _start(self, path: Path, given: Path | None) -> dict[str, torch.Tensor]:
        """The weights from which all members start: read, or made and kept. A new head is trained on a frozen trunk."""
        if path.is_file():
            return torch.load(path, weights_only=True, map_location="cpu")
        torch.manual_seed(self.seed)
        model = self.build()
        head = head_names(model)
        lacking = set(model.state_dict()) if given is None else _filled(model, given, head)
        if lacking:
            self.say("training the start" if given is None else "training the start's head")
            only = None if given is None else head
            how = Hyperparameters(_START_RATE, 1e-4, self.ranges.start_epochs, 0.0, 0.0, None)
            self._fit(model, how, path, self.seed * 1000, only)
        else:
            with replacing(path) as place:
                torch.save(model.state_dict(), place)
        return torch.load(path, weights_only=True, map_location="cpu")

    def _fit(
        self, model: torch.nn.Module, how: Hyperparameters, path: Path, seed: int, only: set[str] | None = None
    ) -> None:
        """Train and write the state to ``path``; after each epoch all that is needed to go on to ``path``.partial.

        only: names of the parameters to train, where not all; the rest is frozen and in evaluation mode.
        """
        model.to(self.device)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(only is None or name in only)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, how.rate, weight_decay=how.decay)
        data = Augmented(self.pictures, self.prepare, how.augmentation)
        size = min(self.ranges.batch_size, len(data))
        total = how.epochs * (len(data) // size)
        warmup = min(self.ranges.warmup, total // 10)
        begun = path.with_name(path.name + ".partial")
        done = 0
        if begun.is_file():
            kept = torch.load(begun, weights_only=True, map_location=self.device)
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            done = kept["epochs"]
        for epoch in range(done, how.epochs):
            _seed(seed * 100 + epoch)
            loader = DataLoader(data, size, shuffle=True, drop_last=True, num_workers=self.workers)
            model.train(only is None)
            for step, (images, labels) in enumerate(loader, start=epoch * (len(data) // size)):
                for group in optimizer.param_groups:
                    group["lr"] = how.rate * _schedule(step, total, warmup)
                optimizer.zero_grad()
                self._loss(model, images.to(self.device), labels.to(self.device), how).backward()
                torch.nn.utils.clip_grad_norm_(trained, _CLIP)
                optimizer.step()
            with replacing(begun) as place:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
                torch.save(state, place)
        with replacing(path) as place:
            torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, place)
        begun.unlink(missing_ok=True)

    def _loss(
        self, model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, how: Hyperparameters
    ) -> torch.Tensor:
        targets = functional.one_hot(labels, self.classes).float()
        if how.mixup:
            share = float(torch.distributions.Beta(how.mixup, how.mixup).sample())
            order = torch.randperm(len(labels))
            images = share * images + (1 - share) * images[order]
            targets = share * targets + (1 - share) * targets[order]
        return functional.cross_entropy(model(images), targets, label_smoothing=how.smoothing)


def _seed(seed: int) -> None:
    """Every source of chance, so that an epoch that is repeated after a kill is the same."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  timm's RandAugment draws from it
    torch.manual_seed(seed)


def _schedule(step: int, total: int, warmup: int) -> float:
    """The share of the learning rate: linear warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _filled(model: torch.nn.Module, path: Path, head: set[str]) -> set[str]:
    """Load what a checkpoint has; returns the names of the head that it lacks. Raises RadinError where others lack."""
    own = model.state_dict()
    with open_checkpoint(path).open() as reader:
        names = list(reader)
        found = {}
        for name in own:
            theirs = next((n for n in (name, name.removeprefix("model.")) if n in names), None)
            if theirs is not None and tuple(reader[theirs].shape) == tuple(own[name].shape):
                found[name] = reader[theirs].clone()
    lacking = set(own) - set(found)
    odd = sorted(lacking - head)
    if odd:
        raise RadinError(
            f"--start {path}: no tensor for {', '.join(_few(odd))} of the model, or one of another shape; expected a "
            "checkpoint of the same architecture, whose classifier alone may be missing"
        )
    model.load_state_dict(own | found)
    return lacking


def _few(names: Sequence[str]) -> list[str]:
    return [*names[:3], *(["..."] if len(names) > 3 else [])]
