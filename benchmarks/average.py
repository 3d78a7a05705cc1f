"""Averaging checkpoints: radin beside what a user would run otherwise, and beside moving the bytes alone.

    python benchmarks/average.py [--quick] [--json] [--megabytes M] [--members N] [--folder DIR]

Every way averages the same folders (a language model in the Hugging Face layout, one file or several shards) into a
file or folder of the same kind, in a process of its own, in turn with the others; the table has medians of three runs
(two of torch, one of timm and mergekit).

* bytes alone: read every input once into one buffer, write as many bytes as the soup has, fsync. No arithmetic.
* radin: finds, checks, fingerprints and averages members that it has never seen (nothing is remembered), and writes
  the soup with its recipe, synced to disk. A second line is the command `radin average`, where it writes one file.
* torch: the plain script: load_file, add in float32, divide, save_file. It checks nothing and syncs nothing.
* timm: the float64 sum of timm's avg_checkpoints.py, files read by timm.models.load_state_dict.
* mergekit: `mergekit-yaml`, merge_method linear.

seconds: from after the imports to the end of the work. whole: the process from start to exit, imports included, which
is all that can be said of a command; mergekit is compared by it with the command of radin, or with radin's process.
Cold: the inputs are dropped from the page cache (posix_fadvise DONTNEED) before each run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# This process imports no torch: the peak memory that the system reports of a child begins with its parent's.
LAYERS = 8
VOCABULARY = 4096
SHARDS = 4
REPEATS = {"mergekit": 1, "timm": 1, "torch": 2}  # of the slow ways
OFTEN = 3
MERGEKIT = Path(sys.executable).with_name("mergekit-yaml")


@dataclass(frozen=True)
class Kind:
    """One pool to average: its dtype, whether each member is several shards, and whether its files are in memory."""

    dtype: str
    sharded: bool
    cold: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}, {'sharded' if self.sharded else 'one file'}, {'cold' if self.cold else 'warm'}"


# What runs in a process of its own


def bytes_alone(members: list[Path], out: Path, dtype: str) -> None:
    """Read all inputs once, write as much as one of them has."""
    buffer = memoryview(bytearray(1 << 20))
    files = [file for member in members for file in sorted(member.glob("*.safetensors"))]
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    left = sum(file.stat().st_size for file in members[0].glob("*.safetensors"))
    with out.open("wb", buffering=0) as opened:
        while left > 0:
            left -= opened.write(buffer[: min(left, len(buffer))])
        os.fsync(opened.fileno())


def radin(members: list[Path], out: Path, dtype: str) -> None:
    """One reading: checks, fingerprints, average; the soup in the form of the members."""
    from radin.recipe import Recipe
    from radin.weights import Soup, recipe_metadata, save
    from radin.weights.alike import save_alike
    from radin.weights.pool import Opened
    from radin.weights.unread import Unread

    unread = Unread(Opened.of(members))
    pool = unread.pool
    recipe = Recipe.uniform(range(len(pool)), len(pool))
    soup = Soup(pool, recipe, unread=unread)
    if len(pool[0].checkpoint.files) > 1:
        save_alike(soup, pool[0].checkpoint, out, recipe_metadata(pool, recipe))
    else:
        save(soup, out.with_suffix(".safetensors"), metadata=recipe_metadata(pool, recipe))


def torch_sum(members: list[Path], out: Path, dtype: str) -> None:
    """The plain script, one shard after another."""
    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir()
    for shard in sorted(members[0].glob("*.safetensors")):
        total = {name: tensor.float() for name, tensor in load_file(shard).items()}
        for member in members[1:]:
            for name, tensor in load_file(member / shard.name).items():
                total[name] += tensor
        soup = {name: (tensor / len(members)).to(getattr(torch, dtype)) for name, tensor in total.items()}
        save_file(soup, out / shard.name)


def timm_sum(members: list[Path], out: Path, dtype: str) -> None:
    """As timm's avg_checkpoints.py: a float64 sum of all tensors, clamped to what float32 holds."""
    import torch
    from safetensors.torch import save_file
    from timm.models import load_state_dict

    average: dict[str, torch.Tensor] = {}
    for member in members:
        for file in sorted(member.glob("*.safetensors")):
            for name, tensor in load_state_dict(str(file)).items():
                if name in average:
                    average[name] += tensor.to(dtype=torch.float64)
                else:
                    average[name] = tensor.clone().to(dtype=torch.float64)
    limits = torch.finfo(torch.float32)
    final = {}
    for name, tensor in average.items():
        tensor.div_(len(members))
        final[name] = tensor.clamp(limits.min, limits.max).to(dtype=torch.float32)
    save_file(final, out)


def check(members: list[Path], out: Path, dtype: str) -> None:
    """Print whether radin's soup is the float64 average rounded once, bit for bit, and how far off mergekit's is."""
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Path]:
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
        return {name: file for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118

    def read(file: Path, name: str) -> torch.Tensor:
        with safe_open(file, "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor

    ours, theirs = tensors(_written(out, "radin")), tensors(_written(out, "mergekit"))
    equal, close = True, True
    held = [tensors(member) for member in members]
    for name in held[0]:
        exact = torch.zeros(read(held[0][name], name).shape, dtype=torch.float64)
        for places in held:
            exact += (1 / len(members)) * read(places[name], name).double()
        rounded = exact.to(getattr(torch, dtype))
        equal = equal and torch.equal(read(ours[name], name), rounded)
        if theirs:
            other = read(theirs[name], name).double()
            # mergekit adds in the members' own dtype: each step may be off by half a digit of the largest term
            step = torch.finfo(getattr(torch, dtype)).eps * 2
            close = close and bool(((other - exact).abs() <= step * (exact.abs() + 1)).all())
    print(json.dumps({"equal": equal, "close": close}))


def _written(out: Path, way: str) -> Path:
    found = out.with_name(f"{out.name}-{way}")
    return found if found.exists() else found.with_suffix(".safetensors")


def write_members(folder: Path, members: int, megabytes: int, dtype: str, sharded: bool) -> None:
    """Folders as transformers saves a Llama: random weights of about ``megabytes`` each."""
    import torch
    from safetensors.torch import save_file

    size = getattr(torch, dtype).itemsize
    # per layer 4 h^2 of attention and 3 h * 4 h of the feed-forward part
    hidden = 128
    while (16 * (hidden + 128) ** 2 * LAYERS + 2 * VOCABULARY * (hidden + 128)) * size <= megabytes << 20:
        hidden += 128
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for k in range(LAYERS):
        layer = f"model.layers.{k}"
        for part in "qkvo":
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (4 * hidden, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, 4 * hidden)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    names = list(shapes)
    for k in range(members):
        member = folder / f"member-{k}"
        member.mkdir(parents=True)
        (member / "config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(k)
        state = {n: torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for n, shape in shapes.items()}
        if not sharded:
            save_file(state, member / "model.safetensors", metadata={"format": "pt"})
            continue
        weight_map = {}
        for s in range(SHARDS):
            file = f"model-{s + 1:05}-of-{SHARDS:05}.safetensors"
            mine = names[s * len(names) // SHARDS : (s + 1) * len(names) // SHARDS]
            save_file({name: state[name] for name in mine}, member / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(mine, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (member / "model.safetensors.index.json").write_text(json.dumps(index))


WAYS: dict[str, tuple[Callable[[list[Path], Path, str], None], str]] = {
    "bytes alone": (bytes_alone, ""),
    "radin": (radin, "radin.weights.alike,radin.weights.unread"),
    "torch": (torch_sum, "torch,safetensors.torch"),
    "timm": (timm_sum, "torch,safetensors.torch,timm.models"),
    "check": (check, "torch"),
}


def inside(way: str, members: list[Path], out: Path, dtype: str) -> None:
    """Do it in this process, and print the seconds that it took without the imports."""
    work, imports = WAYS[way]
    for module in filter(None, imports.split(",")):
        __import__(module)
    start = time.perf_counter()
    work(members, out, dtype)
    if way != "check":
        print(json.dumps({"seconds": time.perf_counter() - start}))


# What starts them


def run(way: str, members: list[Path], out: Path, dtype: str) -> dict[str, float]:
    """One process: seconds, whole, cpu, peak_mb."""
    me = [sys.executable, __file__, "--way", way, "--dtype", dtype, "--out", str(out), *map(str, members)]
    command = {
        "mergekit": [str(MERGEKIT), str(out.with_suffix(".yml")), str(out), "--no-copy-tokenizer"],
        "radin command": [sys.executable, "-m", "radin", "average", *map(str, members), "-o", f"{out}.safetensors"],
    }.get(way, me)
    if way == "mergekit":
        models = "".join(f"  - model: {member}\n    parameters: {{weight: 1.0}}\n" for member in members)
        text = f"merge_method: linear\ndtype: {dtype}\nmodels:\n{models}"
        out.with_suffix(".yml").write_text(text)
    environment = {**os.environ, "RADIN_CACHE": "off", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment.pop("OMP_NUM_THREADS", None)  # each as it comes
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        whole = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (said, errors):
            stream.seek(0)
        if process.returncode:
            raise SystemExit(f"{way} failed:\n{errors.read()[-3000:]}")
        lines = said.read().strip().splitlines()
    inner = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return {**inner, "whole": whole, "cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}


def drop(members: list[Path]) -> None:
    """Take the members' files out of the page cache."""
    for file in (file for member in members for file in member.iterdir()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(kind: Kind, members: list[Path], out: Path) -> dict[str, dict[str, float]]:
    """Medians of interleaved repeats of every way."""
    ways = ["bytes alone", "radin", "torch", "timm", "mergekit"]
    if not kind.sharded:
        ways.insert(2, "radin command")
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for k in range(OFTEN):
        for way in ways:
            if k >= REPEATS.get(way, OFTEN):
                continue
            target = out.with_name(f"{out.name}-{way.replace(' ', '-')}")
            remove(target)
            if kind.cold:
                drop(members)
            elif k == 0:
                run("bytes alone", members, out.with_name("warmed"), kind.dtype)  # into the page cache
            taken[way].append(run(way, members, target, kind.dtype))
            if way not in ("radin", "mergekit"):
                remove(target)
    return {way: {key: statistics.median(t[key] for t in found) for key in found[0]} for way, found in taken.items()}


def remove(target: Path) -> None:
    for path in (target, target.with_suffix(".safetensors"), Path(f"{target}.safetensors")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the table is for: others' time over ours, and ours over that of the bytes."""
    ours = found["radin"]
    command = found.get("radin command", ours)["whole"]
    return {
        "vs_torch_sum": found["torch"]["seconds"] / ours["seconds"],
        "vs_timm": found["timm"]["seconds"] / ours["seconds"],
        "vs_mergekit": found["mergekit"]["whole"] / command,
        "vs_io": ours["seconds"] / found["bytes alone"]["seconds"],
        "peak_rss_mb": ours["peak_mb"],
    }


def report(kind: Kind, found: dict[str, dict[str, float]], same: dict[str, bool]) -> None:
    print(f"\n### {kind}\n\n| way | seconds | whole process | processor seconds | peak MB |\n|---|---|---|---|---|")
    for way, numbers in found.items():
        seconds = f"{numbers['seconds']:.2f}" if "seconds" in numbers else ""
        print(f"| {way} | {seconds} | {numbers['whole']:.2f} | {numbers['cpu']:.2f} | {numbers['peak_mb']:.0f} |")
    shown = ", ".join(f"{name} {number:.2f}" for name, number in ratios(found).items())
    print(
        f"\n{shown}; equal to float64 rounded once: {same['equal']}; mergekit's to rounding: {same['close']}",
        flush=True,
    )


def versions() -> str:
    from importlib.metadata import version

    listed = ", ".join(f"{name} {version(name)}" for name in ("torch", "safetensors", "blake3", "timm", "mergekit"))
    system = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} processors, {system}; {listed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 members of 100 MB, two kinds, warm")
    parser.add_argument("--json", action="store_true", help="end with one JSON object, the worst of the kinds")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--megabytes", type=int, help="of each member; default 1000, or 100 with --quick")
    parser.add_argument("--folder", type=Path, help="where the pool is made; needs the room of 14 members")
    parser.add_argument("--way", choices=[*WAYS, "write"], help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--sharded", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    megabytes = options.megabytes or (100 if options.quick else 1000)
    if options.way == "write":
        write_members(options.out, options.members, megabytes, options.dtype, options.sharded)
        return
    if options.way:
        inside(options.way, options.paths, options.out, options.dtype)
        return
    pools = [("float32", False), ("bfloat16", True)]
    pools = (
        pools if options.quick else [(dtype, sharded) for dtype in ("float32", "bfloat16") for sharded in (False, True)]
    )
    print(f"{options.members} members of {megabytes} MB. {versions()}")
    worst: dict[str, float] = {}
    all_equal = True
    for dtype, sharded in pools:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            made = [sys.executable, __file__, "--way", "write", "--dtype", dtype, "--out", str(folder / "pool")]
            made += ["--members", str(options.members), "--megabytes", str(megabytes)] + ["--sharded"] * sharded
            subprocess.run(made, check=True)
            members = sorted((folder / "pool").iterdir())
            for cold in (False,) if options.quick else (False, True):
                kind = Kind(dtype, sharded, cold)
                found = measure(kind, members, folder / "soup")
                same = _same(members, folder / "soup", dtype)
                report(kind, found, same)
                all_equal = all_equal and all(same.values())
                for key, number in ratios(found).items():
                    pick = max if key in ("vs_io", "peak_rss_mb") else min
                    worst[key] = pick(worst.get(key, number), number)
    if options.json:
        print(json.dumps({**{key: round(number, 3) for key, number in worst.items()}, "equal": all_equal}))


def _same(members: list[Path], out: Path, dtype: str) -> dict[str, bool]:
    command = [sys.executable, __file__, "--way", "check", "--dtype", dtype, "--out", str(out), *map(str, members)]
    found: dict[str, bool] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


if __name__ == "__main__":
    main()
