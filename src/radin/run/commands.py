"""What the short commands do: evaluate and rank. Each returns what it found as a value with a JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radin import metrics
from radin.data.task import Task, TaskText
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.errors import RadinError, TaskError
from radin.outputs.files import located, open_array, open_targets, outputs_at
from radin.progress import Progress
from radin.run.preflight import preflight
from radin.search import rank
from radin.search.ranking import RankedRecipe
from radin.weights import Pool


@dataclass(frozen=True)
class EvaluatedMember:
    """A checkpoint's true score as it is, with its standard error over examples; NaN where it is not finite."""

    name: str
    path: Path
    fingerprint: str
    score: float
    stderr: float
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """Checkpoints on one split. data: the fingerprint of its examples."""

    metric: str
    split: str
    examples: int
    data: str | None
    members: tuple[EvaluatedMember, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of 'radin evaluate --json'."""
        members = [
            {**vars(m), "path": str(m.path), "score": _number(m.score), "stderr": _number(m.stderr)}
            for m in self.members
        ]
        return {**vars(self), "members": members}


@dataclass(frozen=True)
class RankedFiles:
    """Recipes over files of outputs, the best estimate first; ``best_single``: the best member's name and score."""

    metric: str
    higher_is_better: bool
    names: tuple[str, ...]
    best_single: tuple[str, float]
    recipes: tuple[RankedRecipe, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of 'radin rank --json'."""
        name, score = self.best_single
        return {
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "best_single": {"name": name, "score": score},
            "recipes": [
                {
                    "estimate": r.estimate,
                    "size": r.size,
                    "source": r.source,
                    "recipe": r.recipe.to_json(self.names, self.names),
                }
                for r in self.recipes
            ],
        }


def evaluate_pool(
    pool: Pool, task: str | Path | Task | TaskText, split: str, engine: Device, *, progress: Progress | None = None
) -> Evaluated:
    """Each checkpoint's true score on a split, as it is (BatchNorm statistics untouched), one model in memory."""
    task = Task.load(task)
    metric = task.get_metric()
    known = ["validation"] + (["test"] if task.test is not None else [])
    known += [f"shifts/{name}" for name in task.shift_sources()]
    if split not in known:
        raise TaskError(f"the task has no split {split!r}; it has {', '.join(known)}")
    preflight(task, pool.shapes, pool[0].name, lambda: pool.tensors(0), engine, metric)
    evaluator = Evaluator(task, engine, metric)
    members = []
    data: str | None = None
    examples = 0
    for k, member in enumerate(pool):
        model, _ = evaluator.prepare(pool.tensors(k), member.name, calibrate=False)
        score = evaluator.score(model, split, member.name, expected_data=data, progress=progress)
        data, examples = score.data, score.examples
        found = (score.score, score.stderr, score.seconds)
        members.append(EvaluatedMember(member.name, member.path, member.fingerprint, *found))
    return Evaluated(metric.name, split, examples, data, tuple(members))


def rank_files(
    outputs: Sequence[str],
    targets: str | Path | None,
    metric: str,
    *,
    top: int,
    count: int,
    sources: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None = None,
) -> RankedFiles:
    """The best recipes by estimate, from files of outputs (.npy or radin's .safetensors) or a run's outputs folder.

    Each a path or a URL.
    """
    chosen = metrics.get(metric)
    places = [located(text) for text in outputs]
    found = [pair for place in places for pair in outputs_at(place)]
    names = [name for name, _ in found]
    members = [open_array(path) for _, path in found]
    if targets is None:
        targets = places[0] / "targets.safetensors"
        if not targets.is_file():
            raise RadinError("rank needs --targets, a file with one target per example")
    if len(members) < 2:
        raise RadinError("rank needs the outputs of at least two members")
    labels = np.asarray(open_targets(located(targets)))
    ranked = rank(
        members,
        labels,
        chosen,
        sources=sources or None,
        top=top,
        count=count,
        seed=seed,
        names=names,
        device=device,
        progress=progress,
    )
    singles = [chosen.value(np.asarray(member), labels) for member in members]
    best = max(range(len(singles)), key=lambda k: chosen.utility(singles[k]))
    single = (names[best], singles[best])
    return RankedFiles(chosen.name, chosen.higher_is_better, tuple(names), single, tuple(ranked))


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)
