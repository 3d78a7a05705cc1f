"""A result made by hand: four members, a soup of two, everything a run can have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from radin.recipe import Recipe
from radin.run.result import Gain, Passes, Result, Scored
from radin.stats.optimism import optimism
from radin.stats.paired import paired_difference

NAMES = ("a", "b", "c", "<d>")
SPLITS = {"test": (0.81, 0.02), "shifts/noisy": (0.7, 0.03)}


def values(right: int) -> np.ndarray:
    return np.arange(100) < right


def scored(name: str, recipe: Recipe, score: float | None, **more: object) -> Scored:
    stderr = None if score is None else 0.01
    seconds = None if score is None else 1.5
    return Scored(name, recipe, score, stderr, **{"estimate": 0.85, "seconds": seconds, **more})


def result(**changes: object) -> Result:
    pair, single, together = Recipe((0.25, 0.0, 0.75, 0.0)), Recipe.single(1, 4), Recipe.uniform(range(4), 4)
    paired = paired_difference(values(84), values(80), True)
    made = Result(
        out=Path("run"),
        metric="accuracy",
        higher_is_better=True,
        examples=100,
        member_names=NAMES,
        fingerprints=tuple(f"{k}" * 64 for k in range(4)),
        best=scored("chosen soup, 2 members", pair, 0.84, splits=SPLITS, further={"wer": (0.1, 0.01)}),
        best_single=scored("best single (b)", single, 0.8, splits=SPLITS, further={"wer": (0.2, 0.01)}),
        uniform=scored("uniform soup", together, None, splits=SPLITS),
        ensemble=scored("logit ensemble", pair, 0.86, estimate=None, seconds=None),
        gain=Gain(paired.difference, paired.stderr),
        paired=paired,
        optimism=optimism(np.stack([values(80), values(84), values(81)]), True, incumbents=1),
        evaluations=(scored("soup 1, 2 members", pair, 0.84),),
        passes=Passes(4, 2.5, 3, started=5),
        strategy={"name": "adaptive", "finish": 1, "seed": 0},
        seconds={"open": 0.25, "total": 3.5},
        notes=("a note",),
        reasons=None,
        versions={"radin": "1"},
    )
    return replace(made, **changes)
