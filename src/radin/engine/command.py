"""Any program is an evaluator: it gets the path of a soup and prints a score."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radin.checks import whole_number
from radin.engine.answers import EXPECTED, AnswerError, Parsed, parse, shown_lines
from radin.engine.base import Engine
from radin.engine.process import Finished, run_shell, signal_name
from radin.engine.soup_files import SoupFiles, Stopped
from radin.engine.sources import named_files
from radin.engine.template import Template
from radin.errors import RadinError
from radin.metrics import Metric
from radin.question import VALIDATION, Answer, Failure, Floats, Question, Rates
from radin.recipe import Recipe
from radin.weights import Pool, batchnorm_layers, integer_source
from radin.weights.alike import suffix_of

_STDERR_LINES, _STDOUT_LINES = 15, 5


@dataclass(frozen=True)
class Command:
    """A program that scores soups.

    command: a line for /bin/sh, in which {soup}, {slot}, {examples} and {out} are filled in, quoted as they need it;
    see radin.engine.template.PLACEHOLDERS. The same are in its environment as RADIN_SOUP, RADIN_SLOT, RADIN_EXAMPLES
    and RADIN_OUT. The last line that it prints is its answer; see radin.engine.answers.EXPECTED. higher_is_better:
    which scores are better. jobs: how many may run at once. timeout: seconds that one may take. retries: how often
    one that failed is run again. metric: what to call the score.

    Raises RadinError for what cannot be run.
    """

    command: str
    higher_is_better: bool = True
    jobs: int = 1
    timeout: float | None = None
    retries: int = 0
    metric: str = "score"

    def __post_init__(self) -> None:
        if not isinstance(self.command, str) or not self.command.strip():
            raise RadinError(f"a command is text such as './score.sh {{soup}}'; got {self.command!r}")
        if "\0" in self.command:
            raise RadinError("a command cannot hold a NUL character")
        Template.parse(self.command)
        whole_number("jobs", self.jobs, 1, 1024)
        whole_number("retries", self.retries, 0)
        timeout = self.timeout
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf
        ):
            raise RadinError(f"timeout must be a number of seconds above 0; got {timeout!r}")

    def utility(self, score: float) -> float:
        """The score with its sign set so that higher is better; NaN, which no argmax may see, is -inf."""
        if math.isnan(score):
            return -math.inf
        return score if self.higher_is_better else -score


def _not_here(outputs: Any, targets: Any) -> float:
    raise RadinError("only the program can score outputs")


class CommandEngine(Engine):
    """Answers by running a program of the user's, ``command.jobs`` at a time.

    pool: the members, which are scored on their own files. scratch: a folder for soups and for what the programs write;
    it holds one soup per job at most, and only what engines put there is ever removed. integers_from: the member whose
    integer tensors soups take. examples: M where it is known, else it is learned from the first answer with values.

    Raises RadinError for an unknown member and when the disk has no room.
    """

    def __init__(
        self,
        pool: Pool,
        command: Command,
        scratch: Path,
        integers_from: str | None = None,
        examples: int = 0,
        files_from: str | None = None,
    ) -> None:
        if os.name != "posix":
            raise RadinError(
                "a command is run by /bin/sh in a process group of its own, which this system does not have"
            )
        integer_source(pool, Recipe.single(0, len(pool)), integers_from)
        self._pool = pool
        self.command = command
        self.metric = Metric(command.metric, command.higher_is_better, "any", _not_here)
        self.slots = command.jobs
        self.soup_name = "soup" + suffix_of(pool[0].checkpoint.form)
        self._template = Template.parse(command.command)
        self.parts = "examples" in self._template.placeholders
        self._integers_from = integers_from
        self._examples = examples
        self._files = SoupFiles(pool, Path(scratch), command.jobs, integers_from, files_from)
        self._identity = self._describe()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._free = list(range(self.slots))
        self._threads: dict[Question, threading.Thread] = {}
        self._results: queue.SimpleQueue[tuple[Question, Answer | Failure | BaseException]] = queue.SimpleQueue()
        self._error: BaseException | None = None

    @property
    def examples(self) -> int:
        """How many examples there are; 0 until an answer has told by its values."""
        return self._examples

    def bind(self, data: str, rates: Rates) -> None:
        """How many examples there are, where an earlier session has been told."""
        self._examples = rates.examples

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before anything is spent."""
        layers = len(batchnorm_layers(self._pool))
        if not layers:
            return ()
        return (
            f"the members have {layers} BatchNorm layer{'s' * (layers > 1)}, whose statistics are averaged like all "
            "else and so do not fit a soup: let the program estimate them again before it scores",
        )

    def identity(self) -> Mapping[str, Any]:
        """The command, the direction, and the content of every file that the command names, as at the start."""
        return self._identity

    def _describe(self) -> dict[str, Any]:
        files = named_files(self.command.command, Path.cwd())
        return {
            "the command": self.command.command,
            "better scores": "higher" if self.command.higher_is_better else "lower",
            "integers from": self._integers_from or "the member with the largest ratio",
            **{f"the file {name}": content for name, content in files.items()},
        }

    def submit(self, question: Question) -> None:
        """Raises RadinError when all slots are in work, and for what ``check`` refuses."""
        self.check(question)
        self._files.prepare()
        with self._lock:
            if not self._free:
                raise RadinError(f"all {self.slots} slots are in work")
            slot = self._free.pop(0)
            thread = threading.Thread(target=self._work, args=(question, slot), name=f"radin slot {slot}")
            self._threads[question] = thread
        thread.start()

    def check(self, question: Question) -> None:
        """Raise RadinError for what the command cannot be asked: a split, since it scores one set, or some examples."""
        if question.split != VALIDATION:
            raise RadinError(f"a command scores one set; it cannot be asked about {question.split!r}")
        if question.examples is not None and "examples" not in self._template.placeholders:
            raise RadinError("the command cannot score some of the examples: it has no {examples}")
        if self._stop.is_set():
            raise RadinError("the engine is closed")

    def wait(self, timeout: float | None = None) -> list[tuple[Question, Answer | Failure]]:
        """What has been answered. What makes further questions pointless is raised after the answers at hand."""
        found: list[tuple[Question, Answer | Failure]] = []
        while self._threads:
            at_once = bool(found) or self._error is not None  # then only what else is there already
            try:
                question, result = self._results.get(timeout=0 if at_once else timeout)
            except queue.Empty:
                break
            self._threads.pop(question).join()
            if isinstance(result, BaseException):
                self._error = result
            else:
                found.append((question, result))
        if self._error is not None and not found:
            raise self._error
        return found

    def write(self, recipe: Recipe, path: Path) -> None:
        """Write a soup, whole or not at all: to ``soup_name`` in the members' own format, else as the ending says.

        Raises CheckpointError.
        """
        self._files.write(recipe, Path(path))

    def close(self) -> None:
        """End what is running, with all its processes, and remove the soups. What a failed one wrote stays."""
        self._stop.set()
        for thread in list(self._threads.values()):
            thread.join()
        self._threads.clear()
        if self._files.folder.is_dir():
            self._files.remove()

    def _work(self, question: Question, slot: int) -> None:
        """One question from its soup to its answer: the life of a thread."""
        result: Answer | Failure | BaseException
        try:
            result = self._answer(question, slot)
        except BaseException as error:
            result = error
        self._files.release(slot)
        with self._lock:
            self._free.append(slot)
            self._free.sort()
        self._results.put((question, result))

    def _answer(self, question: Question, slot: int) -> Answer | Failure:
        started = time.monotonic()
        folder = self._files.slot(slot)
        values = {
            "soup": str(self._files.build(question.recipe, folder, self._stop)),
            "slot": str(slot),
            "examples": "",
        }
        if question.examples is not None:
            path = folder / "examples.txt"
            path.write_text("".join(f"{index}\n" for index in question.examples))
            values["examples"] = str(path)
        message = ""
        for attempt in range(1 + self.command.retries):
            out = folder / f"out-{attempt}"
            out.mkdir()
            values["out"] = str(out)
            try:
                parsed = self._attempt(question, values)
                return parsed.answer(time.monotonic() - started)
            except _AttemptError as error:
                message = error.message
                kept = self._files.keep_failed(out)
                if kept is not None:
                    message += f"\nwhat it wrote is kept in {kept} until the next failure"
            if self._stop.is_set():
                raise Stopped
        attempts = 1 + self.command.retries
        return Failure(message if attempts == 1 else f"{message}\nthat was the last of {attempts} attempts")

    def _attempt(self, question: Question, values: Mapping[str, str]) -> Parsed:
        line = self._template.fill(values)
        environment = {**os.environ, **{f"RADIN_{name.upper()}": value for name, value in values.items()}}
        try:
            finished = run_shell(line, environment, timeout=self.command.timeout, stop=self._stop)
        except OSError as error:
            raise _AttemptError(f"the command could not be started: {error.strerror or error}", line) from error
        if finished.ended == "stopped":
            raise Stopped
        if finished.ended == "timeout":
            seconds = f"{self.command.timeout:g} s"
            raise _AttemptError(f"the command gave no answer within {seconds} and was ended", line, finished)
        if finished.code != 0:
            raise _AttemptError(f"the command failed: {_ending(finished.code)}", line, finished)
        try:
            parsed = parse(finished.stdout, whole=finished.whole)
            self.learn(question, parsed.values)
        except AnswerError as error:
            raise _AttemptError(f"the command gave no answer: {error}", line, finished, nonsense=True) from None
        return parsed

    def learn(self, question: Question, values: Sequence[float] | Floats | None) -> None:
        """Raise AnswerError when the values are not those that were asked for; learn M from the first that are."""
        given = None if values is None else len(values)
        if question.examples is not None:
            if given != len(question.examples):
                what = 'no "values"' if given is None else f'{given:,} "values"'
                raise AnswerError(f"it was asked about {len(question.examples):,} examples and gave {what}")
            return
        with self._lock:
            if given is None:
                # Without a value for each example nothing can be made of an answer on some of them.
                self.parts = self.parts and self._examples > 0
            elif self._examples in (0, given):
                self._examples = given
            else:
                raise AnswerError(f'it gave {given:,} "values"; there were {self._examples:,} before')


class _AttemptError(Exception):
    """One run of the command failed; ``message`` is what the user is told."""

    def __init__(self, what: str, line: str, finished: Finished | None = None, *, nonsense: bool = False) -> None:
        parts = [what, *(f"    {text}" for text in shown_lines(line, 50))]
        if nonsense:
            parts.append(EXPECTED)
        if finished is not None:
            # Of a program that ended well, what it printed tells more than its warnings.
            for name, text, most in (
                ("stdout", finished.stdout if nonsense else "", _STDOUT_LINES),
                ("stderr", finished.stderr, _STDERR_LINES),
            ):
                lines = shown_lines(text, most)
                if lines:
                    parts += [f"the last lines of its {name}:", *(f"    {line}" for line in lines)]
            if not finished.stderr.strip() and not nonsense:
                parts.append("it printed nothing on stderr")
        self.message = "\n".join(parts)
        super().__init__(self.message)


def _ending(code: int) -> str:
    """What an exit code says."""
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if not number:
        return f"exit code {code}" + {126: " (not executable)", 127: " (no such program)"}.get(code, "")
    hint = ", as the system does when memory runs out" if signal_name(number) == "SIGKILL" else ""
    if code < 0:
        return f"ended by {signal_name(number)}{hint}"
    return f"exit code {code} (a program that it ran was ended by {signal_name(number)}{hint})"
