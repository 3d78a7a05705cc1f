"""What radin raises when the user can mend it; the command line turns each into one message and exit code 2."""

from __future__ import annotations


class RadinError(Exception):
    """Something the user can mend. The message says what, where, expected and got, and what to do."""


class CheckpointError(RadinError):
    """One checkpoint file cannot be read, is unsafe, or holds no usable tensors."""


class PoolError(RadinError):
    """The checkpoints cannot be averaged together: names, shapes or kinds of dtype differ, or too few."""


class TaskError(RadinError):
    """The task file, its model, its data or its metric do not fit."""


class OutputsError(RadinError):
    """Cached outputs are damaged, not finite, of the wrong shape, or belong to other weights or data."""


class RunError(RadinError):
    """A run directory is in use, damaged, or belongs to another pool, data set or metric."""
