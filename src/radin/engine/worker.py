"""A worker: builds, calibrates and runs soups, one after the other, in one model object that it refills."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from radin.data.task import Task
from radin.engine.batchnorm import statistics, statistics_layers
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.question import Answer, Question, answer_from_numbers
from radin.recipe import Recipe
from radin.weights import Pool, average, recipe_metadata, save
from radin.weights.alike import save_alike
from radin.weights.beside import files_source

Statistics = Mapping[str, torch.Tensor]


class Worker:
    """Answers questions in this process.

    ``data``: split -> fingerprint of the data that it must be; the split is refused when it is not. The soup built last
    is kept, for a further question about it and for ``write``.
    """

    def __init__(
        self, pool: Pool, evaluator: Evaluator, *, integers_from: str | None, data: dict[str, str] | None = None
    ) -> None:
        self._pool = pool
        self._evaluator = evaluator
        self._integers_from = integers_from
        self._built: tuple[Recipe, torch.nn.Module, dict[str, torch.Tensor]] | None = None
        self.data = data if data is not None else {}

    @classmethod
    def create(cls, pool: Pool, task: Task, device: Device, integers_from: str | None) -> Worker:
        """A worker with an evaluator of its own."""
        return cls(pool, Evaluator(task, device, task.get_metric()), integers_from=integers_from)

    def answer(
        self,
        question: Question,
        kept: Statistics | None = None,
        progress: Callable[[float, float | None], None] | None = None,
    ) -> tuple[Answer, Statistics | None]:
        """The answer, and the BatchNorm statistics that the soup was given, None where there are none.

        ``kept``: those of the same soup from before, put back instead of estimated again. ``progress(done, total)``:
        examples or batches.
        """
        started = time.monotonic()
        model, _ = self._build(question.recipe, kept)
        report = (lambda _, done, total: progress(done, total)) if progress is not None else None
        expected = self.data.get(question.split)
        if question.examples is not None:
            assert expected is not None, "examples can be named only in data that has been read"
            values = self._evaluator.values(
                model, question.split, question.examples, expected_data=expected, progress=report
            )
            found = answer_from_numbers(self._evaluator.metric, values, 0.0, expected)
        else:
            where = "the soup" if question.recipe.size > 1 else self._pool[question.recipe.members[0]].name
            found = self._evaluator.score(model, question.split, where, expected_data=expected, progress=report)
            self.data.setdefault(question.split, found.data)
        estimated = statistics(model) if kept is None and self._calibrates(question.recipe, model) else None
        return replace(found, seconds=time.monotonic() - started), estimated

    def write(self, recipe: Recipe, path: Path, kept: Statistics | None = None, files_from: str | None = None) -> None:
        """Write the soup as it is evaluated, BatchNorm statistics re-estimated, with the recipe in its metadata.

        A path without an ending is a folder's, in the form of the member that ``files_from`` names.
        """
        model, tensors = self._build(recipe, kept)
        extra = {"batchnorm": "re-estimated"} if self._calibrates(recipe, model) else {}
        metadata = recipe_metadata(self._pool, recipe, extra, integers_from=self._integers_from)
        if path.suffix:
            save(tensors, path, metadata=metadata)
        else:
            like = self._pool[files_source(self._pool, recipe, files_from)].checkpoint.form
            save_alike(tensors, like, path, metadata)

    def _build(self, recipe: Recipe, kept: Statistics | None) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        """The soup as a model on the device, and its tensors. A member as it is stays so."""
        if self._built is not None and self._built[0] == recipe:
            return self._built[1], self._built[2]
        self._built = None  # before the next one takes its memory
        tensors = average(self._pool, recipe, integers_from=self._integers_from)
        model, final = self._evaluator.prepare(tensors, "the soup", calibrate=not recipe.is_single, statistics=kept)
        self._built = (recipe, model, final)
        return model, final

    def _calibrates(self, recipe: Recipe, model: torch.nn.Module) -> bool:
        return not recipe.is_single and self._evaluator.task.calibration is not None and bool(statistics_layers(model))
