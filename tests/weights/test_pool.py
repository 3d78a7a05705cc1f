"""Finding checkpoints, checking that they fit together, and knowing them by content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from radin.errors import CheckpointError, PoolError
from radin.recipe import Recipe
from radin.weights import Pool, average, geometry, open_checkpoint
from radin.weights import pool as pool_module
from radin.weights.content import fingerprint, not_finite
from radin.weights.layout import Piece, chunks, promote
from radin.weights.paths import find_checkpoints, short_names


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(3, 4, generator=generator),
        "b": torch.randn(3, generator=generator),
        "steps": torch.tensor(seed),
    }


def write(folder: Path, *names: str, **changes: Tensor) -> list[Path]:
    paths = []
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {**state(seed), **changes}
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
        paths.append(path)
    return paths


# Finding


def test_members_come_in_natural_order_with_short_names(tmp_path: Path) -> None:
    write(tmp_path, *(f"runs/run-{k}/best.safetensors" for k in (10, 2, 1)))
    pool = Pool.open(str(tmp_path / "runs/*/best.safetensors"))
    assert pool.member_names == ("run-1/best", "run-2/best", "run-10/best")
    assert len(pool) == 3
    assert [member.path for member in pool] == [pool[k].path for k in range(3)]


def test_a_folder_stands_for_its_checkpoint_files(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.safetensors", ".hidden.pt", "deeper/c.pt")
    (tmp_path / "log.txt").write_text("x")
    assert find_checkpoints(tmp_path) == [tmp_path / "a.pt", tmp_path / "b.safetensors"]


def test_a_folder_of_checkpoint_folders(tmp_path: Path) -> None:
    write(tmp_path, "run-2/model.safetensors", "run-1/pytorch_model.bin")
    torch.save({}, tmp_path / "run-1" / "training_args.bin")
    assert find_checkpoints(tmp_path) == [tmp_path / "run-1", tmp_path / "run-2"]
    assert Pool.open(tmp_path).member_names == ("run-1", "run-2")


def test_patterns_pass_over_other_files(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.pt")
    (tmp_path / "log.txt").write_text("x")
    assert find_checkpoints(str(tmp_path / "*")) == [tmp_path / "a.pt", tmp_path / "b.pt"]


def test_a_path_with_brackets_is_taken_as_it_is(tmp_path: Path) -> None:
    [path] = write(tmp_path, "lr[0.1].pt")
    assert find_checkpoints(path) == [path]


@pytest.mark.parametrize(
    ("given_path", "message"),
    [
        ("none/*.pt", "none/[*].pt: no checkpoints found: no path matches"),
        ("gone.pt", "gone.pt: no such file or folder"),
        ("empty", "it is a folder with no file ending in .safetensors"),
        ("*.txt", "none of its 1 matches ends in .safetensors"),
    ],
)
def test_nothing_found_says_what_was_searched(tmp_path: Path, given_path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(PoolError, match=message):
        find_checkpoints(str(tmp_path / given_path))


def test_no_paths_at_all() -> None:
    with pytest.raises(PoolError, match="no checkpoints given"):
        Pool.open([])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/run-07/best.pt", "/a/run-08/best.pt"], ("run-07/best", "run-08/best")),
        (["/a/x.pt"], ("x",)),
        (["/a/x.pt", "/a/x.safetensors"], ("x.pt", "x.safetensors")),
        (["/a/x.pt", "/a/b/c/y.pt"], ("x", "b/c/y")),
        (["/a/lr0.1.pt", "/a/lr0.2.pt"], ("lr0.1", "lr0.2")),
    ],
)
def test_short_names(tmp_path: Path, paths: list[str], names: tuple[str, ...]) -> None:
    real = [Path(str(tmp_path) + path) for path in paths]
    for path in real:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert short_names(real) == names


# What a pool knows


def test_what_a_pool_knows(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.pt")
    pool = Pool.open(tmp_path)
    assert pool.names == ("b", "steps", "w")
    assert pool.shapes == {"b": (3,), "steps": (), "w": (3, 4)}
    assert pool.dtypes["w"] == torch.float32
    assert pool.parameters == 15
    assert pool.bytes == 15 * 4 + 8
    assert len(set(pool.fingerprints)) == 2
    assert all(len(print_) == 64 for print_ in pool.fingerprints)
    assert {name: tensor.tolist() for name, tensor in pool.tensors(1).items()} == {
        name: tensor.tolist() for name, tensor in sorted(state(1).items())
    }


def test_tensors_load_into_a_model_and_keep_ties(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.output = nn.Linear(3, 5, bias=False)
            self.output.weight = self.embed.weight

    model = Tied()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    pool = Pool.open(tmp_path / "a.pt")
    tensors = pool.tensors(0)
    assert tensors["embed.weight"] is tensors["output.weight"]
    assert pool.parameters == 15
    fresh = Tied()
    fresh.load_state_dict(tensors)
    assert torch.equal(fresh.output.weight, model.output.weight)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.pt", "c.pt")
    seen: list[tuple[int, int]] = []
    Pool.open(tmp_path, progress=lambda done, total: seen.append((done, total)))
    total = 3 * (15 * 4 + 8)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_notes_are_grouped_by_what_they_say(tmp_path: Path) -> None:
    torch.save({"state_dict": state(0)}, tmp_path / "a.pt")
    torch.save({"state_dict": state(1)}, tmp_path / "b.pt")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state(2).items()}}, tmp_path / "c.pt")
    assert Pool.open(tmp_path).notes == (
        "all 3 members: took state_dict",
        "c: stripped prefix module. from all 3 keys",
    )


def test_notes_on_mixed_dtypes(tmp_path: Path) -> None:
    torch.save({"q.weight": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"q.weight": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "b.pt")
    (mixed,) = Pool.open(tmp_path).notes
    assert "q.weight: 1 in float32, 1 in bfloat16" in mixed
    assert "their average is float32" in mixed


# Do they fit together?


def test_a_shape_that_differs_names_tensor_and_both_files(tmp_path: Path) -> None:
    a, b, _ = write(tmp_path, "a.pt", "b.pt", "c.pt")
    torch.save({**state(1), "w": torch.zeros(5, 4)}, b)
    with pytest.raises(PoolError) as caught:
        Pool.open(tmp_path)
    message = str(caught.value)
    assert f"tensor 'w' has shape (5, 4) in {b}; expected (3, 4) as in {a}" in message


def test_the_odd_one_out_is_named_even_when_it_comes_first(tmp_path: Path) -> None:
    a, b, _ = write(tmp_path, "a.pt", "b.pt", "c.pt")
    torch.save({**state(0), "extra": torch.zeros(1)}, a)
    with pytest.raises(PoolError) as caught:
        Pool.open(tmp_path)
    assert str(caught.value).startswith(f"{a} does not fit {b}: it adds 1 tensor (extra).")


def test_missing_and_unexpected_tensors_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.pt", "b.pt")
    torch.save({"w": torch.zeros(3, 4), **{f"x{k}": torch.zeros(1) for k in range(7)}}, b)
    with pytest.raises(PoolError) as caught:
        Pool.open(tmp_path)
    assert "it lacks 2 tensors (b, steps) and adds 7 tensors (x0, x1, x2, x3, x4, ...)" in str(caught.value)
    assert str(a) in str(caught.value)
    assert str(b) in str(caught.value)


def test_kinds_of_dtype_must_agree_but_precision_may_differ(tmp_path: Path) -> None:
    _, b = write(tmp_path, "a.pt", "b.pt")
    torch.save({name: tensor.half() if name == "w" else tensor for name, tensor in state(1).items()}, b)
    assert Pool.open(tmp_path).dtypes["w"] == torch.float32
    torch.save({**state(1), "w": torch.zeros(3, 4, dtype=torch.int64)}, b)
    with pytest.raises(PoolError, match=r"tensor 'w' has dtype int64 in .*; expected float32"):
        Pool.open(tmp_path)


def test_headers_are_checked_before_content(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", w=torch.full((3, 4), torch.nan))
    write(tmp_path, "b.pt", w=torch.zeros(1))
    read: list[int] = []
    with pytest.raises(PoolError, match="shape"):
        Pool.open(tmp_path, progress=lambda done, total: read.append(done))
    assert read == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_nan_and_infinity_are_named_and_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    bad = torch.zeros(50, dtype=dtype)
    bad[3], bad[7] = torch.nan, torch.inf
    torch.save({"a": torch.ones(2), "layer.w": bad, "z": torch.full((2,), -torch.inf)}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError) as caught:
        Pool.open(tmp_path)
    assert f"{tmp_path / 'bad.pt'}: tensor 'layer.w' has 2 of 50 values NaN or infinite, and 1 more tensor too" in str(
        caught.value
    )


def test_large_finite_values_are_finite_though_their_sum_is_not() -> None:
    assert not_finite(torch.full((100,), torch.finfo(torch.float32).max)) == 0
    assert not_finite(torch.full((100,), torch.finfo(torch.float16).max, dtype=torch.float16)) == 0
    assert not_finite(torch.tensor([torch.inf, -torch.inf, 1.0])) == 2
    assert not_finite(torch.tensor([1.0, torch.nan]).to(torch.float8_e5m2)) == 1


# Duplicates and fingerprints


def test_duplicates_across_formats_are_reported_and_used_once(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{name}": t for name, t in state(0).items()}}, tmp_path / "a.pt")
    save_file(state(1), tmp_path / "b.safetensors")
    save_file(state(0), tmp_path / "c.safetensors")
    pool = Pool.open(tmp_path)
    assert pool.member_names == ("a", "b")
    assert pool.duplicates == ((tmp_path / "c.safetensors", tmp_path / "a.pt"),)


def test_a_link_is_a_duplicate(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.pt")
    (tmp_path / "best.pt").symlink_to(tmp_path / "a.pt")
    assert Pool.open(tmp_path).duplicates == ((tmp_path / "best.pt", tmp_path / "a.pt"),)


def test_one_file_and_all_duplicates_are_too_few(tmp_path: Path) -> None:
    [path] = write(tmp_path, "a.pt")
    with pytest.raises(PoolError, match=f"needs at least two checkpoints; only {path} was found"):
        Pool.open(path).require_several()
    torch.save(state(0), tmp_path / "b.pt")
    with pytest.raises(PoolError, match="all 2 files hold the same weights"):
        Pool.open(tmp_path).require_several()
    torch.save(state(1), tmp_path / "c.pt")
    Pool.open(tmp_path).require_several()


def test_a_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    shared = torch.randn(4)
    torch.save({"a": shared, "b": shared}, tmp_path / "tied.pt")
    save_file({"a": shared, "b": shared.clone()}, tmp_path / "apart.safetensors")
    torch.save({"b": shared.clone(), "a": shared}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    transposed = torch.randn(2, 3)
    torch.save({"w": transposed.T}, tmp_path / "strided.pt")
    torch.save({"w": transposed.T.contiguous()}, tmp_path / "plain.pt")
    prints = {path.name: fingerprint(open_checkpoint(path)) for path in tmp_path.iterdir()}
    assert prints["tied.pt"] == prints["apart.safetensors"] == prints["legacy.pt"]
    assert prints["strided.pt"] == prints["plain.pt"]
    assert prints["tied.pt"] != prints["plain.pt"]


@pytest.mark.parametrize(
    "changed",
    [
        {"w": torch.zeros(2, 3), "v": torch.tensor([0.0, 1.0])},
        {"w": torch.zeros(3, 2), "v": torch.zeros(2)},
        {"w": torch.zeros(2, 3), "v": torch.zeros(2, dtype=torch.int32)},
        {"w": torch.zeros(2, 3), "u": torch.zeros(2)},
        {"w": torch.zeros(2, 3), "v": -torch.zeros(2)},
    ],
)
def test_a_fingerprint_sees_every_change(tmp_path: Path, changed: dict[str, Tensor]) -> None:
    torch.save({"w": torch.zeros(2, 3), "v": torch.zeros(2)}, tmp_path / "a.pt")
    torch.save(changed, tmp_path / "b.pt")
    assert fingerprint(open_checkpoint(tmp_path / "a.pt")) != fingerprint(open_checkpoint(tmp_path / "b.pt"))


# Walking over elements


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 17))
@settings(deadline=None)
def test_chunks_cover_every_element_once_within_the_limit(sizes: list[int], limit: int) -> None:
    named = {f"t{k}": size for k, size in enumerate(sizes)}
    groups = list(chunks(named, limit))
    assert all(0 < sum(piece.stop - piece.start for piece in group) <= limit for group in groups)
    elements = [(piece.name, k) for group in groups for piece in group for k in range(piece.start, piece.stop)]
    assert elements == [(name, k) for name, size in named.items() for k in range(size)]
    assert len(groups) == -(-sum(sizes) // limit)


def test_piece_of_a_strided_tensor() -> None:
    tensor = torch.arange(6).reshape(2, 3).T
    assert Piece("t", 1, 4).of(tensor).tolist() == [3, 1, 4]


def test_promotion_holds_every_value() -> None:
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    assert promote([torch.float16, torch.bfloat16]) == torch.float32
    assert promote([e4m3, e4m3]) == e4m3
    assert promote([e4m3, e5m2]) == torch.bfloat16
    assert promote([e4m3, torch.float16]) == torch.float32
    assert promote([torch.float32, torch.float64]) == torch.float64


def replace_keeping_size_and_time(path: Path, by: Path) -> None:
    """As cp -p and rsync -t do: a new file of the same size and time of change."""
    before = path.stat()
    shutil.copyfile(by, path.with_name("new"))
    os.utime(path.with_name("new"), ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(path.with_name("new"), path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("how", ["replaced", "written to"])
def test_a_member_replaced_under_the_same_size_and_time_is_not_used(tmp_path: Path, how: str) -> None:
    for k in range(3):
        save_file({"a": torch.full((1000,), float(k))}, tmp_path / f"{k}.safetensors")
    pool = Pool.open([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    target, by = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    if how == "replaced":
        replace_keeping_size_and_time(target, by)
    else:
        times = target.stat()
        target.write_bytes(by.read_bytes())
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    for use in (lambda: average(pool, Recipe.uniform(range(2), 2)), lambda: pool.tensors(1), lambda: geometry(pool)):
        with pytest.raises(CheckpointError, match=r"1\.safetensors: other weights than when radin started"):
            use()


def test_a_member_that_was_only_touched_is_used(tmp_path: Path) -> None:
    for k in range(2):
        save_file({"a": torch.full((1000,), float(k))}, tmp_path / f"{k}.safetensors")
    pool = Pool.open(tmp_path)
    replace_keeping_size_and_time(
        tmp_path / "1.safetensors", shutil.copy(tmp_path / "1.safetensors", tmp_path / "same")
    )
    (tmp_path / "0.safetensors").chmod(0o600)
    assert average(pool, Recipe.uniform(range(2), 2))["a"][0] == 0.5


def test_the_chosen_members_are_read_again_at_the_end(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "0.safetensors")
    save_file({"a": torch.ones(1000)}, tmp_path / "1.safetensors")
    pool = Pool.open(tmp_path)
    path = tmp_path / "1.safetensors"
    times = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # and where stat shows nothing of it at all:
    pool[1]._seen[0] = pool_module._states(pool[1].checkpoint)
    pool[1].require_unchanged()
    with pytest.raises(CheckpointError, match="other weights"):
        pool[1].require_unchanged(content=True)
