"""What a strategy is: a generator over a frozen problem, and one declaration that feeds API, CLI and help.

Axis names: members N, recipes S.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from radin.checks import fits, whole_number
from radin.errors import RadinError
from radin.progress import Progress, silent
from radin.question import GRADIENT_PASSES
from radin.recipe import Recipe
from radin.search.prior import ScorePrior
from radin.search.strategies.installed import load_installed

MOST_RECIPES = 10**7  # what may be asked for of candidates, and of whatever else is counted

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


Ratios = Floats | Recipe
"""Mixing ratios of a soup over the canonical order: (N,), or a recipe, which may hold some by group of tensors."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Some examples of a soup: ``ratios`` (N,) or a recipe, ``examples`` (m,) indices.

    Asked about only if, after paying for the examples not yet known, ``reserve`` passes are left.
    """

    ratios: Ratios
    examples: Indices
    reserve: float = 0.0


@dataclass(frozen=True, eq=False)
class Slope:
    """The value and gradient of an objective over some examples, by the ratios in each of ``groups``.

    Answered by (value, (1 + groups, N)), NaN for members of ratio 0; or None: not within the budget, or it failed.
    ``reserve``: as of a Slice.
    """

    ratios: Ratios
    examples: Indices
    objective: str
    groups: tuple[str, ...] = ()
    reserve: float = 0.0


@dataclass(eq=False)
class Ticket:
    """An opened question: ``done`` once it is answered, ``answer`` then what asking without opening would be sent."""

    done: bool = False
    answer: Any = None


@dataclass(frozen=True, eq=False)
class Open:
    """Ask, and continue before it is answered. ``reserve``: passes that must be left afterwards, as of a Slice."""

    ask: Ratios | Slice
    reserve: float = 0.0


@dataclass(frozen=True)
class Wait:
    """Continue when one of the open questions has been answered."""


Ask = Ratios | Slice | Slope | Open | Wait

Asks = Generator[Ask, Any, None]
"""A running strategy. It yields mixing ratios (N,), or a recipe over the canonical order where groups of tensors have
ratios of their own, and is sent the utility of their soup; or a Slice, and is sent the soup's utilities on those
examples (m,), NaN where its outputs are not finite. Or it opens either and is sent a Ticket: with one question open at
a time the ticket is answered before the strategy continues. Or it yields a Slope. A Slice, a Slope or an opened
question that the budget does not allow is answered with None."""


@dataclass(frozen=True)
class Examples:
    """What a strategy that asks about some examples only knows of them.

    ``count``: M. ``overhead``: the share of a pass that starting a soup costs (BatchNorm re-estimation). ``reading``:
    of the rest, the share that any question costs because all data are read for it. So m examples of a new soup cost
    overhead + (1 - overhead) (reading + (1 - reading) m / M). ``margins(ratios (S, N)) -> (S, M)``: by how much the
    averaged outputs are right (above zero) or wrong, infinite where all mixing ratios agree.
    ``answers(ratios (S, N), softening) -> three (S, M)``: where an example has many positions, what the averaged
    outputs add to the score in each example; the same with each position counted by how sure it is; and how much of it
    may change, where margins are taken to move by ``softening`` times a typical one. None: one answer in each example.
    """

    count: int
    overhead: float
    margins: Callable[[Floats], Floats]
    reading: float = 0.0
    answers: Callable[[Floats, float], tuple[Floats, Floats, Floats]] | None = None

    def cost(self, examples: int) -> float:
        """Passes that ``examples`` of a new soup cost."""
        if not self.reading:
            return self.overhead + (1 - self.overhead) * examples / self.count
        return self.overhead + (1 - self.overhead) * (self.reading + (1 - self.reading) * examples / self.count)

    @property
    def again(self) -> float:
        """Passes that every further question about a soup costs besides its examples."""
        return (1 - self.overhead) * self.reading


@dataclass(frozen=True)
class Gradients:
    """What a strategy that asks for gradients knows of them.

    ``objectives``: by name, the first for many examples and the last for few. ``groups``: groups of tensors by name,
    from coarse to fine: "one" set of ratios, "blocks", "modules". ``count``, ``overhead``, ``reading``: as of Examples.
    """

    objectives: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    count: int
    overhead: float = 0.0
    reading: float = 0.0

    def cost(self, examples: int) -> float:
        """Passes that a gradient over so many examples costs: forward one, backward two, and no BatchNorm statistics.

        They are re-estimated for soups that are evaluated; here each batch has its own.
        """
        share = self.reading + (1 - self.reading) * GRADIENT_PASSES * examples / self.count
        return (1 - self.overhead) * share

    def examples(self, passes: float) -> int:
        """How many examples a gradient may be over that costs at most so many passes."""
        share = (passes / (1 - self.overhead) - self.reading) / max(1 - self.reading, 1e-9) / GRADIENT_PASSES
        return int(min(max(share, 0.0), 1.0) * self.count + 1e-9)


@dataclass(frozen=True)
class Problem:
    """What a strategy knows before it spends anything. Utilities: higher is better, -inf for NaN.

    The members are in canonical order: best single utility first, equal ones by their keys. So no answer
    depends on the order in which a user lists the members, and "sorted best first" is simply 0, 1, 2, ...

    ``singles`` (N,) utilities of the members, known from their outputs.
    ``estimate(ratios (S, N)) -> (S,)`` utilities of the averaged outputs.
    ``budget``: passes over the examples, in all; a whole soup costs one.
    ``fit() -> (N,)``: the mixing ratios with the least cross-entropy, or squared error, of the averaged outputs; None
    where the targets allow neither.
    ``gram`` (N, N): inner products of the members' weights about any origin; None where they are not known.
    ``output_distances() -> (N, N)``: root mean square differences of the members' outputs; None where outputs are not
    kept. ``examples``: where soups may be evaluated on some examples only; else None.
    ``gradients``: where objectives can be differentiated by the ratios; else None. ``left()``: passes of the budget
    that are neither spent nor set aside for what is open.
    ``prior``: where there are no outputs, so that ``estimate`` is what the members' scores and distances lead one to
    expect; else None.
    ``affords``: about how many recipes ``estimate`` may be asked where it takes long; 0 where it does not.
    ``screen(problem)``: a cheap estimate that is close to it, for ranking very many; None where it is cheap itself.
    ``metric``: its name, and ``progress``: called while estimates are made, both for messages. ``slots``: how many
    questions may be open at once. ``among(some (n,)) -> Problem``: the same with some of the members and no others;
    None where that cannot be had.
    """

    members: int
    singles: Floats
    estimate: Callable[[Floats], Floats]
    budget: int
    seed: int
    fit: Callable[[], Floats] | None = None
    gram: Floats | None = None
    output_distances: Callable[[], Floats] | None = None
    examples: Examples | None = None
    gradients: Gradients | None = None
    left: Callable[[], float] = lambda: 0.0
    prior: ScorePrior | None = None
    affords: int = 0
    screen: Callable[[Problem], Callable[[Floats], Floats] | None] | None = None
    metric: str = "the metric"
    progress: Progress = silent
    slots: int = 1
    among: Callable[[Indices], Problem] | None = None


@dataclass(frozen=True)
class Option:
    """One setting of a strategy, as declared in its signature."""

    name: str
    kind: Any
    default: Any
    help: str
    least: int = 0

    @property
    def choices(self) -> tuple[str, ...]:
        """The words allowed, when the option is one of a few words; else empty."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def read(self, value: Any) -> Any:
        """The value in its declared kind, text read as JSON. Raises RadinError if it does not fit."""
        given = value
        if isinstance(value, str) and not self.choices:
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(value)
        if isinstance(value, list):
            value = tuple(value)
        numbers = [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, float)]
        if not fits(value, self.kind) or not all(map(isfinite, numbers)):
            raise RadinError(f"option {self.name!r} ({self.help}): expected {self.describe()}; got {given!r}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and not isinstance(number, bool) and self.kind is not float:
                whole_number(f"option {self.name!r} ({self.help})", number, self.least, MOST_RECIPES)
        return float(value) if self.kind is float else value

    def describe(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return " or ".join(repr(choice) for choice in self.choices)
        if self.kind is bool:
            return "true or false"
        return self.kind.__name__ if isinstance(self.kind, type) else str(self.kind)


@dataclass(frozen=True)
class Strategy:
    """A way to spend the budget.

    ``spends`` is False for one that evaluates no soup, ``geometry`` True for one that is better with ``Problem.gram``,
    ``outputs`` for one that means nothing without the members' outputs, ``independent`` for one whose questions depend
    on no answer, so that all may be open at once, ``gradients`` for one that is to have ``Problem.gradients``,
    ``leads`` for one that looks at the best members alone where there are very many (search/leading.py).
    """

    name: str
    summary: str
    run: Callable[..., Asks]
    options: tuple[Option, ...]
    spends: bool = True
    geometry: bool = False
    outputs: bool = False
    independent: bool = False
    gradients: bool = False
    leads: bool = False

    def settings(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All options with their values, defaults filled in. Raises RadinError for one that does not fit."""
        known = {option.name: option for option in self.options}
        values = {option.name: option.default for option in self.options}
        for name, value in (given or {}).items():
            if name not in known:
                listed = ", ".join(known) or "none"
                raise RadinError(f"strategy {self.name!r} has no option {name!r}; its options: {listed}")
            values[name] = known[name].read(value)
        return values


_STRATEGIES: dict[str, Strategy] = {}
_refused: dict[str, str] | None = None  # of other packages, why they cannot be used; None until they are looked for


def strategy(
    name: str,
    *,
    spends: bool = True,
    geometry: bool = False,
    outputs: bool = False,
    independent: bool = False,
    gradients: bool = False,
    leads: bool = False,
) -> Callable[[Callable[..., Asks]], Callable[..., Asks]]:
    """Register a generator function under ``name``.

    Its keyword-only parameters, each ``Annotated[type, "help"] = default``, or with the least value of a whole
    number after the help, are the options; the first line
    of its docstring is the summary. A registered strategy joins the conformance suite, ``radin.testing``. Packages of
    others declare theirs as entry points in the group "radin.strategies".
    """

    def register(function: Callable[..., Asks]) -> Callable[..., Asks]:
        hints = get_type_hints(function, include_extras=True)
        options = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                kind, text, *least = get_args(hints[parameter.name])
                options.append(Option(parameter.name, kind, parameter.default, text, *least))
        summary = (inspect.getdoc(function) or "").splitlines()[0]
        _STRATEGIES[name] = Strategy(
            name, summary, function, tuple(options), spends, geometry, outputs, independent, gradients, leads
        )
        return function

    return register


def names(*, without_outputs: bool = False) -> list[str]:
    """The names of all strategies, sorted; or of those only that need no outputs of the members."""
    _look_for_others()
    return sorted(name for name, known in _STRATEGIES.items() if not (without_outputs and known.outputs))


def get(name: str) -> Strategy:
    """The strategy of that name. Raises RadinError if there is none, or it is another package's and cannot be used."""
    if name not in _STRATEGIES:
        refused = _look_for_others()
        if name in refused:
            raise RadinError(refused[name])
    if name not in _STRATEGIES:
        raise RadinError(f"unknown strategy {name!r}; known: {', '.join(names())}")
    return _STRATEGIES[name]


def _look_for_others() -> dict[str, str]:
    """Import, once, the strategies of other installed packages; why some cannot be used, by name.

    Only where a name is not radin's own, or all are asked for: importing the code of others may take its time.
    """
    global _refused
    if _refused is None:
        _refused = {}  # a package that asks for strategies while it is imported does not come here again
        _refused = load_installed(_STRATEGIES)
    return _refused
