"""Names and messages as they may reach a terminal: every character visible, nothing raw."""

from __future__ import annotations

import pickle
import sys

import pytest

from radin.errors import CheckpointError, RadinError, printable, printable_lines

HOSTILE = {
    "escape": ("a\x1b[31mb", r"a\x1b[31mb"),
    "C0": ("a\nb\rc\td\x00", r"a\nb\rc\td\x00"),
    "DEL": ("a\x7f", r"a\x7f"),
    "C1": ("a\x9b31m", r"a\x9b31m"),
    "direction": ("a\u202egpj.\u2066", r"a\u202egpj.\u2066"),
    "no width": ("a\u200b\u200d\ufeff\u2060", r"a\u200b\u200d\ufeff\u2060"),
    "line separators": ("a\u2028b\u2029\x85", r"a\u2028b\u2029\x85"),
    "lone surrogate": ("a\udcff", r"a\udcff"),
    "tag": ("a\U000e0041", r"a\U000e0041"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_control_characters_are_escaped_as_repr_does(case: str) -> None:
    text, shown = HOSTILE[case]
    assert printable(text) == shown
    assert printable(shown) == shown  # twice is as once
    assert shown in str(CheckpointError(text.replace("\n", "\\n").replace("\t", "\\t")))


def test_every_character_of_unicode_comes_out_visible() -> None:
    for code in range(sys.maxunicode + 1):
        assert printable(chr(code)).isprintable()


def test_what_is_visible_stays() -> None:
    for text in ("plain name", "größe", "模型-3", "модель", "a\\b", "[bold]x[/]", "e\u0301", "🍲"):
        assert printable(text) == text


def test_a_message_keeps_its_own_lines_and_nothing_else() -> None:
    assert str(RadinError("one\n\ttwo\x1b[2J\rthree")) == "one\n\ttwo\\x1b[2J\\rthree"
    assert printable_lines("a\n\tb\x1b") == "a\n\tb\\x1b"


def test_an_error_is_pickled_and_raised_without_a_message() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("a\x1bb")))
    assert type(error) is CheckpointError
    assert str(error) == r"a\x1bb"
    assert str(RadinError()) == ""
