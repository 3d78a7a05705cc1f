"""Which kind of disk a path is on, and what follows: whether locks can be trusted there, and maps of files used.

A network's file system may grant one lock to two machines, and a memory map of a file on it is read page by page, each
a round trip. The kind is found by its name in the system's table of mounts; where that is not known, SQLite's lock is
tried between two processes.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")  # Linux; elsewhere kinds are not known
BLOCK = 16 << 20  # bytes read at once where files are not mapped
_MOUNTS_BYTES = 16 << 20

# Shared by machines, or by a machine and its guests: what one locks another may not see.
_NETWORK = frozenset(
    (
        "nfs", "nfs3", "nfs4", "lustre", "lustre_lite", "gpfs", "mmfs", "cifs", "smb", "smb2", "smb3", "smbfs", "9p",
        "virtiofs", "beegfs", "fhgfs", "afs", "ceph", "glusterfs", "orangefs", "pvfs2", "panfs", "wekafs", "ocfs2",
        "gfs2", "coda", "ncpfs", "davfs", "vboxsf", "prl_fs", "hgfs", "vmhgfs", "quobyte", "xtreemfs", "moosefs",
        "pfs", "dvs", "efs", "fsx", "hdfs", "juicefs",
    )
)  # fmt: skip
_LOCAL = frozenset(
    (
        "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "rootfs", "overlay", "aufs", "f2fs", "vfat",
        "exfat", "msdos", "ntfs", "ntfs3", "fuseblk", "squashfs", "apfs", "hfs", "hfsplus", "bcachefs", "jfs",
        "reiserfs", "iso9660", "udf", "erofs", "ecryptfs", "devtmpfs",
    )
)  # fmt: skip
_LOCAL_FUSE = frozenset(
    ("fuse.fuse-overlayfs", "fuse.unionfs", "fuse.mergerfs", "fuse.encfs", "fuse.gocryptfs", "fuse.ntfs-3g")
)
_ESCAPED = re.compile(r"\\([0-7]{3})")
_TRY_SECONDS = 30
# What the other process does: it must be refused while the lock is held, and be given it afterwards.
_OTHER = """
import sqlite3, sys
def take():
    db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
    try:
        db.execute("BEGIN IMMEDIATE")
        return "taken"
    except sqlite3.OperationalError as error:
        return "refused" if "locked" in str(error) else "failed"
    finally:
        db.close()
print(take(), flush=True)
sys.stdin.readline()
print(take(), flush=True)
"""
_tried: dict[tuple[int, str], str | None] = {}  # by device: the answer of locks_fail, which costs a process


@dataclass(frozen=True)
class Mount:
    """A file system as it is mounted. kind: as the system calls it, such as "nfs4"."""

    place: str
    kind: str


def url_of(path: Path) -> str | None:
    """The URL that this was before it became a path, which leaves one slash of two ("s3:/bucket/run"); else None."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path))
    return None if found is None else f"{found[1]}://{found[2]}"


def mount_of(path: Path) -> Mount | None:
    """The file system that a path is on, or will be; None where that cannot be told."""
    try:
        with MOUNTS.open("rb") as file:
            text = file.read(_MOUNTS_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return None
    real = os.path.realpath(path)
    best: Mount | None = None
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 5 or not kinds[0]:
            continue
        place = _ESCAPED.sub(lambda found: chr(int(found.group(1), 8)), fields[4])
        holds = real == place or real.startswith(place.rstrip("/") + "/")
        if holds and (best is None or len(place) >= len(best.place)):  # of two at one place the later hides the other
            best = Mount(place, kinds[0])
    return best


def is_network(path: Path) -> bool:
    """Whether a path is on a disk that is known to be a network's: files there are read in order, and never mapped."""
    return _on_network(os.path.dirname(os.path.realpath(path)), MOUNTS)


@lru_cache(maxsize=4096)
def _on_network(folder: str, mounts: Path) -> bool:
    mount = mount_of(Path(folder))
    return mount is not None and _is_network(mount.kind)


def _is_network(kind: str) -> bool:
    return kind in _NETWORK or (kind.startswith("fuse") and kind != "fuseblk" and kind not in _LOCAL_FUSE)


def locks_fail(folder: Path) -> str | None:
    """Why SQLite's locks cannot be trusted in a folder, as part of a sentence; None where they can be.

    A disk of a kind that is known costs one look at the table of mounts. On any other a second process tries to take
    a lock that this one holds. Raises OSError where nothing can be written.
    """
    mount = mount_of(folder)
    if mount is not None and mount.kind in _LOCAL | _LOCAL_FUSE:
        return None
    if mount is not None and _is_network(mount.kind):
        return f"it is on a {mount.kind} file system, where a lock that one machine holds need not stop another"
    key = (os.stat(folder).st_dev, "" if mount is None else mount.place)
    if key not in _tried:
        _tried[key] = _lock_test(folder)
    return _tried[key]


def _lock_test(folder: Path) -> str | None:
    """What a lock of SQLite's between two processes does there: None, or what is wrong with it."""
    file = folder / f".locks-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("CREATE TABLE t (x)")
            db.execute("BEGIN EXCLUSIVE")
            with subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _OTHER, str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as other:
                assert other.stdin is not None
                assert other.stdout is not None
                try:
                    first = other.stdout.readline().strip()
                    db.execute("COMMIT")
                    second = other.communicate("\n", timeout=_TRY_SECONDS)[0].strip()
                except (OSError, subprocess.TimeoutExpired):
                    other.kill()
                    return "a lock could not be tried there between two processes"
    except sqlite3.Error as error:
        return f"SQLite could not lock a file there ({error})"
    finally:
        for name in (file, file.with_name(file.name + "-journal")):
            with suppress(OSError):
                name.unlink()
    if first == "taken":
        return "a lock there was given to two processes at once"
    if (first, second) != ("refused", "taken"):
        return "a lock could not be tried there between two processes"
    return None


def read_part(path: Path, start: int, length: int) -> bytearray:
    """Bytes of a file, read in order in large blocks. Raises OSError, and ValueError where it is shorter."""
    content = bytearray(length)
    view = memoryview(content)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < length:
            count = file.readinto(view[done : done + BLOCK])
            if not count:
                raise ValueError(f"{start + length:,} bytes expected, and {start + done:,} are there")
            done += count
    return content


class Unmapped:
    """A file's bytes for whoever would map it: a part is read when it is asked for, in order."""

    def __init__(self, path: Path, start: int = 0, length: int | None = None) -> None:
        self._path, self._start = path, start
        self.is_part = length is not None
        self._length = os.stat(path).st_size - start if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytearray:
        start, stop, _ = part.indices(self._length)
        return read_part(self._path, self._start + start, max(stop - start, 0))
