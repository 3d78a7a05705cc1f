"""What ``radin cook`` chooses when no strategy is named, on each draw: a row of the table beside those replayed.

From a budget of 8 on it learns ratios by gradient, which takes the model and not true scores alone: each is a whole
run, of which the members' outputs are shared with all others. Below 8 the default is ``adaptive``, so "ours".
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.spending.play import GRID, Group, Point
from benchmarks.spending.scored import Scored

import radin
from radin.files import write_json

LABEL = "default"
LEAST = 8
_SHIFTS = "shifts/"


class Defaults:
    """Runs of the default, each made once: ``out``/defaults.json keeps what they chose.

    members: the pool's files, in its order. task: the task file. out: the experiment's folder; runs lie in its
    cooking/ until they are finished, so that the same command goes on where it stopped.
    """

    def __init__(
        self,
        scores: Scored,
        members: Sequence[Path],
        task: Path,
        out: Path,
        *,
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.passes = 0.0
        """Spent on soups now, over validation."""
        self._scores, self._members, self._task = scores, members, task
        self._out, self._device, self._batch_size = out, device, batch_size
        path = out / "defaults.json"
        self._known: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}

    def points(self, ours: Sequence[Point], group: Group, most: int) -> list[Point]:
        """The default's choice at every budget from 1 to ``most``.

        ours: adaptive's points of this draw, which are its own below 8. Whole runs are made at the budgets of the
        tables; between them what the smaller one found stands.
        """
        found: list[Point] = []
        for point in sorted(ours, key=lambda p: p.budget)[:most]:
            if point.budget < LEAST:
                found.append(replace(point, strategy=LABEL))
            elif point.budget in GRID:
                found.append(self._cooked(point, group))
            else:
                found.append(replace(found[-1], budget=point.budget, shifts=None))
        return found

    def _cooked(self, point: Point, group: Group) -> Point:
        pool = self._scores.pool
        about = [[pool.fingerprints[k] for k in group.members], group.seed, point.budget, self._scores.metric.name]
        about += [list(self._scores.extent(split)) for split in ("validation", "test")]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
        if key not in self._known:
            self._known[key] = self._run(key, group, point.budget)
            write_json(self._out / "defaults.json", self._known)
        same = {
            name: value for name, value in asdict(point).items() if name in ("pool", "subpool", "members", "budget")
        }
        return Point(**same, strategy=LABEL, **self._known[key])  # type: ignore[arg-type]

    def _run(self, key: str, group: Group, budget: int) -> dict[str, object]:
        place = self._out / "cooking" / key
        place.parent.mkdir(exist_ok=True)
        result = radin.cook(
            [self._members[k] for k in group.members],
            str(self._task),
            budget=budget,
            out=place,
            outputs=self._out / "outputs",
            seed=group.seed,
            device=self._device,
            batch_size=self._batch_size,
        )
        self.passes += result.passes.soups
        splits = {name: score for name, (score, _) in result.best.splits.items()}
        shifts = {name: splits[_SHIFTS + name] for name in self._scores.shifts}
        shutil.rmtree(place)
        return {
            "validation": result.best.score,
            "test": splits["test"],
            "shifts": shifts or None,
            "size": result.best.recipe.size,
            "spent": float(result.passes.soups),
        }
