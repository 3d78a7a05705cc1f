"""What an engine is: anything that can score a soup. This process, a program of the user's, a cluster, a table.

    engine.submit(question)                    at most ``slots`` at a time
    for question, answer in engine.wait():     those that are there, in any order; an Answer, or a Failure
    engine.write(recipe, path)                 the soup itself
    engine.close()

An engine gets recipes and gives scores. It knows nothing of budgets, strategies or ledgers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from radin.metrics import Metric
from radin.question import Answer, Failure, Question, Rates
from radin.recipe import Recipe


class Engine(ABC):
    """Answers questions. ``metric``: what its scores are, and which are better; ``value`` of it may not be callable.

    ``slots``: how many it can work on at once. ``parts``: whether it can answer on some examples. ``splits``: what it
    can be asked about besides "validation". ``gradients``: whether it answers what asks for a ``Gradient``."""

    metric: Metric
    slots: int = 1
    parts: bool = False
    gradients: bool = False
    splits: tuple[str, ...] = ()
    soup_name: str = "soup.safetensors"
    """What ``write`` calls the soup: a file, or a folder where the members are folders."""
    progress: Callable[[float, float | None], None] | None = None
    """Called with (done, total or None) while a question is worked on, where one can tell."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, in sentences; may grow as things are found out."""
        return ()

    def bind(self, data: str, rates: Rates) -> None:
        """Told once the members are evaluated: what validation must be from now on, and what questions cost."""
        return

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """All that, in this engine, could change an answer: name in words -> a value that JSON can hold."""

    @abstractmethod
    def submit(self, question: Question) -> None:
        """Start to work on a question. Not to be called when ``slots`` are in work."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[tuple[Question, Answer | Failure]]:
        """What has been answered since the last call, at least one unless ``timeout`` seconds pass; [] if none is open.

        Raises RadinError only for what makes every further question pointless.
        """

    @abstractmethod
    def write(self, recipe: Recipe, path: Path) -> None:
        """Write the soup of a recipe to ``path``, whole or not at all, as the engine would evaluate it."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is in work and let go of everything held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
