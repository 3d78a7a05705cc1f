"""Averaging a pool: seconds and peak memory of radin beside what a user would write, each in a process of its own.

    python benchmarks/average.py [--quick] [--json]

Files are written first and so lie in the page cache, which is the case hardest on whoever spends time on arithmetic.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

REPEATS = 3


def all_at_once(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Load every file, then average each tensor in float64."""
    states = [load_file(path) for path in paths]
    return {
        name: (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
        for name, tensor in states[0].items()
    }


def running_sum(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Load one file at a time into a sum of the files' own dtype, as model-soups' scripts do."""
    total = {name: tensor * (1 / len(paths)) for name, tensor in load_file(paths[0]).items()}
    for path in paths[1:]:
        for name, tensor in load_file(path).items():
            total[name] += tensor * (1 / len(paths))
    return total


def with_radin(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Open, check, fingerprint and average."""
    from radin import Pool, Recipe, average

    pool = Pool.open(paths)
    return average(pool, Recipe.uniform(range(len(pool)), len(pool)))


def radin_average_alone(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Average members whose content was checked before: only the averaging is timed."""
    from radin import Recipe, average
    from radin.weights import Member, Pool, open_checkpoint

    members = []
    for path in paths:
        checkpoint = open_checkpoint(path)
        members.append(Member(path.stem, path, path.stem, checkpoint, checkpoint.notes, checkpoint.bytes))
    return average(Pool(members), Recipe.uniform(range(len(members)), len(members)))


WAYS: dict[str, Callable[[list[Path]], dict[str, torch.Tensor]]] = {
    "all at once, float64": all_at_once,
    "running sum, own dtype": running_sum,
    "radin, average alone": radin_average_alone,
    "radin, opened and checked": with_radin,
}


def write_pool(folder: Path, members: int, megabytes: int) -> list[Path]:
    """Random float32 members of ``megabytes`` each, in 64 tensors of unequal size."""
    columns = (megabytes << 20) // 4 // (64 * 65 // 2) // 16
    paths = []
    for k in range(members):
        generator = torch.Generator().manual_seed(k)
        state = {f"w{i}": torch.randn(16 * (i + 1), columns, generator=generator) for i in range(64)}
        paths.append(folder / f"m{k:02}.safetensors")
        save_file(state, paths[-1])
    return paths


def peak_bytes() -> int:
    """Highest resident memory of this process so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


def measure(way: str, paths: list[Path], threads: int) -> None:
    """Run one way in this process and print seconds, peak memory above the imports and largest error."""
    torch.set_num_threads(threads)
    __import__("radin.weights")
    before = peak_bytes()
    start, start_cpu = time.perf_counter(), time.process_time()
    soup = WAYS[way](paths)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = peak_bytes() - before
    name = "w63"
    exact = sum(load_file(path)[name].double() for path in paths) / len(paths)
    error = float((soup[name].double() - exact).abs().max())
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak / (1 << 20), "largest_error": error}))


def run(way: str, paths: list[Path], threads: int) -> dict[str, float]:
    """The fastest of REPEATS fresh processes."""
    command = [sys.executable, __file__, "--way", way, "--threads", str(threads), *map(str, paths)]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(REPEATS)]
    results: list[dict[str, float]] = [json.loads(output) for output in outputs]
    return min(results, key=lambda result: result["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12 members of 50 MB in place of 24 of 100 MB")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options.paths, options.threads)
        return
    members, megabytes = (12, 50) if options.quick else (24, 100)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pool(Path(folder), members, megabytes)
        results = {way: run(way, paths, options.threads) for way in WAYS}
    base = results["all at once, float64"]
    print(f"{members} members of {megabytes} MB, float32, {options.threads} thread(s), torch {torch.__version__}")
    print(f"{platform.processor() or platform.machine()}, {platform.system()}, Python {platform.python_version()}\n")
    print("| way | seconds | against all at once | processor seconds | peak MB | largest error |")
    print("|---|---|---|---|---|---|")
    for way, result in results.items():
        ratio = base["seconds"] / result["seconds"]
        times = f"{result['seconds']:.2f} | {ratio:.2f}x | {result['cpu']:.2f}"
        print(f"| {way} | {times} | {result['peak_mb']:.0f} | {result['largest_error']:.1e} |")
    if options.json:
        alone = results["radin, average alone"]
        print(
            json.dumps(
                {
                    "ratio_vs_all_at_once": base["seconds"] / alone["seconds"],
                    "memory_share": alone["peak_mb"] / base["peak_mb"],
                    "peak_mb": alone["peak_mb"],
                }
            )
        )


if __name__ == "__main__":
    main()
