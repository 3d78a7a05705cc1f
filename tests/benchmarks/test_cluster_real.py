"""The measurement on a real cluster: what it says without its pool, and how it is summed up."""

from __future__ import annotations

import pytest
from benchmarks.cluster_parts import real

from radin.engine.crew import Crew, Reply, Work
from radin.engine.worker import MemberRows
from radin.errors import RadinError

pytestmark = pytest.mark.long


class Counted(Crew):
    """Gives back what it was given, and says how much it had at most."""

    size, most = 2, 0

    def __init__(self) -> None:
        self.open: list[Work] = []

    def submit(self, work: Work) -> None:
        self.open.append(work)
        self.most = max(self.most, len(self.open))

    def wait(self, timeout: float | None = None) -> list[tuple[Work, Reply]]:
        return [(self.open.pop(), Reply(MemberRows.__new__(MemberRows)))]

    def close(self) -> None:
        pass


def test_without_the_pool_it_says_how_to_build_it(tmp_path):
    with pytest.raises(RadinError, match=r"build it with python -m benchmarks.pools.fashion --kind gentle"):
        real.measured(folder=tmp_path)


def test_one_worker_has_one_member_at_a_time():
    two, one = Counted(), Counted()
    assert real.throughput(two, [0, 1, 2]) > 0
    assert real.throughput(real._One(one), [0, 1, 2]) > 0
    assert (two.most, one.most) == (3, 1)
