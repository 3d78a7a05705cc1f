"""Readers of what users give: scores, answers of programs, commands, options, task files."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from benchmarks.fault_parts.mutate import damaged_bytes, damaged_json
from benchmarks.fault_parts.reading import Probe, command, write_bytes


def scores(pool: Path, run: Path, folder: Path) -> Probe:
    from radin.engine.scores import read_scores

    names = [f"run-{k}" for k in range(5)]
    paths = [folder / "members" / f"{name}.safetensors" for name in names]
    forms: list[tuple[str, Any]] = [
        ("scores.json", [{"name": name, "score": 0.5 + k / 10} for k, name in enumerate(names)]),
        ("scores.json", dict.fromkeys(names, 0.5)),
        (
            "scores.json",
            {"members": [{"name": n, "path": str(p), "score": 0.5} for n, p in zip(names, paths, strict=True)]},
        ),
        ("scores.csv", "name,score\n" + "".join(f"{name},0.{k}\n" for k, name in enumerate(names))),
        ("scores.txt", "".join(f"{path}\t0.{k}\n" for k, path in enumerate(paths))),
        ("scores.csv", "model;other;value\n" + "".join(f'"{name}";x;0.{k}\n' for k, name in enumerate(names))),
    ]

    def probe(chance: random.Random) -> str:
        file, value = chance.choice(forms)
        data = damaged_json(chance, value) if file.endswith(".json") else damaged_bytes(chance, value.encode(), 200)
        if not file.endswith(".json") and chance.random() < 0.1:
            data += chance.choice(
                (b"~x,1\n", b"~nobody/x\t0.5\n", b'"' + b"x" * 200_000 + b'",1\n', b"\x00,1\n", b"," * 9999)
            )
        read_scores(write_bytes(folder / file, data), names, paths)
        return "ok"

    return probe


def answer(pool: Path, run: Path, folder: Path) -> Probe:
    from radin.engine.answers import parse

    forms: list[Any] = [
        {
            "score": 0.9,
            "stderr": 0.01,
            "values": [1, 0, 1, 1],
            "further": {"test": 0.8, "x": {"score": 1, "stderr": 2}},
        },
        {"score": 0.75, "values": [True, False, None, 1]},
        {"score": 0.912, "examples": 100},
    ]
    texts = (
        "0.912",
        "nan",
        "-inf",
        "1e999",
        "91.2 %",
        "0,912",
        "tensor(0.9)",
        "accuracy: 0.9",
        "9" * 5000,
        "1_0",
        "٣",
        "²",
    )

    def probe(chance: random.Random) -> str:
        if chance.random() < 0.3:
            text = damaged_bytes(chance, chance.choice(texts).encode()).decode(errors="replace")
        else:
            text = damaged_json(chance, chance.choice(forms)).decode(errors="replace")
        text = (
            chance.choice(("", "epoch 1\n", "{\n" * 60, "\x1b[31m")) + text + chance.choice(("", "\n", "\n\n", "\x00"))
        )
        found = parse(text, whole=chance.random() < 0.8)
        repr(found.answer(0.1))
        return "ok"

    return probe


def command_text(pool: Path, run: Path, folder: Path) -> Probe:
    from radin import Command
    from radin.engine.template import Template

    parts = ("./score.sh ", "{soup}", "{slot}", "{examples}", "{out}", "{", "}", "{{", "}}", "{soup!r}", "{soup:>9}")
    parts += (
        "{0}",
        "{}",
        "'",
        '"',
        "\\",
        "$(",
        "`",
        "\x00",
        "\n",
        "{soup.x}",
        "{soup[0]}",
        "é",
        "\ud800",
        "{a" * 50,
        " " * 999,
    )

    def probe(chance: random.Random) -> str:
        text = "".join(chance.choice(parts) for _ in range(chance.randint(0, 8)))
        if chance.random() < 0.5:
            text += "{soup}"
        made = Command(
            text, timeout=chance.choice((None, 1, 0, -1, float("nan"), "x")), jobs=chance.choice((1, 1, 0, "2"))
        )
        Template.parse(made.command).fill(dict.fromkeys(("soup", "slot", "examples", "out"), "/a b'\"$x"))
        return "ok"

    return probe


def options(pool: Path, run: Path, folder: Path) -> Probe:
    """Text after options of the command line, up to where the work would begin."""
    numbers = (
        "0",
        "-1",
        "1e308",
        "1e308,1e308,0,0,0,0,0",
        "nan",
        "inf",
        "",
        "x",
        "9" * 400,
        "1_0",
        "0x10",
        "٣",
        "1.5",
        " 1",
        "1,,1",
    )
    ratios = (
        *numbers,
        "1,1,1,1,1,1,1",
        "0,0,0,0,0,0,0",
        "-1,1,1,1,1,1,1",
        "nan,1,1,1,1,1,1",
        "run-00=1",
        "run-00=1,run-00=2",
        "a=b",
        "=",
    )
    names = ("count", "keep", "finish", "lambda", "", "x", "subsets", "candidates", "prior")

    def probe(chance: random.Random) -> str:
        members = pool / "members"
        if chance.random() < 0.5:
            out = folder / "averaged.safetensors"
            command(
                "average",
                members,
                chance.choice(("--weights", "--ratios")),
                chance.choice(ratios),
                "-o",
                out,
                "--force",
            )
            return "ok"
        strategy = chance.choice(("adaptive", "paper", "random", "top-k", "greedy", "x", ""))
        given = ["-O", f"{chance.choice(names)}={chance.choice(numbers)}"] if chance.random() < 0.7 else []
        if chance.random() < 0.4:
            given += ["--seed", chance.choice(numbers)]
        if chance.random() < 0.3:
            given += [chance.choice(("--device", "--precision", "--batch-size", "--jobs")), chance.choice(numbers)]
        out = folder / "no-run"
        shutil.rmtree(out, ignore_errors=True)
        budget = "1" if chance.random() < 0.8 else chance.choice(("0", "-1", "1e308", "", "x"))
        task = pool / ("task.py" if chance.random() < 0.15 else "none.py")
        command("cook", members, "--task", task, "--budget", budget, "--out", out, "--strategy", strategy, *given)
        return "ok"

    return probe


_TASK = """
import sys
import torch
from torch import nn
def _net(): return nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))
def _data(n=20): return [(torch.arange(64.0 * n).reshape(n, 64).sin(), torch.arange(n) % 10)]
def model(): return _net()
def validation(): return _data()
class _Odd:
    def __getattr__(self, name): raise ValueError("odd")
def _raise(*a, **k): raise ZeroDivisionError("user")
"""
_ODD = (
    "None", "0", "-1", "'x'", "[]", "{}", "()", "_Odd()", "_Odd", "_raise", "lambda: None", "lambda: 3",
    "lambda: [3]", "lambda: [(1, 2)]", "lambda: [(1, 2, 3)]", "lambda: [None]", "lambda: iter(())", "lambda: {}",
    "lambda: 'text'", "lambda *a: 'text'", "lambda *a: float('nan')", "lambda *a: None", "lambda *a: [1, 2]",
    "lambda *a: 10**400", "b'x'", "1e308", "True", "object()", "type", "print", "_net()", "lambda: _net",
    "lambda: nn.Linear(3, 3)", "lambda: torch.zeros(3)", "lambda: [(torch.zeros(0, 64), torch.zeros(0))]",
    "lambda: [(torch.zeros(2, 64), ['a', 'b'])]", "lambda: [(torch.zeros(2, 64), torch.tensor([0, 99]))]",
    "lambda: [(torch.zeros(2, 64), torch.zeros(2, 3, 4))]", "lambda: [(torch.zeros(2, 64), torch.zeros(3))]",
    "lambda: [({'x': torch.zeros(2, 64)}, torch.zeros(2))]", "lambda: {'a': 3}", "lambda: {'a': _raise}",
    "lambda: {3: _data()}", "lambda: {'\\x1b[2J': _data()}", "lambda: sys.exit()", "lambda: sys.exit(3)",
    "lambda: (_ for _ in [1])", "lambda: torch.utils.data.TensorDataset(torch.zeros(2, 64))",
)  # fmt: skip
_NAMES = ("model", "validation", "test", "shifts", "calibration", "metric", "higher_is_better", "outputs")


def task(pool: Path, run: Path, folder: Path) -> Probe:
    first = min((pool / "members").glob("*"))

    def probe(chance: random.Random) -> str:
        lines = [f"{chance.choice(_NAMES)} = {chance.choice(_ODD)}" for _ in range(chance.choice((1, 1, 2, 3)))]
        lines += [chance.choice(("sys.exit()", "1/0", "x = (", "del model"))] * (chance.random() < 0.04)
        path = write_bytes(folder / "task.py", (_TASK + "\n".join(lines)).encode())
        command("evaluate", first, "--task", path)
        return "ok"

    return probe
