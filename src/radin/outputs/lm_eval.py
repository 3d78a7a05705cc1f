"""Sample logs of lm-evaluation-harness as members' outputs: multiple choice, one log-likelihood per choice.

As version 0.4.13 writes them with --log_samples: MODEL/samples_TASK_DATE.jsonl, one document in a line. Of it
``doc_id``, ``doc_hash``, ``target``, ``arguments`` and ``filtered_resps`` are read, the latter [log-likelihood, is
greedy] for each choice, all of them as text. Axis names: documents M, choices of a document c.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.errors import OutputsError
from radin.files import open_regular, parse_json

_LINE = 1 << 24  # bytes of one document at most
_NAME = re.compile(r"samples_(.+)_(\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
_BELOW = 30.0  # what marks a choice that is not there lies so far below the lowest that is


@dataclass(frozen=True)
class _Document:
    """Which document it is, its choices' log-likelihoods (c,), and the place of the right one."""

    task: str
    number: int
    digest: str
    choices: tuple[float, ...]
    target: int


def find_logs(folder: Path, names: Sequence[str]) -> list[dict[str, Path]] | None:
    """For each member, task -> the newest log; None where the folder holds no sample logs at all.

    A member's logs lie in a folder of its name, or of a path that ends with it, "/" written "__" as the harness does.
    Raises OutputsError naming members without logs, or with logs in several folders.
    """
    found = [path for path in sorted(folder.rglob("samples_*.jsonl")) if _NAME.fullmatch(path.name)]
    if not found:
        return None
    logs: list[dict[str, Path]] = []
    for name in names:
        mine = re.sub(r'["<>:/|\\?*\[\]]+', "__", name)
        places = {path.parent for path in found if path.parent.name == mine or path.parent.name.endswith(f"__{mine}")}
        if len(places) != 1:
            there = ", ".join(sorted({path.parent.name for path in found})[:5])
            many = "no sample logs" if not places else f"sample logs in {len(places)} folders"
            raise OutputsError(f"{folder} has {many} of {name}; looked for a folder {mine}, there are {there}")
        newest: dict[str, Path] = {}
        for path in sorted((p for p in found if p.parent in places), key=lambda p: p.name):
            match = _NAME.fullmatch(path.name)
            assert match is not None
            newest[match[1]] = path  # names end with the date
        logs.append(newest)
    return logs


def read_logs(logs: Sequence[dict[str, Path]], names: Sequence[str]) -> tuple[list[NDArray[np.float64]], NDArray[Any]]:
    """Log-likelihoods of all members, (M, most choices) each, and the right choices (M,).

    Documents in the order of tasks and of their numbers. Choices that a document does not have lie 30 below the lowest
    that it has. Raises OutputsError when the members' logs are of different documents, naming the first that differs.
    """
    tasks = sorted(logs[0])
    for name, mine in zip(names, logs, strict=True):
        if sorted(mine) != tasks:
            raise OutputsError(
                f"the sample logs of {name} are of the tasks {', '.join(sorted(mine))}, those of {names[0]} of "
                f"{', '.join(tasks)}: they must be of the same"
            )
    documents = [[document for task in tasks for document in _documents(task, mine[task])] for mine in logs]
    first = documents[0]
    for name, others in zip(names[1:], documents[1:], strict=True):
        _check_same(names[0], first, name, others)
    columns = max(len(document.choices) for document in first)
    outputs = []
    for held in documents:
        rows = np.empty((len(held), columns))
        for row, document in zip(rows, held, strict=True):
            row[:] = min(document.choices) - _BELOW
            row[: len(document.choices)] = document.choices
        outputs.append(rows)
    return outputs, np.array([document.target for document in first], dtype=np.int64)


def _check_same(first_name: str, first: Sequence[_Document], name: str, mine: Sequence[_Document]) -> None:
    for a, b in zip(first, mine, strict=False):
        same = (a.task, a.number, a.digest, len(a.choices), a.target) == (
            b.task,
            b.number,
            b.digest,
            len(b.choices),
            b.target,
        )
        if not same:
            raise OutputsError(
                f"the sample logs of {name} and {first_name} are of different documents, first at {a.task} document "
                f"{a.number} ({a.digest[:12]}), where {name} has {b.task} document {b.number} ({b.digest[:12]}): "
                "evaluate both on the same task version and limit"
            )
    if len(first) != len(mine):
        raise OutputsError(
            f"the sample logs of {name} hold {len(mine):,} documents, those of {first_name} {len(first):,}: evaluate "
            "both on the same task version and limit"
        )


def _documents(task: str, path: Path) -> list[_Document]:
    """All documents of a log, by number, each once: as the first of its filters has it."""
    found: dict[int, _Document] = {}
    for number, line in _lines(path):
        try:
            document = _document(task, parse_json(line))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise OutputsError(
                f"{path}, line {number}: no document of a multiple-choice task as lm-evaluation-harness 0.4.13 logs it "
                f"({type(error).__name__}: {error})"
            ) from None
        found.setdefault(document.number, document)
    if not found:
        raise OutputsError(f"{path} holds no documents")
    return [found[number] for number in sorted(found)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_regular(path) as file:
        number = 0
        while line := file.readline(_LINE):
            number += 1
            if len(line) >= _LINE:
                raise OutputsError(f"{path}, line {number}: longer than {_LINE:,} bytes")
            if line.strip():
                yield number, line.decode()


def _document(task: str, value: Any) -> _Document:
    """Raises ValueError, KeyError, TypeError or IndexError for anything else."""
    pairs = value["filtered_resps"]
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("its filtered_resps are no pairs of a log-likelihood and whether it is greedy")
    choices = [float(pair[0]) for pair in pairs]
    if "acc_mutual_info" in value.get("metrics", ()):
        choices = choices[: len(choices) // 2]  # the others are of the choices without the question
    if len(choices) < 2 or not all(map(math.isfinite, choices)):
        raise ValueError("its log-likelihoods must be two finite numbers or more")
    return _Document(task, int(value["doc_id"]), str(value["doc_hash"]), tuple(choices), _target(value, len(choices)))


def _target(value: Any, choices: int) -> int:
    """The right choice by its place, or by its text, which is the end of what was asked."""
    text = str(value["target"])
    if text.isdecimal() and int(text) < choices:
        return int(text)
    asked = [value["arguments"][f"gen_args_{k}"]["arg_1"] for k in range(choices)]
    same = [k for k, choice in enumerate(asked) if str(choice).strip() == text.strip()]
    if len(same) != 1:
        raise ValueError(f"its target {text[:40]!r} is none of its {choices} choices")
    return same[0]
