"""What the values behind the figures have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from radin.run.record import RunRecord


@dataclass(frozen=True)
class About:
    """What a figure is of. run: the directory's name; scores are in ``metric``'s units."""

    run: str
    metric: str
    higher_is_better: bool
    members: int
    examples: int
    finished: bool

    @classmethod
    def of(cls, record: RunRecord) -> About:
        """That of a run."""
        from radin.errors import printable

        name = printable(Path(record.path).resolve().name)
        return cls(
            name,
            record.metric.name,
            record.metric.higher_is_better,
            record.members,
            record.rates.examples or record.singles[0].examples,
            record.finished,
        )


@dataclass(frozen=True)
class Unavailable:
    """A figure that cannot be had from what the run knows, and why, in a sentence."""

    figure: str
    why: str


def plain(value: Any) -> Any:
    """The values as JSON holds them: dataclasses as objects, NaN and infinity as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, tuple | list) else value
