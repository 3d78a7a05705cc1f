"""What radin calls while something takes its time, and the same in Python's logging."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from radin.errors import printable

Progress = Callable[[str, float, float | None], None]
"""Called with (what, done, total or None)."""

_LOGGER = logging.getLogger("radin")


def silent(what: str, done: float, total: float | None) -> None:
    """Progress that nobody sees."""


class LoggedProgress:
    """Passes progress on, and tells the logger "radin": INFO when a stage ends, DEBUG for every step.

    A stage ends when its total is reached, when another begins, or with ``close``. No handler is installed: whether
    and where any of it is shown is up to the program that uses radin.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._stage: tuple[str, float] | None = None
        self._ended: str | None = None  # the last stage that reached its total

    def __call__(self, what: str, done: float, total: float | None) -> None:
        """Say what is done and how far it has come; total None where nobody knows."""
        what = printable(what)
        if self._progress is not None:
            self._progress(what, done, total)
        if self._stage is None or self._stage[0] != what:
            self.close()
            if what == self._ended:  # told again that it is at its end
                return
            self._stage, self._ended = (what, time.monotonic()), None
        _LOGGER.debug("%s: %g of %s", what, done, "?" if total is None else f"{total:g}")
        if total is not None and done >= total:
            self.close()
            self._ended = what

    def close(self) -> None:
        """End the stage under way, if any."""
        if self._stage is not None:
            what, since = self._stage
            _LOGGER.info("%s: %.1f s", what, time.monotonic() - since)
            self._stage = None


def logged(progress: Progress | None) -> LoggedProgress:
    """Progress that also goes to the logger "radin"; what does so already is returned as it is."""
    return progress if isinstance(progress, LoggedProgress) else LoggedProgress(progress)
