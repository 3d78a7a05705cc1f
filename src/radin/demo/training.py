"""The demo's network and how it is trained: plain PyTorch, on the CPU, the same result for the same seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from radin.demo.data import Images, tensor

Augmentation = Literal["none", "shift", "affine"]

_WARM_UP_STEPS = 10
# largest rotation in degrees, shift in pixels and change of scale
_STRENGTH: dict[Augmentation, tuple[float, float, float]] = {
    "none": (0.0, 0.0, 0.0),
    "shift": (0.0, 2.0, 0.0),
    "affine": (15.0, 2.0, 0.1),
}


@dataclass(frozen=True)
class Hyperparameters:
    """How one member is trained. ``schedule``: the learning rate stays, or falls to zero along a half cosine."""

    learning_rate: float
    epochs: int
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    augmentation: Augmentation = "none"
    schedule: Literal["constant", "cosine"] = "constant"
    batch_size: int = 32
    seed: int = 0

    @property
    def name(self) -> str:
        """A file name that tells them apart, e.g. lr3.2e-03-ep12-affine-ls0.1-wd1e-02-s7."""
        return (
            f"lr{self.learning_rate:.1e}-ep{self.epochs}-{self.augmentation}-ls{self.label_smoothing:g}"
            f"-wd{self.weight_decay:.0e}-s{self.seed}"
        )


def network(width: int = 8, classes: int = 10) -> nn.Sequential:
    """Three blocks of convolution, pooling and BatchNorm, then a linear layer: (M, 1, 28, 28) -> (M, classes).

    Pooling before BatchNorm and channels last: the same accuracy, twice as fast on a CPU.
    """
    layers: list[nn.Module] = []
    channels = 1
    for size in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv2d(channels, size, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(size),
            nn.ReLU(),
        ]
        channels = size
    layers += [nn.Flatten(), nn.Linear(channels * 9, classes)]
    model = nn.Sequential(*layers)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's type stubs lack this form
    return model


def train(model: nn.Module, data: Images, how: Hyperparameters) -> nn.Module:
    """Train ``model`` in place with AdamW and cross-entropy; returns it in evaluation mode."""
    generator = torch.Generator().manual_seed(how.seed)
    inputs, labels = tensor(data.images), torch.from_numpy(data.labels)
    optimizer = torch.optim.AdamW(model.parameters(), how.learning_rate, weight_decay=how.weight_decay)
    # the last batch is dropped when short: BatchNorm learns nothing from one example
    per_epoch = len(inputs) // how.batch_size
    steps = how.epochs * per_epoch
    model.train()
    for step in range(steps):
        position = step % per_epoch
        if position == 0:
            order = torch.randperm(len(inputs), generator=generator)
        rows = order[position * how.batch_size : (position + 1) * how.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(how, step, steps)
        images = augment(inputs[rows], how.augmentation, generator)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels[rows], label_smoothing=how.label_smoothing)
        loss.backward()
        optimizer.step()
    return model.eval()


def _learning_rate(how: Hyperparameters, step: int, steps: int) -> float:
    rate = how.learning_rate * min(1.0, (step + 1) / _WARM_UP_STEPS)
    if how.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / steps))
    return rate


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Random rotation, shift and scale of each image, by strength of ``kind``. (b, 1, 28, 28) -> the same."""
    if kind == "none":
        return images
    degrees, pixels, scale = _STRENGTH[kind]
    angle, zoom, right, down = torch.rand(4, len(images), generator=generator) * 2 - 1
    return affine(images, angle * degrees, 1 + zoom * scale, right * pixels, down * pixels)


def affine(images: Tensor, degrees: Tensor, zoom: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Each image turned, scaled and moved by its own amounts (each (b,)); the border's pixels fill what is left."""
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    half = images.shape[-1] / 2
    rows = [torch.stack([cos, -sin, right / half], 1), torch.stack([sin, cos, down / half], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def logits(model: nn.Module, inputs: Tensor, batch_size: int = 500) -> Tensor:
    """(M, 1, 28, 28) -> (M, classes), in evaluation mode."""
    model.eval()
    return torch.cat([model(part) for part in inputs.split(batch_size)])
