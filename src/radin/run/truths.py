"""True scores of soups that no search asked for: kept beside a run, so that a pass is never made twice.

``truths.sqlite`` in the run's directory, a ledger of its own. They are in no budget, and no resumed run sees them: what
they are for is comparing (``radin figures``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from radin.errors import RunError
from radin.question import VALIDATION, Answer
from radin.run.ledger import Ledger
from radin.run.rows import REESTIMATED, Entry

SOUP = "soup"
_AVERAGED, _APART = "averaged outputs", "outputs apart"  # in the place of a split's name


class Truths(Ledger):
    """The evaluations beside one run, by recipe and split; the file belongs to that run and to no other."""

    @classmethod
    def beside(cls, directory: Path, run: str, *, read_only: bool = False) -> Truths:
        """Those of a run directory, whose run.json names it ``run``. Raises RunError where the file is damaged."""
        return cls(directory / "truths.sqlite", run=run, read_only=read_only)

    def keep(self, identity: str, recipe: Mapping[str, Any], split: str, found: Answer) -> None:
        """Record an evaluation; one that is there already stays."""
        self.add(identity, recipe, REESTIMATED if recipe.get("reestimated") else SOUP, split, found)

    def found(self, split: str) -> list[Entry]:
        """All evaluations on validation or test, first made first, those of members re-estimated included."""
        return [*self.entries(SOUP, split), *self.entries(REESTIMATED, split)]

    def averaged(self) -> list[Entry]:
        """The scores of averaged outputs, the members evaluated as soups are."""
        return self.entries(SOUP, _AVERAGED)

    def apart(self) -> list[Entry]:
        """As scores, the root mean squares of averaged outputs minus the soup's outputs."""
        return self.entries(SOUP, _APART)

    def keep_mixed(
        self, identity: str, recipe: Mapping[str, Any], soup: Answer, averaged: Answer, apart: float
    ) -> None:
        """Record a soup beside its members' averaged outputs."""
        difference = Answer(apart, float("nan"), averaged.examples, 0.0, averaged.data)
        for split, found in ((VALIDATION, soup), (_AVERAGED, averaged), (_APART, difference)):
            self.add(identity, recipe, SOUP, split, found)

    def _damaged(self, what: str) -> RunError:
        return RunError(
            f"{self.path} is damaged: {what}. Put a copy of it back, or delete it: the run itself does not need it, "
            "and --evaluate makes its passes again."
        )
