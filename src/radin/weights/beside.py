"""Members that are folders: whose files beside the weights a soup takes, where those differ, what they are from."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radin.errors import PoolError, printable
from radin.files import open_regular, read_json
from radin.recipe import Recipe
from radin.weights.adapters import CONFIG as ADAPTER_CONFIG
from radin.weights.alike import companions, suffix_of
from radin.weights.formats import Checkpoint
from radin.weights.limits import METADATA_BYTES
from radin.weights.pool import Pool

# What from_pretrained reads. Others beside the weights are copied, and may differ without a word.
_READ = re.compile(
    r".*config\.json|(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|spiece).*|.*\.model"
)
# How one training run's JSON differs from another's without a difference in the model.
_UNIMPORTANT = ("_name_or_path", "transformers_version", "_commit_hash", "peft_version")
_SHOWN = 5
_CARD_BYTES = 2**20
_REPOSITORY = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.-]{1,40})[\"']?[ \t]*$", re.MULTILINE)
_BASE = re.compile(r"^base_model:[ \t]*[\"']?([\w./-]{1,200})[\"']?[ \t]*$", re.MULTILINE)


def are_folders(pool: Pool) -> bool:
    """Whether each member is a folder, or becomes one: then a soup is one too."""
    return all(not suffix_of(member.checkpoint.form) for member in pool)


def files_source(pool: Pool, recipe: Recipe, files_from: str | None = None) -> int:
    """Index of the member whose form and further files a soup takes: the one named, or of the largest ratio.

    Of equals the first. Raises PoolError for a name that no member has.
    """
    if files_from is None:
        return recipe.weights.index(max(recipe.weights))
    if files_from not in pool.member_names:
        raise PoolError(f"files_from: no member is named {files_from!r}; members: {', '.join(pool.member_names)}")
    return pool.member_names.index(files_from)


def folder_of(checkpoint: Checkpoint) -> Path:
    """The folder in which a checkpoint's files are."""
    path = checkpoint.form.path
    return path if path.is_dir() else path.parent


def differences(folders: Sequence[Path], names: Sequence[str], source: int) -> tuple[str, ...]:
    """Where the members' files beside the weights differ from those that the soup takes, in sentences."""
    others = [(name, folder) for k, (name, folder) in enumerate(zip(names, folders, strict=True)) if k != source]
    others = [(name, folder) for name, folder in others if folder != folders[source]]
    held = {_relative(file, folders[source]) for file in companions(folders[source])}
    for _, folder in others:
        held |= {_relative(file, folder) for file in companions(folder)}
    found = []
    for file in sorted(name for name in held if _READ.fullmatch(Path(name).name)):
        told = [(name, how) for name, folder in others if (how := _difference(folders[source], folder, file))]
        if told:
            who = ", ".join(name for name, _ in told[:_SHOWN]) + (
                f" and {len(told) - _SHOWN} more" * (len(told) > _SHOWN)
            )
            found.append(f"{file} {told[0][1]} in {who}: the soup has {names[source]}'s")
    return tuple(found)


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _difference(ours: Path, theirs: Path, file: str) -> str | None:
    here, there = ours / file, theirs / file
    if here.is_file() != there.is_file():
        return "is not there" if here.is_file() else "is there and not beside the soup's weights"
    with suppress(OSError):
        if filecmp.cmp(here, there, shallow=False):
            return None
        try:
            one, other = read_json(here, METADATA_BYTES), read_json(there, METADATA_BYTES)
        except ValueError:
            return "differs"
        if not (isinstance(one, dict) and isinstance(other, dict)):
            return "differs"
        absent = object()
        keys = [key for key in {**one, **other} if one.get(key, absent) != other.get(key, absent)]
        keys = [key for key in keys if key not in _UNIMPORTANT]
        if not keys:
            return None
        shown = ", ".join(map(printable, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")
        return f"differs in {len(keys)} key{'s' * (len(keys) > 1)} ({shown})"
    return "cannot be compared"


@dataclass(frozen=True)
class Origin:
    """What the members' folders say of themselves, where all that say anything say the same; else None.

    base: the model that they were fine-tuned from. license: by its identifier. library: that opens them.
    """

    base: str | None = None
    license: str | None = None
    library: str | None = None

    @property
    def repository(self) -> str | None:
        """The base, if it can be the name of a repository and is no path."""
        named = self.base is not None and _REPOSITORY.fullmatch(self.base) and not self.base.startswith(".")
        return self.base if named else None


def origin(folders: Sequence[Path]) -> Origin:
    """Read from each folder's JSON and from the head of its model card."""
    cards = [_card_head(folder / "README.md") for folder in folders]
    bases = [_base(folder, card) for folder, card in zip(folders, cards, strict=True)]
    licenses = [found.group(1) if (found := _LICENSE.search(card)) else None for card in cards]
    return Origin(_same(bases), _same(licenses), _same([_library(folder) for folder in folders]))


def _same(values: Sequence[str | None]) -> str | None:
    """What all say. A license that some do not have is not all's."""
    return values[0] if len(set(values)) == 1 else None


def _card_head(path: Path) -> str:
    """What stands between the first two lines of three dashes; empty where there is none."""
    with suppress(OSError, ValueError), open_regular(path) as file:
        text = file.read(_CARD_BYTES).decode("utf-8")
        parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
        if len(parts) == 3 and not parts[0].strip():
            return parts[1]
    return ""


def _base(folder: Path, card: str) -> str | None:
    found = _json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        named = _BASE.search(card)
        found = named.group(1) if named else _json(folder / "config.json").get("_name_or_path")
    return found if isinstance(found, str) and 0 < len(found) <= 200 else None


def _library(folder: Path) -> str | None:
    config = _json(folder / "config.json")
    if (folder / ADAPTER_CONFIG).is_file():
        return "peft"
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    if "pretrained_cfg" in config:
        return "timm"
    return "transformers" if "model_type" in config or "architectures" in config else None


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = read_json(path, METADATA_BYTES)
        if isinstance(found, dict):
            return found
    return {}
