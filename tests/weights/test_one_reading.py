"""Soups averaged in the reading that checks their members: what is written, refused, remembered and read."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from radin.errors import CheckpointError, PoolError, RadinError, StorageError
from radin.recipe import Recipe
from radin.run.average import average_files
from radin.weights import Pool, Soup, average, open_checkpoint, raw, read_recipe, recipe_metadata, remembered, save
from radin.weights.alike import save_alike
from radin.weights.content import fingerprint
from radin.weights.layout import DTYPES
from radin.weights.pool import Opened
from radin.weights.unread import Unread

averaging = importlib.import_module("radin.weights.averaging")  # the package's own name is the function


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which files written just now are believed too."""
    monkeypatch.setenv("RADIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "RACY_NS", -(10**10))
    return tmp_path / "cache" / "fingerprints"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each block that is read."""
    counted: list[int] = []
    real = raw.RawFiles.read

    def counting(self, stretch, offset, into):
        counted.append(len(into))
        real(self, stretch, offset, into)

    monkeypatch.setattr(raw.RawFiles, "read", counting)
    return counted


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(N, generator=generator).to(dtype),
        "b": torch.randn(3, 50, generator=generator).to(dtype),
        "steps": torch.tensor(seed),
        "index": torch.arange(9),
    }


N = 1_100_000  # three leaves
BYTES = (N + 150) * 4 + 8 + 9 * 8


def members(folder: Path, *states: dict[str, Tensor]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"m{k}.safetensors" for k in range(len(states))]
    for path, tensors in zip(paths, states, strict=True):
        save_file(tensors, path)
    return paths


def made(paths: list[Path], out: Path, ratios: tuple[str, ...] = ()) -> Path:
    average_files(paths, None, ratios, None, out, None)
    return out


def test_each_byte_is_read_once_and_the_soup_is_that_of_a_pool_opened_before(tmp_path, read):
    paths = members(tmp_path / "pool", state(0), state(1), state(2))
    made(paths, tmp_path / "one.safetensors", ("3,1,2",))
    copied = 8 + 9 * 8  # hashed of each, taken from one: no more reading
    assert sum(read) == 3 * BYTES
    assert copied < BYTES
    pool = Pool.open(paths)
    recipe = Recipe.normalized([3, 1, 2])
    save(average(pool, recipe), tmp_path / "two.safetensors", metadata=recipe_metadata(pool, recipe))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert Recipe.from_json(read_recipe(tmp_path / "one.safetensors"), pool.fingerprints) == recipe
    exact = sum(w * state(k)["a"].double() for k, w in enumerate(recipe.weights))
    assert torch.equal(load_file(tmp_path / "one.safetensors")["a"], exact.float())


def test_what_was_found_is_remembered(tmp_path, read, cache):
    paths = members(tmp_path / "pool", state(0), state(1))
    made(paths, tmp_path / "soup.safetensors")
    assert len(list(cache.iterdir())) == 2
    read.clear()
    prints = Pool.open(paths).fingerprints
    assert read == []
    assert prints == tuple(fingerprint(open_checkpoint(path)) for path in paths)


def test_members_that_are_remembered_are_not_hashed_again(tmp_path, monkeypatch):
    paths = members(tmp_path / "pool", state(0), state(1), state(2))
    Pool.open(paths[:2])
    unread = Unread(Opened.of(paths))
    assert list(unread.digests) == [2]
    one = made(paths, tmp_path / "one.safetensors")
    with safe_open(one, "pt") as file:
        names = [m["fingerprint"] for m in json.loads(file.metadata()["radin.recipe"])["members"]]
    assert names == [fingerprint(open_checkpoint(path)) for path in paths]


def recipe_file(path: Path, names: list[str], prints: list[str], weights: list[float]) -> Path:
    found = [
        {"name": name, "fingerprint": text, "weight": weight}
        for name, text, weight in zip(names, prints, weights, strict=True)
    ]
    path.write_text(json.dumps({"members": found}))
    return path


def average_by(paths: list[Path], file: Path, out: Path) -> Path:
    average_files(paths, None, (), file, out, None)
    return out


def test_a_recipe_file_is_averaged_by_in_one_reading(tmp_path, read, monkeypatch):
    monkeypatch.setenv("RADIN_CACHE", "off")
    paths = members(tmp_path / "pool", state(0), state(1), state(2))
    prints = [fingerprint(open_checkpoint(path)) for path in paths]
    read.clear()
    file = recipe_file(tmp_path / "recipe.json", ["m0", "m2"], [prints[0], prints[2]], [0.25, 0.75])
    one = average_by(paths, file, tmp_path / "one.safetensors")
    assert sum(read) == 3 * BYTES
    assert torch.equal(load_file(one)["a"], (0.25 * state(0)["a"].double() + 0.75 * state(2)["a"].double()).float())
    assert [m["fingerprint"] for m in read_recipe(one)["members"]] == [prints[0], prints[2]]


@pytest.mark.parametrize("names", [["m2", "m0"], ["x", "m2"], ["m0", "m0"]])
def test_a_recipe_file_goes_by_content_whatever_its_names_say(tmp_path, monkeypatch, names):
    monkeypatch.setenv("RADIN_CACHE", "off")
    paths = members(tmp_path / "pool", state(0), state(1), state(2))
    prints = [fingerprint(open_checkpoint(path)) for path in paths]
    file = recipe_file(tmp_path / "recipe.json", names, [prints[0], prints[2]], [0.25, 0.75])
    one = load_file(average_by(paths, file, tmp_path / "one.safetensors"))
    assert torch.equal(one["a"], (0.25 * state(0)["a"].double() + 0.75 * state(2)["a"].double()).float())


def test_a_recipe_file_of_other_weights_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIN_CACHE", "off")
    paths = members(tmp_path / "pool", state(0), state(1))
    file = recipe_file(tmp_path / "recipe.json", ["m0", "m1"], ["0" * 64, "1" * 64], [0.5, 0.5])
    with pytest.raises(RadinError, match=r"the recipe names m0 \(0000.*which is not in this pool"):
        average_by(paths, file, tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()


def test_a_file_that_is_no_recipe_or_is_not_there_is_named(tmp_path):
    paths = members(tmp_path / "pool", state(0), state(1))
    with pytest.raises(RadinError, match=r"none\.json: no such file; .* --recipe RUN/recipe\.json$"):
        average_by(paths, tmp_path / "none.json", tmp_path / "one.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(RadinError, match=r"config\.json: this is no recipe: expected"):
        average_by(paths, tmp_path / "config.json", tmp_path / "one.safetensors")


def test_a_recipe_of_mergekits_takes_one_reading(tmp_path, read):
    pytest.importorskip("yaml")
    from radin.integrations.mergekit import recipe_at

    paths = [sharded(tmp_path / f"run-{k}", k) for k in range(2)]
    models = "".join(f"  - model: {path}\n    parameters: {{weight: {k + 1}}}\n" for k, path in enumerate(paths))
    (tmp_path / "linear.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    linear = recipe_at([str(tmp_path / "linear.yml")])
    average_files(
        linear.paths, None, linear.recipe, None, tmp_path / "soup.safetensors", None, files_from=linear.files_from
    )
    assert sum(read) == 2 * BYTES
    recipe = Recipe.normalized([1, 2])
    exact = recipe.weights[0] * state(0)["a"].double() + recipe.weights[1] * state(1)["a"].double()
    assert torch.equal(load_file(tmp_path / "soup.safetensors")["a"], exact.float())


def test_average_takes_paths_and_reads_them_once(tmp_path, read):
    paths = members(tmp_path / "pool", state(0), state(1), state(2))
    soup = average(tmp_path / "pool")
    assert sum(read) == 3 * BYTES
    again = average(Pool.open(paths), Recipe.uniform(range(3), 3))
    assert sum(read) == 3 * BYTES + 3 * (BYTES - 8 - 9 * 8) + 8 + 9 * 8  # remembered, so added alone
    assert list(soup) == list(again)
    assert all(torch.equal(soup[name], again[name]) for name in soup)
    ratios = average(paths, Recipe.normalized([1, 0, 3]))
    assert torch.equal(ratios["a"], (0.25 * state(0)["a"].double() + 0.75 * state(2)["a"].double()).float())


def test_average_of_paths_checks_as_a_pool_does(tmp_path, monkeypatch):
    monkeypatch.setenv("RADIN_CACHE", "off")
    paths = members(tmp_path / "pool", state(0), state(1), state(0))
    soup = average(paths)  # uniform over what differs
    assert torch.equal(soup["a"], (0.5 * state(0)["a"].double() + 0.5 * state(1)["a"].double()).float())
    with pytest.raises(PoolError, match="the recipe has 3 ratios; this pool has 2 members"):
        average(paths, Recipe.uniform(range(3), 3))
    bad = state(5)
    bad["b"][0, 0] = float("nan")
    save_file(bad, paths[2])
    with pytest.raises(CheckpointError, match=r"m2.*: tensor 'b' has 1 of 150 values NaN or infinite"):
        average(paths)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_same_weights_twice_count_once(tmp_path, suffix):
    paths = members(tmp_path / "pool", state(0), state(1), state(0))
    found = average_files(paths, None, (), None, tmp_path / f"soup{suffix}", None)
    assert found.recipe.weights == (0.5, 0.5)
    assert any("has the same weights as" in note for note in found.notes)
    soup = open_checkpoint(tmp_path / f"soup{suffix}")
    exact = 0.5 * state(0)["a"].double() + 0.5 * state(1)["a"].double()
    with soup.open() as reader:
        assert torch.equal(reader["a"], exact.float())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "pool", f"soup{suffix}"]
    with pytest.raises(RadinError, match=r"needs one file per ratio, but .* repeats another file"):
        made(paths, tmp_path / "other.safetensors", ("1,2,3",))
    with pytest.raises(PoolError, match="all 2 files hold the same weights"):
        made([paths[0], paths[2]], tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ratios", [(), ("1,1,0",)])
def test_what_is_not_finite_is_refused_and_nothing_is_written(tmp_path, value, ratios):
    bad = state(2)
    bad["a"][[5, N - 1]] = value
    paths = members(tmp_path / "pool", state(0), state(1), bad)
    (tmp_path / "soup.safetensors").write_text("before")
    for _ in range(2):  # found by reading, then remembered
        with pytest.raises(CheckpointError, match=r"m2.*: tensor 'a' has 2 of 1,100,000 values NaN or infinite"):
            made(paths, tmp_path / "soup.safetensors", ratios)
    assert (tmp_path / "soup.safetensors").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "pool", "soup.safetensors"]


def test_sums_that_overflow_are_no_fault_of_the_members(tmp_path):
    huge = {"a": torch.full((4,), 1.7e308, dtype=torch.float64)}
    paths = members(tmp_path / "pool", huge, {"a": huge["a"] * 0.99})
    soup = load_file(made(paths, tmp_path / "soup.safetensors"))
    assert torch.equal(soup["a"], 0.5 * huge["a"] + 0.5 * (huge["a"] * 0.99))


def test_integers_that_differ_are_refused_after_the_one_reading(tmp_path, read):
    other = {**state(1), "index": torch.arange(9) + 1}
    paths = members(tmp_path / "pool", state(0), other)
    with pytest.raises(PoolError, match=r"integers cannot be averaged.*'index'"):
        made(paths, tmp_path / "soup.safetensors")
    assert sum(read) == 2 * BYTES
    assert not (tmp_path / "soup.safetensors").exists()


def test_a_member_written_to_in_between_is_noticed(tmp_path, monkeypatch):
    paths = members(tmp_path / "pool", state(0), state(1))
    real = Soup._sweep

    def and_write(self, names, sink):
        real(self, names, sink)
        save_file(state(7), paths[1])

    monkeypatch.setattr(Soup, "_sweep", and_write)
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        made(paths, tmp_path / "soup.safetensors")
    assert not (tmp_path / "soup.safetensors").exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_ties_strides_compression_and_mixed_precision(tmp_path, monkeypatch, threads):
    """Tensors that cannot be read straight from their files, beside others that can."""
    monkeypatch.setattr(averaging, "threads_here", lambda: threads)
    monkeypatch.setattr(averaging, "_SMALL", 0)
    shared = [torch.randn(4, 6, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    for k, dtype in enumerate((torch.float32, torch.bfloat16)):
        tensors = {"z": shared[k], "head": shared[k], "turned": shared[k].T, "w": state(k, dtype)["a"]}
        torch.save(
            {**tensors, "c": torch.view_as_complex(shared[k].clone().reshape(12, 2)).conj()}, tmp_path / f"m{k}.pt"
        )
    paths = [tmp_path / "m0.pt", tmp_path / "m1.pt"]
    pool = Pool.open(paths)
    monkeypatch.setenv("RADIN_CACHE", "off")
    made(paths, tmp_path / "soup.pt")
    soup = torch.load(tmp_path / "soup.pt", weights_only=True)
    mean = (0.5 * shared[0].double() + 0.5 * shared[1].double()).float()
    assert torch.equal(soup["z"], mean)
    assert soup["z"].data_ptr() == soup["head"].data_ptr()
    assert torch.equal(soup["turned"], mean.T)
    assert torch.equal(soup["c"], torch.view_as_complex(mean.reshape(12, 2)).conj().resolve_conj())
    assert torch.equal(soup["w"], (0.5 * state(0)["a"].double() + 0.5 * state(1, torch.bfloat16)["a"].double()).float())
    assert [m["fingerprint"] for m in read_recipe(tmp_path / "soup.pt")["members"]] == list(pool.fingerprints)


def test_more_members_than_files_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "_KEPT_OPEN", 2)
    paths = members(tmp_path / "pool", *map(state, range(5)))
    soup = load_file(made(paths, tmp_path / "soup.safetensors"))
    exact = torch.zeros(N, dtype=torch.float64)
    for k in range(5):
        exact += 0.2 * state(k)["a"].double()
    assert torch.equal(soup["a"], exact.float())


def test_an_error_in_a_thread_ends_all_and_closes_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "threads_here", lambda: 3)
    monkeypatch.setattr(averaging, "_SMALL", 0)
    pool = Pool.open(members(tmp_path / "pool", state(0), state(1)))

    def stop(done, total):
        raise KeyError("stop")

    before = set(threading.enumerate())  # other tests' libraries keep threads of their own
    with pytest.raises(KeyError, match="stop"):
        average(pool, Recipe.uniform([0, 1], 2), progress=stop)
    assert set(threading.enumerate()) <= before
    opened = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    assert not any(str(tmp_path) in name for name in opened)


def test_a_file_cut_short_while_it_is_read(tmp_path):
    paths = members(tmp_path / "pool", state(0), state(1))
    stretch = open_checkpoint(paths[0]).stretch("a")
    with raw.RawFiles() as files:
        files.read(stretch, 0, memoryview(bytearray(4)))
        os.truncate(paths[0], 1000)
        with pytest.raises(CheckpointError, match=r"m0\.safetensors: ended before its tensors did"):
            files.read(stretch, 0, memoryview(bytearray(4000)))


# Files written


def test_the_bytes_are_those_of_the_library(tmp_path):
    """With its metadata in order: names, dtypes, their order, offsets and padding."""
    tensors = {
        f"t{k}.{'é' * (k % 2)}": torch.ones(k + 1, 2).to(dtype)
        for k, dtype in enumerate(dtype for dtype in DTYPES.values() if dtype != torch.complex128)
    }
    tensors |= {"none": torch.empty(0, 3), "one": torch.tensor(2.0)}
    metadata = {"z": '"\\\n\x01', "a": "ü"}
    save(tensors, tmp_path / "ours.safetensors", metadata=metadata)
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt", **metadata})
    ours, theirs = ((tmp_path / f"{who}.safetensors").read_bytes() for who in ("ours", "theirs"))
    length = int.from_bytes(theirs[:8], "little")
    header = json.loads(theirs[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # the library's order differs each time
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert ours == theirs[:8] + text + theirs[8 + length :]


def sharded(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    tensors = state(seed)
    places = {"a": "model-00001-of-00002.safetensors"} | dict.fromkeys(
        ("b", "steps", "index"), "model-00002-of-00002.safetensors"
    )
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    return folder


def test_shards_written_in_one_reading_carry_the_fingerprints(tmp_path, read):
    paths = [sharded(tmp_path / f"run-{k}", k) for k in range(2)]
    unread = Unread(Opened.of(paths))
    recipe = Recipe.uniform([0, 1], 2)
    soup = Soup(unread.pool, recipe, unread=unread)
    save_alike(soup, unread.pool[0].checkpoint, tmp_path / "soup", recipe_metadata(unread.pool, recipe))
    assert sum(read) == 2 * BYTES
    pool = Pool.open(paths)
    save_alike(average(pool, recipe), pool[0].checkpoint, tmp_path / "again", recipe_metadata(pool, recipe))
    for file in sorted((tmp_path / "again").iterdir()):
        assert (tmp_path / "soup" / file.name).read_bytes() == file.read_bytes(), file.name
    assert [m["fingerprint"] for m in read_recipe(tmp_path / "soup")["members"]] == list(pool.fingerprints)
    with safe_open(tmp_path / "soup" / "model-00001-of-00002.safetensors", "pt") as file:
        assert pool.fingerprints[1] in file.metadata()["radin.recipe"]


def test_a_disk_that_refuses_while_the_soup_is_computed(tmp_path, monkeypatch):
    paths = members(tmp_path / "pool", state(0), state(1))
    real = os.pwrite

    def full(descriptor, content, at):
        if at > 3_000_000:
            raise OSError(28, os.strerror(28))
        return real(descriptor, content, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"soup.safetensors.* cannot be written: no space is left"):
        made(paths, tmp_path / "soup.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pool"]


def test_a_disk_that_refuses_later_is_told_too(tmp_path, monkeypatch):
    """fdatasync runs beside; the system tells an error once, so that it must not be lost there."""
    monkeypatch.setattr("radin.weights.writing._AT_ONCE", 1000)

    def fails(descriptor):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "fdatasync", fails)
    slow = raw.RawFiles.read
    monkeypatch.setattr(raw.RawFiles, "read", lambda *args: (time.sleep(0.02), slow(*args))[1])
    with pytest.raises(StorageError, match="the disk gave an input/output error"):
        made(members(tmp_path / "pool", state(0), state(1)), tmp_path / "soup.safetensors")
    assert not (tmp_path / "soup.safetensors").exists()


MEASURE = """
import sys, torch
from pathlib import Path
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
from radin.run.average import average_files
before = peak()
average_files(sys.argv[1:-1], None, (), None, Path(sys.argv[-1]), None)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_soup(tmp_path):
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"m{k}.safetensors")
        save_file({"w": torch.full((100 << 18,), float(k))}, paths[-1])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths, tmp_path / "soup.safetensors"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60 << 20  # a file of 100 MB
    assert torch.equal(load_file(tmp_path / "soup.safetensors")["w"][:3], torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_ratios_that_are_powers_of_two_give_the_same_sums(tmp_path, dtype):
    """They take another way, since their products are exact."""
    paths = members(tmp_path / "pool", *(state(k, dtype) for k in range(4)))
    soup = load_file(made(paths, tmp_path / "soup.safetensors"))
    for name in ("a", "b"):
        exact = torch.zeros(state(0)[name].shape, dtype=torch.float64)
        for k in range(4):
            exact += 0.25 * state(k, dtype)[name].double()
        assert torch.equal(soup[name].double(), exact.to(dtype).double())
