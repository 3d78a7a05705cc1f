"""Progress with time left, on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from radin.errors import printable

_QUIET_SECONDS = 2.0
_SILENCE_SECONDS = 10.0


class ConsoleProgress:
    """Call it with (what, done, total or None). A bar on a terminal; elsewhere one line for each stage that ends.

    Use as a context manager. Where there is no terminal, stages that take less than two seconds are shown only after
    ten seconds without a line.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._current: tuple[str, float] | None = None
        self._shown = time.monotonic()

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self.stop()
        else:
            self._stage_ended()

    def stop(self) -> None:
        """Take the bar away, if there is one, and give the terminal its cursor back."""
        self._bars.stop()

    def __call__(self, what: str, done: float, total: float | None) -> None:
        """Show what is done, how far it has come and how long it will take; total None where nobody knows."""
        what = printable(what)
        if not self._console.is_terminal:
            if self._current is None or self._current[0] != what:
                self._stage_ended()
                self._current = (what, time.monotonic())
            return
        if what not in self._tasks:
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)

    def _stage_ended(self) -> None:
        if self._current is not None:
            what, since = self._current
            seconds = time.monotonic() - since
            if seconds >= _QUIET_SECONDS or time.monotonic() - self._shown >= _SILENCE_SECONDS:
                self._shown = time.monotonic()
                with suppress(OSError, ValueError):  # nobody reads it: no reason to end what is under way
                    print(f"{what}: {seconds:.1f} s", file=sys.stderr, flush=True)
        self._current = None
