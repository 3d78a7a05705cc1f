"""A pool whose content was not read yet, to be checked in the same reading as it is averaged."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from radin.weights.content import Content, Digests
from radin.weights.pool import Opened, Pool
from radin.weights.remembered import file_states, recall, remember

_HEX_DIGITS = 32  # bytes of a fingerprint


class MistakenError(Exception):
    """Members turned out not to be what was assumed of them. ``pool``: what there is.

    Some hold the same weights, so that the recipe was for more than there are; or what ``expect`` said is wrong.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__("members are not what was assumed")
        self.pool = pool


class Unread:
    """Checkpoints that fit together by their headers. ``pool``: as if their content were in order and all different.

    Members whose content is remembered have their fingerprints; the others a text of the same length in its place, and
    an entry in ``digests``, to be fed with their content. ``settle`` then does what ``Pool.open`` would have done.
    """

    def __init__(self, opened: Opened) -> None:
        """Raises PoolError, CheckpointError for what is known to be no pool."""
        self._opened = opened
        self._states = [file_states(checkpoint) for checkpoint in opened.checkpoints]
        known = [recall(checkpoint, now) for checkpoint, now in zip(opened.checkpoints, self._states, strict=True)]
        self._contents = [content or Content(secrets.token_hex(_HEX_DIGITS)) for content in known]
        self.pool = Pool.of(opened, self._contents)
        places = {id(member.checkpoint): index for index, member in enumerate(self.pool)}
        self._found = {k: Digests(checkpoint) for k, checkpoint in enumerate(opened.checkpoints) if known[k] is None}
        self.digests: Mapping[int, Digests] = {
            places[id(digests.checkpoint)]: digests for digests in self._found.values()
        }
        self._expected: dict[int, str] = {}
        self._filled: dict[str, str] = {}

    def expect(self, fingerprints: Mapping[int, str]) -> None:
        """Have ``settle`` make sure that these members, by their place in the pool, have these fingerprints."""
        self._expected.update(fingerprints)

    def settle(self) -> Pool:
        """The pool, once all digests are complete; what was found is remembered.

        Raises PoolError or CheckpointError where it is none, MistakenError where members hold the same weights or not
        those that were expected.
        """
        contents = list(self._contents)
        for k, digests in self._found.items():
            contents[k] = digests.content()
            remember(digests.checkpoint, self._states[k], contents[k])
        pool = Pool.of(self._opened, contents)
        different = [member.checkpoint for member in pool] != [member.checkpoint for member in self.pool]
        if different or any(pool[index].fingerprint != text for index, text in self._expected.items()):
            raise MistakenError(pool)
        self._filled = {self._contents[k].fingerprint: contents[k].fingerprint for k in self._found}
        return pool

    def filled_in(self, strings: Mapping[str, str]) -> dict[str, str]:
        """The same strings with the fingerprints that are known now."""
        result = dict(strings)
        for name, text in result.items():
            for before, now in self._filled.items():
                text = text.replace(before, now)
            result[name] = text
        return result
