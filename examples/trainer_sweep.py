"""A sweep with transformers' Trainer, and the soup of its runs.

    pip install radin transformers accelerate
    python examples/trainer_sweep.py --out sweep

Real text that every Python has: the sentences of its own modules' docstrings; which package are they from? A small BERT
is first trained as the common starting point, then fine-tuned with several learning rates and seeds. radin cooks the
runs' folders, and from_pretrained opens the soup.
"""

from __future__ import annotations

import argparse
import ast
import random
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    logging,
)

import radin
from radin.integrations.trainer import CookCallback

PACKAGES = ("asyncio", "email", "unittest", "xml", "http")
RUNS = ((1e-3, 0), (1e-3, 1), (2e-3, 2), (5e-4, 3))
BUDGET = 6


def sentences() -> list[tuple[str, int]]:
    """(a piece of a docstring, the index of its package), in a fixed random order."""
    found = []
    for label, package in enumerate(PACKAGES):
        for path in sorted(Path(sysconfig.get_path("stdlib"), package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    pieces = (ast.get_docstring(node) or "").split("\n\n")
                    found += [(" ".join(piece.split()), label) for piece in pieces if len(piece) > 40]
    random.Random(0).shuffle(found)
    return found


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["[PAD]", "[UNK]", "[CLS]"])
    )
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", words.token_to_id("[CLS]"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", model_max_length=48
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("sweep"))
    out = parser.parse_args().out

    logging.disable_progress_bar()
    rows = sentences()
    tokenizer = tokenizer_of([text for text, _ in rows])
    examples = [{**tokenizer(text, truncation=True), "label": label} for text, label in rows]
    training, validation = examples[: len(rows) // 2], examples[len(rows) // 2 :][:600]

    def train(start: Path | None, folder: Path, rate: float, seed: int, epochs: int, callbacks: list) -> None:
        torch.manual_seed(seed)
        if start is None:
            shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            network = BertForSequenceClassification(
                BertConfig(vocab_size=len(tokenizer), num_labels=len(PACKAGES), **shape)
            )
        else:
            network = AutoModelForSequenceClassification.from_pretrained(start)
        arguments = TrainingArguments(
            str(folder),
            learning_rate=rate,
            num_train_epochs=epochs,
            seed=seed,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            network,
            arguments,
            train_dataset=training,
            eval_dataset=validation,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        trainer.train()
        trainer.save_model(str(folder / "final"))

    train(None, out / "start", 2e-3, seed=0, epochs=5, callbacks=[])
    # One run of the sweep cooks its own checkpoints when it ends...
    cook = CookCallback(budget=BUDGET)
    for number, (rate, seed) in enumerate(RUNS):
        train(
            out / "start" / "final", out / f"run-{number}", rate, seed, epochs=2, callbacks=[cook] if not number else []
        )
    if cook.result is None:
        raise SystemExit(cook.problem)
    print(f"soup of the checkpoints of run 0: {cook.result.best.score:.4f}: {cook.soup}")

    # ... and then the finished runs are cooked together.
    finals = [out / f"run-{number}" / "final" for number in range(len(RUNS))]
    batches = Trainer(
        AutoModelForSequenceClassification.from_pretrained(finals[0]),
        TrainingArguments(str(out / "unused"), per_device_eval_batch_size=128, report_to="none", use_cpu=True),
        eval_dataset=validation,
        processing_class=tokenizer,
    ).get_eval_dataloader()
    task = radin.Task(
        model=lambda: AutoModelForSequenceClassification.from_pretrained(finals[0]), validation=lambda: batches
    )
    result = radin.cook(finals, task, budget=BUDGET, out=out / "soup")
    print(result)
    print(f"best run {result.best_single.score:.4f}, soup {result.best.score:.4f} on validation: {result.soup}")


if __name__ == "__main__":
    main()
