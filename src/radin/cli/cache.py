"""radin cache: the copies of remote checkpoints on this machine."""

from __future__ import annotations

import time

import click

from radin.cli.shared import JSON, show, starting
from radin.errors import RadinError


@click.command()
@click.option("--clear", is_flag=True, help="Remove the copies, if no command of radin's is using them.")
@JSON
def cache(clear: bool, as_json: bool) -> None:
    """The copies of checkpoints from s3://, hf://, https:// and the like on this machine."""
    with starting():
        from radin.report.sentences import size
        from radin.weights import copies

    root = copies.folder()
    if root is None:
        raise RadinError("RADIN_CACHE=off, or no home folder: there is no cache, and nothing is copied")
    kept = copies.listing(root)
    freed = copies.clear(root) if clear else 0
    value = {"folder": str(root), "copies": [vars(place) for place in kept], "cleared_bytes": freed}
    if clear:
        show(value if as_json else None, f"{root}: cleared {size(freed)}")
        return
    lines = [
        f"  {place.place}: {place.files} file{'s' * (place.files != 1)}, {size(place.bytes)}, last used "
        f"{time.strftime('%Y-%m-%d', time.localtime(place.used))}"
        for place in kept
    ]
    show(value if as_json else None, f"{root}: {size(sum(place.bytes for place in kept))}", *lines)
