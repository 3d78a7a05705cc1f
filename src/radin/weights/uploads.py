"""Soups to URLs (s3://, gs://, ...), through fsspec: written here, whole, then uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radin.errors import RadinError, printable
from radin.weights.remote import file_system, is_url, reached

_READ_ONLY = ("http", "https")
_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "hf"})
"""Stores without folders: making one would make a bucket."""


def require_target(url: str, *, force: bool = False) -> None:
    """Raise RadinError where nothing can be uploaded, or something is there and ``force`` is not given."""
    with reached(url, "written"):
        files, path = target(url)
        if files.exists(path) and not force:
            raise RadinError("it exists; give another name, or --force to replace it")


def upload(local: Path, url: str, *, force: bool = False) -> str:
    """Copy a soup, a file or a folder, to a URL; the URL. Of a folder its index and config.json come last.

    A single file is there whole or not at all where the storage says so of an upload (S3, GCS). Raises RadinError.
    """
    with reached(url, "written"):
        files, path = target(url)
        if files.exists(path):
            if not force:
                raise RadinError("it exists; give another name, or --force to replace it")
            files.rm(path, recursive=True)
        if local.is_file():
            put(files, local, path)
            return url
        found = sorted((file for file in local.rglob("*") if file.is_file()), key=lambda file: (_is_head(file), file))
        for file in found:
            put(files, file, f"{path.rstrip('/')}/{file.relative_to(local).as_posix()}")
    return url


def target(url: str) -> tuple[Any, str]:
    """The file system of a URL that can be written to, and the path in it. Raises RadinError."""
    if not is_url(url):
        raise RadinError("it is no URL such as s3://bucket/soup.safetensors")
    if url.split("://", 1)[0].lower() in _READ_ONLY:
        raise RadinError("nothing can be uploaded by http; give a storage such as s3:// or gs://")
    return file_system(url)


def in_buckets(files: Any) -> bool:
    """Whether a file system is a store of objects in buckets, without folders."""
    names = [files.protocol] if isinstance(files.protocol, str) else files.protocol
    return not _OBJECTS.isdisjoint(names)


def put(files: Any, file: Path, path: str) -> None:
    """Upload one file. Raises RadinError where other than it arrived."""
    if not in_buckets(files):
        files.makedirs(files._parent(path), exist_ok=True)
    files.put_file(str(file), path)
    size = files.info(path)["size"]
    if size is not None and size != file.stat().st_size:
        raise RadinError(f"{printable(file.name)}: {size:,} bytes arrived of {file.stat().st_size:,}; upload it again")


def _is_head(file: Path) -> bool:
    """Whether a folder without this file is not taken for a model."""
    return file.name == "config.json" or file.name.endswith(".index.json")
