"""Checkpoints that chance has damaged: each is read or refused with one message."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from benchmarks.fault_parts.fuzz_weights import corpus, probe


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    came = Counter((label, probe(path)) for label, path in islice(corpus(10, tmp_path), 300))
    assert sum(came.values()) == 300
    assert sum(number for (_, outcome), number in came.items() if outcome == "refused") > 100
    assert sum(number for (_, outcome), number in came.items() if outcome == "ok") > 30
    assert len({label for label, _ in came}) > 8
