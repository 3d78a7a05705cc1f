"""Work and replies as whole files: JSON and tensors under a checksum. Nothing in them can run code.

A file is a line with the SHA-256 of all that follows, and then safetensors with the JSON in their metadata. It is read
whole, once and in order, never memory-mapped: it may lie on a network disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import radin.errors
from radin.engine.crew import Reply, Work
from radin.engine.hello import Hello
from radin.engine.worker import MemberRows, Statistics
from radin.errors import RadinError
from radin.files import open_regular, parse_json, replacing
from radin.question import Answer, Failure, Gradient, Question
from radin.recipe import Group, Recipe

BYTES = 64 * 2**30  # what a member's outputs may take; far more than any that a network disk would be given
_HEAD = "radin queue 1 "
_LINE = len(_HEAD) + 64 + 1
_LONGEST = 100_000  # characters of a text, such as an error with its traceback

Tensors = dict[str, torch.Tensor]


class DamagedError(Exception):
    """A file is not as it was written: what is the matter, in words."""


def write_packed(path: Path, value: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write JSON and tensors to ``path``, whole or not at all. Raises OSError."""
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(whole, {"value": json.dumps(value)})
    head = f"{_HEAD}{hashlib.sha256(content).hexdigest()}\n".encode()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        file.write(content)


def read_packed(path: Path, limit: int = BYTES) -> tuple[dict[str, Any], Tensors]:
    """JSON and tensors of such a file. Raises DamagedError, and OSError where it is gone."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise DamagedError(f"{size:,} bytes, more than {limit:,}")
            content = file.read(size)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    head, rest = content[:_LINE], content[_LINE:]
    if head != f"{_HEAD}{hashlib.sha256(rest).hexdigest()}\n".encode():
        raise DamagedError("its content does not match its checksum")
    try:
        tensors = safetensors.torch.load(rest)
        length = int.from_bytes(rest[:8], "little")
        value = parse_json(parse_json(rest[8 : 8 + length].decode())["__metadata__"]["value"])
    except Exception as error:  # whatever the library raises for what it cannot read
        raise DamagedError(f"it cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise DamagedError("it holds no JSON object")
    return value, tensors


def work_parts(work: Work) -> tuple[dict[str, Any], Tensors]:
    """Work as JSON and tensors."""
    value: dict[str, Any] = {"member": work.member, "data": dict(work.data)}
    tensors = _named("kept", work.kept)
    if work.question is not None:
        asked = work.question
        value["question"] = {
            "weights": list(asked.recipe.weights),
            "reestimated": asked.recipe.reestimated,
            "groups": [[group.name, list(group.weights)] for group in asked.recipe.groups],
            "affine": asked.recipe.affine,
            "split": asked.split,
            "gradient": None if asked.gradient is None else [asked.gradient.objective, *asked.gradient.groups],
        }
        if asked.examples is not None:
            tensors["examples"] = torch.from_numpy(np.ascontiguousarray(asked.examples, dtype=np.int64))
    value["kept"] = work.kept is not None
    return value, tensors


def work_of(value: Mapping[str, Any], tensors: Tensors) -> Work:
    """The work that ``work_parts`` was given; a new one, as all work is equal only to itself. Raises DamagedError."""
    try:
        question = None
        if "question" in value:
            asked = value["question"]
            affine = asked["affine"] is True
            recipe = Recipe(
                tuple(float(ratio) for ratio in asked["weights"]),
                asked["reestimated"] is True,
                tuple(Group(str(name), tuple(float(r) for r in ratios), affine) for name, ratios in asked["groups"]),
                affine,
            )
            examples = tensors["examples"].numpy().astype(np.intp) if "examples" in tensors else None
            named = asked["gradient"]
            gradient = None if named is None else Gradient(str(named[0]), tuple(str(name) for name in named[1:]))
            question = Question(recipe, examples, str(asked["split"]), gradient)
        member = None if value["member"] is None else int(value["member"])
        data = {str(split): str(found) for split, found in value["data"].items()}
        return Work(question, member, _taken("kept", tensors) if value["kept"] is True else None, data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RadinError) as error:
        raise DamagedError(f"it holds no work: {error!r}") from None


def reply_parts(reply: Reply) -> tuple[dict[str, Any], Tensors]:
    """A reply as JSON and tensors."""
    tensors = _named("estimated", reply.estimated)
    value: dict[str, Any] = {
        "seconds": reply.seconds,
        "said": dict(reply.said),
        "estimated": reply.estimated is not None,
    }
    found = reply.found
    if isinstance(found, Failure):
        value["failure"] = found.message
    elif isinstance(found, MemberRows):
        value["rows"] = {"data": found.data, "examples": found.examples}
        tensors["rows"] = torch.from_numpy(np.ascontiguousarray(found.rows, dtype=np.float32))
    else:
        names = ("score", "stderr", "examples", "seconds", "data")
        value["answer"] = {name: getattr(found, name) for name in names} | {"further": dict(found.further)}
        for name in ("values", "totals", "gradient"):
            if (numbers := getattr(found, name)) is not None:
                tensors[name] = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float64))
    return value, tensors


def reply_of(value: Mapping[str, Any], tensors: Tensors) -> Reply:
    """The reply that ``reply_parts`` was given. Raises DamagedError."""
    try:
        found: Answer | Failure | MemberRows
        if "failure" in value:
            found = Failure(str(value["failure"])[:_LONGEST])
        elif "rows" in value:
            rows = tensors["rows"]
            if rows.ndim != 2 or rows.dtype != torch.float32:
                raise ValueError(f"outputs of shape {tuple(rows.shape)} and type {rows.dtype}")
            found = MemberRows(rows.numpy(), str(value["rows"]["data"]), int(value["rows"]["examples"]))
        else:
            told = value["answer"]
            numbers = {name: tensors[name].numpy() for name in ("values", "totals", "gradient") if name in tensors}
            if any(array.dtype != np.float64 for array in numbers.values()):
                raise ValueError("numbers that are not float64")
            found = Answer(
                float(told["score"]),
                float(told["stderr"]),
                int(told["examples"]),
                float(told["seconds"]),
                str(told["data"]),
                further={str(name): (float(a), float(b)) for name, (a, b) in told["further"].items()},
                **numbers,
            )
        estimated = _taken("estimated", tensors) if value["estimated"] is True else None
        said = {str(key): str(note)[:_LONGEST] for key, note in value["said"].items()}
        return Reply(found, estimated, said, float(value["seconds"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"it holds no reply: {error!r}") from None


def error_parts(error: RadinError) -> dict[str, Any]:
    """An error as JSON: what it says, and of which kind it is, as far as radin.errors knows."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "radin.errors")
    return {"error": {"kind": kind, "text": str(error.args[0] if error.args else error)}}


def error_of(value: Mapping[str, Any]) -> RadinError | None:
    """The error that ``error_parts`` was given, a RadinError where its kind is none of radin.errors; None: no error."""
    told = value.get("error")
    if not isinstance(told, dict):
        return None
    kind = getattr(radin.errors, str(told.get("kind")), RadinError)
    known = isinstance(kind, type) and issubclass(kind, RadinError)
    error: RadinError = (kind if known else RadinError)(str(told.get("text"))[:_LONGEST])
    return error


def hello_of(value: Any) -> Hello:
    """The hello whose fields, as JSON, these are. Raises DamagedError."""
    try:
        states = {
            str(name): None if state is None else (int(state[0]), int(state[1]))
            for name, state in value["files"].items()
        }
        return Hello(
            str(value["node"])[:200],
            _texts(value["versions"]),
            None if value["folder"] is None else str(value["folder"]),
            tuple(str(place) for place in value["imports"]),
            _texts(value["code"]),
            states,
            _texts(value["urls"]),
            None if value["cache"] is None else str(value["cache"]),
            tuple(str(text)[:_LONGEST] for text in value["said"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DamagedError(f"it holds no hello: {error!r}") from None


def _texts(value: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()}


def _named(prefix: str, statistics: Statistics | None) -> Tensors:
    return {f"{prefix}/{name}": tensor for name, tensor in (statistics or {}).items()}


def _taken(prefix: str, tensors: Tensors) -> Statistics:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
