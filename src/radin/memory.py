"""How much memory is really free: what the host has left, or what the container's limit leaves, whichever is less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# Version 1 of the kernel's control groups writes "no limit" as a number near 2^63.
_NO_LIMIT = 1 << 62


def free_memory() -> int:
    """Bytes that this process may still use: the least of what the host and every control group around it leave."""
    return min([int(psutil.virtual_memory().available), *left_in_groups(Path("/"))])


def left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left under each memory limit that holds for this process; none where there is no limit.

    ``root``: where /proc and /sys are, so that a test can bring its own. A limit counts what its group and all groups
    below it use; pages of files that were not touched for a while are given back on demand, so they count as free.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used, inactive = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            inactive = "total_inactive_file"
        else:
            continue
        for folder in _around(root / top, path):
            found, use = _number(folder / limit), _number(folder / used)
            if found is not None and use is not None and found < _NO_LIMIT:
                yield max(0, found - max(0, use - _statistic(folder / "memory.stat", inactive)))


def _around(top: Path, path: str) -> Iterator[Path]:
    """The group's folder and those around it. Inside a container only the last may be there: it is then the group's."""
    names = [name for name in path.split("/") if name not in ("", "..")]
    for depth in range(len(names), -1, -1):
        yield top.joinpath(*names[:depth])


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", or where there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == name), 0)
