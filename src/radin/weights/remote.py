"""Checkpoints behind URLs (s3://, gs://, hf://, https://...), through fsspec, copied to radin's cache folder once.

A copy is kept under the URL's own path: see radin.weights.copies. Where the remote says anything else of the file
today, it is fetched anew. Credentials are the library's own business.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import quote

from radin.errors import PoolError, RadinError, StorageError, printable
from radin.progress import Progress, logged
from radin.weights import copies
from radin.weights.kinds import SHARED_SUFFIXES, SUFFIXES
from radin.weights.searching import Found, Search, is_not_weights

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp",
    "https": "aiohttp", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "oss": "ossfs", "sftp": "paramiko",
    "ssh": "paramiko", "webdav": "webdav4", "hdfs": "pyarrow", "box": "boxfs", "dropbox": "dropboxdrivefs",
}  # fmt: skip
_WEB = ("http", "https")
_SMALL = 64 * 2**20  # a checkpoint folder's other files (configuration, tokenizer) are fetched up to this size
_TRIES = 3  # for a file that changes while it is copied
_SHOWN = 60  # characters of a URL beside the bar


def is_url(item: object) -> bool:
    """Whether this is a URL and no path."""
    return isinstance(item, str) and _URL.match(item) is not None


def fetch(url: str, progress: Progress | None = None) -> Found:
    """The checkpoints behind a URL: a file, a folder or a pattern, as copies on this machine, in order.

    ``progress`` is told the bytes of what has to be copied. Raises PoolError where there are none or the library is
    missing.
    """
    with _remote(url) as (remote, path):
        found = remote.found(path)
        remote.copy_all(logged(progress))
        return found


def fetch_files(url: str, progress: Progress | None = None) -> Path:
    """A file behind a URL, or a folder with all files below it, whatever they hold: its copy on this machine.

    Raises PoolError where nothing is there, the library is missing, or copies are kept nowhere (RADIN_CACHE=off).
    """
    with _remote(url) as (remote, path):
        place = remote.everything(path)
        remote.copy_all(logged(progress))
        return place


@contextmanager
def _remote(url: str) -> Iterator[tuple[_Remote, str]]:
    """What is behind a URL, to be copied, and the path there. Raises PoolError where copies are kept nowhere."""
    root = copies.folder()
    if root is None:
        raise PoolError(
            f"{printable(url)}: is copied to radin's cache folder first, and RADIN_CACHE=off says to have none"
        )
    with reached(url):
        files, path = file_system(url)
        copies.use(root)
        yield _Remote(files, root / url.split("://", 1)[0].lower(), url), path


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises PoolError where its library is missing."""
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
def reached(url: str, doing: str = "read") -> Iterator[None]:
    """Errors of a library, which may be of any class, as one message about the URL."""
    try:
        yield
    except (PoolError, StorageError):
        raise
    except RadinError as error:
        raise PoolError(f"{printable(url)}: {error}") from None
    except FileNotFoundError:
        raise PoolError(f"{printable(url)}: no such file or folder") from None
    except Exception as error:  # botocore's, aiohttp's, requests'
        said = printable(str(error))[:300] or "no reason given"
        raise PoolError(
            f"{printable(url)}: cannot be {doing}: {type(error).__name__}: {said}. Credentials are looked for where "
            "the library always does (environment, its own configuration)."
        ) from error


class _Remote:
    """One file system, as a Tree, and the copies of its files under ``root``."""

    def __init__(self, files: Any, root: Path, url: str) -> None:
        self._files = files
        self._root = root
        self._url = url
        self._sizes: dict[str, int] = {}
        self._lacking: dict[Path, copies.Copy] = {}
        self._is_web = root.name in _WEB

    def copy_all(self, progress: Progress) -> None:
        """Fetch what ``found`` came by and is not here."""
        what = f"copying {self._url[:_SHOWN]}"
        sizes = [copy.size for copy in self._lacking.values()]
        total = sum(size for size in sizes if size is not None) if None not in sizes else None
        done = 0
        for copy in self._lacking.values():
            progress(what, done, total)
            with copies.alone(copy.place):  # another process may be copying it just now
                if not copy.is_there():
                    self._fetch(copy, lambda came, before=done: progress(what, before + came, total))  # type: ignore[misc]
            done += copy.place.stat().st_size
        if self._lacking:
            progress(what, done, done)

    def _fetch(self, copy: copies.Copy, report: Callable[[int], None]) -> None:
        """Copy a file; anew where it has become another one meanwhile. Raises RadinError, StorageError."""
        for _ in range(_TRIES):
            with suppress(copies.ChangedError):
                copy.make(self._get, report, self._version)
                return
            copy = copies.Copy.of(copy.source, copy.place, self._files.info(copy.source))
        raise RadinError(f"it changed {_TRIES} times while it was copied; give the command again when it is whole")

    def _version(self, source: str) -> Mapping[str, str]:
        """What the remote says of a file now."""
        self._files.invalidate_cache()
        return copies.Copy.of(source, self._root, self._files.info(source)).version

    def _get(self, source: str, file: str) -> None:
        if self._root.name != "hf":
            self._files.get_file(source, file)
            return
        from fsspec.callbacks import TqdmCallback  # no bar of its own beside ours; any other callback makes it slow

        self._files.get_file(source, file, callback=TqdmCallback(tqdm_kwargs={"disable": True}))

    def found(self, path: str) -> Found:
        """Where the copies of what is there will be."""
        if any(character in path for character in ("*[" if self._is_web else "*?[")):  # a web address has queries
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
        if not self._is_folder(path):
            if searched and not self.is_checkpoint(PurePosixPath(path)):
                return Found()
            return Found([self._copy(path)], set())
        walk = Search(self)
        walk.run(PurePosixPath(path))
        if not walk.taken and not searched:
            raise PoolError(f"{printable(self._url)}: no checkpoints found: no file in it or below is one")
        taken = [self._copied(found) for found in walk.taken]
        return Found(taken, set(taken), list(walk.notes(PurePosixPath(path))))

    def everything(self, path: str) -> Path:
        """Where the copy of a file will be, or of a folder with all below it; copies of what is gone are removed."""
        if not self._is_folder(path):
            return self._copy(path)
        root = self._place(path)
        kept = {self._copy(str(file)) for file in self._files.find(path)}
        if not kept:
            raise PoolError(f"{printable(self._url)}: no such file or folder")
        for file in root.rglob("*"):
            if file.is_file() and not file.name.startswith(".") and file not in kept:
                file.unlink(missing_ok=True)
        return root

    def entries(self, folder: PurePath) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders in it."""
        files, folders = [], []
        for entry in self._files.ls(self._address(folder), detail=True):
            name = PurePosixPath(str(entry["name"]).rstrip("/")).name
            if name == folder.name and str(entry["name"]).strip("/") == str(folder).strip("/"):
                continue  # an object that stands for the folder itself
            if name.startswith(".") and name != ".metadata":
                continue
            if entry["type"] == "directory":
                folders.append(name)
            else:
                files.append(name)
                if entry.get("size") is not None:
                    self._sizes[str(folder / name)] = int(entry["size"])
        return files, folders

    def _address(self, path: PurePath) -> str:
        """What the library calls it: where a path has one slash, an address of the web has two."""
        return re.sub(r"^(https?):/(?!/)", r"\1://", str(path)) if self._is_web else str(path)

    def _is_folder(self, path: str) -> bool:
        """Whether this is one. The web has none, only pages of links, and a file's content is no such page."""
        if self._is_web and PurePosixPath(path.split("?")[0]).suffix in (*SUFFIXES, *SHARED_SUFFIXES[:-1]):
            return False
        return bool(self._files.isdir(path))

    def is_checkpoint(self, path: PurePath) -> bool:
        """By its name: what is in it is seen when it is here."""
        return path.suffix in SUFFIXES or (path.suffix in SHARED_SUFFIXES and path.suffix != "")

    def identity(self, folder: PurePath) -> object:
        """Its path."""
        return str(folder)

    def _copied(self, found: PurePath) -> Path:
        """The copy of a checkpoint: a file, or a folder with what belongs to it."""
        address = self._address(found)
        if not self._is_folder(address):
            return self._copy(address)
        files, _ = self.entries(found)
        safe = any(name.endswith(".safetensors") for name in files)
        for name in files:
            weights = PurePosixPath(name).suffix in SUFFIXES or name.endswith(".distcp")
            if is_not_weights(name) or (safe and weights and not name.endswith(".safetensors")):
                continue
            if weights or self._size(found / name) <= _SMALL:
                self._copy(self._address(found / name))
        return self._place(address)

    def _size(self, path: PurePath) -> int:
        """Of a file: as the listing of its folder has it, or the file itself; very large where nobody knows."""
        if str(path) not in self._sizes:
            size = self._files.info(self._address(path)).get("size")
            self._sizes[str(path)] = _SMALL + 1 if size is None else int(size)
        return self._sizes[str(path)]

    def _place(self, path: str) -> Path:
        """Where the copy is: the same path, made of names that any file system takes."""
        shown = path.split("://", 1)[-1].split("?")[0]
        shown = shown.rsplit("@", 1)[-1] if self._root.name in (*_WEB, "sftp", "ssh") else shown  # a password
        parts = [quote(part, safe=" @+=,()[]{}")[:200] for part in shown.split("/") if part not in ("", ".")]
        parts = ["%2E%2E" if part == ".." else part for part in parts]
        if "?" in path:
            parts.insert(0, hashlib.sha256(path.encode()).hexdigest()[:12])
        return self._root.joinpath(*parts)

    def _copy(self, path: str) -> Path:
        """Where the copy of a file is, or will be if the one that is there is not what the remote has."""
        copy = copies.Copy.of(path, self._place(path), self._files.info(path))
        if not copy.is_there():
            self._lacking[copy.place] = copy
        return copy.place
