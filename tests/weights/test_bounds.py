"""Cheap files that would cost minutes or gigabytes: each is refused or read within the bounds in SECURITY.md."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from radin.errors import CheckpointError, PoolError
from radin.weights import Pool, limits, open_checkpoint
from radin.weights.paths import find_checkpoints

SECONDS = 5.0  # of processor time, on a machine of 2020; torch's own import not counted
SLACK = 2.0  # the machine that runs the tests may be slower
GIGABYTE = 1e9  # resident, torch and Python included

# Forks for each path it is told, so that torch is imported once.
MEASURE = """
import json, os, signal, sys, time
from radin.errors import RadinError
from radin.weights import Pool

def measured(path):
    before = time.process_time()
    try:
        Pool.open(path)
        outcome = "read"
    except RadinError as error:
        outcome = str(error)
    seconds = time.process_time() - before
    (peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return [outcome, seconds, 1024 * int(peak)]

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        os.write(1, (json.dumps(measured(json.loads(line))) + "\\n").encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        os.write(1, (json.dumps([f"ended with {status}", 0, 0]) + "\\n").encode())
"""

Measured = Callable[[Path], str]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


@pytest.fixture(scope="module")
def within_bounds() -> Iterator[Measured]:
    """What came of opening a pool of a path, in a process of its own: "read" or the message."""
    environment = {**os.environ, "RADIN_CACHE": "off", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def measured(path: Path) -> str:
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
            outcome, seconds, memory = json.loads(process.stdout.readline())
            assert not outcome.startswith("ended")
            assert seconds < SECONDS * SLACK, f"{seconds:.1f} s: {outcome[:200]}"
            assert memory < GIGABYTE, f"{memory / 1e6:.0f} MB: {outcome[:200]}"
            assert len(outcome) < 2_000
            return str(outcome)

        yield measured
        process.stdin.close()


def safetensors(path: Path, header: bytes, numbers: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers)


def torch_file(path: Path, pickle: bytes, method: int = zipfile.ZIP_STORED, **storages: bytes) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickle)
        for name, data in storages.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", data)


def empty_tensors(path: Path, number: int) -> None:
    entries = b",".join(b'"t%06d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % k for k in range(number))
    safetensors(path.with_suffix(".safetensors"), b"{" + entries + b"}")


def many_empty_tensors(path: Path) -> None:
    empty_tensors(path, 1_000_000)


def as_many_as_the_header_may_hold(path: Path) -> None:
    empty_tensors(path, 500_000)


def as_many_as_a_checkpoint_may_have(path: Path) -> None:
    empty_tensors(path, limits.TENSORS)


def many_aliases(path: Path) -> None:
    header = {
        "__metadata__": {f"alias{k:06}": "w" for k in range(100_000)},
        "w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]},
    }
    safetensors(path.with_suffix(".safetensors"), json.dumps(header).encode(), b"\0" * 4000)


def largest_header_of_the_format(path: Path) -> None:
    safetensors(path.with_suffix(".safetensors"), b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}')


def header_of_lists(path: Path) -> None:
    safetensors(path.with_suffix(".safetensors"), b'{"a":[' + b"[]," * 10_000_000 + b"[]]}")


def zeros(path: Path, name: str, before: list[tuple[str, bytes]]) -> None:
    """An archive with an entry of 3 GB of zeros, in 3 MB."""
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = squeeze.compress(bytes(2**24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    squeezed = block * 192 + squeeze.flush()
    with zipfile.ZipFile(path, "w") as archive:
        for other, data in before:
            archive.writestr(other, data)
        archive.writestr(name, squeezed)
    content = bytearray(path.read_bytes())
    local, central = content.index(name.encode()) - 30, content.rindex(name.encode()) - 46
    content[local + 8] = content[central + 10] = zipfile.ZIP_DEFLATED
    content[local + 22 : local + 26] = content[central + 24 : central + 28] = struct.pack("<I", 3 * 2**30)
    path.write_bytes(content)


def zeros_in_the_pickle(path: Path) -> None:
    zeros(path, "archive/data.pkl", [])


def zeros_in_a_storage(path: Path) -> None:
    """As many as the pickle promises."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as source:
        pickle = source.read("archive/data.pkl")
    elements = struct.pack("<i", 3 * 2**28)
    for old, new in ((b"K\x04tq", b"J" + elements + b"tq"), (b"K\x00K\x04\x85", b"K\x00J" + elements + b"\x85")):
        assert pickle.count(old) == 1
        pickle = pickle.replace(old, new)
    zeros(path, "archive/data/0", [("archive/data.pkl", pickle)])


def pickle_of_dicts(path: Path) -> None:
    torch_file(path, b"\x80\x02" + b"}" * 60_000_000)


def pickle_of_copies(path: Path) -> None:
    """One text of 10 MB, encoded a million times."""
    text = b"c_codecs\nencode\nq\0X" + struct.pack("<I", 10_000_000) + b"x" * 10_000_000 + b"X\x06\0\0\0latin1\x86q\1"
    torch_file(path, b"\x80\x02" + text + b"h\0h\1R" * 1_000_000 + b".")


def pickle_of_sets(path: Path) -> None:
    """One list of 100,000, made a set of 100,000 times."""
    numbers = b"(" + b"".join(b"J" + struct.pack("<i", k) for k in range(100_000)) + b"e"
    torch_file(path, b"\x80\x02c__builtin__\nset\nq\0]" + numbers + b"\x85q\1" + b"h\0h\1R" * 100_000 + b".")


def deep_tuple_as_a_key(path: Path) -> None:
    """Hashing it would overflow the stack of the interpreter."""
    torch_file(path, b"\x80\x02}(N" + b"\x85" * 2_000_000 + b"Nu.")


def doubled_tuple_as_a_key(path: Path) -> None:
    """Hashing it would take 2 ** 60 steps."""
    torch_file(path, b"\x80\x02}(N" + b"q\0h\0\x86" * 60 + b"Nu.")


def keys_of_one_hash(path: Path) -> None:
    keys = b"".join(b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(1, 150_000))
    torch_file(path, b"\x80\x02}(" + keys + b"u.")


def doubled_lists(path: Path) -> None:
    """Walking over all that it seems to hold would take 2 ** 60 steps."""
    lists = b"X\1\0\0\0a]q\0" + b"".join(b"X\2\0\0\0%02d](h\0h\0eq\0" % k for k in range(60))
    torch_file(path, b"\x80\x02}(" + lists + b"u.")


def many_small_tensors(path: Path) -> None:
    """Seven bytes of a pickle for each: the function and its arguments are remembered."""
    first = b"X\1\0\0\0tctorch._utils\n_rebuild_tensor_v2\nq\1((X\7\0\0\0storagectorch\nFloatStorage\n"
    first += b"X\1\0\0\x000X\3\0\0\0cpuK\0tQK\0K\0\x85K\1\x85\x89}tq\2R"
    others = b"".join(b"X\6\0\0\0%06dh\1h\2R" % k for k in range(1_000_000))
    torch_file(path, b"\x80\x02}(" + first + others + b"u.", _0=b"")


def many_aliases_in_a_pickle(path: Path) -> None:
    weight = torch.randn(10)
    torch.save({f"t{k}": weight for k in range(100_000)}, path)


def many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(150_000):
            archive.writestr(f"archive/{k}", b"")


def expanded(path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(10**12)}, path)


def views(path: Path) -> None:
    base = torch.randn(100_000)
    torch.save({f"w{k}": base[k:] for k in range(20_000)}, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (many_empty_tensors, "its header has"),
        (as_many_as_the_header_may_hold, "holds more than 200,000 tensors"),
        (as_many_as_a_checkpoint_may_have, "read"),
        (many_aliases, "read"),
        (largest_header_of_the_format, "its header has 99,000,025 bytes"),
        (header_of_lists, "not a safetensors file, or damaged"),
        (zeros_in_the_pickle, "has 3,221,225,472 bytes; at most 67,108,864 are read"),
        (zeros_in_a_storage, "are compressed in it|bytes compressed to"),
        (pickle_of_dicts, "takes more steps"),
        (pickle_of_copies, "takes more steps"),
        (pickle_of_sets, "takes more steps"),
        (deep_tuple_as_a_key, "is no key of a checkpoint"),
        (doubled_tuple_as_a_key, "is no key of a checkpoint"),
        (keys_of_one_hash, "is no key of a checkpoint"),
        (doubled_lists, "holds no tensors"),
        (many_small_tensors, "takes more steps"),
        (many_aliases_in_a_pickle, "read"),
        (many_entries, "without torch's data.pkl"),
        (expanded, r"needs more than the 1 values"),
        (views, "views of each other"),
    ],
)
def test_a_cheap_file_costs_little(
    tmp_path: Path, make: Callable[[Path], None], message: str, within_bounds: Measured
) -> None:
    make(tmp_path / "m.pt")
    (path,) = tmp_path.iterdir()
    outcome = within_bounds(path)
    assert re.search(message, outcome), outcome


# Indexes of shards


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ("[" * 24_000_000, "made of lists"),
        ('{"weight_map":[' + "[]," * 7_000_000 + "[]]}", "made of lists"),
        ('{"weight_map":{' + ",".join(f'"t{k}":"a.bin"' for k in range(1_000_000)) + "}}", "places 1,000,000 tensors"),
        ('{"weight_map":{' + ",".join(f'"t{k}":"{k}.bin"' for k in range(20_000)) + "}}", "names 20,000 shards"),
        (" " * 30_000_000, "larger than 25,165,824 bytes"),
    ],
)
def test_an_index_costs_little(tmp_path: Path, text: str, message: str, within_bounds: Measured) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert message in within_bounds(tmp_path)


# Files that are none


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path: Path, within_bounds: Measured) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "null.pt").symlink_to("/dev/null")
    for path in tmp_path.iterdir():
        assert "not a regular file" in within_bounds(path)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_is_no_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / name)


def shards(folder: Path) -> dict[str, Tensor]:
    folder.mkdir()
    state = {"a": torch.randn(3), "b": torch.randn(3)}
    for name, tensor in state.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in state}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return state


def test_a_shard_that_is_a_link(tmp_path: Path) -> None:
    """Hugging Face's cache has links to ../../blobs: a link to a plain file is read, to anything else refused."""
    state = shards(tmp_path / "run")
    blob = tmp_path / "blob"
    (tmp_path / "run" / "a.safetensors").rename(blob)
    (tmp_path / "run" / "a.safetensors").symlink_to(blob)
    with open_checkpoint(tmp_path / "run").open() as reader:
        assert torch.equal(reader["a"], state["a"])
    for target, message in (
        ("/dev/zero", "not a regular file"),
        ("/nowhere", "not in its folder"),
        ("a.safetensors", "not in its folder|Too many levels"),
        (".", "not a regular file|Is a directory"),
    ):
        (tmp_path / "run" / "a.safetensors").unlink()
        (tmp_path / "run" / "a.safetensors").symlink_to(target)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "run")


def test_folders_that_lead_in_circles(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        save_file({"w": torch.randn(3)}, tmp_path / name / "m.safetensors")
    for one in "abc":
        for other in "abc":
            (tmp_path / one / f"to-{other}").symlink_to(tmp_path / other)
    found = find_checkpoints(str(tmp_path / "**" / "*.safetensors"))
    assert found == [tmp_path / name / "m.safetensors" for name in "abc"]
    assert len(Pool.open(str(tmp_path / "**"))) == 3


def test_a_walk_finds_what_glob_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import glob

    from radin.weights import paths

    for place in ("x.pt", "a/y.pt", "a/b/z.pt", "a/b/.h/hidden.pt", "a/.k.pt", "[c]/w.pt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    monkeypatch.chdir(tmp_path)
    for root in ("", f"{tmp_path}/"):
        for pattern in ("**/*.pt", "a/**/*.pt", "**/**/*.pt", "*/**/z*", "**/b/*", "**", "nothing/**/*.pt", "*.pt"):
            expected = {match.rstrip("/") for match in glob.glob(root + pattern, recursive=True)} - {""}
            assert set(paths._glob(root + pattern)) == expected, pattern


@pytest.mark.parametrize("name", ["x" * 5_000, "x" * 5_000 + "*.pt", "a\0b", "~nobody-of-this-name/x.pt"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(PoolError) as caught:
        Pool.open(name)
    assert len(str(caught.value)) < 6_000
