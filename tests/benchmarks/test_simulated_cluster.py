"""The simulated cluster: the makespan that one computes by hand, and nothing lost when workers die."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.cluster_parts.driver import simulated
from benchmarks.cluster_parts.engine import Workers
from benchmarks.cluster_parts.pool import SimulatedPool

from radin.run.ledger import Ledger


@pytest.fixture(scope="module")
def pool() -> SimulatedPool:
    return SimulatedPool.made(24, examples=80, classes=3)


def test_constant_passes_take_what_one_computes_by_hand(pool: SimulatedPool) -> None:
    run = simulated(pool, Workers(7, seconds=10.0), strategy="random", budget=30, real=False)
    assert run.members.seconds == 4 * 10.0  # 24 members: 7, 7, 7 and 3
    assert run.soups.seconds == 5 * 10.0  # 30 soups: four times 7, and 2
    assert run.soups.utilisation == pytest.approx(300 / 350)
    assert run.soups.seconds == run.soups.ideal


def test_a_slow_worker_does_not_hold_the_others(pool: SimulatedPool) -> None:
    """Four workers, one of which takes 5 times as long: by 20 s two others have nothing left to do."""
    slow = {"slow": {0: 5.0}, "seconds": 10.0}
    held = simulated(pool, Workers(4, **slow), strategy="random", budget=8, real=False)
    assert held.soups.seconds == 50.0
    repeated = simulated(pool, Workers(4, **slow, repeat=True), strategy="random", budget=8, real=False)
    assert repeated.soups.seconds == 30.0  # one of these repeats it
    assert repeated.scores == held.scores


def test_an_independent_strategy_gives_the_same_result_with_1_and_64_workers(pool: SimulatedPool) -> None:
    one, many = (simulated(pool, Workers(w), strategy="paper", budget=20, real=False) for w in (1, 64))
    assert one.best == many.best
    assert one.scores == many.scores
    assert one.soups.seconds == 20 * 10.0
    assert many.soups.seconds == 10.0


@pytest.mark.parametrize("strategy", ["random", "adaptive"])
def test_nothing_is_lost_when_workers_die(pool: SimulatedPool, tmp_path: Path, strategy: str) -> None:
    options = {"count": 64, "keep": 32} if strategy == "adaptive" else None
    more = {"strategy": strategy, "budget": 12, "real": False, "options": options}
    workers = Workers(5, deaths={0: 3.0, 1: 14.5, 2: 14.5}, restart=7.0)
    run = simulated(pool, workers, out=tmp_path, **more)
    assert run.engine.died == 3
    assert run.soups.wasted > 0
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True)
    asked = ledger.questions()
    assert len(ledger.entries("member", "validation")) == 24
    ledger.close()
    assert all(question.answer is not None for question in asked)  # each question has its answer, and one only
    assert len(asked) == run.recorded == run.soups.questions
    assert run.spent <= 12 + 1e-9
    if strategy == "random":
        assert run.scores == simulated(pool, Workers(1), **more).scores


def test_where_all_workers_die_the_questions_fail_and_no_answer_is_lost(pool: SimulatedPool, tmp_path: Path) -> None:
    from radin.errors import RunError

    deaths = dict.fromkeys(range(3), 25.0)
    with pytest.raises(RunError, match="every worker died"):
        simulated(pool, Workers(3, deaths=deaths), strategy="random", budget=12, real=False, out=tmp_path)
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True)
    assert len(ledger.entries("member", "validation")) == 6  # two rounds of three
    ledger.close()
