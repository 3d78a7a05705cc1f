"""What radin calls while something takes its time."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float | None], None]
"""Called with (what, done, total or None)."""
