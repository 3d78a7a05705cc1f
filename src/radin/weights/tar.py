"""The weights in a tar archive, as NeMo writes them (.nemo): found by the archive's headers and read where they lie."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from radin.files import open_regular

# In order of preference: what NeMo calls its weights.
_WEIGHTS = ("model_weights.ckpt", "model_weights.pt", "pytorch_model.bin")
_ENTRIES = 1_000  # an archive of NeMo's has a few: the configuration, the weights, a tokenizer's files


def weights_in(path: Path) -> tuple[int, int] | None:
    """Where the weights begin in the archive and how many bytes they have; None where there are none.

    Raises OSError, and ValueError for a damaged archive.
    """
    with open_regular(path) as file:
        found = _find(file)
    return None if found is None else (found.offset_data, found.size)


def write_like(source: Path, target: Path, write: Callable[[Path], None]) -> None:
    """Write the archive anew with other weights: ``write`` puts them into the file it is given. Raises OSError."""
    weights = target.with_name(target.name + ".weights")
    try:
        write(weights)
        with open_regular(source) as file, tarfile.open(target, "w:") as made:
            chosen = _find(file)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for entry in archive:
                    if chosen is not None and entry.name == chosen.name:
                        entry.size = weights.stat().st_size
                        entry.pax_headers = {}
                        with weights.open("rb") as content:
                            made.addfile(entry, content)
                    elif entry.isfile():
                        made.addfile(entry, archive.extractfile(entry))
                    elif entry.isdir():
                        made.addfile(entry)
    finally:
        weights.unlink(missing_ok=True)


def _find(file: object) -> tarfile.TarInfo | None:
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:  # type: ignore[call-overload]
            entries: dict[str, tarfile.TarInfo] = {}
            for number, entry in enumerate(archive):
                if number >= _ENTRIES:
                    raise ValueError(f"a tar archive of more than {_ENTRIES:,} entries")
                if entry.isreg() and not entry.issparse():
                    entries[entry.name.removeprefix("./")] = entry
    except (tarfile.TarError, OverflowError) as error:
        raise ValueError(f"a damaged tar archive: {error}") from None
    return next((entries[name] for name in _WEIGHTS if name in entries), None)
