"""A folder behind a URL (s3://, gs://, ...) that machines share: files are fetched from it, and sent to it, whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from radin.errors import RadinError, printable
from radin.files import replacing, told
from radin.progress import Progress, logged
from radin.weights.remote import reached
from radin.weights.uploads import in_buckets, put, target


class SharedFolder:
    """``names``: of the files that are there, as far as this process knows. The folder need not exist yet.

    Raises PoolError where the library is missing, the URL cannot be reached, or nothing can be written there.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with reached(url):
            self._files, self._path = target(url)
            self._path = self._path.rstrip("/")
            try:
                entries = self._files.ls(self._path, detail=True)
            except FileNotFoundError:
                if in_buckets(self._files) and not self._files.exists(self._path.split("/", 1)[0]):
                    raise RadinError("there is no such bucket") from None
                entries = []
        self._sizes = {
            str(entry["name"]).rsplit("/", 1)[-1]: int(entry.get("size") or 0)
            for entry in entries
            if entry["type"] == "file"
        }

    @property
    def names(self) -> Collection[str]:
        """Of the files that are there."""
        return self._sizes.keys()

    def forget(self, name: str) -> None:
        """Take a file for one that is not there: it is damaged, and to be sent anew."""
        self._sizes.pop(name, None)

    def fetch(self, places: Sequence[Path], progress: Progress | None = None) -> None:
        """Copy the files of these names to these places, each whole or not at all; those that are not there are not.

        ``progress`` is told the bytes. Raises PoolError, StorageError.
        """
        wanted = [place for place in places if place.name in self._sizes]
        report, done, total = logged(progress), 0, sum(self._sizes[place.name] for place in wanted)
        for place in wanted:
            report(f"copying {printable(self.url)[:60]}", done, total)
            with (
                told(place, needs=self._sizes[place.name]),
                replacing(place) as temporary,
                reached(f"{self.url.rstrip('/')}/{place.name}"),
            ):
                self._files.get_file(f"{self._path}/{place.name}", str(temporary))
            done += self._sizes[place.name]

    def send(self, file: Path) -> None:
        """Upload a file under its own name, in the place of one that is there. Raises PoolError."""
        with reached(self.url, "written"):
            put(self._files, file, f"{self._path}/{file.name}")
        self._sizes[file.name] = file.stat().st_size
