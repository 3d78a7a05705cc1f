"""A task's model: questions answered in this process, or by a crew of workers beside it or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from radin.data.batches import DataFingerprint, read
from radin.data.readings import check_same
from radin.data.task import Task, TaskText
from radin.engine.base import Engine
from radin.engine.crew import Crew, Plan, Work
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.engine.processes import Processes
from radin.engine.worker import MemberRows, Statistics, Worker
from radin.errors import TaskError
from radin.objectives import objectives
from radin.question import VALIDATION, Answer, Failure, Question, Rates
from radin.recipe import Recipe
from radin.weights import Pool
from radin.weights.beside import are_folders


class LocalEngine(Engine):
    """Runs the user's model. ``workers``: processes here, each with a model of its own; 1: this process.

    ``spec``: where the task comes from, so that workers can load it too; None for a Task made in Python, which
    must then be one that can be pickled. files_from: the member whose files beside the weights a soup's folder takes.
    crew: starts workers elsewhere, ``workers`` of them, on ``asked``, a device as ``Device.create`` takes it; this
    process then only writes soups.
    """

    def __init__(
        self,
        pool: Pool,
        task: Task,
        device: Device,
        *,
        spec: str | Path | TaskText | None = None,
        integers_from: str | None = None,
        files_from: str | None = None,
        workers: int = 1,
        crew: Callable[[Plan], Crew] | None = None,
        asked: str = "auto",
    ) -> None:
        self.pool = pool
        self.task = task
        self.device = device
        self.metric = task.get_metric()
        self.evaluator = Evaluator(task, device, self.metric)
        self.slots = workers
        self.parts = self.metric.per_example is not None or self.metric.by_position
        self.gradients = bool(objectives(self.metric))
        self.splits = (*(("test",) if task.test is not None else ()), *(f"shifts/{n}" for n in task.shift_sources()))
        self.data: dict[str, str] = {}
        source: Task | TaskText | str = task if spec is None else str(spec) if isinstance(spec, Path) else spec
        self._plan = Plan(pool, source, asked, device.precision, device.batch_size, integers_from)
        self._elsewhere = crew
        self.integers_from = integers_from
        self._files_from = files_from
        self.soup_name = "soup" if are_folders(pool) else "soup.safetensors"
        self._worker = Worker(pool, self.evaluator, integers_from=integers_from, data=self.data)
        self._crew: Crew | None = None
        self._statistics: dict[Recipe, Statistics] = {}
        self._queue: list[Question] = []

    def bind(self, data: str, rates: Rates) -> None:
        """What validation() must be from now on."""
        self.data[VALIDATION] = data

    @property
    def notes(self) -> tuple[str, ...]:
        """How the data are read, what did not fit on the device, what happened to workers."""
        return (*self.evaluator.notes, *(() if self._crew is None else self._crew.notes))

    @property
    def crew(self) -> Crew | None:
        """Workers that make the members' outputs too, started when first asked for; None where this process does."""
        return None if self._elsewhere is None else self._workers()

    def _workers(self) -> Crew:
        if self._crew is None:
            if self._elsewhere is not None:
                self._crew = self._elsewhere(self._plan)
            else:
                self._crew = Processes(self.slots, self._plan, self.device)
        return self._crew

    def identity(self) -> Mapping[str, Any]:
        """The precision that models run in, and which member gives the integer tensors."""
        integers = self.integers_from or "the member with the largest ratio"
        return {"precision": self.device.precision, "integers from": integers}

    def fingerprint(self, split: str) -> tuple[str, int]:
        """Of a split's data, read without a model; and how many examples it has. Raises TaskError when it has none."""
        data = DataFingerprint()
        for batch in read(self.task.batches(split), f"{split}()"):
            data.update(batch)
        if not data.examples:
            raise TaskError(f"{split}() gave no batches")
        return data.hexdigest(), data.examples

    def submit(self, question: Question) -> None:
        """Start to work on a question."""
        if self.slots == 1 and self._elsewhere is None:
            self._queue.append(question)
            return
        self._workers().submit(Work(question, None, self._statistics.get(question.recipe), dict(self.data)))

    def wait(self, timeout: float | None = None) -> list[tuple[Question, Answer | Failure]]:
        """What has been answered. The user's own errors are raised, once the answers that came with them are taken.

        They would meet every further question too.
        """
        done: list[tuple[Question, Answer | Failure, Statistics | None]] = []
        if self._crew is None:
            if not self._queue:
                return []
            question = self._queue.pop(0)
            answer, estimated = self._worker.answer(question, self._statistics.get(question.recipe), self.progress)
            done.append((question, answer, estimated))
        else:
            for work, reply in self._crew.wait(timeout):
                assert work.question is not None
                assert not isinstance(reply.found, MemberRows)
                for key, note in reply.said.items():
                    self.device.say(key, note)
                done.append((work.question, reply.found, reply.estimated))
        for question, answer, estimated in done:
            if isinstance(answer, Failure):
                continue
            if estimated is not None:
                self._statistics[question.recipe] = estimated
            # Two workers may each have met a split first.
            expected = self.data.setdefault(question.split, answer.data)
            check_same(question.split, answer.data, answer.examples, expected)
        return [(question, answer) for question, answer, _ in done]

    def write(self, recipe: Recipe, path: Path) -> None:
        """Write the soup, by whichever worker has it in memory; a folder where the members are folders."""
        kept = self._statistics.get(recipe)
        if self._crew is not None and self._crew.write(recipe, path, kept, self._files_from):
            return
        self._worker.write(recipe, path, kept, self._files_from)

    def close(self) -> None:
        """End the workers."""
        self._queue.clear()
        if self._crew is not None:
            self._crew.close()
            self._crew = None
