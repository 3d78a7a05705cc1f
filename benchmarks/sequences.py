"""Sequences and pictures: what estimates by position cost beside plain loops; how well likelihoods rank soups.

    python benchmarks/sequences.py --quick --json     300 pictures of 64 x 64, 6 members; a small language model
    python benchmarks/sequences.py --write            more recipes; kept in benchmarks/results/sequences.md

Pictures: scikit-learn's digits laid out on a ground, each pixel with its class of 8; six small convolutional networks
trained on from one start. A plain loop averages all members' outputs in float32 and counts, recipe by recipe; radin
compiles the outputs once. Text: the reference that comes with Python, character by character; eight small transformers
(written here, in torch) trained on from one start. Recipes are ranked by three estimates of the soup's loss on held-out
text, and compared with the true loss of the averaged weights. --json ends with one line:

    seconds_estimate   radin: compile the outputs and score the recipes, pixel accuracy
    seconds_loop       the plain loop over the same recipes
    seconds_cook       cook from end to end, mean IoU, budget 4
    equal              whether both give the same scores
    peak_mb            of memory beyond the outputs, while radin estimates
    spearman_mixture   of averaged probabilities, from the targets' log-probabilities, with the true loss
    spearman_logits    of averaged logits, for which all of them must be kept
    spearman_members   of the mean of the members' losses
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pydoc_data.topics
import resource
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import nn

import radin
from radin import metrics
from radin.data.batches import Batch
from radin.engine.rows import Rows
from radin.estimate import estimator

RESULT = Path(__file__).resolve().parent / "results" / "sequences.md"
SIZE, CLASSES, PICTURES = 64, 8, 300
LENGTH = 64


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (b, 1, 64, 64), twelve digits each, with noise; classes: 0 the ground, 1-7 kinds of digits."""
    digits, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    pictures = rng.normal(0, 0.15, (count, 1, SIZE, SIZE)).astype(np.float32)
    classes = np.zeros((count, SIZE, SIZE), np.int64)
    for picture, marked in zip(pictures, classes, strict=True):
        for k in rng.integers(0, len(digits), 12):
            at = tuple(slice(int(start), int(start) + 8) for start in rng.integers(0, SIZE - 8, 2))
            ink = digits[k].reshape(8, 8) / 16
            picture[0][at] += ink
            marked[at] = np.where(ink > 0.3, 1 + labels[k] % 7, marked[at])
    return torch.from_numpy(pictures), torch.from_numpy(classes)


class Segmenter(nn.Module):
    """Three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 8, 1)
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(pictures)
        return found


class Speaker(nn.Module):
    """A causal transformer of two layers over characters."""

    def __init__(self, letters: int, width: int = 48) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(letters, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, letters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        hidden = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        found: torch.Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return found


def fit(model: nn.Module, batches: list[Any], loss_of: Any, steps: int, rate: float, seed: int) -> None:
    """Adam, on batches in an order of the seed's."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    order = torch.randperm(len(batches)).tolist()
    model.train()
    for k in islice(cycle(order), steps):
        optimizer.zero_grad()
        loss_of(model, batches[k]).backward()
        optimizer.step()
    model.eval()


def pool(
    folder: Path, make: Any, batches: list[Any], loss_of: Any, members: int, steps: int, rate: float
) -> list[Path]:
    """Checkpoints trained on from one start, at a half to twice the rate, each on a part of the data."""
    torch.manual_seed(0)
    start = make()
    fit(start, batches, loss_of, 2 * steps, rate, 0)
    paths = []
    for k in range(members):
        model = make()
        model.load_state_dict(start.state_dict())
        fit(model, batches[k % 3 :: 3], loss_of, steps, rate * 2.0 ** (k % 3 - 1), k + 1)
        paths.append(folder / f"m{k}.safetensors")
        save_file(model.state_dict(), paths[-1])
    return paths


def recipes(members: int, count: int, seed: int) -> np.ndarray:
    """Averages of random subsets, and unequal ratios, (S, N)."""
    rng = np.random.default_rng(seed)
    masks = rng.random((count, members)) < 0.5
    masks[np.arange(count), rng.integers(0, members, count)] = True
    weights = masks * np.where(np.arange(count)[:, None] % 2, rng.exponential(size=masks.shape), 1.0)
    return weights / weights.sum(axis=1, keepdims=True)


def pictures(folder: Path, count: int) -> dict[str, Any]:
    """Segmentation: estimates of ``count`` recipes by a plain loop and by radin; and cook."""
    inputs, classes = scenes(160, 0)
    batches = list(zip(inputs.split(8), classes.split(8), strict=True))

    def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    started = time.perf_counter()
    paths = pool(folder, Segmenter, batches, loss_of, 6, 150, 5e-3)
    trained = time.perf_counter() - started
    held, marks = scenes(PICTURES, 1)
    chosen = metrics.get("pixel_accuracy")
    rows_of = Rows(chosen)
    batch = Batch(held, marks, len(held))
    outputs, dense = [], []
    for path in paths:
        model = Segmenter()
        model.load_state_dict(load_file(path))
        with torch.inference_mode():
            dense.append(torch.cat([model(part) for part in held.split(32)]))
            outputs.append(rows_of.outputs(Fixed(dense[-1]), held, batch).numpy())
    targets = rows_of.targets(batch)
    weights = recipes(6, count, 2)

    def loop(score: Any) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        found = [score(sum(float(w) * member for w, member in zip(row, dense, strict=True))) for row in weights]
        return time.perf_counter() - started, np.array(found)

    def iou(mixed: torch.Tensor) -> float:
        guessed = mixed.argmax(dim=1)
        table = torch.bincount((marks * CLASSES + guessed).flatten(), minlength=CLASSES**2).reshape(CLASSES, CLASSES)
        right = table.diag().double()
        union = table.sum(0) + table.sum(1) - table.diag()
        return float((right / union)[union > 0].mean())

    result: dict[str, Any] = {"seconds_train": trained, "recipes": count, "equal": True, "rows": {}}
    for name, score in (
        ("pixel_accuracy", lambda mixed: float((mixed.argmax(dim=1) == marks).double().mean())),
        ("mean_iou", iou),
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        made = estimator(outputs, targets, metrics.get(name))
        compiled = time.perf_counter() - started
        mine = made.scores(weights)
        seconds = time.perf_counter() - started
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        contested = len(made._contested.example) / len(targets)
        many = recipes(6, 4096, 3)
        started = time.perf_counter()
        made.scores(many)
        per_thousand = (time.perf_counter() - started) / 4.096
        plain, theirs = loop(score)
        # The loop averages in float32: a pixel in a million falls to the other side.
        result["equal"] = result["equal"] and bool(np.abs(mine - theirs).max() < 1e-5)
        result["rows"][name] = {
            "compile": compiled,
            "seconds": seconds,
            "loop": plain,
            "per_thousand": per_thousand,
            "loop_per_thousand": plain / count * 1000,
            "peak_mb": peak,
            "contested": contested,
            "largest_difference": float(np.abs(mine - theirs).max()),
        }
    task = radin.Task(Segmenter, list(zip(held.split(32), marks.split(32), strict=True)), metric="mean_iou")
    started = time.perf_counter()
    found = radin.cook(paths, task, budget=4, out=folder / "run")
    result["seconds_cook"] = time.perf_counter() - started
    result["cook"] = {"best_single": found.best_single.score, "best": found.best.score, "stderr": found.best.stderr}
    return result


class Fixed(nn.Module):
    """Gives outputs that are there already."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _: Any) -> torch.Tensor:
        return self.outputs


def text() -> tuple[list[str], torch.Tensor]:
    """The letters, and rows of 64 characters of Python's reference as it comes with Python, (R, 64)."""
    whole = "\n".join(pydoc_data.topics.topics.values())
    whole = "".join(letter if letter.isascii() else " " for letter in whole)
    letters = sorted(set(whole))
    place = {letter: k for k, letter in enumerate(letters)}
    codes = torch.tensor([place[letter] for letter in whole])
    return letters, codes[: len(codes) // LENGTH * LENGTH].reshape(-1, LENGTH)


def language(folder: Path, count: int) -> dict[str, Any]:
    """How three estimates rank soups of small language models, beside the soups' true loss."""
    letters, rows = text()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    batches = list(rows[:3200].split(16))
    held = list(rows[-256:].split(64))

    def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    paths = pool(folder, lambda: Speaker(len(letters)), batches, loss_of, 8, 150, 3e-3)
    states = [load_file(path) for path in paths]
    logits = []
    for state in states:
        model = Speaker(len(letters)).eval()
        model.load_state_dict(state)
        with torch.inference_mode():
            logits.append(torch.cat([model(part[:, :-1]) for part in held]).flatten(0, 1).double())
    targets = torch.cat([part[:, 1:] for part in held]).flatten()
    logs = [found.log_softmax(1)[torch.arange(len(targets)), targets] for found in logits]
    beside = np.stack([np.asarray(targets), np.repeat(np.arange(256), LENGTH - 1)], axis=1).astype(np.int32)
    weights = recipes(8, count, 4)
    mixture = estimator([log[:, None].numpy() for log in logs], beside, metrics.get("token_nll")).scores(weights)
    members = weights @ np.array([-float(log.mean()) for log in logs])
    averaged, truth = [], []
    soup = Speaker(len(letters)).eval()
    for row in weights:
        mixed = sum(float(w) * found for w, found in zip(row, logits, strict=True))
        averaged.append(float(nn.functional.cross_entropy(mixed, targets)))
        soup.load_state_dict(
            {name: sum(float(w) * state[name] for w, state in zip(row, states, strict=True)) for name in states[0]}
        )
        with torch.inference_mode():
            truth.append(float(np.mean([float(loss_of(soup, part)) for part in held])))
    task = radin.Task(lambda: Speaker(len(letters)), [(part, part) for part in held], metric="perplexity")
    started = time.perf_counter()
    found = radin.cook(paths, task, budget=4, out=folder / "run")
    estimates = {"mixture": mixture, "logits": np.array(averaged), "members": members}
    several = (weights > 0).sum(axis=1) > 1
    return {
        "letters": len(letters),
        "recipes": int(several.sum()),
        "losses": [-float(log.mean()) for log in logs],
        "truth": (float(np.min(truth)), float(np.max(truth))),
        "spearman": {n: float(spearmanr(e[several], np.array(truth)[several])[0]) for n, e in estimates.items()},
        "off": {n: float(np.mean(np.array(truth)[several] - e[several])) for n, e in estimates.items()},
        "best": {n: float(np.array(truth)[several][np.argmin(e[several])]) for n, e in estimates.items()},
        "cook": {"best_single": found.best_single.score, "best": found.best.score, "stderr": found.best.stderr},
        "seconds_cook": time.perf_counter() - started,
    }


def report(seen: dict[str, Any], said: dict[str, Any]) -> str:
    """The tables of results/sequences.md."""
    lines = [
        "# Sequences and pictures",
        "",
        f"`python benchmarks/sequences.py --write`; {platform.machine()}, one thread, Python "
        f"{platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}.",
        "",
        f"## {PICTURES} pictures of {SIZE} x {SIZE}, {CLASSES} classes, 6 members",
        "",
        f"{seen['recipes']} recipes; the loop averages outputs in float32 and counts, recipe by recipe. Contested "
        "pixels are those on which some recipe may differ from another.",
        "",
        "| metric | compile, s | compile and score, s | loop, s | 1,000 more recipes, s | loop, s | contested | beyond "
        "the outputs, MB | largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in seen["rows"].items():
        lines.append(
            f"| {name} | {row['compile']:.2f} | {row['seconds']:.2f} | {row['loop']:.1f} | {row['per_thousand']:.2f} | "
            f"{row['loop_per_thousand']:.0f} | {row['contested']:.1%} | {row['peak_mb']:.0f} | "
            f"{row['largest_difference']:.1e} |"
        )
    found = seen["cook"]
    lines += [
        "",
        f"`cook` from end to end, mean IoU, budget 4: {seen['seconds_cook']:.1f} s; best single "
        f"{found['best_single']:.4f}, soup {found['best']:.4f} +- {found['stderr']:.4f}.",
        "",
        f"## A language model over {said['letters']} characters, 8 members",
        "",
        f"Loss per character of {said['recipes']} soups of two members or more, held-out text: "
        f"{said['truth'][0]:.4f} to {said['truth'][1]:.4f}; the members' {min(said['losses']):.4f} to "
        f"{max(said['losses']):.4f}.",
        "",
        "| estimate | kept of each token | rank correlation with the true loss | truth less estimate | loss of the "
        "soup it ranks first |",
        "|---|---|---|---|---|",
    ]
    kept = {"mixture": "1 number", "logits": f"{said['letters']} numbers", "members": "1 number"}
    words = {"mixture": "averaged probabilities", "logits": "averaged logits", "members": "mean of the members' losses"}
    for name, title in words.items():
        lines.append(
            f"| {title} | {kept[name]} | {said['spearman'][name]:.3f} | {said['off'][name]:+.4f} | "
            f"{said['best'][name]:.4f} |"
        )
    found = said["cook"]
    lines += [
        "",
        f"`cook` by perplexity, budget 4: {said['seconds_cook']:.1f} s; best single {found['best_single']:.4f}, "
        f"soup {found['best']:.4f} +- {found['stderr']:.4f}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer recipes")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        seen = pictures(Path(first), 12 if asked.quick else 60)
        said = language(Path(second), 60 if asked.quick else 200)
    text = report(seen, said)
    print(text)
    if asked.write:
        RESULT.write_text(text)
    if asked.json:
        row = seen["rows"]["pixel_accuracy"]
        print(
            json.dumps(
                {
                    "seconds_estimate": row["seconds"],
                    "seconds_loop": row["loop"],
                    "seconds_cook": seen["seconds_cook"],
                    "equal": seen["equal"],
                    "peak_mb": row["peak_mb"],
                    **{f"spearman_{name}": value for name, value in said["spearman"].items()},
                }
            )
        )


if __name__ == "__main__":
    main()
