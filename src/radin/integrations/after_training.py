"""Cooking at the end of a training run, on the checkpoints that it left: what the trainers' callbacks share."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from radin.data.task import Source, Task
from radin.errors import RadinError
from radin.recipe import Recipe
from radin.run.cooking import cook
from radin.run.result import Result
from radin.weights import Pool, recipe_metadata
from radin.weights.alike import save_alike, suffix_of
from radin.weights.formats import open_checkpoint

_log = logging.getLogger("radin")


class CookAtEnd:
    """What a callback is told when it is made, and what it found once training is over.

    budget: passes over validation to spend on soups. metric: see ``radin.metrics``; it is computed from what the model
    returns for the inputs of a batch. validation: batches in the same order every time; by default the trainer's own.
    test, calibration: see radin.Task; a network with BatchNorm needs calibration. checkpoints: files or folders; by
    default those that the trainer kept. out: the run directory; by default a new folder "soup" beside the checkpoints.
    options: of ``radin.cook``, such as strategy or seed.

    result: the radin.Result; None before training ended, or where no soup was made. soup: the soup in the form that the
    checkpoints have. problem: why there is none; training itself never fails by it.
    """

    def __init__(
        self,
        *,
        budget: int = 8,
        metric: Any = "accuracy",
        higher_is_better: bool | None = None,
        validation: Source | None = None,
        test: Source | None = None,
        calibration: Source | None = None,
        checkpoints: Sequence[str | Path] | None = None,
        out: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.budget, self.options, self.out = budget, options, out
        self.metric, self.higher_is_better = metric, higher_is_better
        self.validation, self.test, self.calibration = validation, test, calibration
        self.checkpoints = checkpoints
        self._forget()

    def _forget(self) -> None:
        self.result: Result | None = None
        self.soup: Path | None = None
        self.problem: str | None = None

    def _cook(
        self, model: torch.nn.Module, paths: Sequence[str | Path], validation: Source | None, folder: Path, keep: str
    ) -> None:
        """Cook the checkpoints at ``paths``; ``folder``: where the run goes by default; ``keep``: how more are kept."""
        self._forget()
        given = self.validation if self.validation is not None else validation
        if len(paths) < 2:
            self._refuse(f"a soup needs at least two checkpoints, and {len(paths)} of this run are there. {keep}")
        elif given is None:
            self._refuse("the trainer has no validation data, or several: give CookCallback(validation=)")
        else:
            task = Task(
                model=copy.deepcopy(model).cpu(),
                validation=given,
                test=self.test,
                calibration=self.calibration,
                metric=self.metric,
                higher_is_better=self.higher_is_better,
            )
            try:
                pool = Pool.open(paths)
                pool.require_several()
                out = free_folder(folder / "soup") if self.out is None else Path(self.out)
                self.result = cook(pool, task, budget=self.budget, out=out, **self.options)
                self.soup = in_form(self.result, pool)
                _log.info("%s\nsoup: %s", self.result, self.soup)
            except RadinError as error:
                self._refuse(str(error))

    def _refuse(self, problem: str) -> None:
        """Say why there is no soup, without ending a program that has just trained for hours."""
        self.problem = problem
        _log.warning("no soup was made: %s", problem)


def in_form(result: Result, pool: Pool) -> Path:
    """The soup as a file or folder of the members' kind, written where the run's own is of another."""
    recipe: Recipe = result.best.recipe
    like = pool[max(range(len(pool)), key=recipe.weights.__getitem__)].checkpoint
    if suffix_of(like) == result.soup.suffix:
        return result.soup
    path = result.out / f"soup{suffix_of(like)}"
    with open_checkpoint(result.soup).open() as soup:
        save_alike(soup, like, path, recipe_metadata(pool, recipe))
    return path


def free_folder(folder: Path) -> Path:
    """``folder``, or with a number after its name where it is there already: another training run's."""
    found, number = folder, 2
    while found.exists():
        found, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return found
