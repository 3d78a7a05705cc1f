"""Checkpoints behind URLs (s3://, gs://, hf://, https://...), through fsspec, copied to radin's cache folder once.

A copy is kept under the URL's own path, and beside it what the remote said of the file then (etag, size, time). Where
the remote says anything else today, the file is fetched anew. Credentials are the library's own business.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import quote

from radin.errors import PoolError, RadinError, printable
from radin.files import replacing, told
from radin.weights.kinds import SHARED_SUFFIXES, SUFFIXES
from radin.weights.remembered import cache_folder
from radin.weights.searching import Found, Search, is_not_weights

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp",
    "https": "aiohttp", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "oss": "ossfs", "sftp": "paramiko",
    "ssh": "paramiko", "webdav": "webdav4", "hdfs": "pyarrow", "box": "boxfs", "dropbox": "dropboxdrivefs",
}  # fmt: skip
# What a remote says of a file that is another where the file is: whichever of these it has.
_VERSION = (
    "size", "ETag", "etag", "Content-MD5", "md5Hash", "md5", "crc32c", "generation", "VersionId", "lfs", "blob_id",
    "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created",
)  # fmt: skip
_SMALL = 64 * 2**20  # a checkpoint folder's other files (configuration, tokenizer) are fetched up to this size
_KEPT_AS = ".json"


def is_url(item: object) -> bool:
    """Whether this is a URL and no path."""
    return isinstance(item, str) and _URL.match(item) is not None


def fetch(url: str) -> Found:
    """The checkpoints behind a URL: a file, a folder or a pattern, as copies on this machine, in order.

    Raises PoolError where there are none or the library is missing.
    """
    root = cache_folder()
    if root is None:
        raise PoolError(
            f"{printable(url)}: is copied to radin's cache folder first, and RADIN_CACHE=off says to have none"
        )
    with _reached(url):
        files, path = _file_system(url)
        place = _Remote(files, root.parent / "remote" / url.split("://", 1)[0].lower(), url)
        return place.found(path)


def _file_system(url: str) -> tuple[Any, str]:
    protocol = url.split("://", 1)[0].lower()
    package = _PACKAGES.get(protocol)
    try:
        import fsspec
    except ImportError:
        names = " ".join(dict.fromkeys(["fsspec", *([package] if package else [])]))
        raise PoolError(f"{printable(url)}: needs a library that is not installed: pip install {names}") from None
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError:
        raise PoolError(
            f"{printable(url)}: needs a library that is not installed: pip install {package or protocol + 'fs'}"
        ) from None
    except ValueError as error:
        raise PoolError(f"{printable(url)}: no library for {protocol}:// is known ({error})") from None
    files.invalidate_cache()  # a listing of a minute ago would hide what was written since
    return files, path


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Errors of a library, which may be of any class, as one message about the URL."""
    try:
        yield
    except RadinError:
        raise
    except FileNotFoundError:
        raise PoolError(f"{printable(url)}: no such file or folder") from None
    except Exception as error:  # botocore's, aiohttp's, requests'
        said = printable(str(error))[:300] or "no reason given"
        raise PoolError(
            f"{printable(url)}: cannot be read: {type(error).__name__}: {said}. Credentials are looked for where the "
            "library always does (environment, its own configuration)."
        ) from error


class _Remote:
    """One file system, as a Tree, and the copies of its files under ``root``."""

    def __init__(self, files: Any, root: Path, url: str) -> None:
        self._files = files
        self._root = root
        self._url = url
        self._sizes: dict[str, int] = {}

    def found(self, path: str) -> Found:
        """The copies of what is there."""
        if any(character in path for character in "*?["):
            matches = sorted(str(match) for match in self._files.glob(path))
            usable = [match for match in matches if not is_not_weights(PurePosixPath(match).name)]
            found = [one for match in usable for one in self._behind(match, searched=True).paths]
            if not found:
                raise PoolError(
                    f"{printable(self._url)}: no checkpoints found: none of its {len(matches)} matches is one"
                )
            left = len(matches) - len(usable)
            notes = [f"{printable(self._url)}: left out {left} matches that hold no weights"] if left else []
            return Found(found, set(found), notes)
        return self._behind(path, searched=False)

    def _behind(self, path: str, *, searched: bool) -> Found:
        if not self._files.isdir(path):
            if searched and not self.is_checkpoint(PurePosixPath(path)):
                return Found()
            return Found([self._copy(path)], set())
        walk = Search(self)
        walk.run(PurePosixPath(path))
        if not walk.taken and not searched:
            raise PoolError(f"{printable(self._url)}: no checkpoints found: no file in it or below is one")
        taken = [self._copied(found) for found in walk.taken]
        return Found(taken, set(taken), list(walk.notes(PurePosixPath(path))))

    def entries(self, folder: PurePath) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders in it."""
        files, folders = [], []
        for entry in self._files.ls(str(folder), detail=True):
            name = PurePosixPath(str(entry["name"]).rstrip("/")).name
            if name == folder.name and str(entry["name"]).strip("/") == str(folder).strip("/"):
                continue  # an object that stands for the folder itself
            if name.startswith(".") and name != ".metadata":
                continue
            if entry["type"] == "directory":
                folders.append(name)
            else:
                files.append(name)
                self._sizes[str(folder / name)] = int(entry.get("size") or 0)
        return files, folders

    def is_checkpoint(self, path: PurePath) -> bool:
        """By its name: what is in it is seen when it is here."""
        return path.suffix in SUFFIXES or (path.suffix in SHARED_SUFFIXES and path.suffix != "")

    def identity(self, folder: PurePath) -> object:
        """Its path."""
        return str(folder)

    def _copied(self, found: PurePath) -> Path:
        """The copy of a checkpoint: a file, or a folder with what belongs to it."""
        if not self._files.isdir(str(found)):
            return self._copy(str(found))
        files, _ = self.entries(found)
        safe = any(name.endswith(".safetensors") for name in files)
        for name in files:
            weights = PurePosixPath(name).suffix in SUFFIXES or name.endswith(".distcp")
            if is_not_weights(name) or (safe and weights and not name.endswith(".safetensors")):
                continue
            if weights or self._sizes[str(found / name)] <= _SMALL:
                self._copy(str(found / name))
        return self._place(str(found))

    def _place(self, path: str) -> Path:
        """Where the copy is: the same path, made of names that any file system takes."""
        shown = path.split("://", 1)[-1].split("?")[0]
        shown = shown.rsplit("@", 1)[-1] if self._root.name in ("http", "https", "sftp", "ssh") else shown  # a password
        parts = [quote(part, safe=" @+=,()[]{}")[:200] for part in shown.split("/") if part not in ("", ".")]
        parts = ["%2E%2E" if part == ".." else part for part in parts]
        if "?" in path:
            parts.insert(0, hashlib.sha256(path.encode()).hexdigest()[:12])
        return self._root.joinpath(*parts)

    def _copy(self, path: str) -> Path:
        """The copy of a file: the one that is there if the remote's is still the same, else made now."""
        place = self._place(path)
        info = self._files.info(path)
        version = json.dumps({name: str(info[name]) for name in _VERSION if info.get(name) is not None})
        note = place.with_name(f".{place.name}{_KEPT_AS}")
        with suppress(OSError, ValueError):
            if note.read_text(encoding="utf-8") == f"{place.stat().st_size}\n{version}" and version != "{}":
                return place
        with told(place, needs=int(info.get("size") or 0)):
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(place) as temporary:
                self._files.get_file(path, str(temporary))
            size = place.stat().st_size
            if info.get("size") is not None and size != int(info["size"]):
                place.unlink(missing_ok=True)
                raise PoolError(
                    f"{printable(self._url)}: {size:,} bytes came of {info['size']:,}; give the command again"
                )
            with replacing(note, durable=False) as temporary:
                temporary.write_text(f"{size}\n{version}", encoding="utf-8")
        return place
