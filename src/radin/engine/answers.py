"""What a program answers: one number on its last line, or a JSON object. And text of its, made safe to show."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radin.question import Answer, answer_from_values

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
_OBJECTS = 50  # lines at which a JSON object of several lines is looked for
_WIDTH = 300  # characters shown of a line

EXPECTED = (
    'expected, as the last line of its standard output, one number (0.912) or a JSON object: {"score": 0.912}, '
    'with "stderr", "values" (one per example) and "further" ({"name": score}) if it likes'
)


class AnswerError(ValueError):
    """What a program printed is no answer; the message says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Parsed:
    """A program's answer as it gave it. values: (m,) or None; NaN where a number is not known or not finite."""

    score: float
    stderr: float = math.nan
    examples: int = 0
    values: NDArray[np.float64] | None = None
    further: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def answer(self, seconds: float) -> Answer:
        """As the engine's Answer: with values, score and standard error are theirs to the last digit."""
        if self.values is None:
            return Answer(self.score, self.stderr, self.examples, seconds, further=self.further)
        found = answer_from_values(self.values, seconds)
        stderr = found.stderr if math.isnan(self.stderr) else self.stderr
        return replace(found, stderr=stderr, further=self.further)


def parse(stdout: str, *, whole: bool = True) -> Parsed:
    """The answer in what a program printed. ``whole``: whether this is all of it, not only its end.

    Raises AnswerError.
    """
    text = stdout.strip()
    if not text:
        raise AnswerError("it printed nothing")
    last = text[text.rfind("\n") + 1 :].strip()
    if _NUMBER.fullmatch(last):
        return Parsed(_finite(float(last)))
    found = _last_object(text)
    if found is not None:
        return _from_object(found)
    if not whole and "\n" not in text:
        raise AnswerError(f"its last line is longer than the {len(stdout):,} characters that are kept")
    raise AnswerError(_no_answer(last))


def _finite(value: float) -> float:
    """A score that is infinite is as good as none, whichever direction is better."""
    return value if math.isfinite(value) else math.nan


def _last_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text ends with, in one line or in many."""
    for start in _line_starts(text):
        try:
            found = json.loads(text[start:])
        except (ValueError, RecursionError):
            continue
        return found if isinstance(found, dict) else None
    return None


def _line_starts(text: str) -> Iterator[int]:
    """Where lines start that open an object, from the last one back."""
    at = len(text)
    for _ in range(_OBJECTS):
        at = text.rfind("\n{", 0, at)
        if at < 0:
            break
        yield at + 1
    if text.startswith("{"):
        yield 0


def _no_answer(last: str) -> str:
    shown = repr(last if len(last) <= 80 else last[:77] + "...")
    if re.fullmatch(r"[+-]?[\d.]+\s*%", last):
        return f"its last line {shown} is a percentage: print {last.rstrip('% ')} or {float(last.rstrip('% ')) / 100:g}"
    if re.fullmatch(r"[+-]?\d+,\d+", last):
        return f"its last line {shown} has a decimal comma: print {last.replace(',', '.')}"
    inside = re.fullmatch(r"[\w.]+\(([^(),]+)(,.*)?\)", last)
    if inside and _NUMBER.fullmatch(inside.group(1).strip()):
        return f"its last line {shown} is not a plain number: print float(...) of it, {inside.group(1).strip()}"
    named = re.fullmatch(r"[^\d{}]*[:=]\s*(\S+)", last)
    if named and _NUMBER.fullmatch(named.group(1)):
        return f"its last line {shown} says more than a number: print {named.group(1)} alone"
    if last.endswith("}"):
        return f"its last line {shown} ends no whole JSON object"
    return f"its last line {shown} is not a number"


def _from_object(found: Mapping[str, Any]) -> Parsed:
    if "score" not in found:
        raise AnswerError(
            f'its JSON object has no "score"; it has {", ".join(map(repr, list(found)[:8])) or "nothing"}'
        )
    score = _number(found["score"], '"score"')
    stderr = _number(found["stderr"], '"stderr"') if found.get("stderr") is not None else math.nan
    if stderr < 0:
        raise AnswerError(f'"stderr" is negative: {stderr}')
    examples = found.get("examples", 0)
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 0:
        raise AnswerError(f'"examples" must be how many were scored; it is {_short(examples)}')
    values = None if found.get("values") is None else _values(found["values"])
    further = found.get("further") or {}
    if not isinstance(further, dict):
        raise AnswerError('"further" must be an object, {"name": score}')
    sets = {str(name): _further(str(name), value) for name, value in further.items()}
    if values is not None:
        _check_mean(score, values)
        examples = len(values)
    return Parsed(score, stderr, examples, values, sets)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        quoted = " without quotes" if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) else ""
        raise AnswerError(f"{what} must be a number{quoted}; it is {_short(value)}")
    try:
        return _finite(float(value))
    except OverflowError:
        return math.nan


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _values(found: Any) -> NDArray[np.float64]:
    if not isinstance(found, list) or not found:
        raise AnswerError(f'"values" must be a list with one number per example; it is {_short(found)}')
    if not all(value is None or isinstance(value, int | float) for value in found):
        at = next(k for k, v in enumerate(found) if v is not None and not isinstance(v, int | float))
        raise AnswerError(f'"values" must hold one number per example; value {at} is {_short(found[at])}')
    return np.array(found, dtype=np.float64)  # None becomes NaN, true becomes 1


def _further(name: str, value: Any) -> tuple[float, float]:
    if isinstance(value, dict):
        if "score" not in value:
            raise AnswerError(f'"further": {name!r} has no "score"')
        stderr = value.get("stderr")
        error = math.nan if stderr is None else _number(stderr, f'"further": stderr of {name!r}')
        return _number(value["score"], f'"further": score of {name!r}'), error
    return _number(value, f'"further": {name!r}'), math.nan


def _check_mean(score: float, values: NDArray[np.float64]) -> None:
    """Raise AnswerError unless the score is the mean of the values, as far as the digits that it was given with."""
    if not np.isfinite(values).all():
        return
    mean = float(values.mean())
    exponent = Decimal(repr(score)).as_tuple().exponent if math.isfinite(score) else 0
    decimals = max(-exponent if isinstance(exponent, int) else 0, 2 if abs(score) <= 1 else 1)
    if not abs(score - mean) <= 0.5 * 10.0**-decimals + 1e-6 * max(1.0, abs(mean)):
        raise AnswerError(
            f'"score" is {score:g}, but the mean of its {len(values):,} "values" is {mean:g}. With values the score '
            "must be their mean; leave them out where the metric is none"
        )


def shown_lines(text: str, most: int) -> list[str]:
    """The last lines of a program's text, without what could change a terminal; of a progress bar only its end."""
    lines = []
    for line in reversed(text.rstrip().split("\n")[-10 * most :]):
        # A carriage return starts a line over.
        clean = _ESCAPE.sub("", line.rstrip("\r").rpartition("\r")[2])
        clean = "".join(c for c in clean.expandtabs(4) if c.isprintable()).rstrip()
        if clean:
            lines.append(clean if len(clean) <= _WIDTH else clean[: _WIDTH - 3] + "...")
        if len(lines) == most:
            break
    return lines[::-1]
