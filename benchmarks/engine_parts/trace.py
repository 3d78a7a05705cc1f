"""What every strategy asked and was told before questions and engines, on a real pool; and whether it still does.

A trace is JSON: the members' fingerprints, and runs of cook, each with its settings, the questions in order (recipe,
how many examples and which, how many of them the soup got right), the best recipe with its scores, and what was spent.
Recorded with the code as it was at commit d565571. Two faults were mended since then that move adaptive's decisions by
a little: the normal distribution was read from a table, right to 1e-6, and the knowledge gradient turned negative far
in its tail. ``as_it_was`` puts both back, and nothing else. Fingerprints are of another hash since: those of the demo's
recorded weights were put in the place of the old ones, and decide nothing but ties.

    PYTHONPATH=. python -m benchmarks.engine_parts.trace FOLDER/demo      # as demo_pool leaves it
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from math import erf, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import radin.demo
from radin import Pool, Recipe, cook
from radin.run.ledger import Ledger
from radin.run.rows import Asked

TRACES = Path(__file__).parent / "traces"
_RENAMED = {"radin": "paper"}


@contextmanager
def as_it_was() -> Iterator[None]:
    """Decide by the normal distribution and the knowledge gradient as they were."""
    grid = np.linspace(-6.0, 6.0, 2401)
    table = np.array([0.5 * (1 + erf(x / sqrt(2))) for x in grid])

    def below(z: Any) -> Any:
        return np.interp(z, grid, table)

    def gradient(lead: Any, spread: Any) -> Any:
        wide = np.maximum(spread, 1e-12)
        z = np.clip(lead / wide, -38, 38)
        return wide * (np.exp(-0.5 * z**2) / sqrt(2 * pi) + z * below(z))

    slices = import_module("radin.search.strategies.slices")
    adaptive = import_module("radin.search.strategies.adaptive")
    before = slices.normal_below, adaptive.normal_below, adaptive.expected_improvement
    slices.normal_below, adaptive.normal_below, adaptive.expected_improvement = below, below, gradient  # type: ignore[attr-defined]
    try:
        yield
    finally:
        slices.normal_below, adaptive.normal_below, adaptive.expected_improvement = before  # type: ignore[attr-defined]


def demo_pool(folder: Path) -> Path:
    """The demo's pool with the very weights of its trace, whatever this machine's own training would give."""
    radin.demo.build(folder, seed=0, members=12, data="mnist")
    return with_recorded_weights(folder)


def with_recorded_weights(folder: Path) -> Path:
    """The demo's pool in ``folder``, its weights replaced by those of the trace."""
    kept = load_file(TRACES / "demo-members.safetensors")
    for path in (folder / "members").glob("*.safetensors"):
        tensors = {
            name.removeprefix(f"{path.stem}/"): t for name, t in kept.items() if name.startswith(f"{path.stem}/")
        }
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def compared(folder: Path, trace: Path, *, runs: slice = slice(None), workers: int = 1) -> list[str]:
    """Play the runs of a trace again on the pool in ``folder``; a line for each difference.

    Raises ValueError when the pool is not the one that was recorded.
    """
    recorded = json.loads(trace.read_text())
    pool = Pool.open(sorted((folder / "members").glob("*.safetensors")))
    if list(pool.fingerprints) != recorded["members"]:
        raise ValueError(f"{folder} holds other weights than those of {trace.name}")
    differences = []
    with tempfile.TemporaryDirectory() as work:
        for index, run in enumerate(recorded["runs"][runs]):
            found = play(pool, folder, run, Path(work) / f"{index}", Path(work) / "outputs", workers)
            what = f"{run['strategy']} {run['options']}, budget {run['budget']}"
            for step, (before, now) in enumerate(zip(run["steps"], found["steps"], strict=False)):
                if before != now:
                    differences.append(f"{what}: question {step + 1} was {_short(before)}, is {_short(now)}")
                    break
            if len(run["steps"]) != len(found["steps"]):
                differences.append(f"{what}: {len(run['steps'])} questions before, now {len(found['steps'])}")
            for name in ("best", "spent"):
                if run[name] != found[name]:
                    differences.append(f"{what}: {name} was {_short(run[name])}, is {_short(found[name])}")
    return differences


def play(pool: Pool, folder: Path, run: dict[str, Any], out: Path, outputs: Path, workers: int) -> dict[str, Any]:
    """One run of cook, as a trace has it."""
    more = {name: run[name] for name in ("seed", "choose_on_half") if name in run}
    result = cook(
        pool,
        folder / "task.py",
        budget=run["budget"],
        out=out,
        strategy=_RENAMED.get(run["strategy"], run["strategy"]),
        options=run["options"],
        device="cpu",
        outputs=outputs,
        workers=workers,
        **more,
    )
    ledger = Ledger(out / "ledger.sqlite", read_only=True)
    try:
        steps = [_step(asked, pool) for asked in ledger.questions()]
    finally:
        ledger.close()
    best = result.best
    scores = {"score": best.score, "test": best.splits.get("test", [None])[0]}
    return {"steps": steps, "best": {"ratios": _ratios(best.recipe), **scores}, "spent": result.passes.soups}


def _step(asked: Asked, pool: Pool) -> dict[str, Any]:
    assert asked.examples is not None
    assert asked.answer is not None
    assert asked.answer.values is not None
    return {
        "ratios": _ratios(Recipe.from_json(asked.recipe, pool.fingerprints)),
        "examples": len(asked.examples),
        "digest": hashlib.sha256(asked.examples.astype("<i8").tobytes()).hexdigest()[:16],
        "right": float(asked.answer.values.sum()),
    }


def _ratios(recipe: Recipe) -> dict[str, str]:
    return {str(k): recipe.weights[k].hex() for k in recipe.members}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for kind, around in (("as it was", as_it_was), ("as it is", nullcontext)):
        with around():
            found = compared(folder, TRACES / f"{folder.name}.json")
        print(f"{kind}: {len(found)} differences", *found, sep="\n    ")


if __name__ == "__main__":
    main()
