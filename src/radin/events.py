"""What happens in a run, one event at a time: the same for ``--log json`` and for trackers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from radin.errors import printable

FORMAT = 1
"""Of events: raised when a key changes its meaning or goes. Keys that are added do not raise it."""

KINDS = (
    "started",
    "stage",
    "member_evaluated",
    "question_asked",
    "question_answered",
    "question_failed",
    "best_changed",
    "split_evaluated",
    "note",
    "finished",
    "failed",
)
"""See docs/watching.md for the keys of each. ``stage`` and ``note`` are only in the log of a command."""

_LOGGER = logging.getLogger("radin")


@dataclass(frozen=True)
class Event:
    """Something that happened. kind: one of KINDS. time: seconds since 1970. fields: values that JSON has."""

    kind: str
    time: float
    fields: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """One flat object: "event", "time" and the fields; numbers that are not finite are None."""
        return {"event": self.kind, "time": round(self.time, 3), **_plain(self.fields)}


OnEvent = Callable[[Event], object]


def event(kind: str, /, **fields: Any) -> Event:
    """An event that happens now."""
    return Event(kind, time.time(), _plain(fields))


class Events:
    """Passes what happens on to whoever listens. A listener that fails is left out from then on, and said once."""

    def __init__(self, listener: OnEvent | None = None) -> None:
        self._listener = listener

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return self._listener is not None

    def __call__(self, kind: str, /, **fields: Any) -> None:
        """Tell that something happened."""
        if self._listener is not None:
            self.pass_on(event(kind, **fields))

    def pass_on(self, found: Event) -> None:
        """Tell of an event that there is already."""
        if self._listener is None:
            return
        try:
            self._listener(found)
        except Exception as error:
            failed, self._listener = self._listener, None
            name = getattr(failed, "__name__", type(failed).__name__)
            why = f"{type(error).__name__}: {error}"
            _LOGGER.warning(
                "%s failed at event %r and is told no more of this run, which goes on: %s",
                printable(name),
                found.kind,
                printable(why)[:300],
            )

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Tell of an error that ends what is done inside."""
        try:
            yield
        except BaseException as error:
            self("failed", kind=type(error).__name__, message=str(error))
            raise


def several(*listeners: OnEvent) -> OnEvent:
    """One listener that passes events on to several, each left out alone where it fails."""
    each = [Events(listener) for listener in listeners]

    def all_of_them(found: Event) -> None:
        for events in each:
            events.pass_on(found)

    return all_of_them


def _plain(value: Any) -> Any:
    """The value as JSON has it: tuples are lists, numbers that are not finite None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value
