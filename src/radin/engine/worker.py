"""A worker: builds, calibrates and runs soups, one after the other, in one model object that it refills."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from radin.data.batches import Batch, DataFingerprint
from radin.data.readings import check_same
from radin.data.task import Task
from radin.engine.batchnorm import statistics, statistics_layers
from radin.engine.device import Device, TooLittleMemoryError
from radin.engine.evaluate import Evaluator
from radin.engine.forward import check_finite
from radin.engine.gradient import accumulated
from radin.engine.load import names_in
from radin.engine.rows import joined
from radin.errors import TaskError
from radin.question import VALIDATION, Answer, Failure, Floats, Gradient, Question, answer_from_numbers
from radin.recipe import Recipe, group_of
from radin.weights import Pool, average, recipe_metadata, save
from radin.weights.alike import save_alike
from radin.weights.beside import files_source
from radin.weights.fitting import common_aliases
from radin.weights.layout import is_averaged
from radin.weights.products import inner_products

Statistics = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class MemberRows:
    """A member's outputs: ``rows`` (R, C) float32, and the fingerprint and number of the examples they are over."""

    rows: NDArray[np.float32]
    data: str
    examples: int


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
    ) -> tuple[Answer | Failure, Statistics | None]:
        """The answer, and the BatchNorm statistics that the soup was given, None where there are none.

        A gradient that the model or its memory does not allow is a Failure: soups can be scored all the same.

        ``kept``: those of the same soup from before, put back instead of estimated again. ``progress(done, total)``:
        examples or batches.
        """
        started = time.monotonic()
        if question.gradient is not None:
            try:
                found = self._gradient(question, question.gradient, progress)
            except (TaskError, TooLittleMemoryError) as error:  # soups can still be scored
                return Failure(str(error)), None
            return replace(found, seconds=time.monotonic() - started), None
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

    def outputs(self, member: int) -> MemberRows:
        """A member's outputs over validation(), as it is.

        Raises TaskError when the data are not those expected, OutputsError when the outputs are not finite.
        """
        self._built = None
        evaluator, name = self._evaluator, self._pool[member].name
        rows_of, by_position = evaluator.rows, evaluator.metric.by_position
        model, final = evaluator.prepare(self._pool.tensors(member), name, calibrate=False)
        del final
        data, parts = DataFingerprint(), []
        for batch in evaluator.readings.whole(VALIDATION, data=data, models=1):
            first = data.examples - batch.size
            labels = rows_of.targets(batch, first)
            (rows,) = evaluator.engine.outputs([model], batch, rows_of)
            check_finite(name, rows, labels[:, 1] if by_position else first)
            evaluator.metric.check_batch(labels, rows.shape[1])
            parts.append(rows.numpy())
        if not parts:
            raise TaskError("validation() gave no batches")
        now = data.hexdigest()
        check_same(VALIDATION, now, data.examples, self.data.setdefault(VALIDATION, now))
        return MemberRows(joined(parts, evaluator.metric), now, data.examples)

    def _gradient(
        self, question: Question, asked: Gradient, progress: Callable[[float, float | None], None] | None
    ) -> Answer:
        """An objective's value and its gradient by the ratios: one model, one gradient, and members read in a stream.

        BatchNorm layers work on each batch's statistics. Buffers are taken to be the same in all members.
        """
        self._built = None
        recipe, evaluator, split = question.recipe, self._evaluator, question.split
        assert split == VALIDATION, "ratios are learned on validation alone"
        expected = self.data[split]
        seen = 0

        def report(done: int) -> None:
            nonlocal seen
            seen = done
            if progress is not None:
                progress(done, None if question.examples is None else len(question.examples))

        tensors = average(self._pool, recipe, integers_from=self._integers_from)
        model, final = evaluator.prepare(tensors, "the soup", calibrate=False)
        del tensors, final  # before the gradient takes their memory
        called = names_in(model, self._pool.shapes, "the soup")

        def batches() -> Iterable[Batch]:
            if question.examples is None:
                return evaluator.readings.whole(split, expected=expected, models=1)
            return evaluator.readings.some(split, question.examples, expected)

        value = accumulated(model, evaluator.engine, evaluator.rows, asked.objective, batches, report)
        gradient = np.full((1 + len(asked.groups), len(recipe.weights)), np.nan)
        if np.isfinite(value):
            gradient[:, list(recipe.members)] = self._by_ratio(model, called, recipe, asked)
        model.zero_grad(set_to_none=True)
        return Answer(value, float("nan"), seen, 0.0, expected, gradient=gradient)

    def _by_ratio(self, model: torch.nn.Module, called: Mapping[str, str], recipe: Recipe, asked: Gradient) -> Floats:
        """From the gradient by the weights to that by the ratios of the recipe's members, (1 + groups, members)."""
        pool, members = self._pool, list(recipe.members)
        checkpoints = [pool[k].checkpoint for k in members]
        aliases = common_aliases(checkpoints)
        # A parameter under several names is one; what the pool calls the last of them has its values.
        name_of: dict[int, str] = {}
        gradients: dict[str, torch.Tensor | None] = {}
        for own, parameter in model.named_parameters(remove_duplicate=False):
            name = called.get(own, own)
            name = aliases.get(name, name)
            if name in pool.shapes and is_averaged(parameter.dtype):
                gradients.pop(name_of.get(id(parameter), ""), None)
                name_of[id(parameter)] = name
                gradients[name] = parameter.grad
        products = inner_products(pool, members, {n: tensor for n, tensor in gradients.items() if tensor is not None})
        rows = {group: place for place, group in enumerate((None, *asked.groups))}
        result = np.zeros((len(rows), len(members)))
        for name, product in products.items():
            result[rows[group_of(asked.groups, name)]] += product
        return result

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
