"""What people have on disk, made in seconds: folders of pictures, tables of text, tiny models fine-tuned by Trainer."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

COLOURS = ("blue", "green", "red")
WORDS = ("the", "film", "plot", "cast", "was", "is", "and", "good", "great", "fun", "bad", "dull", "awful")
GOOD, BAD = ("good", "great", "fun"), ("bad", "dull", "awful")


def pictures(folder: Path, *, count: int = 8, seed: int = 0) -> Path:
    """train, val and test with a folder for each colour, of pictures of several sizes and modes."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for channel, name in enumerate(reversed(COLOURS)):
            inside = folder / split / name
            inside.mkdir(parents=True)
            for k in range(count):
                array = rng.integers(0, 140, (30 + k, 40 - k, 3)).astype(np.uint8)
                array[..., channel] += 40
                picture = Image.fromarray(array)
                (picture.convert("RGBA") if k % 3 == 0 else picture).save(inside / f"{k}.{'jpg' if k % 3 else 'png'}")
    return folder


def timm_members(folder: Path, name: str, classes: int, data: Path, *, members: int = 3, size: int = 32) -> list[Path]:
    """Checkpoints as timm's train script writes them, fine-tuned on the training pictures from one start."""
    import timm
    from timm.data import ImageDataset, create_transform, resolve_data_config

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    start = timm.create_model(name, num_classes=classes)
    config = resolve_data_config({"img_size": size}, model=start)
    loaded = list(ImageDataset(str(data / "train"), transform=create_transform(**config)))
    inputs, targets = torch.stack([x for x, _ in loaded]), torch.tensor([y for _, y in loaded])
    paths = []
    for seed in range(members):
        model = timm.create_model(name, num_classes=classes)
        model.load_state_dict(start.state_dict())
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        model.train()
        for _ in range(6):
            for rows in torch.randperm(len(targets)).split(8):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
        paths.append(folder / f"model-{seed}.pth")
        torch.save({"epoch": 1, "arch": name, "state_dict": model.state_dict()}, paths[-1])
    return paths


def reviews(path: Path, count: int, seed: int, *, names: Sequence[str] = ("negative", "positive")) -> Path:
    """A CSV file of text, with commas and quotes in it, and a label in words."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "text", "label"])
        for k in range(count):
            label = int(rng.integers(2))
            neutral = list(rng.choice(WORDS[:7], rng.integers(2, 9)))
            text = " ".join([*neutral, rng.choice(GOOD if label else BAD)])
            if rng.random() < 0.15:
                text = f'{text}, or so they "say", {rng.choice(BAD if label else GOOD)}'
            table.writerow([k, text, names[label]])
    return path


def tokenizer() -> Any:
    """A word-level tokenizer as transformers saves one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, ",", '"', "or", "so", "they", "say"]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def bert(**more: Any) -> Any:
    """The config of a BERT of a few thousand weights."""
    from transformers import BertConfig

    about = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}} | more
    return BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        **about,
    )


def trained_members(folder: Path, table: Path, *, members: int = 3) -> list[Path]:
    """Folders as Trainer leaves them, each fine-tuned from one start on a CSV file of ``reviews``."""
    from transformers import BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    words = tokenizer()
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    index = {"negative": 0, "positive": 1}
    data = [
        {**words(row["text"], truncation=True, max_length=24, padding="max_length"), "label": index[row["label"]]}
        for row in rows
    ]
    set_seed(0)
    start = {name: tensor.clone() for name, tensor in BertForSequenceClassification(bert()).state_dict().items()}
    paths = []
    for seed in range(members):
        model = BertForSequenceClassification(bert())
        model.load_state_dict(start)
        arguments = TrainingArguments(
            output_dir=str(folder / f"run-{seed}"),
            learning_rate=2e-2,
            num_train_epochs=6,
            per_device_train_batch_size=16,
            seed=seed,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data, processing_class=words)
        trainer.train()
        trainer.save_model()
        paths.append(folder / f"run-{seed}")
    return paths


def noisy(folder: Path, model: Any, *, members: int = 3, scale: float = 0.05, beside: Sequence[Any] = ()) -> list[Path]:
    """Folders by save_pretrained, the weights with a little noise each; ``beside``: a tokenizer and the like."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    paths = []
    for seed in range(members):
        torch.manual_seed(seed)
        model.load_state_dict(
            {n: t + scale * torch.randn_like(t) if t.is_floating_point() else t for n, t in start.items()}
        )
        paths.append(folder / f"run-{seed}")
        for part in (model, *beside):
            part.save_pretrained(paths[-1])
    return paths
