"""How the command line ends on a signal: the first one in order, a second one at once. No library use comes here.

SIGINT (Ctrl-C), SIGTERM and SIGHUP are alike. While a command is loading there is nothing to put in order, and an
exception in the middle of somebody's import may be lost there or crash it: the process ends then and there. Later they
raise ``Stopped``, so that programs and worker processes are ended on the way out.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
CODES = (129, 130, 143)  # that a command ends with on these, as a shell gives them
_SAME = 0.2  # seconds within which a second signal is the first again, sent to the group and passed on by a parent
_AGAIN = 0.05  # seconds after which a signal is sent anew that was raised where exceptions are ignored
_LONG = 1000  # characters of a command that is worth repeating
_CONTINUES = ("cook", "demo")


class Stopped(BaseException):
    """A signal asked the command line to end. Not an interrupt of Python's, which click would take for its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class _State:
    """Of the one command that this process runs. ``owner``: the process; forked ones have a copy of all this."""

    owner: int = 0
    running: bool = False
    first: float | None = None
    last_actions: list[Callable[[], object]] = field(default_factory=list)


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Handle signals as described above, for as long as the context is open. Those that are ignored stay so."""
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept, _state = _state, _State(os.getpid())
    hook, sys.unraisablehook = sys.unraisablehook, _send_again(sys.unraisablehook)
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook, _state = hook, kept


def running() -> None:
    """From here on a signal raises ``Stopped``: the imports are done, and there is something to put in order."""
    _state.running = True


@contextmanager
def at_once(action: Callable[[], object]) -> Iterator[None]:
    """What must be done even when a second signal ends the process at once, as long as the context is open."""
    _state.last_actions.append(action)
    actions = _state.last_actions
    try:
        yield
    finally:
        actions.remove(action)


def leave(code: int) -> NoReturn:
    """End the process now that all is in order: taking Python and torch down may last seconds, or wait for threads."""
    with suppress(Exception):
        multiprocessing = sys.modules.get("multiprocessing")
        for child in multiprocessing.active_children() if multiprocessing else ():
            child.terminate()  # of the user's, such as loaders
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def installed() -> bool:
    """Whether signals are handled here: then they raise ``Stopped`` and nothing else."""
    return signal.getsignal(signal.SIGTERM) is _handle or signal.getsignal(signal.SIGINT) is _handle


def words(number: int, argv: Sequence[str]) -> str:
    """What to say when a signal ended the command of ``argv``: what became of it, and how to go on."""
    what = _SIGNALS.get(signal.Signals(number).name, "ended")
    name = os.path.basename(argv[0]) if argv else "radin"
    command = shlex.join(["python", "-m", "radin", *argv[1:]] if name == "__main__.py" else [name, *argv[1:]])
    repeat = f": {command}" if command.isprintable() and len(command) <= _LONG else "."
    if next((text for text in argv[1:] if not text.startswith("-")), "") in _CONTINUES:
        return f"radin: {what}. Nothing finished is lost; the same command continues from here{repeat}"
    return f"radin: {what}. Nothing was left half done; the same command starts again{repeat}"


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:  # forked, such as a loader's worker: as if nothing had been installed
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    now = time.monotonic()
    if _state.running and _state.first is None:
        _state.first = now
        raise Stopped(number)
    if _state.first is not None and now - _state.first < _SAME:
        return
    for action in list(_state.last_actions):
        with suppress(BaseException):
            action()
    with suppress(OSError):
        os.write(2, (words(number, sys.argv) + "\n").encode(errors="backslashreplace"))
    os._exit(128 + number)


def _send_again(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Where an exception can go nowhere (a destructor, a callback), a signal raised there is sent once more."""

    def unraisable(found: Any) -> None:
        if not isinstance(found.exc_value, Stopped):
            hook(found)
            return
        _state.first = None
        main = threading.main_thread().ident
        assert main is not None
        again = threading.Timer(_AGAIN, signal.pthread_kill, (main, found.exc_value.number))
        again.daemon = True
        again.start()

    return unraisable
