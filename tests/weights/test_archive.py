"""torch files that were packed again, cut, edited: the right numbers or one message, never other numbers."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from radin.errors import CheckpointError
from radin.recipe import Recipe
from radin.weights import Pool, average, open_checkpoint, read_metadata

Entries = list[tuple[str, bytes]]


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(40, 9, generator=generator),
        "b": torch.zeros(500),
        "c": torch.randn(7, generator=generator).half(),
        "steps": torch.tensor(3),
    }


def entries(value: Any = None) -> Entries:
    buffer = io.BytesIO()
    torch.save(state() if value is None else value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def archive(path: Path, content: Entries, method: int = zipfile.ZIP_STORED, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", method, **options) as target:
        for name, data in content:
            target.writestr(name, data)
    return path


def read(path: Path) -> dict[str, Tensor]:
    with open_checkpoint(path).open() as reader:
        return {name: tensor.clone() for name, tensor in reader.items()}


def assert_same(path: Path, expected: dict[str, Tensor] | None = None) -> None:
    found = read(path)
    expected = state() if expected is None else expected
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


# Packed again


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_packed_again(tmp_path: Path, method: int) -> None:
    path = archive(tmp_path / "m.pt", entries(), method)
    assert_same(path)
    assert open_checkpoint(path).mapped == (method == zipfile.ZIP_STORED)
    assert any(note.startswith("compressed") for note in open_checkpoint(path).notes) != open_checkpoint(path).mapped


def test_one_entry_compressed_among_stored_ones(tmp_path: Path) -> None:
    for chosen in range(len(entries())):
        path = tmp_path / f"m{chosen}.pt"
        with zipfile.ZipFile(path, "w") as target:
            for place, (name, data) in enumerate(entries()):
                target.writestr(name, data, zipfile.ZIP_DEFLATED if place == chosen else zipfile.ZIP_STORED)
        assert_same(path)


def test_the_average_of_compressed_files(tmp_path: Path) -> None:
    one, two = state(), {name: 3 * tensor for name, tensor in state().items()}
    archive(tmp_path / "a.pt", entries(one), zipfile.ZIP_DEFLATED)
    archive(tmp_path / "b.pt", entries(two), zipfile.ZIP_DEFLATED)
    soup = average(Pool.open(tmp_path), Recipe.uniform([0, 1], 2))
    assert torch.allclose(soup["a"], 2 * one["a"])


def test_numbers_that_are_not_aligned(tmp_path: Path) -> None:
    for shift in range(8):
        path = tmp_path / f"m{shift}.pt"
        first, *rest = entries()
        archive(path, [first, ("archive/x" + "y" * shift, b"z" * shift), *rest])
        assert_same(path)


class _Stream(io.RawIOBase):
    """A file that cannot be sought in: zipfile then writes the sizes behind the data."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self._file.write(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_behind_the_data(tmp_path: Path, method: int) -> None:
    with (tmp_path / "m.pt").open("wb") as file:
        archive(_Stream(file), entries(), method)  # type: ignore[arg-type]
    assert_same(tmp_path / "m.pt")


def test_large_file_records(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as target:
        for name, data in entries():
            with target.open(name, "w", force_zip64=True) as file:
                file.write(data)
    assert_same(path)
    # The table of contents in its 64-bit form throughout, as it is beyond 4 GB or 65,535 entries.
    with zipfile.ZipFile(path) as opened:
        infos = opened.infolist()
        offset = opened.start_dir
    content = path.read_bytes()[:offset]
    table = b""
    for info in infos:
        extra = struct.pack("<2H3Q", 1, 24, info.file_size, info.compress_size, info.header_offset)
        name = info.filename.encode()
        table += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, info.CRC, *[0xFFFFFFFF] * 2, len(name),
                             len(extra), 0, 0, 0, 0, 0xFFFFFFFF) + name + extra  # fmt: skip
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, len(infos), len(infos), len(table), offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, offset + len(table), 1)
    last = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(content + table + end + locator + last)
    assert_same(path)
    assert zipfile.ZipFile(path).testzip() is None


def test_a_comment_at_the_end(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", entries())
    with zipfile.ZipFile(path, "a") as target:
        target.comment = b"PK\x01\x02 packed again" * 100
    assert_same(path)


def test_every_way_that_torch_stores_a_tensor(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    attributed = torch.ones(2)
    attributed.note = "kept"  # type: ignore[attr-defined]
    values = {
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "tail": base[4:],
        "conjugated": torch.randn(4, dtype=torch.complex64).conj(),
        "negated": torch.randn(4, dtype=torch.complex64).conj().imag,
        "attributed": attributed,
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "one": torch.ones(1).expand(1, 1),
    }
    expected = {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in values.items()}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pt"
        kept = {
            name: v for name, v in values.items() if not (legacy and v.dtype in (torch.uint16, torch.float8_e4m3fn))
        }
        torch.save(kept, path, _use_new_zipfile_serialization=not legacy)
        found = read(path)
        assert found.keys() == kept.keys()
        for name in kept:
            assert torch.equal(found[name].float() if name == "float8" else found[name],
                               expected[name].float() if name == "float8" else expected[name]), name  # fmt: skip


def test_what_else_a_checkpoint_may_hold(tmp_path: Path) -> None:
    import argparse
    from collections import Counter, OrderedDict

    other = {
        "epoch": 3, "negative": -5, "large": 2**200, "lr": 1e-3, "name": "ä", "bytes": b"\x00\xff", "none": None,
        "flags": [True, False], "shape": torch.Size([1, 2]), "dtype": torch.bfloat16, "device": torch.device("cpu"),
        "set": {1, 2}, "count": Counter("aab"), "ordered": OrderedDict(a=1), "complex": 1 + 2j, 5: "number",
        "array": bytearray(b"abc"), "args": argparse.Namespace(lr=0.1, sizes=(1, 2)), (1, "x"): "tuple",
        "layout": torch.strided,
    }  # fmt: skip
    for legacy in (False, True):
        torch.save({"state_dict": state(), **other}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        assert_same(tmp_path / "m.pt")
    from radin.weights import torch_file

    kept = torch_file.rewrapped(tmp_path / "m.pt", None, {name: torch.zeros(1) for name in state()})
    del kept["state_dict"], other["layout"], kept["layout"]
    assert kept == other


def test_names_that_python_2_wrote(tmp_path: Path) -> None:
    found = [(n, d.replace(b"X\x01\x00\x00\x00a", b"U\x01a") if n.endswith(".pkl") else d) for n, d in entries()]
    assert found != entries()
    assert_same(archive(tmp_path / "m.pt", found))


# Damaged, or made to lie


def edit(content: bytes, old: bytes, new: bytes, which: int = 0) -> bytes:
    """Replace one occurrence of bytes."""
    place = -1
    for _ in range(which + 1):
        place = content.index(old, place + 1)
    return content[:place] + new + content[place + len(old) :]


def pickle_with(old: bytes, new: bytes) -> Callable[[Entries], Entries]:
    return lambda found: [(n, edit(d, old, new) if n.endswith("data.pkl") else d) for n, d in found]


def with_entry(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Entries], Entries]:
    def changed(found: Entries) -> Entries:
        new = [(n, change(d) if n == name else d) for n, d in found]
        return [(n, d) for n, d in new if d is not None]

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_entry("archive/data/0", lambda d: d[:-4]), r"1,440 bytes of numbers were promised, and 1,436 are there"),
        (with_entry("archive/data/0", lambda d: d + b"1234"), r"promised, and 1,444 are there"),
        (with_entry("archive/data/0", lambda d: None), r"its numbers '0' are missing"),
        (with_entry("archive/data.pkl", lambda d: None), r"without torch's data.pkl"),
        (with_entry("archive/data.pkl", lambda d: d[:-30]), r"damaged"),
        (with_entry("archive/data.pkl", lambda d: b"\x80\x06" + d[2:]), r"pickle protocol 6"),
        (with_entry("archive/byteorder", lambda d: b"big"), r"the other byte order"),
        (with_entry("archive/byteorder", lambda d: b"middle"), r"the other byte order"),
        (with_entry("archive/byteorder", lambda d: b"x" * 1000), r"at most 100 are read"),
        (pickle_with(b"K(K\t\x86", b"K(K\xff\x86"), r"tensor 'a' of shape \(40, 255\) needs more than the 360 values"),
        (pickle_with(b"K\tK\x01\x86", b"K\x00K\x00\x86"), None),
    ],
)
def test_contents_that_lie(tmp_path: Path, change: Callable[[Entries], Entries], message: str | None) -> None:
    path = archive(tmp_path / "m.pt", change(entries()))
    if message is None:  # strides of zero within the storage: as torch reads it
        assert torch.equal(read(path)["a"], torch.load(path, weights_only=True)["a"])
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3000), (10**6, 10**6), (2**40, 2)])
def test_a_tensor_expanded_beyond_its_storage(tmp_path: Path, shape: tuple[int, int]) -> None:
    torch.save({"w": torch.ones(1, 1).expand(*shape)}, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 3000
    with pytest.raises(CheckpointError, match=r"tensor 'w' of shape .* needs more than the 1 values .* tensor\.clone"):
        open_checkpoint(tmp_path / "m.pt")


def test_many_large_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.randn(1000)
    few = {f"v{k}": base[k : k + 900] for k in range(8)}
    torch.save(few, tmp_path / "few.pt")
    assert len(read(tmp_path / "few.pt")) == 8
    torch.save({f"v{k}": base[k : k + 900] for k in range(100)}, tmp_path / "many.pt")
    with pytest.raises(CheckpointError, match="views of each other"):
        open_checkpoint(tmp_path / "many.pt")


def central(content: bytes, name: bytes) -> int:
    """Where an entry of the table of contents begins."""
    place = content.rindex(name) - 46
    assert content[place : place + 4] == b"PK\x01\x02"
    return place


def patched(content: bytes, place: int, form: str, value: int) -> bytes:
    return content[:place] + struct.pack(form, value) + content[place + struct.calcsize(form) :]


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (10, "<H", 8, "not where the table"),  # compressed, says the table alone
        (10, "<H", 12, r"not known here \(method 12\)"),
        (10, "<H", 99, r"not known here \(method 99\)"),
        (8, "<H", 1, "is encrypted"),
        (20, "<I", 1000, "has two sizes"),
        (24, "<I", 1000, "has two sizes"),
        (42, "<I", 0, "not where the table"),
        (42, "<I", 7, "reaches into what follows"),
        (42, "<I", 2**31, "begins beyond"),
        (42, "<I", 0xFFFFFFFF, "begins beyond"),
        (28, "<H", 65535, "cut off"),
        (0, "<I", 0, "is damaged"),
    ],
)
def test_a_table_of_contents_that_lies(tmp_path: Path, offset: int, form: str, value: int, message: str) -> None:
    path = archive(tmp_path / "m.pt", entries())
    content = path.read_bytes()
    path.write_bytes(patched(content, central(content, b"archive/data/0") + offset, form, value))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_sizes_that_reach_into_the_next_entry(tmp_path: Path) -> None:
    """Stored, consistent in the table and in the pickle, and longer than it is."""
    found = [(n, edit(d, b"M\xf4\x01tq", b"M\xf8\x01tq") if n.endswith(".pkl") else d) for n, d in entries()]
    path = archive(tmp_path / "m.pt", found)
    content = path.read_bytes()
    place = central(content, b"archive/data/1")
    (size,) = struct.unpack_from("<I", content, place + 24)
    assert size == 2000
    content = patched(patched(content, place + 20, "<I", size + 16), place + 24, "<I", size + 16)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'archive/data/1' reaches into what follows it"):
        open_checkpoint(path)


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(tmp_path / "m.pt", [*entries(), ("archive/data/0", b"\x00" * 1440)])
    with pytest.raises(CheckpointError, match="two entries are named 'archive/data/0'"):
        open_checkpoint(tmp_path / "m.pt")


def test_compressed_bytes_that_are_damaged(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.pt", entries(), zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        info = opened.getinfo("archive/data/0")
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with (
        pytest.raises(CheckpointError, match=r"cannot be decompressed|does not have the"),
        open_checkpoint(path).open() as reader,
    ):
        reader["a"]


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_anywhere(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "m.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in [*range(1, 200, 7), *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.pt: "):
            read(path)


def test_other_formats_that_are_no_torch_files(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "m.tar", "w") as target:
        target.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    (tmp_path / "m.tar").rename(tmp_path / "tar.pt")
    (tmp_path / "plain.pt").write_bytes(b"\x80\x02}q\x00.")
    archive(tmp_path / "other.pt", [("a.txt", b"hello")])
    archive(tmp_path / "empty.pt", [])
    (tmp_path / "pk.pt").write_bytes(b"PK\x03\x04")
    for name in ("tar", "plain", "other", "empty", "pk"):
        with pytest.raises(CheckpointError, match=f"{name}.pt: truncated, damaged or not saved by torch.save"):
            open_checkpoint(tmp_path / f"{name}.pt")


def test_metadata_of_a_compressed_file(tmp_path: Path) -> None:
    archive(tmp_path / "m.pt", [*entries(), ("archive/radin.json", b'{"a": "b"}')], zipfile.ZIP_DEFLATED)
    assert read_metadata(tmp_path / "m.pt") == {"a": "b"}
