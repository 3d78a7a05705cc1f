"""Rows of text: classification and regression, tags for tokens, a choice among endings, and plain language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from radin.errors import TaskError
from radin.ready.labels import label_indices
from radin.ready.parts import DataPart, ModelPart, literal, mapping
from radin.ready.tables import Table, Tables

_LABELS = (("label",), ("labels",), ("target",), ("class",), ("sentiment",), ("category",), ("score",))
_TEXTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text",),
    ("sentence",),
    ("content",),
    ("review",),
    ("document",),
)
_WORDS = (("tokens",), ("words",))
_TAGS = (("ner_tags",), ("tags",), ("labels",), ("pos_tags",), ("chunk_tags",))
_BEFORE = (("sent1", "sent2"), ("ctx",), ("question",), ("context",), ("premise",), ("prompt",), ("startphrase",))
_AFTER = (("endings",), ("choices",), ("options",), ("answers",))
_CHOSEN = (("label",), ("labels",), ("answer",), ("answerKey",), ("target",))
_NUMBERED = ("ending", "choice", "option", "answer", "sol")

_DATASET = '''
class Examples(Dataset):
    """Tensors of one row for each example."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, place):
        return {name: rows[place] for name, rows in self.inputs.items()}, self.targets[place]
'''

_TEXT_CODE = '''
{rows}


{dataset}


@cache
def split(name):
    """Texts cut at MAX_LENGTH tokens and padded to the longest, so that no batch size changes them."""
    table = list(rows(SPLITS[name]))
    texts = [[row[column] for row in table] for column in TEXT]
    inputs = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    return Examples(dict(inputs), torch.tensor([{label} for row in table]))
'''

_TOKEN_CODE = '''
{rows}


{dataset}


@cache
def split(name):
    """Words cut into tokens; the first of a word has the word's tag, all others -100, which does not count."""
    table = list(rows(SPLITS[name]))
    inputs = tokenizer(
        [list(row[WORDS]) for row in table],
        is_split_into_words=True,
        truncation=True,
        max_length=MAX_LENGTH,
        padding=True,
        return_tensors="pt",
    )
    targets = torch.full_like(inputs["input_ids"], -100)
    for place, row in enumerate(table):
        last = None
        for column, word in enumerate(inputs.word_ids(place)):
            if word is not None and word != last:
                targets[place, column] = {label}
            last = word
    return Examples(dict(inputs), targets)
'''

_CHOICE_CODE = '''
{rows}


{dataset}


@cache
def split(name):
    """Every example is a picture of its choices: (choices, tokens)."""
    table = list(rows(SPLITS[name]))
    choices = [{choices} for row in table]
    count = len(choices[0])
    before = [{before} for row, found in zip(table, choices) for _ in found]
    after = [{after} for row, found in zip(table, choices) for ending in found]
    inputs = tokenizer(before, after, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    inputs = {name: rows.view(len(table), count, -1) for name, rows in inputs.items()}
    return Examples(inputs, torch.tensor([{label} for row in table]))
'''

# The same where examples have different numbers of choices.
_VARYING_CODE = '''
{rows}


{dataset}


@cache
def split(name):
    """Every example is a picture of CHOICES choices: (choices, tokens). Those it does not have are empty texts."""
    table = list(rows(SPLITS[name]))
    choices = [{choices} for row in table]
    there = [[ending is not None for ending in found] for found in choices]
    choices = [[ending or "" for ending in found] for found in choices]
    before = [{before} for row, found in zip(table, choices) for _ in found]
    after = [{after} for row, found in zip(table, choices) for ending in found]
    inputs = tokenizer(before, after, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    inputs = {name: rows.view(len(table), CHOICES, -1) for name, rows in inputs.items()}
    return Examples(inputs | {"there": torch.tensor(there)}, torch.tensor([{label} for row in table]))


def outputs(model, inputs):
    """The choices' scores; those that an example does not have come last, by a number that every metric can take."""
    given = {name: rows for name, rows in inputs.items() if name != "there"}
    return model(**given).logits.masked_fill(~inputs["there"], -1e4)
'''

_LANGUAGE_CODE = '''
{rows}


{dataset}


@cache
def split(name):
    """Texts in pieces of at most MAX_LENGTH tokens; the target at each token is the next one, -100 does not count."""
    pieces = []
    for row in rows(SPLITS[name]):
        ids = tokenizer(row[TEXT], truncation=False, verbose=False)["input_ids"]
        pieces += [piece for k in range(0, len(ids), MAX_LENGTH) if len(piece := ids[k : k + MAX_LENGTH]) > 1]
    longest = max(map(len, pieces))
    inputs = torch.zeros(len(pieces), longest, dtype=torch.long)
    seen = torch.zeros_like(inputs)
    targets = torch.full_like(inputs, -100)
    for place, piece in enumerate(pieces):
        inputs[place, : len(piece)] = torch.tensor(piece)
        seen[place, : len(piece)] = 1
        targets[place, : len(piece) - 1] = torch.tensor(piece[1:])
    return Examples({"input_ids": inputs, "attention_mask": seen}, targets)
'''

_IMPORTS = ("import torch", "from functools import cache", "from torch.utils.data import Dataset")

Columns = Mapping[str, tuple[str, ...]]


def text_part(tables: Tables, model: ModelPart, asked: Columns) -> DataPart:
    """Texts, or pairs of them, with a class or a number each."""
    _only(asked, "text", "label")
    text = column_of(tables, asked, "text", _TEXTS)
    (label,) = column_of(tables, asked, "label", _LABELS)
    if len(text) > 2:
        raise TaskError(f"--columns: a tokenizer takes one text or a pair; got {' + '.join(text)}")
    constants = [tables.constants([*text, label]), f"TEXT = {literal(list(text))}"]
    for split, table in tables.items():
        for name in text:
            _require_text(table.values(name), name, split)
    if model.regression:
        expression, note = f"float(row[{literal(label)}])", None
    else:
        found = [value for table in tables.splits.values() for value in table.values(label)]
        expression, constant, note = _label(tables, found, label, f"row[{literal(label)}]", model)
        constants += constant
    return _part(tables, _TEXT_CODE, constants, note, label=expression)


def token_part(tables: Tables, model: ModelPart, asked: Columns) -> DataPart:
    """Words with a tag each."""
    _only(asked, "words", "tags")
    if tables.kind == "csv":
        raise TaskError("a CSV file holds no lists of words and tags: give --data parquet:FILES or datasets:SAVED_DIR")
    (words,) = column_of(tables, asked, "words", _WORDS)
    (tags,) = column_of(tables, asked, "tags", _TAGS)
    found = [tag for table in tables.splits.values() for row in table.values(tags) for tag in row]
    constants = [tables.constants([words, tags]), f"WORDS = {literal(words)}"]
    expression, constant, note = _label(tables, found, tags, f"row[{literal(tags)}][word]", model)
    return _part(tables, _TOKEN_CODE, constants + constant, note, label=expression)


def choice_part(tables: Tables, model: ModelPart, asked: Columns) -> DataPart:
    """What comes before, as many endings for every row, and which of them is right."""
    _only(asked, "text", "choices", "label")
    text = column_of(tables, asked, "text", _BEFORE)
    (label,) = column_of(tables, asked, "label", _CHOSEN)
    choices = asked.get("choices") or _numbered(tables.columns) or column_of(tables, asked, "choices", _AFTER)
    _known(tables, choices, "choices")
    if len(text) > 2:
        raise TaskError(f"--columns: one text before the choices, or two, of which the second begins them; got {text}")
    listed = len(choices) == 1
    first = tables.splits["validation"].values(choices[0])[0] if listed else None
    found = {split: _present(table, choices) for split, table in tables.items()}
    most = max(len(there) for rows in found.values() for there in rows)
    varying = any(len(there) < most or not all(there) for rows in found.values() for there in rows)
    constants = [tables.constants(list(dict.fromkeys([*text, *choices, label])))]
    if listed:
        listing = f"row[{literal(choices[0])}]" + ('["text"]' if isinstance(first, Mapping) else "")
        if varying:
            listing = f"({listing} + [None] * CHOICES)[:CHOICES]"
    else:
        listing = f"[row[name]{' or None' if varying else ''} for name in {literal(list(choices))}]"
    constants += [f"CHOICES = {most}"] if varying else []
    begins = f'row[{literal(text[1])}] + " " + ending' if len(text) == 2 else "ending"
    answers = {split: table.values(label) for split, table in tables.items()}
    expression, constant = _choice_label(answers, label, found)
    code = (_VARYING_CODE if varying else _CHOICE_CODE).replace("{choices}", listing)
    code = code.replace("{before}", f"row[{literal(text[0])}]").replace("{after}", begins)
    return _part(tables, code, constants + constant, None, label=expression)


def language_part(tables: Tables, model: ModelPart, asked: Columns) -> DataPart:
    """Text alone."""
    _only(asked, "text")
    (text,) = column_of(tables, asked, "text", tuple(names for names in _TEXTS if len(names) == 1))
    for split, table in tables.items():
        _require_text(table.values(text), text, split)
    return _part(tables, _LANGUAGE_CODE, [tables.constants([text]), f"TEXT = {literal(text)}"], None)


def column_of(tables: Tables, asked: Columns, role: str, guesses: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The columns that play a role: as asked for, else the first of the guesses that is there.

    Raises TaskError, with the columns there are, when none is.
    """
    if role in asked:
        _known(tables, asked[role], role)
        return asked[role]
    for names in guesses:
        if all(name in tables.columns for name in names):
            return names
    raise TaskError(
        f"which column is the {role}? The columns of {tables.splits['validation'].place} are "
        f"{', '.join(tables.columns)}; say it with --columns {role}=NAME"
    )


def labels_constant(indices: Mapping[Any, int], what: str) -> str:
    """LABELS as code, one label a line."""
    return f"# {what}\n{mapping('LABELS', indices)}"


def _part(tables: Tables, code: str, constants: list[str], note: str | None, **holes: str) -> DataPart:
    for name, value in ({"rows": tables.code(), "dataset": _DATASET.strip("\n")} | holes).items():
        code = code.replace(f"{{{name}}}", value)
    splits = tuple(name for name in tables.splits if name != "calibration")
    functions = [f"def {name}():\n    return split({literal(name)})\n" for name in splits]
    text = "\n\n".join([code.strip("\n") + "\n", *functions])
    return DataPart(splits, (*_IMPORTS, *tables.imports), "\n".join(constants), text, () if note is None else (note,))


def _label(
    tables: Tables, found: list[Any], column: str, expression: str, model: ModelPart
) -> tuple[str, list[str], str | None]:
    """(code for the index of a row's label, constants it needs, what to say)."""
    names = tables.splits["validation"].names.get(column)
    indices, note = label_indices(found, names, model.classes, model.labels, f"column {column!r}")
    if all(not isinstance(key, str) and key == index for key, index in indices.items()):
        return expression, [], note
    if all(isinstance(key, str) and key.strip() == str(index) for key, index in indices.items()):
        return f"int({expression})", [], note
    what = "labels in the data, and which output of the model stands for each"
    return f"LABELS[{expression}]", [labels_constant(indices, what)], note


def _present(table: Table, choices: Sequence[str]) -> list[list[bool]]:
    """For each row, which of its choices are there: all of a list, those of several columns that are not empty."""
    if len(choices) == 1:
        return [[True] * len(_endings(row) or ()) for row in table.values(choices[0])]
    columns = [table.values(name) for name in choices]
    return [[bool(value) for value in row] for row in zip(*columns, strict=True)]


def _choice_label(
    answers: Mapping[str, list[Any]], column: str, found: Mapping[str, list[list[bool]]]
) -> tuple[str, list[str]]:
    """(code for the index of a row's right choice, constants it needs): a number from 0, or a letter.

    answers: of each split, as they are in the data. found: which choices each row has.
    """
    most = max(len(there) for rows in found.values() for there in rows)
    letters = {chr(ord("A") + k): k for k in range(most)}
    by_letter = all(value in letters for values in answers.values() for value in values)
    for split, values in answers.items():
        for row, (value, there) in enumerate(zip(values, found[split], strict=True), start=1):
            where = f"column {column!r} of {split}, row {row}"
            if not by_letter and (isinstance(value, bool) or not str(value).isdecimal()):
                raise TaskError(f"{where}: the right choice must be a number from 0 or a letter from A; got {value!r}")
            place = letters[value] if by_letter else int(value)
            if place >= len(there) or not there[place]:
                counted = "" if by_letter else "; they count from 0"
                raise TaskError(
                    f"{where}: the row has {sum(there)} choices, and the right one is said to be {value}{counted}"
                )
    if by_letter:
        return f"LABELS[row[{literal(column)}]]", [labels_constant(letters, "which choice each letter stands for")]
    return f"int(row[{literal(column)}])", []


def _endings(row: Any) -> Any:
    return row["text"] if isinstance(row, Mapping) else row


def _numbered(columns: Sequence[str]) -> tuple[str, ...] | None:
    for name in _NUMBERED:
        for first in (0, 1):
            found = [f"{name}{k}" for k in range(first, 30) if f"{name}{k}" in columns]
            if len(found) > 1 and found[0] == f"{name}{first}":
                return tuple(found)
    return None


def _known(tables: Tables, names: Sequence[str], role: str) -> None:
    for name in names:
        if name not in tables.columns:
            raise TaskError(
                f"--columns {role}={'+'.join(names)}: no column {name!r}; there are {', '.join(tables.columns)}"
            )


def _only(asked: Columns, *roles: str) -> None:
    odd = [role for role in asked if role not in roles]
    if odd:
        raise TaskError(f"--columns: no role {odd[0]!r} for this model; there are {', '.join(roles)}")


def _require_text(values: Sequence[Any], column: str, split: str) -> None:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise TaskError(
                f"column {column!r} of {split}, row {number}: expected text; got {type(value).__name__} {value!r:.40}"
            )
