"""The crew of actors, with workers in this process behind a stand-in for Ray: what takes minutes or luck on a cluster.

tests/engine/test_ray.py has whole runs on a real one.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import radin
from radin.engine.crew import Plan, Reply, Work
from radin.engine.hello import Hello
from radin.engine.ray_crew import Actor, RayCrew
from radin.engine.worker import MemberRows
from radin.errors import RadinError, TaskError
from radin.question import Answer, Failure, Question
from radin.recipe import Recipe


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


@dataclass(eq=False)
class Called:
    """What an actor will answer, made when it is asked for."""

    number: int
    name: str
    method: Any
    given: tuple[Any, ...]


class OneRay:
    """A Ray whose actors are objects here. dies(number of the actor, method, argument): whether it does then."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    cloudpickle = pickle

    def __init__(self, dies: Callable[[int, str, Any], bool] = lambda number, method, given: False) -> None:
        self.dies, self.made, self.killed, self.never = dies, 0, [], False
        self.options: dict[str, Any] = {}

    def put(self, value: bytes) -> bytes:
        return value

    def remote(self, kind: type) -> Any:
        def begin(*given: Any) -> Any:
            self.made += 1
            actor, number = kind(*given, name=f"node-{self.made}"), self.made

            def method(name: str) -> Any:
                return SimpleNamespace(remote=lambda *given: Called(number, name, getattr(actor, name), given))

            return SimpleNamespace(number=number, **{name: method(name) for name in ("hello", "load", "do", "close")})

        def options(**given: Any) -> Any:
            self.options = given
            return SimpleNamespace(remote=begin)

        return SimpleNamespace(options=options)

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return ([], refs) if self.never else (refs[-num_returns:], [])

    def get(self, ref: Called) -> Any:
        if self.dies(ref.number, ref.name, *ref.given):
            raise RayError("The actor died unexpectedly before finishing this task.")
        return pickle.loads(pickle.dumps(ref.method(*ref.given)))

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed.append(actor.number)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}


@pytest.fixture
def plan(toy_pool, toy_folder, monkeypatch) -> Plan:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Plan(toy_pool, str(toy_folder / "task.py"), "cpu")


def crew(plan: Plan, ray: OneRay, size: int = 2, patience: float = 60.0) -> RayCrew:
    return RayCrew(ray, plan, size, 1.0, 0.0, patience, close=lambda: None)


def all_of(crew: RayCrew) -> dict[Work, Reply]:
    found: dict[Work, Reply] = {}
    while came := crew.wait():
        for work, reply in came:
            assert work not in found
            found[work] = reply
    return found


def test_actors_do_what_a_worker_does(plan):
    ray = OneRay()
    one, works = crew(plan, ray), [Work(member=k) for k in range(6)]
    for work in works:
        one.submit(work)
    found = all_of(one)
    rows = plan.worker().do(Work(member=3)).found
    assert list(found[works[3]].found.rows.ravel()) == list(rows.rows.ravel())
    question = Work(Question(Recipe.single(3, 6)), data={"validation": rows.data})
    one.submit(question)
    assert isinstance(all_of(one)[question].found, Answer)
    one.close()
    assert ray.killed == [1, 2]
    assert ray.options["max_restarts"] == 0
    assert one.notes == ()


def test_three_deaths_over_one_work_are_a_failure_and_the_rest_is_done(plan):
    fatal = lambda number, method, given: method == "do" and pickle.loads(given).member == 1  # noqa: E731
    ray = OneRay(fatal)
    one, works = crew(plan, ray), [Work(member=k) for k in range(4)]
    for work in works:
        one.submit(work)
    found = all_of(one)
    assert [isinstance(found[work].found, MemberRows) for work in works] == [True, False, True, True]
    failure = found[works[1]].found
    assert isinstance(failure, Failure)
    assert failure.message.startswith("workers died over the outputs of run-1 one after the other (node-")
    assert len({part for part in failure.message.split() if part.startswith(("node-", "(node-"))}) == 3
    assert len(ray.killed) == 3
    assert ray.made == 5
    assert [note.endswith("over the outputs of run-1, which another took up") for note in one.notes] == [True] * 3


def test_a_worker_that_dies_once_is_replaced(plan):
    died: list[int] = []

    def once(number: int, method: str, given: Any) -> bool:
        if method == "do" and not died:
            died.append(number)
            return True
        return False

    ray = OneRay(once)
    one, work = crew(plan, ray, size=1), Work(member=0)
    one.submit(work)
    assert isinstance(all_of(one)[work].found, MemberRows)
    assert ray.made == 2
    assert one.notes == (
        "a worker on node-1 died (its process ended) over the outputs of run-0, which another took up",
    )


def test_workers_that_never_load_the_task_end_the_run(plan):
    one = crew(plan, OneRay(lambda number, method, given: method == "load"), size=2)
    one.submit(Work(member=0))
    with pytest.raises(RadinError, match=r"no worker is left: 3 died one after the other before they could begin"):
        one.wait()


def test_a_place_where_workers_die_leaves_the_others_at_work(plan):
    # The first place gets no worker that can load the task: 1, and those that follow it.
    one = crew(plan, OneRay(lambda number, method, given: method == "load" and number != 2), size=2)
    works = [Work(member=k) for k in range(3)]
    for work in works:
        one.submit(work)
    assert len(all_of(one)) == 3


def test_nobody_waits_for_ever_for_room(plan):
    ray = OneRay()
    ray.never = True
    one = crew(plan, ray)
    one.submit(Work(member=0))
    assert one.wait(timeout=0.01) == []
    one._patience = 0.2
    time.sleep(0.2)
    message = r"within 0.2 seconds: each asks for 1 CPU; the cluster has 1 node with 2 CPUs; free are 1 CPU"
    with pytest.raises(RadinError, match=message):
        one.wait(timeout=0.05)


def test_the_users_error_is_told_with_the_node_after_what_was_done(plan, tmp_path):
    (tmp_path / "task.py").write_text(Path(plan.source).read_text() + "raise ValueError('no such data')\n")
    one = crew(replace(plan, source=str(tmp_path / "task.py")), OneRay(), size=1)
    one.submit(Work(member=0))
    with pytest.raises(TaskError, match=r"on node-1: task file .*ValueError: no such data"):
        one.wait()


def test_hello_comes_before_the_task(plan, monkeypatch):
    monkeypatch.setattr(Hello, "answer", lambda self, node: replace(self, node=node, versions={"radin": "0.0.1"}))
    one = crew(plan, OneRay(lambda number, method, given: method == "load"), size=1)
    one.submit(Work(member=0))
    with pytest.raises(RadinError, match=r"node-1 has radin 0.0.1, this machine has"):
        one.wait()


def test_programs_are_run_and_ended(toy_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    ray = OneRay()
    one = crew(Plan(toy_pool, radin.Command("echo 0.25; : {soup}")), ray, size=1)
    work = Work(Question(Recipe.uniform(range(2), 6)))
    one.submit(work)
    reply = all_of(one)[work].found
    assert isinstance(reply, Answer)
    assert reply.score == 0.25
    assert ray.options["max_concurrency"] == 2  # close() reaches it while a program runs
    one.close()


def test_an_actor_tells_all_errors(plan):
    kind, error = Actor(1, name="node-9").load(b"no pickle")
    assert kind == "error"
    assert str(error).startswith("a worker on node-9 failed: ")
