"""Which kind of file this is, by its first bytes: names say little, and the same file goes under many endings."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from radin.files import open_regular

SAFETENSORS, TORCH, TAR = "safetensors", "torch", "tar"
DISTRIBUTED = "distributed"  # a folder of torch.distributed.checkpoint's, by its metadata

# What files are called that hold weights, whatever is in them.
SAFETENSORS_SUFFIXES = (".safetensors",)
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = SAFETENSORS_SUFFIXES + TORCH_SUFFIXES
# Endings that much else has too: such a file is a checkpoint if its content says so. timm writes .pth.tar, NeMo .nemo.
SHARED_SUFFIXES = (".tar", ".pkl", ".nemo", ".state", ".model", ".params", ".th", ".weights", "")

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch's format before 1.6 begins with, pickled
_HEAD = 512  # a block of a tar archive


def kind_of(path: Path) -> str | None:
    """SAFETENSORS, TORCH or TAR; None for any other content. Raises OSError, ValueError for what is no regular file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return kind_of_bytes(file.read(_HEAD), size)


def kind_of_bytes(head: bytes, size: int) -> str | None:
    """The same of a file's first 512 bytes and its size."""
    if head.startswith(_ZIP) or (head[:1] == b"\x80" and _LEGACY in head[:20]):
        return TORCH
    if head[257:262] == b"ustar":
        return TAR
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") + 8 <= size:
        return SAFETENSORS
    return None


def is_checkpoint_file(path: Path) -> bool:
    """Whether a file that a search came by is a checkpoint: by its name; by content where others have such names.

    A file that is damaged is still one by its name, so that it is told and not passed over.
    """
    if path.suffix in SUFFIXES:
        return True
    if path.suffix not in SHARED_SUFFIXES and not path.suffix[1:].isdigit():  # step.1000 has no ending
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode) and kind_of(path) is not None and _is_ours(path)
    except (OSError, ValueError):
        return False


def _is_ours(path: Path) -> bool:
    """Not just any archive: zip archives and tar files are also what data sets come in."""
    from radin.weights import tar, torch_file

    kind = kind_of(path)
    if kind == TAR:
        return tar.weights_in(path) is not None
    return kind == SAFETENSORS or torch_file.is_torch(path)


def stem(path: Path) -> Path:
    """The path without what only says which kind of file it is: model_best.pth.tar is model_best."""
    if path.suffix == ".tar" and path.with_suffix("").suffix in TORCH_SUFFIXES:
        path = path.with_suffix("")
    return path.with_suffix("") if path.suffix in (*SUFFIXES, *(s for s in SHARED_SUFFIXES if s)) else path
