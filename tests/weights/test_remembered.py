"""Fingerprints remembered between commands: never a wrong one, whatever happens to the files or to the cache."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from radin.errors import CheckpointError
from radin.weights import Pool, content, open_checkpoint, remembered

Hashed = Callable[[], int]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fingerprints"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Hashed:
    """How many bytes were hashed since it was last asked."""
    counted = [0]

    def examine(checkpoint, report=None):
        def count(read: int) -> None:
            counted[0] += read
            if report is not None:
                report(read)

        return content.examine(checkpoint, count)

    def since() -> int:
        found, counted[0] = counted[0], 0
        return found

    monkeypatch.setattr(remembered, "examine", examine)
    return since


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds from now, so that files written just now are no longer racy."""
    real = time.time_ns
    monkeypatch.setattr(remembered.time, "time_ns", lambda: real() + 10_000_000_000)


def write(path: Path, value: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({"w": torch.full((3, 5), value), "steps": torch.tensor([7])}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / "pool" / f"{k}.safetensors", float(k)) for k in range(2)]


BYTES = 2 * (3 * 5 * 4 + 8)


def test_a_second_open_hashes_nothing_and_knows_the_same(cache, files, hashed, later):
    seen: list[tuple[int, int]] = []
    first = Pool.open(files)
    assert hashed() == BYTES
    again = Pool.open(files, progress=lambda done, total: seen.append((done, total)))
    assert hashed() == 0
    assert again.fingerprints == first.fingerprints
    assert again.fingerprints == tuple(content.fingerprint(open_checkpoint(file)) for file in files)
    assert seen[-1] == (BYTES, BYTES)


def test_by_another_path_to_the_same_file(cache, files, hashed, later, tmp_path):
    first = Pool.open(files)
    assert hashed() == BYTES
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    assert Pool.open(tmp_path / "link").fingerprints == first.fingerprints
    assert hashed() == 0


def replace_by_rename(file: Path) -> None:
    write(file.with_name("new.safetensors"), 9.0)
    file.with_name("new.safetensors").replace(file)


def write_in_place(file: Path) -> None:
    other = write(file.with_name("new.safetensors"), 9.0)
    with file.open("r+b") as opened:
        opened.write(other.read_bytes())
    other.unlink()


@pytest.mark.parametrize("change", [replace_by_rename, write_in_place])
def test_other_content_of_the_same_size_and_time_is_noticed(cache, files, hashed, later, change):
    first = Pool.open(files)
    hashed()
    before = files[0].stat()
    change(files[0])
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = files[0].stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = Pool.open(files)
    assert hashed() == BYTES // 2
    assert second.fingerprints[0] != first.fingerprints[0]
    assert second.fingerprints[1] == first.fingerprints[1]


def test_a_file_written_just_now_is_not_remembered(cache, files, hashed):
    Pool.open(files)
    assert not cache.exists()
    hashed()
    Pool.open(files)
    assert hashed() == BYTES


def test_what_is_remembered_of_a_young_file_is_not_believed(cache, files, hashed, monkeypatch):
    real = time.time_ns
    monkeypatch.setattr(remembered.time, "time_ns", lambda: real() + 10_000_000_000)
    Pool.open(files)
    monkeypatch.setattr(remembered.time, "time_ns", real)  # the clock was set back
    hashed()
    Pool.open(files)
    assert hashed() == BYTES


def test_a_file_that_changes_while_it_is_read_is_not_remembered(cache, files, hashed, later, monkeypatch):
    counting = remembered.examine

    def and_touch(checkpoint, report=None):
        found = counting(checkpoint, report)
        os.utime(checkpoint.path, ns=(1, 1))
        return found

    monkeypatch.setattr(remembered, "examine", and_touch)
    remembered.remembered_content(open_checkpoint(files[0]))
    assert not cache.exists()


@pytest.mark.parametrize("field", [1, 2, 3, 4, 5])
def test_every_part_of_a_files_state_counts(cache, files, hashed, later, monkeypatch, field):
    checkpoint = open_checkpoint(files[0])
    remembered.remembered_content(checkpoint)
    hashed()
    (state,) = remembered.file_states(checkpoint)
    other = (tuple(value - 1 if index == field else value for index, value in enumerate(state)),)
    monkeypatch.setattr(remembered, "file_states", lambda _: other)
    remembered.remembered_content(checkpoint)
    assert hashed() == BYTES // 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"fingerprint": "', '"fingerprint": "0'),
        lambda text: "\n".join(["0" * 64, text.split("\n")[1]]),
        lambda text: "[]",
        lambda text: "ü" + text,
    ],
)
def test_a_damaged_entry_is_ignored_and_written_anew(cache, files, hashed, later, damage):
    first = Pool.open(files)
    hashed()
    for entry in cache.iterdir():
        entry.write_text(damage(entry.read_text()), encoding="utf-8")
    assert Pool.open(files).fingerprints == first.fingerprints
    assert hashed() == BYTES
    assert Pool.open(files).fingerprints == first.fingerprints
    assert hashed() == 0


def test_an_entry_with_a_right_checksum_and_no_content_is_ignored(cache, files, hashed, later):
    Pool.open(files)
    hashed()
    for entry in cache.iterdir():
        entry.write_text(f"{remembered._checksum('{}')}\n{{}}")
    Pool.open(files)
    assert hashed() == BYTES


def test_another_way_of_hashing_is_another_fingerprint(cache, files, hashed, later, monkeypatch):
    Pool.open(files)
    hashed()
    monkeypatch.setattr(remembered, "VERSION", "radin content 0")
    Pool.open(files)
    assert hashed() == BYTES


def test_what_is_nested_under_another_key_is_other_content(cache, hashed, later, tmp_path):
    path = tmp_path / "nested.pt"
    torch.save({"model": {"w": torch.zeros(4)}, "other": {"w": torch.ones(4)}}, path)
    prints = {
        remembered.remembered_content(open_checkpoint(path, key=key)) for key in (None, "other", "model", "other")
    }
    assert len(prints) == 2
    assert hashed() == 3 * 16


def test_any_changed_shard_of_a_folder_counts(cache, hashed, later, tmp_path):
    for k in range(2):
        save_file({f"w{k}": torch.full((4,), float(k))}, tmp_path / f"model-{k}.safetensors")
    weight_map = {f"w{k}": f"model-{k}.safetensors" for k in range(2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    first = remembered.remembered_content(open_checkpoint(tmp_path))
    assert remembered.remembered_content(open_checkpoint(tmp_path)) == first
    assert hashed() == 32
    save_file({"w1": torch.full((4,), 5.0)}, tmp_path / "model-1.safetensors")
    assert remembered.remembered_content(open_checkpoint(tmp_path)) != first
    assert hashed() == 32


def test_not_finite_is_remembered_with_its_message(cache, hashed, later, tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file({"a": torch.ones(3), "w": torch.tensor([1.0, float("nan"), float("inf")])}, path)
    messages = []
    for _ in range(2):
        with pytest.raises(CheckpointError) as raised:
            remembered.remembered_content(open_checkpoint(path))
        messages.append(str(raised.value))
    assert hashed() == 24
    assert messages[0] == messages[1]
    assert "tensor 'w' has 2 of 3 values NaN or infinite" in messages[0]


def test_off_and_a_folder_that_cannot_be_written_to_are_silent(files, hashed, later, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for value in ("off", str(tmp_path / "file")):
        monkeypatch.setenv("RADIN_CACHE", value)
        for _ in range(2):
            Pool.open(files)
            assert hashed() == BYTES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pool"]


def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("RADIN_CACHE", str(tmp_path))
    assert remembered.cache_folder() == tmp_path / "fingerprints"
    monkeypatch.delenv("RADIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert remembered.cache_folder() == tmp_path / "shared" / "radin" / "fingerprints"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert remembered.cache_folder() == tmp_path / "home" / ".cache" / "radin" / "fingerprints"


def test_the_folder_stays_bounded_and_the_newest_stay(cache, files, later, monkeypatch):
    cache.mkdir(parents=True)
    for k in range(10):
        (cache / f"old-{k}.json").write_text("old")
        os.utime(cache / f"old-{k}.json", (k, k))
    monkeypatch.setattr(remembered, "ENTRIES", 10)
    checkpoint = open_checkpoint(files[0])
    remembered.remembered_content(checkpoint)
    left = {path.name for path in cache.iterdir()}
    assert left == {f"old-{k}.json" for k in range(2, 10)} | {remembered._place(cache, checkpoint).name}


def test_no_ctime_no_trust(files, later):
    (state,) = remembered.file_states(open_checkpoint(files[0]))
    assert remembered._is_old_enough(state, time.time_ns())
    assert not remembered._is_old_enough((*state[:5], 0), time.time_ns())
    assert not remembered._is_old_enough((*state[:2], 0, *state[3:]), time.time_ns())
    assert not remembered._is_old_enough((*state[:4], time.time_ns() + 10**12, state[5]), time.time_ns())


def test_many_at_once_leave_one_whole_entry(cache, files, later):
    expected = content.fingerprint(open_checkpoint(files[0]))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: remembered.remembered_content(open_checkpoint(files[0])), range(40)))
    assert {content.fingerprint for content in found} == {expected}
    (entry,) = cache.iterdir()
    assert entry.suffix == ".json"
