"""Workers elsewhere: who works on what, and a whole run by a crew, which gives what one process gives."""

from __future__ import annotations

import pickle
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import radin
from radin.engine.crew import Cluster, Crew, Plan, Reply, Roster, Work
from radin.engine.worker import MemberRows
from radin.errors import OutputsError, RadinError
from radin.question import Failure, Question
from radin.recipe import Recipe


class Bench(Crew):
    """Workers in this process, each with a plan that has been pickled; work is done in an order of its own."""

    def __init__(self, size: int, plan: Plan) -> None:
        self.size = size
        self.workers = [pickle.loads(pickle.dumps(plan)).worker() for _ in range(size)]
        self.waiting: deque[Work] = deque()
        self.fails: set[int] = set()
        self.closed = False

    def submit(self, work: Work) -> None:
        self.waiting.append(work)

    def wait(self, timeout: float | None = None) -> list[tuple[Work, Reply]]:
        if not self.waiting:
            return []
        work = self.waiting.pop()  # the last first
        if work.member in self.fails:
            return [(work, Reply(Failure("three workers died over it")))]
        worker = self.workers[len(self.waiting) % self.size]
        return [(work, pickle.loads(pickle.dumps(worker.do(pickle.loads(pickle.dumps(work))))))]

    def close(self) -> None:
        self.closed = True


class Benches(Cluster):
    name = "bench"

    def __init__(self, workers: int, fails: frozenset[int] = frozenset()) -> None:
        self.workers, self.fails, self.made = workers, fails, []

    def crew(self, plan: Plan, folder: Path) -> Crew:
        self.made.append(Bench(self.workers, plan))
        self.made[-1].fails |= self.fails
        return self.made[-1]


@pytest.fixture(scope="module")
def task(toy_folder: Path) -> Path:
    """Loaded anew by each worker."""
    return toy_folder / "task.py"


@pytest.mark.parametrize("strategy", ["paper", "learned-by-layer"])
def test_a_crew_gives_what_one_process_gives(toy_pool, task, tmp_path, strategy):
    asked = {"budget": 4, "strategy": strategy}
    cluster = Benches(1 if strategy == "learned-by-layer" else 3)
    there = radin.cook(toy_pool, task, out=tmp_path / "there", engine=cluster, **asked)
    here = radin.cook(toy_pool, task, out=tmp_path / "here", **asked)
    assert there.best.recipe == here.best.recipe
    assert there.best.score == here.best.score
    assert there.best.splits == here.best.splits
    assert {e.recipe: e.score for e in there.evaluations} == {e.recipe: e.score for e in here.evaluations}
    assert (tmp_path / "there/soup.safetensors").read_bytes() == (tmp_path / "here/soup.safetensors").read_bytes()
    for path in (tmp_path / "here/outputs").glob("*.safetensors"):
        assert (tmp_path / "there/outputs" / path.name).read_bytes() == path.read_bytes() or path.name[0] in "ct"
    assert [bench.closed for bench in cluster.made] == [True]


def test_a_run_goes_on_elsewhere(toy_pool, task, tmp_path):
    radin.cook(toy_pool, task, budget=2, out=tmp_path / "run")
    further = radin.cook(toy_pool, task, budget=4, out=tmp_path / "run", engine=Benches(2))
    assert further.passes.members == 0 or further.passes.soups <= 4
    assert further.best.score >= further.best_single.score


def test_a_member_that_no_worker_can_evaluate_costs_the_others_nothing(toy_pool, task, tmp_path):
    with pytest.raises(OutputsError, match=r"1 of 6 members could not be evaluated(?s:.*)run-2: three workers died"):
        radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", engine=Benches(2, frozenset({2})))
    cluster = Benches(2)
    radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", engine=cluster)
    assert len(list((tmp_path / "run/outputs").glob("*.safetensors"))) == len(toy_pool) + 2  # targets, compiled


def test_a_program_is_run_by_the_workers(toy_pool, tmp_path):
    script = tmp_path / "score.py"
    script.write_text("import os, sys\nprint(os.path.getsize(sys.argv[1]) % 1000 / 1000)\n")
    command = radin.Command(f"{sys.executable} {script} {{soup}}")
    there = radin.cook(toy_pool, command, budget=3, out=tmp_path / "there", engine=Benches(2))
    here = radin.cook(toy_pool, command, budget=3, out=tmp_path / "here")
    assert there.best.score == here.best.score
    assert not (tmp_path / "there/scratch").exists() or not any((tmp_path / "there/scratch").iterdir())


def test_what_goes_together_is_checked_at_once(toy_pool, task, tmp_path):
    with pytest.raises(RadinError, match="give no others beside it"):
        radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", engine=Benches(2), workers=2)
    with pytest.raises(RadinError, match="leave out --no-keep-outputs"):
        radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", engine=Benches(2), keep_outputs=False)


def works(count: int) -> list[Work]:
    return [Work(member=k) for k in range(count)]


def test_work_is_pulled_in_order():
    roster, (a, b, c) = Roster(), works(3)
    for work in (a, b, c):
        roster.add(work)
    assert roster.take("x", 0.0) is a
    assert roster.take("y", 0.0) is b
    assert roster.done("y", b, 1.0)
    assert roster.take("y", 1.0) is c
    assert roster.done("x", a, 1.0)
    assert roster.take("x", 1.0) is None
    assert len(roster) == 1


def test_a_worker_rather_goes_on_with_its_own_soup():
    roster, (a, b) = Roster(), works(2)
    roster.add(a)
    roster.add(b)
    assert roster.take("x", 0.0, prefers=lambda work: work is b) is b


def test_what_a_dead_worker_was_at_is_next_and_given_up_after_three():
    roster, (a, b) = Roster(tries=3), works(2)
    roster.add(a)
    roster.add(b)
    for name in ("x", "y"):
        assert roster.take(name, 0.0) is a
        assert roster.died(name, f"{name} is gone") == []
    assert roster.take("z", 0.0) is a
    assert roster.died("z", "z is gone") == [(a, "x is gone; y is gone; z is gone")]
    assert roster.take("w", 0.0) is b
    assert len(roster) == 1
    for name in "defg":  # whose time is over
        assert roster.died("w" if name == "d" else name, "left", counts=False) == []
        assert roster.take(chr(ord(name) + 1), 0.0) is b


def test_the_last_one_is_repeated_when_it_is_late_and_counts_once():
    roster, (a, b, c) = Roster(late=2.0), works(3)
    for work in (a, b, c):
        roster.add(work)
    assert roster.take("slow", 0.0) is a
    assert roster.take("fast", 0.0) is b
    assert roster.done("fast", b, 10.0)
    assert roster.take("fast", 10.0) is c
    assert roster.done("fast", c, 20.0)
    assert roster.take("fast", 20.0) is None  # twice the median is 20 seconds
    assert roster.take("fast", 20.5) is a
    assert roster.others(a, "fast") == ["slow"]
    assert roster.take("third", 50.0) is None  # two are at it
    assert roster.done("fast", a, 30.0)
    assert not roster.done("slow", a, 60.0)
    assert roster.repeated == 1
    assert len(roster) == 0


def test_a_repeated_one_goes_on_when_one_of_two_dies():
    roster, (a, b) = Roster(late=1.0), works(2)
    roster.add(b)
    roster.add(a)
    assert roster.take("fast", 0.0) is b
    assert roster.take("slow", 0.0) is a
    assert roster.done("fast", b, 1.0)
    assert roster.take("fast", 5.0) is a
    assert roster.died("fast", "gone") == []
    assert len(roster) == 1
    assert roster.done("slow", a, 6.0)


def test_one_thought_dead_may_still_finish():
    roster, (a,) = Roster(), works(1)
    roster.add(a)
    assert roster.take("x", 0.0) is a
    assert roster.died("x", "no sign of life") == []
    assert roster.done("x", a, 5.0)
    assert roster.take("y", 5.0) is None
    assert len(roster) == 0


def test_work_says_what_it_is():
    names = ("a", "b", "c", "d", "e", "f")
    assert Work(member=2).called(names) == "the outputs of c"
    assert Work(Question(Recipe.single(1, 6))).called(names) == "b"
    assert Work(Question(Recipe.single(1, 6), split="test")).called(names) == "b on test"
    assert Work(Question(Recipe.uniform(range(6), 6))).called(names) == "the soup of 6 members (a, b, c, d, ...)"


def test_rows_are_what_the_store_keeps(toy_pool, task):
    rows = Plan(toy_pool, task, "cpu").worker().do(Work(member=0)).found
    assert isinstance(rows, MemberRows)
    assert rows.rows.shape == (rows.examples, 10)
    assert rows.rows.dtype == np.float32
