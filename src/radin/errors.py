"""What radin raises when the user can mend it; the command line turns each into one message and exit code 2."""

from __future__ import annotations


def printable(text: object, keep: str = "") -> str:
    """``str(text)`` on one line for a terminal, a log or a page, every character in it visible.

    Whatever ``repr`` would escape is escaped in the same way: control characters (C0, DEL, C1), line separators, those
    that change the direction of text or have no width, and lone surrogates, which stand for the bytes of a file name
    that are not UTF-8. ``keep``: characters left as they are. A backslash stays, so escaping twice changes nothing.
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in whole)


def printable_lines(text: object) -> str:
    """The same for a text of several lines, such as a traceback: its line breaks and tabs stay."""
    return printable(text, keep="\n\t")


class RadinError(Exception):
    """Something the user can mend. The message says what, where, expected and got, and what to do.

    Control characters in it are escaped; line breaks stay, so a name that is put in must be ``printable`` where a line
    of its own could be taken for radin's.
    """

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(printable_lines(message), *more)


class CheckpointError(RadinError):
    """One checkpoint file cannot be read, is unsafe, or holds no usable tensors."""


class NoWeightsError(CheckpointError):
    """A checkpoint file is whole and holds no weights: an optimizer's state, settings."""


class PoolError(RadinError):
    """The checkpoints cannot be averaged together: names, shapes or kinds of dtype differ, or too few."""


class TaskError(RadinError):
    """The task file, its model, its data or its metric do not fit."""


class OutputsError(RadinError):
    """Cached outputs are damaged, not finite, of the wrong shape, or belong to other weights or data."""


class RunError(RadinError):
    """A run directory is in use, damaged, or belongs to another pool, data set or metric."""


class StorageError(RadinError):
    """The operating system refused: the disk is full or read-only, no permission, too many open files."""
