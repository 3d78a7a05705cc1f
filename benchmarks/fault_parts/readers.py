"""Every reader of radin's but that of checkpoints, with what it is fed.

Each is made once in the process that feeds it, from a finished run and the pool; its probe then makes one damaged input
after another and has it read. It may raise what says that the input is bad (RadinError, AnswerError, Refused);
everything else is a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_parts import reading_given, reading_runs
from benchmarks.fault_parts.reading import Probe


def reader(name: str, pool: Path, run: Path, folder: Path) -> Probe:
    """The probe of a name. pool: the small pool; run: a finished run on it; folder: to write inputs in."""
    return _READERS[name](pool, run, folder)


_READERS: dict[str, Callable[[Path, Path, Path], Probe]] = {
    "outputs .npy": reading_runs.outputs_npy,
    "outputs .safetensors": reading_runs.outputs_safetensors,
    "targets": reading_runs.targets,
    "compiled margins": reading_runs.compiled,
    "ledger": reading_runs.ledger,
    "ledger, rows": reading_runs.ledger_rows,
    "run.json": reading_runs.run_json,
    "run.json, rank": reading_runs.run_json_names,
    "result.json": reading_runs.result,
    "recipe.json": reading_runs.recipe,
    "soup's recipe": reading_runs.soup,
    "scores file": reading_given.scores,
    "a program's answer": reading_given.answer,
    "remembered fingerprint": reading_runs.remembered,
    "command": reading_given.command_text,
    "options": reading_given.options,
    "task file": reading_given.task,
}
NAMES = tuple(_READERS)
