"""Workers that pull from a folder: same results as here, and what happens to those that die, stop, lie or come late."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import radin
from radin.engine.crew import Cluster, Crew, Plan, Reply, Roster, TaskWorker, Work
from radin.engine.packed import (
    DamagedError,
    error_of,
    error_parts,
    read_packed,
    reply_of,
    reply_parts,
    work_of,
    work_parts,
    write_packed,
)
from radin.engine.queue_crew import Jobs, QueueCrew
from radin.engine.queue_folder import Entry, Queue, Timing
from radin.engine.queue_worker import serve
from radin.engine.worker import MemberRows
from radin.errors import OutputsError, RadinError, TaskError
from radin.question import Answer, Failure, Gradient, Question
from radin.recipe import Group, Recipe

pytestmark = pytest.mark.clock

FORK = multiprocessing.get_context("fork")
QUICK = Timing(beat=0.1, lease=30, orphaned=1.0, shortest=0.01, longest=0.1)


class Forked(Jobs):
    """Jobs that are copies of this process."""

    pace = 0.1

    def __init__(self, fails: str = "") -> None:
        self.left: dict[str, Any] = {}
        self.count, self.fails = 0, fails

    def submit(self, queue: Path, digest: str, count: int) -> list[str]:
        names = [f"job{self.count + k}" for k in range(count)]
        self.count += count
        for name in names:
            run = FORK.Process(
                target=time.sleep if self.fails else serve, args=(0,) if self.fails else (queue, digest, name)
            )
            run.start()
            self.left[name] = run
        return names

    def ended(self) -> dict[str, str]:
        over = {name: f"exit code {run.exitcode}" for name, run in self.left.items() if not run.is_alive()}
        for name in over:
            del self.left[name]
        return over

    def about(self) -> str:
        return f"{len(self.left)} jobs are left"

    def log(self, job: str) -> str:
        return self.fails

    def cancel(self) -> None:
        for run in self.left.values():
            run.kill()
            run.join()


@dataclass(frozen=True)
class Forks(Cluster):
    workers: int | None = 2
    timing: Timing = QUICK
    made: list[QueueCrew] = field(default_factory=list)

    name = "forks"

    def crew(self, plan: Plan, folder: Path) -> Crew:
        self.made.append(crew_of(plan, folder / "slurm", self.timing, self.count()))
        return self.made[-1]


def crew_of(plan: Plan, folder: Path, timing: Timing = QUICK, size: int = 2, **more: Any) -> QueueCrew:
    return QueueCrew(size, plan, pickle.dumps(plan), folder, more.pop("jobs", None) or Forked(), timing=timing, **more)


@pytest.fixture(scope="module")
def task(toy_folder: Path) -> Path:
    return toy_folder / "task.py"


@pytest.fixture(scope="module")
def here(toy_pool: radin.Pool, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without workers."""
    out = tmp_path_factory.mktemp("here") / "run"
    radin.cook(toy_pool, task, budget=3, strategy="paper", out=out)
    return out


def same(there: Path, here: Path) -> None:
    assert (there / "soup.safetensors").read_bytes() == (here / "soup.safetensors").read_bytes()
    told = [json.loads((run / "recipe.json").read_text()) for run in (there, here)]
    for name in told[0].keys() - {"seconds", "checksum", "soup"}:
        assert told[0][name] == told[1][name], name
    for path in (here / "outputs").glob("*.safetensors"):
        assert (there / "outputs" / path.name).read_bytes() == path.read_bytes() or path.name[0] in "ct"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """faulty(which, fault): workers of which ``which(work)`` holds meet ``fault()`` once; the log of all work begun."""
    log, did = tmp_path / "log", tmp_path / "did"
    log.touch()
    do = TaskWorker.do

    def install(which: Any, fault: Any, once: bool = True) -> Path:
        def broken(self: TaskWorker, work: Work) -> Reply:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {'member' if work.question is None else work.question.split}\n")
            if which(work) and not (once and did.exists()):
                did.touch()
                fault()
            return do(self, work)

        monkeypatch.setattr(TaskWorker, "do", broken)
        return log

    return install


def members_made(crew: QueueCrew, count: int) -> set[int | None]:
    """The members of whom outputs came back when those of the first ``count`` were asked for."""
    for k in range(count):
        crew.submit(Work(member=k))
    found: list[tuple[Work, Reply]] = []
    while batch := crew.wait():
        found += batch
    assert len(found) == count
    return {work.member for work, reply in found if isinstance(reply.found, MemberRows)}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


STAGES = {
    "members": lambda work: work.member == 3,
    "soups": lambda work: work.question is not None and work.question.split == "validation",
    "test": lambda work: work.question is not None and work.question.split == "test",
}


@pytest.mark.parametrize("stage", ["none", *STAGES])
def test_a_killed_worker_changes_nothing(toy_pool, task, here, tmp_path, faulty, stage):
    log = faulty(STAGES.get(stage, lambda work: False), kill)
    cluster = Forks()
    result = radin.cook(toy_pool, task, budget=3, strategy="paper", out=tmp_path / "run", engine=cluster)
    same(tmp_path / "run", here)
    lines = [line.split()[1] for line in log.read_text().splitlines()]
    repeated = cluster.made[0]._roster.repeated
    assert lines.count("member") <= len(toy_pool) + (stage == "members") + repeated
    assert lines.count("validation") <= result.passes.soups + 2 + (stage == "soups") + repeated  # two re-estimated
    lost = any("was not finished (its job" in note for note in cluster.made[0].notes)
    assert not lost if stage == "none" else lost or repeated  # one begun twice may be done before its end is seen
    assert os.listdir(tmp_path / "run/slurm") == []


def test_a_program_is_run_by_the_workers(toy_pool, tmp_path):
    command = radin.Command("echo 0.$(( $(cksum < {soup} | cut -d' ' -f1) % 1000 + 1000 ))")
    there = radin.cook(toy_pool, command, budget=3, out=tmp_path / "there", engine=Forks())
    here = radin.cook(toy_pool, command, budget=3, out=tmp_path / "here")
    assert (there.best.score, there.best.recipe) == (here.best.score, here.best.recipe)


def test_work_that_kills_every_worker_is_given_up(toy_pool, task, tmp_path, faulty):
    faulty(lambda work: work.member == 2, kill, once=False)
    with pytest.raises(
        OutputsError, match=r"1 of 6 members(?s:.*)outputs of run-2 could not be finished by any worker"
    ):
        radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", engine=Forks())
    assert len(list((tmp_path / "run/outputs").glob("[0-9a-f]*[0-9a-f].safetensors"))) == len(toy_pool) - 1


def test_work_is_not_given_up_because_jobs_end_in_time(toy_pool, task, tmp_path, faulty):
    """Each job does one member and is told to leave over its second; one death would be too many here."""
    begun: Counter[str] = Counter()

    def leave() -> None:
        begun["here"] += 1
        if begun["here"] > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    faulty(lambda work: True, leave, once=False)
    crew = crew_of(Plan(toy_pool, str(task), "cpu"), tmp_path / "slurm", size=1)
    crew._roster = Roster(tries=1)
    try:
        assert members_made(crew, 4) == {0, 1, 2, 3}
        said = [note for note in crew.notes if "its time was over), and left to another" in note]
        assert len(said) == 3
    finally:
        crew.close()


def test_when_no_job_does_anything_it_is_said_what_the_last_one_left(toy_pool, task, tmp_path, faulty):
    def leave() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    faulty(lambda work: True, leave, once=False)
    crew = crew_of(Plan(toy_pool, str(task), "cpu"), tmp_path / "slurm", size=1)
    crew._roster = Roster(tries=99)
    try:
        crew.submit(Work(member=1))
        with pytest.raises(
            RadinError,
            match=r"ended without having done anything; the last one left the outputs of run-1 \(its job was",
        ):
            crew.wait()
    finally:
        crew.close()


def test_a_worker_that_stops_gives_its_work_back_and_comes_late(toy_pool, task, tmp_path, faulty):
    log = faulty(lambda work: work.member == 0, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    crew = crew_of(Plan(toy_pool, str(task), "cpu"), tmp_path / "slurm", Timing(0.1, 3, 60, 0.01, 0.1))
    crew._roster._late_one = lambda worker, now: None  # nothing is repeated
    try:
        assert members_made(crew, 4) == {0, 1, 2, 3}
        assert "no sign of life for 3 seconds" in crew.notes[0]
        pids = Counter(line.split()[0] for line in log.read_text().splitlines())
        assert str(os.getpid()) not in pids
        os.kill(int(min(pids, key=pids.__getitem__)), signal.SIGCONT)
        time.sleep(0.5)  # its answer comes
        crew.submit(Work(member=4))
        ((work, reply),) = crew.wait()
        assert work.member == 4
        assert isinstance(reply.found, MemberRows)
        assert crew.wait() == []
    finally:
        crew.close()


def test_a_damaged_answer_is_put_aside_and_asked_for_again(toy_pool, task, here, tmp_path, monkeypatch):
    write, did = Queue.hand_in, tmp_path / "did"

    def damaging(self: Queue, name: str, *content: Any) -> None:
        write(self, name, *content)
        if not did.exists():
            did.touch()
            path = self.folder / "done" / name
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(Queue, "hand_in", damaging)
    cluster = Forks(1)
    radin.cook(toy_pool, task, budget=3, strategy="paper", out=tmp_path / "run", engine=cluster)
    same(tmp_path / "run", here)
    # The driver may find the file before it is damaged; it is then simply right.
    kept = list((tmp_path / "run/slurm").glob("damaged/*"))
    assert len(kept) == sum("was damaged on disk" in note for note in cluster.made[0].notes)


def test_a_killed_driver_goes_on_and_its_old_workers_end(toy_pool, task, here, tmp_path, faulty, monkeypatch):
    log = faulty(lambda work: False, kill)
    monkeypatch.setattr(Roster, "_late_one", lambda self, worker, now: None)  # nothing is repeated

    def drive() -> None:
        def on_event(event: Any) -> None:
            if event.kind == "question_answered":
                kill()

        os.setpgid(0, 0)
        radin.cook(toy_pool, task, budget=3, strategy="paper", out=tmp_path / "run", engine=Forks(), on_event=on_event)

    driver = FORK.Process(target=drive)
    driver.start()
    driver.join(120)
    assert driver.exitcode == -signal.SIGKILL
    old = {int(line.split()[0]) for line in log.read_text().splitlines()}
    radin.cook(toy_pool, task, budget=3, strategy="paper", out=tmp_path / "run", engine=Forks())
    same(tmp_path / "run", here)
    until = time.monotonic() + 60
    while any(alive(pid) for pid in old) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in old if alive(pid)]
    assert [line.split()[1] for line in log.read_text().splitlines()].count("member") <= len(toy_pool) + 2


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_task_that_does_not_load_on_a_worker_is_told_once_with_the_node(toy_pool, toy_folder, tmp_path):
    broken = tmp_path / "task.py"
    broken.write_text(
        f"import os\nif os.getpid() != {os.getpid()}: import no_such_library\n" + (toy_folder / "task.py").read_text()
    )
    with pytest.raises(TaskError, match=rf"^on {os.uname().nodename}: (?s:.*)no_such_library"):
        radin.cook(toy_pool, broken, budget=2, out=tmp_path / "run", engine=Forks())


def test_nobody_comes(toy_pool, task, tmp_path):
    plan = Plan(toy_pool, str(task), "cpu")
    crew = crew_of(plan, tmp_path / "a", jobs=Forked(fails="python: no such program"))
    crew.submit(Work(member=0))
    with pytest.raises(RadinError, match=r"no worker has started(?s:.*)python: no such program"):
        crew.wait()
    crew.close()

    class Waits(Forked):
        def submit(self, queue: Path, digest: str, count: int) -> list[str]:
            self.left["job"] = FORK.Process(target=time.sleep, args=(60,))
            self.left["job"].start()
            return ["job"]

    crew = crew_of(plan, tmp_path / "b", jobs=Waits())
    crew.submit(Work(member=0))
    assert crew.wait(0.05) == []
    crew._patience = 0.2
    with pytest.raises(RadinError, match=r"no worker has started for .* minutes: 1 jobs are left"):
        crew.wait()
    crew.close()


def test_no_two_workers_take_the_same(tmp_path):
    queue = Queue.create(tmp_path / "queue", b"", {}, QUICK)
    for number in range(200):
        (queue.folder / "todo" / Entry(number, "member", "w1" if number == 150 else None).name).touch()
    taken: list[Entry] = []

    def take(worker: str) -> None:
        while (entry := queue.claim(worker, None)) is not None:
            taken.append(entry)

    threads = [threading.Thread(target=take, args=(f"w{k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.number for entry in taken) == list(range(200))
    assert [entry.worker for entry in taken if entry.number == 150] == ["w1"]
    assert {entry.name for entry in taken} == set(queue.names("taken"))


def test_a_worker_rather_goes_on_with_its_own_soup(tmp_path):
    queue = Queue.create(tmp_path / "queue", b"", {}, QUICK)
    for number, soup in ((1, "aaaaaaaa"), (2, "bbbbbbbb")):
        (queue.folder / "todo" / Entry(number, soup).name).touch()
    assert queue.claim("w", "bbbbbbbb") == Entry(2, "bbbbbbbb", "w")
    assert queue.claim("w", "bbbbbbbb") == Entry(1, "aaaaaaaa", "w")
    assert queue.claim("w", None) is None


def test_a_plan_of_others_is_not_read(tmp_path):
    queue = Queue.create(tmp_path / "queue", b"code", {}, QUICK)
    assert (queue.folder.stat().st_mode & 0o777, (queue.folder / "plan.pickle").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    with pytest.raises(RadinError, match="is not the file that this run wrote"):
        queue.plan("0" * 64)
    (queue.folder / "plan.pickle").chmod(0o622)
    with pytest.raises(RadinError, match="can be written by others"):
        queue.plan("0" * 64)


WORKS = [
    Work(member=3, data={"validation": "f00"}),
    Work(Question(Recipe.uniform([0, 2], 3)), None, {"bn.mean": torch.tensor([0.1, 0.2]), "bn.n": torch.tensor(7)}),
    Work(Question(Recipe((0.1, 0.2, 0.7), groups=(Group("layer.1", (0.3, 0.3, 0.4)),)), np.array([1, 5]), "test")),
    Work(Question(Recipe.single(1, 3, reestimated=True), None, "validation", Gradient("likelihood", ("a", "b")))),
]


@pytest.mark.parametrize("work", WORKS)
def test_work_travels_whole(tmp_path, work):
    write_packed(tmp_path / "file", *work_parts(work))
    found = work_of(*read_packed(tmp_path / "file"))
    assert (found.member, dict(found.data)) == (work.member, dict(work.data))
    assert (found.kept is None) == (work.kept is None)
    for name in work.kept or {}:
        assert torch.equal(found.kept[name], work.kept[name])
        assert found.kept[name].dtype == work.kept[name].dtype
    if work.question is not None:
        assert found.question.recipe == work.question.recipe
        assert (found.question.split, found.question.gradient) == (work.question.split, work.question.gradient)
        assert np.array_equal(found.question.examples, work.question.examples)  # None too


REPLIES = [
    Reply(Failure("no memory"), None, {"outputs": "halved"}, 1.5),
    Reply(MemberRows(np.array([[0.1, np.nan], [np.inf, -0.0]], np.float32), "f00", 2)),
    Reply(
        Answer(0.1, float("nan"), 3, 0.5, "f00", np.array([0.1, 0.2, 0.0]), {"noisy": (0.5, 0.1)}, np.ones((3, 2))),
        {"bn.mean": torch.tensor([0.1], dtype=torch.bfloat16)},
    ),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_travels_whole(tmp_path, reply):
    write_packed(tmp_path / "file", *reply_parts(reply))
    found = reply_of(*read_packed(tmp_path / "file"))
    assert repr(found) == repr(reply)


def test_an_error_travels_with_its_kind():
    assert isinstance(error_of(error_parts(TaskError("no model"))), TaskError)
    assert type(error_of({"error": {"kind": "printable", "text": "x"}})) is RadinError
    assert error_of({}) is None


def test_what_is_damaged_is_never_believed(tmp_path):
    path = tmp_path / "file"
    write_packed(path, *reply_parts(REPLIES[2]))
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedError):
            read_packed(path)
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedError, match="checksum"):
        read_packed(path)
    with pytest.raises(DamagedError, match="more than 10"):
        read_packed(path, limit=10)
    with pytest.raises(DamagedError, match="it holds no reply"):
        reply_of({"answer": {"score": "high"}}, {})
