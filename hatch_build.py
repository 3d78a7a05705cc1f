"""What the package index shows: the README with absolute links, and the project's addresses.

The index shows no pictures and follows no links that are relative. Where the repository lives is told by whoever
publishes, in RADIN_REPOSITORY (https://HOST/OWNER/NAME); without it relative links become plain words, and pictures are
left out, so that nothing on the page leads nowhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAPER = "https://arxiv.org/abs/2401.17790"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def absolute(text: str, repository: str | None, version: str) -> str:
    """The text with its relative links and pictures at the version's tag in the repository, or without them."""

    def put(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if repository is None:
            return "" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/v{version}/{target})"

    fence = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(put, part) for part in fence.split(text))


def addresses(repository: str | None, version: str) -> dict[str, str]:
    """What the index links to."""
    if repository is None:
        return {"Paper": PAPER}
    return {
        "Repository": repository,
        "Documentation": f"{repository}/tree/v{version}/docs",
        "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
        "Paper": PAPER,
    }


def repository_given(value: str | None) -> str | None:
    """The address without a slash at its end; None where none is given. Raises ValueError for anything else."""
    if not value:
        return None
    if not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+/?", value):
        raise ValueError(f"RADIN_REPOSITORY must be like https://HOST/OWNER/NAME; got {value!r}")
    return value.rstrip("/")


class CustomMetadataHook(MetadataHookInterface):
    """Called by hatchling for the fields that pyproject.toml names as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in readme and urls."""
        repository = repository_given(os.environ.get("RADIN_REPOSITORY"))
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        version = metadata["version"]
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository, version)}
        metadata["urls"] = addresses(repository, version)
