"""One session of a run: asks what the search asks, has it answered, records both, continues where another stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from radin.checksums import file_checksum
from radin.engine.base import Engine
from radin.errors import RunError
from radin.files import told
from radin.question import VALIDATION, Answer, Failure, Indices, Question, answer_from_numbers
from radin.recipe import Recipe
from radin.run.card import Card
from radin.run.job import Job
from radin.run.rows import Asked
from radin.search import Search
from radin.search.account import Account

_FAILURES = 3  # questions in a row without an answer, after which a run stops
_GATHERED = 0.25  # seconds for which questions are gathered, to be recorded by one commit

Event = tuple[int, str, Asked | None]


class Session:
    """Spends a budget. ``search()`` builds a new search on a new account, with what is to be asked first.

    ``settings``: all that decides what is asked; sessions in which they are the same replay each other exactly.
    ``choose``: the examples by which soups are compared, None: all. ``best``: the utility that a fully evaluated soup
    must exceed to be written to disk at once.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        search: Callable[[], Search],
        settings: Mapping[str, Any],
        *,
        choose: Indices | None = None,
        best: float,
    ) -> None:
        self._job = job
        self._engine = engine
        self._build = search
        self._settings = json.loads(json.dumps(dict(settings)))  # as the ledger gives them: tuples are lists there
        self._choose = choose
        self._best = best
        self.search = search()
        self._clear()
        self.failed: dict[Recipe, str] = {}
        """Soups that were given no answer, and why."""
        self._in_a_row = 0
        self._replay()
        self._number = job.ledger.start_session(self._settings)

    def _clear(self) -> None:
        self._numbers: dict[Question, int] = {}
        self._origins: dict[Question, str] = {}
        self._again: list[Question] = []
        self._answers: dict[Recipe, list[Answer]] = {}
        self._seconds = 0.0

    @property
    def account(self) -> Account:
        """What has been spent and is known."""
        return self.search.account

    @property
    def soup(self) -> Path:
        """Where the best soup so far is."""
        return self._job.directory.path / self._engine.soup_name

    # -- what earlier sessions left

    def _replay(self) -> None:
        """Bring the search to where the last session stopped.

        Sessions with the settings of this one are replayed event by event; what others were answered is told before.
        """
        ledger = self._job.ledger
        ledger.reopen_failures()
        sessions, asked = ledger.sessions(), ledger.questions()
        for question in asked:
            if question.answer is not None:
                self._job.check_data(VALIDATION, question.answer)
        same = len(sessions)
        while same and sessions[same - 1].settings == self._settings:
            same -= 1
        first = sessions[same].number if same < len(sessions) else (sessions[-1].number + 1 if sessions else 1)
        earlier = [q for q in asked if q.session < first]
        events: list[Event] = [(place, "pause", None) for place, session in ledger.pauses() if session >= first]
        for question in asked:
            if question.session >= first:
                events.append((question.asked, "ask", question))
                if question.told is not None:
                    events.append((question.told, "tell", question))
        self._tell(earlier)
        if not self._repeat(sorted(events, key=lambda event: event[0])):
            # Another version decides otherwise: nothing that was answered is lost, what was open is asked anew.
            self.failed.clear()
            self.search = self._build()
            self._clear()
            self._tell(asked)
        for recipe in self._answers:
            known = self.answer(recipe)
            if known is not None:
                self._best = max(self._best, self._utility(known))

    def _tell(self, asked: Iterable[Asked]) -> None:
        for found in sorted((q for q in asked if q.answer is not None), key=lambda q: q.told or 0):
            assert found.answer is not None
            question = Question(self._recipe(found), found.examples, gradient=found.gradient)
            self._take(question, self._placed(found, found.answer))

    def _repeat(self, events: Sequence[Event]) -> bool:
        """Ask and tell in the order recorded; False as soon as the search asks anything else."""
        questions: dict[int, Question] = {}
        for _, kind, found in events:
            if found is None:
                if self.search.ask() is not None:
                    return False
            elif kind == "ask":
                question = self._asked_again(found)
                if question is None:
                    return False
                questions[found.number] = question
                self._numbers[question], self._origins[question] = found.number, found.origin
            elif found.answer is not None:
                self._take(questions.pop(found.number), self._placed(found, found.answer))
            else:
                self._leave(questions.pop(found.number), found.error or "")
        self._again = list(questions.values())
        return True

    def _asked_again(self, found: Asked) -> Question | None:
        recipe = self._recipe(found)
        if found.origin == "choice":
            question = Question(recipe, found.examples)
            self.account.reserve(question)
            return question
        asked = self.search.ask()
        if asked is None or asked.recipe != recipe or (asked.examples is None) != (found.examples is None):
            return None
        if asked.gradient != found.gradient:
            return None
        if asked.examples is None or found.examples is None:
            return asked
        return asked if np.array_equal(asked.examples, found.examples) else None

    def _recipe(self, found: Asked) -> Recipe:
        return Recipe.from_json(found.recipe, self._job.pool.fingerprints)

    def _placed(self, found: Asked, answer: Answer) -> Answer:
        """The answer as it was told: a gradient with a column for each member of the pool."""
        if found.gradient is None:
            return answer
        fingerprints = self._job.pool.fingerprints
        gradient = np.full((1 + len(found.gradient.groups), len(fingerprints)), np.nan)
        if answer.gradient is not None:
            columns = [fingerprints.index(member["fingerprint"]) for member in found.recipe["members"]]
            gradient[:, columns] = answer.gradient
        return replace(answer, gradient=gradient)

    # -- asking and telling

    def spend(self) -> None:
        """Ask, evaluate, tell, until the search has spent its budget."""
        self._work(self.search.ask, "search")

    def choose(self, recipes: Sequence[Recipe], among: Indices) -> None:
        """Evaluate as many of these soups as the budget allows on the examples of ``among`` they are not known on."""
        left = list(recipes)

        def ask() -> Question | None:
            while left:
                recipe = left.pop(0)
                examples = self.account.unknown(recipe, among)
                if len(examples) and self.account.affords(self.account.cost(recipe, examples)):
                    question = Question(recipe, examples)
                    self.account.reserve(question)
                    return question
            return None

        self._work(ask, "choice")

    def _work(self, ask: Callable[[], Question | None], origin: str) -> None:
        """Keep the engine's slots full until nothing is left to ask and all is answered."""
        working = 0
        again, self._again = self._again, []
        while True:
            more = True
            while more and working < self._engine.slots:
                questions, more = self._gather(ask, origin, again, working)
                for question in questions:
                    working += 1
                    self._announce(question, working)
                    self._engine.submit(question)
            if not working:
                return
            started = time.monotonic()
            failure: Failure | None = None
            found = self._engine.wait()
            news: list[Callable[[], None]] = []  # told once all of it is on disk
            with self._job.ledger.together():
                for question, answer in found:
                    working -= 1
                    if isinstance(answer, Failure):
                        failure = answer
                        news += self._fail(question, answer)
                        continue
                    self._in_a_row = 0
                    news += self._record(question, answer)
            for tell in news:
                tell()
            self._job.spent("soups", time.monotonic() - started)
            if failure is not None and self._in_a_row >= _FAILURES:  # all that came with it is recorded
                raise RunError(
                    f"{_FAILURES} evaluations in a row gave no answer. The last one: {failure.message}\n"
                    "Nothing finished is lost; the same command tries these again and goes on."
                )

    def _gather(
        self, ask: Callable[[], Question | None], origin: str, again: list[Question], working: int
    ) -> tuple[list[Question], bool]:
        """Questions for the slots that are free, recorded by one commit; fewer where finding them takes its time.

        And whether there may be more.
        """
        questions: list[Question] = []
        until = time.monotonic() + _GATHERED
        with self._job.ledger.together():
            while working + len(questions) < self._engine.slots:
                question = again.pop(0) if again else self._ask(ask, origin, working + len(questions))
                if question is None:
                    return questions, False
                questions.append(question)
                if time.monotonic() > until:
                    break
        return questions, True

    def _record(self, question: Question, answer: Answer) -> list[Callable[[], None]]:
        """Take in an answer and record it; what whoever listens is to be told of it."""
        self._take(question, answer)
        better = question.gradient is None and self._keep(question.recipe)
        if answer.gradient is not None:  # the members' columns alone: their order may be another next time
            answer = replace(answer, gradient=answer.gradient[:, list(question.recipe.members)])
        number = self._numbers.pop(question)
        self._job.ledger.tell(number, answer)
        news: list[Callable[[], None]] = [partial(self._answered, number, question, answer)]
        if better:
            news.append(partial(self.tell_best, question.recipe, self._best))
        return news

    def _ask(self, ask: Callable[[], Question | None], origin: str, working: int) -> Question | None:
        started = time.monotonic()
        question = ask()
        self._job.spent("search", time.monotonic() - started)
        if question is None:
            if working and origin == "search":
                self._job.ledger.pause(self._number)
            return None
        recipe, total = question.recipe, self.account.rates.examples
        self._origins[question] = origin
        self._numbers[question] = self._job.ledger.ask(
            self._number,
            origin,
            self._job.identity(recipe),
            self._job.to_json(recipe),
            total,
            question.examples,
            question.gradient,
        )
        return question

    def _take(self, question: Question, answer: Answer) -> None:
        self._seconds += answer.seconds
        if question.gradient is None:
            self._answers.setdefault(question.recipe, []).append(answer)
        self._origins.pop(question, None)
        self.search.tell(question, answer)

    def _fail(self, question: Question, failure: Failure) -> list[Callable[[], None]]:
        self._in_a_row += 1
        number = self._numbers.pop(question)
        self._job.ledger.fail(number, failure.message)
        self._leave(question, failure.message)
        return [partial(self._job.events, "question_failed", question=number, message=failure.message)]

    def _leave(self, question: Question, why: str) -> None:
        if question.gradient is None:
            self.failed[question.recipe] = why
        elif (note := f"no more ratios were learned: {why}") not in self._job.notes:
            self._job.notes += (note,)
        if self._origins.pop(question, "search") == "search":
            self.search.drop(question)
        else:
            self.account.release(question)

    # -- what is known

    def answer(self, recipe: Recipe) -> Answer | None:
        """A soup's evaluation on all of validation, or None."""
        told = self._answers.get(recipe)
        if told is None or recipe not in self.account.scores:
            return None
        seconds = sum(answer.seconds for answer in told)
        values = self.account.values(recipe)
        if len(values) and not np.isnan(values).any():
            return answer_from_numbers(self._job.metric, values, seconds, told[-1].data)
        if np.isnan(self.account.scores[recipe]):
            return Answer(float("nan"), float("nan"), self.account.rates.examples, seconds, told[-1].data)
        return replace(told[-1], seconds=seconds)

    def _utility(self, found: Answer) -> float:
        score = found.score
        if self._choose is not None and found.numbers is not None:
            score = self._job.metric.score(found.numbers[self._choose])
        return self._job.metric.utility(score)

    def evaluate_splits(self, pairs: Iterable[tuple[Recipe, str]]) -> None:
        """Evaluate members and soups on splits other than validation; each once, then kept in the ledger."""
        left = [Question(recipe, None, split) for recipe, split in pairs if self._job.known(recipe, split) is None]
        working = 0
        started = time.monotonic()
        while left or working:
            while left and working < self._engine.slots:
                question = left.pop(0)
                self._job.report(f"{question.recipe.size} members on {question.split}")
                self._engine.submit(question)
                working += 1
            for question, answer in self._engine.wait():
                working -= 1
                if isinstance(answer, Failure):
                    raise RunError(f"{question.split}: {answer.message}")
                self._job.add(question.recipe, question.split, answer)
        self._job.spent("test", time.monotonic() - started)

    # -- the soup on disk, and what is said meanwhile

    def _keep(self, recipe: Recipe) -> bool:
        """Write a soup that is the best so far, before it is recorded: what is recorded as best is there.

        Returns whether it is the best.
        """
        found = self.answer(recipe)
        if found is None or not self._utility(found) > self._best:
            return False
        self._best = self._utility(found)
        self._put(recipe)
        return True

    def write(self, best: Recipe, *, again: bool = False) -> None:
        """Make sure that the soup on disk is the best recipe's; it is already unless a kill came in between.

        again: write it whatever is there.
        """
        if again or not self._holds(best):
            if not again and self.soup.exists() and self._job.ledger.written() is not None:
                self._job.notes += (f"made again: {self.soup} was not as it was written",)
            self._put(best)

    def _put(self, recipe: Recipe) -> None:
        self._job.ledger.settle()  # writing a soup may take long
        with told(self.soup, needs=self._job.pool.bytes):
            self._engine.write(recipe, self.soup)
            self._job.ledger.wrote(self._job.identity(recipe), file_checksum(self.soup))

    def add_card(self, card: Card) -> None:
        """Put the model card into the folder that the soup is; then its content is another."""
        with told(self.soup):
            card.write(self.soup)
            written = self._job.ledger.written()
            if written is not None and written[1] != (now := file_checksum(self.soup)):
                self._job.ledger.wrote(written[0], now)

    def _holds(self, recipe: Recipe) -> bool:
        """Whether the soup on disk is this recipe's, to the last bit."""
        try:
            return self._job.ledger.written() == (self._job.identity(recipe), file_checksum(self.soup))
        except OSError:
            return False

    def tell_best(self, recipe: Recipe, utility: float) -> None:
        """Tell whoever listens which model is the best so far, by its utility on the examples that decide."""
        found = self._job.known(recipe) if recipe.size == 1 else self.answer(recipe)
        assert found is not None
        self._job.events(
            "best_changed",
            score=utility if self._job.metric.higher_is_better else -utility,
            stderr=found.stderr if self._choose is None else None,
            members=recipe.size,
            recipe=self._job.to_json(recipe),
            **self._passes(),
        )

    def _answered(self, number: int, question: Question, answer: Answer) -> None:
        """Tell whoever listens of an answer; of a soup that is evaluated on all examples now, also that score."""
        if not self._job.events:
            return
        whole = None if question.gradient is not None else self.answer(question.recipe)
        self._job.events(
            "question_answered",
            question=number,
            score=answer.score,
            stderr=answer.stderr,
            examples=answer.examples,
            seconds=answer.seconds,
            gradient=question.gradient is not None,
            soup_score=None if whole is None else whole.score,
            soup_stderr=None if whole is None else whole.stderr,
            **self._passes(),
        )

    def _passes(self) -> dict[str, float]:
        return {"spent": round(self.account.spent, 9), "budget": self.account.budget}

    def _announce(self, question: Question, working: int) -> None:
        """How far the budget is spent, and about how long the rest will take."""
        if self._job.events:
            self._job.events(
                "question_asked",
                question=self._numbers[question],
                members=question.recipe.size,
                recipe=self._job.to_json(question.recipe),
                examples=self.account.rates.examples if question.examples is None else len(question.examples),
                whole=question.examples is None,
                gradient=question.gradient is not None,
                **self._passes(),
            )
        if self._job.progress is None:
            return
        spent, budget = self.account.spent, self.account.budget
        examples = self.account.rates.examples if question.examples is None else len(question.examples)
        what = "soup" if question.gradient is None else "gradient by the ratios"
        text = f"pass {spent:.1f} of {budget:.0f}: {what} of {question.recipe.size} members"
        text += f", {examples:,} example{'s' if examples > 1 else ''}" if examples else ""
        text += f", {working} at once" if self._engine.slots > 1 else ""
        if spent > 0:
            left = self._seconds / spent * max(budget - spent, 0.0) / self._engine.slots
            text += f", in all about {_duration(left)} left"
        self._job.report(text)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
