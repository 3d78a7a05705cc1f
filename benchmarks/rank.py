"""How fast recipes are ranked from cached outputs, side by side in one run: radin and what one would write instead.

(a) torch: a batched product of mixing weights and dense float32 logits, then argmax;
(b) numpy: one candidate after the other;
(c) radin: the margins compiled in one reading of the outputs, then scored.

    python benchmarks/rank.py --quick --json      a minute or two: 2,000 examples, 1,000 classes, 72 members
    python benchmarks/rank.py --write             all sizes; 7.5 GB on disk at a time, under benchmarks/.cache
    python benchmarks/rank.py --pool DIR          also a real pool: the outputs folder of a radin run

(a) and (b) are timed on a few examples and candidates and scaled up, which is marked with "~": both are linear in
each. They take turns with (c). Two ratios are given: of candidates per elapsed second on all threads, which is what the
JSON's ratio_vs_dense says, and of processor seconds on one thread, since a machine busy with other things slows
operations shared by threads more than others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radin.estimate import AccuracyEstimator, FileArray, compile_margins
from radin.estimate.reading import Reader

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache" / "rank"
Clock = Callable[[], float]
NOTES = """What limits it: at 15 % disagreement and above, the float32 product of recipes and margin rows, which runs
near
the processor's peak: fewer rows would help, a faster minimum would not. Where few rows are left, comparing and counting
take a third. Elapsed times depend on what else the machine does; processor seconds hardly do, and on idle cores a run
takes its processor seconds divided by the threads."""
CHUNK = 20_000  # recipes per call, as a search would ask


@dataclass(frozen=True)
class Case:
    """Made outputs: members N, examples M, classes C; ``noise`` sets how much the members disagree."""

    name: str
    members: int
    examples: int
    classes: int
    noise: float
    signal: float = 5.0
    checked: int = 200  # candidates compared with dense float64
    large: int = 1_000_000  # candidates in the long run


def imagenet_like(disagreement: int, noise: float, **changes: Any) -> Case:
    return Case(f"ImageNet-like, {disagreement} %", 72, 26_000, 1000, noise, **changes)


FULL = [
    Case("Fashion-MNIST-like", 24, 10_000, 10, 0.5, signal=3.2, checked=10_000),
    imagenet_like(5, 0.075),
    imagenet_like(15, 0.25),
    imagenet_like(30, 0.56, large=100_000),
]
QUICK = [
    Case("Fashion-MNIST-like", 24, 10_000, 10, 0.5, signal=3.2, checked=1000, large=20_000),
    Case("ImageNet-like, 15 %", 72, 2000, 1000, 0.25, checked=300, large=100_000),
]


def make_outputs(case: Case, folder: Path, seed: int = 0) -> dict[str, float]:
    """Write each member's float32 logits and the targets; return the mean accuracy and disagreement reached.

    All members share logits drawn from N(0, 1), the true class raised by N(signal, 2^2) so that some examples are easy
    and some hopeless; each member adds noise of its own. Disagreement: share of examples on which two members
    predict different classes, mean over pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, case.classes, (case.examples,), generator=generator)
    shared = torch.randn(case.examples, case.classes, generator=generator)
    raised = case.signal + 2 * torch.randn(case.examples, generator=generator)
    shared[torch.arange(case.examples), targets] += raised
    predicted = np.empty((case.members, case.examples), np.int64)
    for k in range(case.members):
        logits = torch.randn(case.examples, case.classes, generator=generator).mul_(case.noise).add_(shared)
        predicted[k] = logits.argmax(dim=1).numpy()
        with open(folder / f"{k:03}.f32", "wb") as file:
            file.write(memoryview(logits.numpy()).cast("B"))
            # The figures are of reading, so nothing may still be on its way to the disk.
            file.flush()
            os.fsync(file.fileno())
    np.save(folder / "targets.npy", targets.numpy())
    pairs = case.members * (case.members - 1) / 2
    agreeing = sum(
        (np.bincount(votes, minlength=1) * (np.bincount(votes, minlength=1) - 1) / 2).sum() for votes in predicted.T
    )
    return {
        "accuracy": float((predicted == targets.numpy()).mean()),
        "disagreement": float(1 - agreeing / (pairs * case.examples)),
        "contested": float((predicted != predicted[0]).any(axis=0).mean()),
    }


def open_outputs(case: Case, folder: Path) -> tuple[list[Any], np.ndarray]:
    """Each member's outputs and the targets: made ones, or those of a radin run."""
    if (folder / "targets.npy").exists():
        shape = (case.examples, case.classes)
        files = [FileArray(folder / f"{k:03}.f32", 0, shape, np.float32) for k in range(case.members)]
        return list(files), np.load(folder / "targets.npy")
    from safetensors.numpy import load_file

    from radin.outputs.store import StoredOutputs

    paths = sorted(path for path in folder.glob("*.safetensors") if len(path.stem) == 32)
    (targets,) = load_file(folder / "targets.safetensors").values()
    return [StoredOutputs.open(path).array() for path in paths], targets


def describe_pool(folder: Path) -> tuple[Case, dict[str, float]]:
    """The case and figures of a real pool's outputs."""
    outputs, targets = open_outputs(Case("", 0, 0, 0, 0), folder)
    predicted = np.stack([np.asarray(member[:]).argmax(axis=1) for member in outputs])
    differ = [(a != b).mean() for i, a in enumerate(predicted) for b in predicted[:i]]
    examples, classes = outputs[0].shape
    figures = {
        "accuracy": float((predicted == targets).mean()),
        "disagreement": float(np.mean(differ)),
        "contested": float((predicted != predicted[0]).any(axis=0).mean()),
    }
    return Case(
        f"{folder.absolute().parents[1].name} (real)", len(outputs), examples, classes, 0, checked=10_000
    ), figures


def random_subsets(count: int, members: int, rng: np.random.Generator) -> np.ndarray:
    """Membership (S, N) of subsets with sizes uniform on 2..N-1, as the paper draws them."""
    order = rng.random((count, members)).argsort(axis=1).argsort(axis=1)
    return order < rng.integers(2, members, (count, 1))


def uniform(masks: np.ndarray) -> np.ndarray:
    return masks / masks.sum(axis=1, keepdims=True)


def timed(work: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


def read_once(outputs: Sequence[Any], threads: int) -> None:
    """Read every byte, as fast as this machine reads files."""
    nbytes = max(1, 2**20 // (outputs[0].shape[1] * outputs[0].dtype.itemsize))
    buffers = [np.empty((nbytes, outputs[0].shape[1]), outputs[0].dtype) for _ in range(threads)]

    def one(source: Any) -> None:
        buffer = buffers.pop()
        for lo in range(0, source.shape[0], nbytes):
            source.read_into(lo, buffer[: min(nbytes, source.shape[0] - lo)])
        buffers.append(buffer)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, outputs))


def forget(outputs: Sequence[Any]) -> None:
    """Drop the files from the page cache."""
    for source in outputs:
        os.posix_fadvise(source._file, 0, 0, os.POSIX_FADV_DONTNEED)


def torch_dense(flat: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: int) -> None:
    """(a): score recipes on some examples; flat (N, m * C), weights (S, N), ``rows`` examples in a product."""
    examples, width = len(targets), flat.shape[1] // len(targets)
    right = torch.zeros(len(weights), dtype=torch.int64, device=flat.device)
    for lo in range(0, examples, rows):
        averaged = weights @ flat[:, lo * width : (lo + rows) * width]
        right += (averaged.reshape(len(weights), -1, width).argmax(dim=2) == targets[lo : lo + rows]).sum(dim=1)
    right.tolist()


def numpy_dense(flat: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
    """(b): the same, one recipe after the other, in float32."""
    for row in weights:
        ((row @ flat).reshape(len(targets), -1).argmax(axis=1) == targets).mean()


def dense_counts(outputs: Sequence[Any], targets: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Right answers of each subset (S, N) from float64 sums of its members' logits."""
    examples, classes = outputs[0].shape
    right = np.zeros(len(masks), np.int64)
    weights = torch.from_numpy(masks.astype(np.float64))
    step = max(1, 2_000_000 // (classes * 64))
    for lo in range(0, examples, step):
        block = torch.from_numpy(np.stack([np.asarray(o[lo : lo + step]) for o in outputs]).astype(np.float64))
        labels = torch.from_numpy(targets[lo : lo + step])
        for at in range(0, len(masks), 64):
            sums = (weights[at : at + 64] @ block.reshape(len(outputs), -1)).reshape(-1, len(labels), classes)
            right[at : at + 64] += (sums.argmax(dim=2) == labels).sum(dim=1).numpy()
    return right


def profile(estimator: AccuracyEstimator, weights: np.ndarray) -> dict[str, float]:
    """Shares of the CPU time of scoring on one thread, by kind of work; and the product's rate in GFLOP/s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.profiler.profile() as profiler:
        estimator.scores(weights)
    torch.set_num_threads(threads)
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(spent.values())
    product = spent.get("aten::mm", 0.0)
    flops = 2 * estimator.nbytes / 4 * len(weights)
    return {
        "product": product / total,
        "minimum": spent.get("aten::minimum", 0.0) / total,
        "compare and count": sum(spent.get(f"aten::{n}", 0.0) for n in ("gt", "le", "abs_", "mv", "copy_")) / total,
        "product_gflops": flops / product / 1e3 if product else 0.0,
    }


def measure(case: Case, folder: Path, device: str, cold: bool) -> dict[str, Any]:
    """All figures of one case, in this process."""
    outputs, targets = open_outputs(case, folder)
    rng = np.random.default_rng(1)
    threads, files = torch.get_num_threads(), isinstance(outputs[0], FileArray)
    result: dict[str, Any] = {}

    def compiled() -> AccuracyEstimator:
        return AccuracyEstimator(compile_margins(Reader(outputs), targets), device=device)

    if files and cold:
        forget(outputs)
        result["read_cold_s"] = timed(lambda: read_once(outputs, threads))
        forget(outputs)
        result["compile_cold_s"] = timed(compiled)
    if files:
        read_once(outputs, threads)
        result["read_warm_s"] = timed(lambda: read_once(outputs, threads))
    start, used = time.perf_counter(), time.process_time()
    estimator = compiled()
    result["compile_s"], result["compile_cpu_s"] = time.perf_counter() - start, time.process_time() - used
    result["rows"] = estimator.nbytes // (4 * case.members)
    result["compiled_bytes"] = estimator.nbytes
    result["compiled_share"] = estimator.nbytes / (case.members * case.examples * case.classes * 4)
    result["small_s"] = timed(lambda: estimator.scores(uniform(random_subsets(1000, case.members, rng))))
    spent, used = 0.0, 0.0
    for _ in range(0, case.large, CHUNK):
        weights = uniform(random_subsets(CHUNK, case.members, rng))
        used -= time.process_time()
        spent += timed(lambda chunk=weights: estimator.scores(chunk))  # type: ignore[misc]
        used += time.process_time()
    result["large"], result["large_s"], result["large_cpu_s"] = case.large, spent, used
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result["profile"] = profile(estimator, weights[:512]) if device == "cpu" else {}
    result |= compare(case, outputs, targets, estimator, rng, device)
    masks = random_subsets(case.checked, case.members, rng)
    counts = np.rint(estimator.scores(uniform(masks)) * case.examples).astype(np.int64)
    result["checked"] = case.checked
    result["counts_equal"] = bool((counts == dense_counts(outputs, targets, masks)).all())
    return result


def compare(
    case: Case,
    outputs: Sequence[Any],
    targets: np.ndarray,
    estimator: AccuracyEstimator,
    rng: np.random.Generator,
    device: str,
) -> dict[str, float]:
    """Candidates per second of (a), (b) and (c), the best of five turns each, and two ratios of (c) to (a).

    ``ratio_vs_dense`` compares processor seconds on one thread each, which other work on the machine disturbs least;
    ``ratio_elapsed`` the elapsed seconds on all threads.
    """
    part = min(case.examples, max(52, 8_000_000 // (case.classes * case.members)))
    scale = case.examples / part
    flat = np.stack([np.asarray(o[:part], np.float32) for o in outputs]).reshape(case.members, -1)
    labels = targets[:part]
    there, labels_there = torch.from_numpy(flat).to(device), torch.from_numpy(labels).to(device)

    def recipes(count: int) -> np.ndarray:
        return uniform(random_subsets(count, case.members, rng))

    def batched(count: int, rows: int, clock: Clock) -> float:
        weights = torch.from_numpy(recipes(count)).float().to(device)
        return scale * timed(lambda: torch_dense(there, labels_there, weights, rows), clock) / count

    shapes = [(count, rows) for count in (16, 64, 256) for rows in (4, 26, part)]
    best = {shape: min(batched(*shape, time.perf_counter) for _ in range(2)) for shape in shapes}
    shape = min(best, key=lambda s: best[s])
    elapsed, used = [], []
    threads = torch.get_num_threads()
    for _ in range(5):
        chunk, few = recipes(CHUNK), recipes(4).astype(np.float32)
        single = scale * timed(lambda few=few: numpy_dense(flat, labels, few)) / 4  # type: ignore[misc]
        mine = timed(lambda chunk=chunk: estimator.scores(chunk)) / CHUNK  # type: ignore[misc]
        elapsed.append((batched(*shape, time.perf_counter), single, mine))
        torch.set_num_threads(1)
        clock = time.process_time if device == "cpu" else time.perf_counter
        mine = timed(lambda chunk=chunk: estimator.scores(chunk), clock) / CHUNK  # type: ignore[misc]
        used.append((batched(*shape, clock), mine))
        torch.set_num_threads(threads)
    torch_s, numpy_s, radin_s = np.min(elapsed, axis=0)
    dense_used, radin_used = np.min(used, axis=0)
    return {
        "torch_per_s": 1 / torch_s,
        "numpy_per_s": 1 / numpy_s,
        "radin_per_s": 1 / radin_s,
        "ratio_elapsed": torch_s / radin_s,
        "ratio_vs_dense": dense_used / radin_used,
    }


def in_own_process(case: Case, folder: Path, device: str, cold: bool) -> dict[str, Any]:
    """``measure`` in a process of its own, so that its peak memory is its own."""
    request = json.dumps({"case": asdict(case), "folder": str(folder), "device": device, "cold": cold})
    done = subprocess.run(
        [sys.executable, __file__, "--measure", request], stdout=subprocess.PIPE, check=True, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return (
        f"{model}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}; load average {os.getloadavg()[0]:.1f}"
    )


def rows_of(results: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> list[str]:
    """A Markdown table: one line per result, one column per entry."""
    lines = ["| " + " | ".join(["outputs", *columns]) + " |", "|" + "---|" * (len(columns) + 1)]
    for result in results:
        cells = [result["case"]["name"], *(column(result) for column in columns.values())]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def seconds(result: dict[str, Any], key: str) -> str:
    return f"{result[key]:.2f}" if key in result else "-"


def table(results: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["Candidates per second; ~ scaled up from fewer examples and candidates.", ""]
    lines += rows_of(
        results,
        {
            "N x M x C": lambda r: f"{r['case']['members']} x {r['case']['examples']:,} x {r['case']['classes']:,}",
            "disagreement": lambda r: f"{r['disagreement']:.1%}",
            "accuracy": lambda r: f"{r['accuracy']:.3f}",
            "(a) torch": lambda r: f"~{r['torch_per_s']:,.1f}",
            "(b) numpy": lambda r: f"~{r['numpy_per_s']:,.2f}",
            "(c) radin": lambda r: f"{r['radin_per_s']:,.0f}",
            "(c) / (a), processor time": lambda r: f"{r['ratio_vs_dense']:,.0f}",
            "(c) / (a), elapsed": lambda r: f"{r['ratio_elapsed']:,.0f}",
            "counts equal": lambda r: f"{r['counts_equal']} ({r['checked']:,} compared)",
        },
    )
    lines += ["Seconds, memory and size.", ""]
    lines += rows_of(
        results,
        {
            "S = 1,000: (a)": lambda r: f"~{1000 / r['torch_per_s']:,.0f}",
            "(c)": lambda r: f"{r['small_s']:.2f}",
            "(c) with compiling": lambda r: f"{r['small_s'] + r['compile_s']:.2f}",
            "S = 1,000,000: (a)": lambda r: f"~{1e6 / r['torch_per_s']:,.0f}",
            "(c) ": lambda r: f"{'' if r['large'] == 10**6 else '~'}{r['large_s'] * 1e6 / r['large']:,.1f}",
            "its processor seconds": lambda r: f"{r['large_cpu_s'] * 1e6 / r['large']:,.1f}",
            "peak MB": lambda r: f"{r['peak_rss_mb']:,.0f}",
            "margin rows": lambda r: f"{r['rows']:,}",
            "share of the logits' bytes": lambda r: f"{r['compiled_share']:.3%}",
        },
    )
    lines += ["Compiling against reading every byte once, seconds.", ""]
    lines += rows_of(
        [r for r in results if "read_warm_s" in r],
        {
            "read, from disk": lambda r: seconds(r, "read_cold_s"),
            "compile, from disk": lambda r: seconds(r, "compile_cold_s"),
            "read, in page cache": lambda r: seconds(r, "read_warm_s"),
            "compile, in page cache": lambda r: seconds(r, "compile_s"),
            "its processor seconds": lambda r: seconds(r, "compile_cpu_s"),
        },
    )
    lines += ["What scoring spends its processor time on, one thread.", ""]
    lines += rows_of(
        [r for r in results if r["profile"]],
        {
            "product": lambda r: f"{r['profile']['product']:.0%}",
            "minimum": lambda r: f"{r['profile']['minimum']:.0%}",
            "compare and count": lambda r: f"{r['profile']['compare and count']:.0%}",
            "product, GFLOP/s": lambda r: f"{r['profile']['product_gflops']:.0f}",
        },
    )
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute or two, on 2,000 examples")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/results/rank.md")
    parser.add_argument("--pool", type=Path, nargs="+", default=[], help="outputs folders of radin runs, real data")
    parser.add_argument("--only", default="", help="only the sizes whose name has this in it")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for (a) and (c)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        request = json.loads(options.measure)
        case = Case(**request["case"])
        print(json.dumps(measure(case, Path(request["folder"]), request["device"], request["cold"])))
        return
    results = []
    for folder in options.pool:
        case, figures = describe_pool(folder)
        results.append({"case": asdict(case), **figures, **in_own_process(case, folder, options.device, False)})
    for case in QUICK if options.quick else FULL:
        if options.only not in case.name:
            continue
        print(f"making {case.name} ...", file=sys.stderr, flush=True)
        try:
            figures = make_outputs(case, CACHE)
            result = in_own_process(case, CACHE, options.device, not options.quick)
        finally:
            shutil.rmtree(CACHE, ignore_errors=True)
        results.append({"case": asdict(case), **figures, **result})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    text = f"# Ranking recipes\n\n{machine()}\n\n{table(results)}\n\n{NOTES}\n"
    if options.write:
        (HERE / "results" / "rank.md").write_text(text)
        (HERE / "results" / "rank.json").write_text(json.dumps(results, indent=1) + "\n")
    print(text)
    if options.json:
        main_case = next(r for r in results if r["case"]["name"].endswith("15 %"))
        print(
            json.dumps(
                {
                    "ratio_vs_dense": round(main_case["ratio_elapsed"], 1),
                    "ratio_vs_dense_processor_time": round(main_case["ratio_vs_dense"], 1),
                    "counts_equal": all(r["counts_equal"] for r in results),
                    "candidates_per_second": round(main_case["radin_per_s"], 1),
                    "peak_rss_mb": round(main_case["peak_rss_mb"], 1),
                    "compiled_bytes_share": main_case["compiled_share"],
                }
            )
        )


if __name__ == "__main__":
    main()
