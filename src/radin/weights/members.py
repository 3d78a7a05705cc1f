"""What a pool of checkpoints and a pool of adapters have in common: their members, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar


class HasNameAndFingerprint(Protocol):
    """A member: what messages call it, and the hash of its content."""

    @property
    def name(self) -> str:
        """Unique in its pool."""

    @property
    def fingerprint(self) -> str:
        """The same for the same content."""


M = TypeVar("M", bound=HasNameAndFingerprint)


class Members(Generic[M]):
    """N members, no two the same. duplicates: (dropped path, kept path). found: notes on the search for them."""

    def __init__(
        self, members: Sequence[M], duplicates: Sequence[tuple[Path, Path]] = (), found: Sequence[str] = ()
    ) -> None:
        """Members as checked by whoever opened them."""
        self.members = tuple(members)
        self.duplicates = tuple(duplicates)
        self.found = tuple(found)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> M:
        return self.members[index]

    def __iter__(self) -> Iterator[M]:
        return iter(self.members)

    @property
    def member_names(self) -> tuple[str, ...]:
        """What messages and tables call the members, (N,), in the pool's order."""
        return tuple(member.name for member in self.members)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The hash of each member's content, (N,), in the pool's order."""
        return tuple(member.fingerprint for member in self.members)
