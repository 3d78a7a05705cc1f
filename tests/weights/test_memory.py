"""Peak memory of opening, averaging and measuring a pool far larger than the bound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MEMBERS = 12
MEMBER_BYTES = 100 << 20
LIMIT = 600 << 20

# VmHWM and not ru_maxrss: the latter starts from the peak of the process that forked this one.
MEASURE = """
import sys
import torch
torch.set_num_threads(1)
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
before = peak()
from radin.recipe import Recipe
from radin.weights import Pool, average, geometry, save
pool = Pool.open(sys.argv[1])
soup = average(pool, Recipe.uniform(range(len(pool)), len(pool)))
save(soup, sys.argv[2])
geometry(pool)
print(len(pool), soup["w0"][0, 0].item(), peak() - before)
"""


def write_pool(first: Path, pool: Path, marker: float) -> None:
    """Copies of a file of zeros, with holes so that they cost no disk, and member k's number in place of ``marker``."""
    content = first.read_bytes()
    block = 1 << 16
    zeros = bytes(block)
    starts = [at for at in range(0, len(content), block) if content[at : at + block] != zeros]
    place = content.index(torch.tensor(marker).numpy().tobytes())
    pool.mkdir()
    for k in range(MEMBERS):
        with (pool / f"m{k}{first.suffix}").open("wb") as file:
            for at in starts:
                file.seek(at)
                file.write(content[at : at + block])
            file.truncate(len(content))
            file.seek(place)
            file.write(torch.tensor(float(k + 1)).numpy().tobytes())


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_peak_memory_does_not_grow_with_the_pool(tmp_path: Path, suffix: str) -> None:
    # one large tensor, as an embedding would be, and several smaller ones
    rows = MEMBER_BYTES // 4 // 1024
    state = {"w0": torch.zeros(rows // 2, 1024), **{f"w{k}": torch.zeros(rows // 8, 1024) for k in range(1, 5)}}
    state["w0"][0, 0] = marker = 12345.0
    first = tmp_path / f"first{suffix}"
    save_file(state, first) if suffix == ".safetensors" else torch.save(state, first)
    pool = tmp_path / "pool"
    write_pool(first, pool, marker)
    arguments = [sys.executable, "-c", MEASURE, str(pool), str(tmp_path / f"soup{suffix}")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    members, mean, grown = result.stdout.split()
    assert int(members) == MEMBERS
    assert float(mean) == (MEMBERS + 1) / 2
    assert MEMBER_BYTES < int(grown) < LIMIT  # below the result's own size it would not have been measured
