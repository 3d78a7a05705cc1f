"""What came out of a run, as values, with a JSON form."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radin.errors import RunError
from radin.recipe import Recipe
from radin.stats.confidence import Optimism, PairedDifference


@dataclass(frozen=True)
class Scored:
    """A recipe with what is known of it.

    score, stderr: on validation, in the metric's units; None when its soup was never evaluated. estimate: the score of
    its averaged outputs. looks: split ("test", "shifts/NAME") -> (score, stderr) where it was looked at.
    """

    name: str
    recipe: Recipe
    score: float | None
    stderr: float | None
    estimate: float | None = None
    seconds: float | None = None
    looks: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Passes:
    """Validation passes: by members to get their outputs, by soups (what the budget counts), and both.

    ``begun``: soups evaluated on any example; one that is evaluated on some only costs its share of a pass.
    """

    outputs: int
    soups: float
    budget: int
    begun: int

    @property
    def total(self) -> float:
        return self.outputs + self.soups


@dataclass(frozen=True)
class Gain:
    """The best recipe against the best single member on validation: difference and its standard error."""

    difference: float
    stderr: float


@dataclass(frozen=True)
class Result:
    """A finished run. ``best`` is what soup.safetensors holds; it is never worse on validation than best_single.

    ``examples``: those that scores are over; half of validation where the other half was searched on. ``evaluations``:
    the soups evaluated on all of validation. ``paired``: the gain with its interval, None where the best single member
    was chosen. ``optimism``: how much choosing flatters the score, None for metrics that are no mean over examples.
    ``confidence``: both in sentences.
    """

    out: Path
    metric: str
    higher_is_better: bool
    examples: int
    member_names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    best: Scored
    best_single: Scored
    uniform: Scored
    ensemble: Scored
    gain: Gain
    paired: PairedDifference | None
    optimism: Optimism | None
    confidence: tuple[str, ...]
    evaluations: tuple[Scored, ...]
    passes: Passes
    strategy: Mapping[str, Any]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    reasons: tuple[str, ...]
    versions: Mapping[str, str]

    def save(self, path: str | Path) -> Path:
        """Copy the soup to ``path`` (.safetensors). Raises RunError for another ending."""
        target = Path(path)
        if target.suffix != ".safetensors":
            raise RunError(f"the soup is a safetensors file; {target} must end in .safetensors")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        shutil.copyfile(self.out / "soup.safetensors", partial)
        partial.replace(target)
        return target

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""
        return {
            "metric": {"name": self.metric, "higher_is_better": self.higher_is_better},
            "examples": self.examples,
            "best": self._scored(self.best),
            "best_single": self._scored(self.best_single),
            "uniform": self._scored(self.uniform),
            "ensemble": self._scored(self.ensemble),
            "gain": self._gain(),
            "optimism": None if self.optimism is None else _numbers(vars(self.optimism)),
            "confidence": list(self.confidence),
            "passes": {
                "outputs": self.passes.outputs,
                "soups": self.passes.soups,
                "total": self.passes.total,
                "budget": self.passes.budget,
                "begun": self.passes.begun,
            },
            "evaluations": [self._scored(e) for e in self.evaluations],
            "test": self._on("test"),
            "shifts": {
                split.removeprefix("shifts/"): self._on(split)
                for split in self.best.looks
                if split.startswith("shifts/")
            },
            "strategy": dict(self.strategy),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
            "reasons": list(self.reasons),
            "versions": dict(self.versions),
            "soup": str(self.out / "soup.safetensors"),
        }

    def _gain(self) -> dict[str, Any]:
        found: dict[str, Any] = {"difference": self.gain.difference, "stderr": _number(self.gain.stderr)}
        if self.paired is not None:
            found |= _numbers(vars(self.paired)) | {"inside_noise": self.paired.inside_noise}
        return found

    def _scored(self, scored: Scored) -> dict[str, Any]:
        return {
            "name": scored.name,
            "recipe": scored.recipe.to_json(self.member_names, self.fingerprints),
            "size": scored.recipe.size,
            "score": _number(scored.score),
            "stderr": _number(scored.stderr),
            "estimate": _number(scored.estimate),
            "seconds": _number(scored.seconds),
        }

    def _on(self, split: str) -> dict[str, Any] | None:
        """Scores of the three models that are looked at on test and shifts."""
        three = {"best_single": self.best_single, "uniform": self.uniform, "best": self.best}
        pairs = {name: scored.looks[split] for name, scored in three.items() if split in scored.looks}
        return {name: {"score": _number(score), "stderr": _number(err)} for name, (score, err) in pairs.items()} or None


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and value != value else value for name, value in values.items()}


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or value != value else float(value)
