"""Inputs, damaged or made up, for every reader: each is read, or refused in one message; everything else is a crash."""

from __future__ import annotations

import importlib
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_parts.runs import Runs
from benchmarks.fault_parts.trials import Ended

_BATCH = 100
_PATIENCE = 120.0  # seconds for a batch; an input should take 5 at most
_MEMORY = 1 << 30  # bytes above what the process has to begin with
_SECONDS = 5.0  # more for one input is a failure too
_WEIGHTS = "weights"
_WEIGHTS_SHARE = 0.26
_WEIGHTS_MODULE = "benchmarks.fault_parts.fuzz_weights"
# One input of these starts a command; of the others, thousands a second are read.
_SLOW = ("outputs .npy", "outputs .safetensors", "targets", "recipe.json", "options", "task file", "run.json, rank")


@dataclass(frozen=True)
class Fuzzed:
    """Inputs to one reader that ended alike. verdict: "ok", "refused" or "crash"; seconds: the longest that one took.

    label: of a crash, how to make the input again: the seed of the batch and its number in it.
    """

    reader: str
    inputs: int
    verdict: str
    seconds: float
    label: str = ""
    why: str = ""


def fuzzed(runs: Runs, inputs: int, seed: int = 0) -> Iterable[Fuzzed]:
    """So many inputs, over all readers."""
    run = runs.new_folder()
    ended = runs.start("task", run)
    assert ended.verdict == "ok", ended.stderr
    names = _names()
    weights = _WEIGHTS in names
    others = [name for name in names if name != _WEIGHTS]
    share = _WEIGHTS_SHARE if weights else 0.0
    shares = {name: (0.4 if name in _SLOW else 1.0) for name in others}
    total = sum(shares.values())
    counts = {name: round(inputs * (1 - share) * part / total) for name, part in shares.items()}
    if weights:
        counts[_WEIGHTS] = round(inputs * share)
    batches = [
        (name, 1000 * seed + start // _BATCH, min(_BATCH, count - start))
        for name, count in counts.items()
        for start in range(0, count, _BATCH)
    ]
    for found in runs.servers.each(lambda batch: list(_batch(runs, run, *batch)), batches):
        yield from found


def _names() -> list[str]:
    try:
        importlib.import_module(_WEIGHTS_MODULE)
        weights = [_WEIGHTS]
    except ModuleNotFoundError:
        weights = []
    from benchmarks.fault_parts import readers

    return [*readers.NAMES, *weights]


def _batch(runs: Runs, run: Path, reader: str, seed: int, count: int) -> Iterator[Fuzzed]:
    """One batch in a process of its own; where that dies or hangs, it was the input in work, and the rest goes on."""
    done = 0
    while done < count:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=runs.servers.folder))
        said = folder / "said.jsonl"
        arguments = [reader, seed, done, count, str(runs.pool), str(run), str(folder)]
        ended = runs.servers.run(call=f"{__name__}:feed", arguments=arguments, timeout=_PATIENCE)
        lines = said.read_text().splitlines() if said.exists() else []
        shutil.rmtree(folder, ignore_errors=True)
        finished = [json.loads(line) for line in lines if line.endswith("}")]
        read = [one for one in finished if "verdict" in one]
        yield from _counted(reader, seed, read)
        done += len(read)
        if ended.code == 0:
            return
        yield Fuzzed(reader, 1, "crash", ended.seconds, f"seed {seed}, input {done}", _death(ended))
        done += 1


def _death(ended: Ended) -> str:
    if ended.timeout:
        return f"no end within {_PATIENCE:.0f} s"
    return f"the process ended with {ended.code}: {ended.head}"


def _counted(reader: str, seed: int, read: list[dict[str, Any]]) -> Iterator[Fuzzed]:
    for verdict in ("ok", "refused"):
        alike = [one for one in read if one["verdict"] == verdict]
        if alike:
            yield Fuzzed(reader, len(alike), verdict, max(one["seconds"] for one in alike))
    for one in read:
        if one["verdict"] == "crash":
            yield Fuzzed(reader, 1, "crash", one["seconds"], f"seed {seed}, {one['label']}", one["why"])


def feed(reader: str, seed: int, start: int, count: int, pool: str, run: str, folder: str) -> int:
    """In the process that reads: inputs ``start`` to ``count`` of a batch, one line for what became of each."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.RLIM_INFINITY))
    place = Path(folder)
    with (place / "said.jsonl").open("w") as said:
        act = _weights if reader == _WEIGHTS else _others
        for found in act(reader, seed, start, count, Path(pool), Path(run), place):
            print(json.dumps(found), file=said, flush=True)
    return 0


def _weights(
    reader: str, seed: int, start: int, count: int, pool: Path, run: Path, folder: Path
) -> Iterator[dict[str, Any]]:
    module = importlib.import_module(_WEIGHTS_MODULE)
    for number, (label, path) in enumerate(module.corpus(seed, folder)):
        if number >= count:
            return
        if number >= start:
            yield _probed(f"input {number}, {label}", lambda path=path: module.probe(path))


def _others(
    reader: str, seed: int, start: int, count: int, pool: Path, run: Path, folder: Path
) -> Iterator[dict[str, Any]]:
    from benchmarks.fault_parts import readers

    probe = readers.reader(reader, pool, run, folder)
    for number in range(start, count):
        chance = random.Random(f"{reader} {seed} {number}")
        yield _probed(f"input {number}", lambda chance=chance: probe(chance))


def _probed(label: str, act: Any) -> dict[str, Any]:
    """What became of one input."""
    from benchmarks.fault_parts.reading import Refused

    from radin.engine.answers import AnswerError
    from radin.errors import RadinError

    started = time.perf_counter()
    verdict, why = "ok", ""
    try:
        if act() == "refused":
            verdict = "refused"
    except (RadinError, AnswerError, Refused) as error:
        verdict, why = "refused", str(error)[:200]
        if any(ord(character) < 32 and character not in "\n\t" for character in str(error)):
            verdict, why = "crash", f"control characters in a message: {why!r}"
    except BaseException as error:  # a task file may exit, too
        verdict, why = "crash", _where(error)
    seconds = time.perf_counter() - started
    if seconds > _SECONDS:
        verdict, why = "crash", f"took {seconds:.0f} s; {why}"
    return {"verdict": verdict, "seconds": seconds, "label": label, "why": why}


def _where(error: BaseException) -> str:
    """The exception and the last line of radin's that it passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/radin/" in frame.filename]
    last = f" at {frames[-1].filename.rsplit('/radin/', 1)[1]}:{frames[-1].lineno} {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:160]}{last}"


def tally(found: Iterable[Fuzzed]) -> Counter[tuple[str, str]]:
    """(reader, verdict) -> how many."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in found:
        counts[one.reader, one.verdict] += one.inputs
    return counts


if __name__ == "__main__":
    sys.exit("use benchmarks/faults.py --only fuzz")
