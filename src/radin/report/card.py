"""A soup's model card as text: what the Hugging Face hub reads at its head, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from radin.errors import printable
from radin.report import sentences
from radin.report.groups import group_rows
from radin.report.tables import closing_rows

if TYPE_CHECKING:
    from radin.run.card import Card

_HASH = 16  # characters of a fingerprint that the table shows; radin.json has all


def card_text(card: Card) -> str:
    """The whole file. Names are put in so that none of them is taken for Markdown."""
    blocks = [_head(card), f"# {_plain(card.name)}", _what(card), _members(card), *_groups(card)]
    if card.result is not None:
        blocks += _scores(card)
    blocks += _made(card)
    return "\n\n".join(blocks) + "\n"


def _head(card: Card) -> str:
    """YAML, written as JSON values, which YAML includes: huggingface_hub's ModelCardData reads it."""
    entries: dict[str, object] = {}
    if card.origin.license is not None:
        entries["license"] = card.origin.license
    if card.origin.library is not None:
        entries["library_name"] = card.origin.library
    if card.origin.repository is not None:
        entries["base_model"] = card.origin.repository
    entries["tags"] = ["model-soup", "merge", "radin"]
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in entries.items()), "---"])


def _what(card: Card) -> str:
    count = len(card.members)
    if count == 1:
        text = "One checkpoint of those that were averaged: no average of them was better."
        if card.result is None:
            text = "One checkpoint, as it was."
    else:
        text = f"A model soup: the average of the weights of {count} checkpoints, in these ratios"
        text += f", with ratios of their own in {len(card.groups)} groups of tensors." if card.groups else "."
        rows = [[ratio for _, ratio, _ in card.members], *(ratios for _, ratios in card.groups)]
        if min(min(row) for row in rows) < 0:
            text += " Some are negative: it lies beyond the checkpoints, not among them."
    if card.origin.base is not None and card.origin.repository is not None:
        text += f" They were fine-tuned from {_plain(card.origin.base)}."
    return text


def _members(card: Card) -> str:
    rows = [[_plain(name), f"{ratio:.6g}", f"`{mark[:_HASH]}`"] for name, ratio, mark in card.members]
    return _table(["member", "ratio", "content (SHA-256)"], rows)


def _groups(card: Card) -> list[str]:
    """The ratios by group of tensors, where there are groups."""
    if not card.groups:
        return []
    names, ratios, _ = zip(*card.members, strict=True)
    columns, rows, more = group_rows(names, ratios, card.groups)
    text = "The ratios above are those of tensors that no group names; a group is a module, with all in it."
    table = _table(columns, [[_plain(cell) for cell in row] for row in rows])
    return ["## Ratios by group of tensors", text, table, *([_plain(more)] if more else [])]


def _scores(card: Card) -> list[str]:
    assert card.result is not None
    title, columns, rows = closing_rows(card.result)
    told = [_plain(sentence) for sentence in card.result.confidence]
    told.append(_plain(sentences.passes(card.result.passes, len(card.result.evaluations))))
    return [
        "## Scores",
        _plain(title) + ". With standard errors.",
        _table(["model", *columns[1:]], [[_plain(cell) for cell in row] for row in rows]),
        "\n".join(f"* {sentence}" for sentence in told),
    ]


def _made(card: Card) -> list[str]:
    lines = [f"radin {_plain(card.version)}"]
    if card.result is not None:
        settings = ", ".join(f"{name} {value}" for name, value in card.result.strategy.items())
        lines.append(f"budget {card.result.passes.budget} passes, strategy {_plain(settings)}")
    if card.files_from:
        lines.append(f"files beside the weights: those of {_plain(card.files_from)}")
    lines += [_plain(note) for note in card.notes]
    blocks = ["## How it was made", "\n".join(f"* {line}" for line in lines)]
    if card.command is not None:
        blocks.append("    " + printable(card.command))
    return blocks


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row([_plain(column) for column in columns]), _row(["---"] * len(columns)), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """On one line, and with a backslash before what Markdown or HTML would take for its own."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in printable(text))
