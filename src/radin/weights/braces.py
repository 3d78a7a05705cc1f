"""Braces in what a user typed, as a shell expands them: {a,b}, {1..3}, {01..12}, {a..e}, one inside another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

PATHS = 10_000  # that braces may stand for
_BRACES = 100  # in one text
_NUMBERS = re.compile(r"(-?\d{1,9})\.\.(-?\d{1,9})(?:\.\.-?(\d{1,9}))?")
_LETTERS = re.compile(r"([a-zA-Z])\.\.([a-zA-Z])(?:\.\.-?(\d{1,9}))?")


def expanded(text: str) -> list[str]:
    """a{b,c{1..2}} as ab, ac1 and ac2, in a shell's order. Braces that hold neither a comma nor a range stay.

    Raises ValueError, which says how many, where they stand for too many paths.
    """
    if text.count("{") > _BRACES:
        raise ValueError(f"more than {_BRACES} braces")
    found: list[str] = []
    for path in _expand(text):
        found.append(path)
        if len(found) > PATHS:
            raise ValueError(f"its braces stand for more than {PATHS:,} paths")
    return found


def _expand(text: str) -> Iterator[str]:
    for start, end in _pairs(text):
        parts = _parts(text[start + 1 : end])
        if parts is not None:
            tails = list(_first(_expand(text[end + 1 :])))
            for part in parts:
                for inner in _expand(part):
                    yield from (text[:start] + inner + tail for tail in tails)
            return
    yield text


def _first(paths: Iterator[str]) -> Iterator[str]:
    """No more than are needed to see that they are too many."""
    for _, path in zip(range(PATHS + 1), paths, strict=False):
        yield path


def _pairs(text: str) -> list[tuple[int, int]]:
    """Where each brace begins and ends, those that begin first before others."""
    waiting, found = list[int](), []
    for place, character in enumerate(text):
        if character == "{":
            waiting.append(place)
        elif character == "}" and waiting:
            found.append((waiting.pop(), place))
    return sorted(found)


def _parts(inside: str) -> Sequence[str] | None:
    """What a brace stands for, by what is inside; None where it is no list and no range."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(inside[start:place])
            start = place + 1
    if parts:
        return [*parts, inside[start:]]
    if numbers := _NUMBERS.fullmatch(inside):
        first, last = numbers[1], numbers[2]
        padded = any(re.match(r"-?0\d", end) for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        return [f"{number:0{width}d}" for number in _range(int(first), int(last), numbers[3])]
    if letters := _LETTERS.fullmatch(inside):
        return [chr(code) for code in _range(ord(letters[1]), ord(letters[2]), letters[3])]
    return None


def _range(first: int, last: int, step: str | None) -> range:
    """Both ends in it, upwards or downwards."""
    by = max(int(step or 1), 1)
    found = range(first, last + 1, by) if first <= last else range(first, last - 1, -by)
    if len(found) > PATHS:
        raise ValueError(f"its braces stand for more than {PATHS:,} paths")
    return found
