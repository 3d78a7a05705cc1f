"""The user's own code: what it raises is told as its own, with its frames and none of radin's."""

from __future__ import annotations

import importlib
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, TracebackType

from radin import interrupts
from radin.errors import RadinError, TaskError

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


class UserCodeError(TaskError):
    """The user's own code failed. ``traceback`` holds its frames, without radin's."""

    def __init__(self, message: str, user_traceback: str) -> None:
        super().__init__(message)
        self.traceback = user_traceback

    def __reduce__(self) -> tuple[type[UserCodeError], tuple[str, str]]:
        """For worker processes, which send it to the one that asked."""
        return UserCodeError, (str(self), self.traceback)


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn an exception of the user's code into a UserCodeError with the user's frames only."""
    try:
        yield
    except RadinError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if not isinstance(error, Exception) and not _from_the_code(error):
            raise
        stopped = _stop_behind(error)
        if stopped is not None:
            raise stopped from None
        frames = _without_radin(error.__traceback__)
        text = "".join(traceback.format_exception(type(error), error, frames)).rstrip()
        how = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserCodeError(f"{what} failed with {how}", text) from error


def import_module(place: str, unknown: str) -> ModuleType:
    """The user's module ``place``, imported. Raises TaskError ``unknown`` where there is no such module."""
    with user_code(f"importing {place}"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and place.startswith(error.name):
                raise TaskError(unknown) from None
            raise


def _stop_behind(error: BaseException | None) -> interrupts.Stopped | None:
    """The signal that an exception was made of: a compiled module that is interrupted while it is imported says so."""
    while error is not None:
        if isinstance(error, interrupts.Stopped):
            return error
        error = error.__cause__ or error.__context__
    return None


def _from_the_code(error: BaseException) -> bool:
    """Whether the user's code raised this itself, and no handler of a signal did while that code ran."""
    number, usual = {
        SystemExit: (signal.SIGTERM, (signal.SIG_DFL, signal.SIG_IGN, None)),
        KeyboardInterrupt: (signal.SIGINT, (signal.SIG_IGN, None)),
    }[SystemExit if isinstance(error, SystemExit) else KeyboardInterrupt]
    return interrupts.installed() or signal.getsignal(number) in usual


def _without_radin(frames: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not radin's own (the demo's code counts as the user's)."""
    demo = os.path.join(_PACKAGE, "demo")
    while frames is not None:
        file = os.path.abspath(frames.tb_frame.f_code.co_filename)
        inside = file.startswith(_PACKAGE + os.sep) and not file.startswith(demo + os.sep)
        if not inside and not file.startswith(os.path.dirname(importlib.__file__)) and "<frozen" not in file:
            return frames
        frames = frames.tb_next
    return None
