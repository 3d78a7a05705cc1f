"""Headers, indexes and metadata that nobody vouches for: one message that names the file, whatever their shape."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from radin.errors import CheckpointError, RadinError
from radin.recipe import Recipe
from radin.weights import Pool, open_checkpoint, read_metadata, read_recipe, save
from radin.weights.alike import write_alike
from radin.weights.saving import RECIPE_KEY

W = '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "header",
    [
        "null", "[]", "7", '"text"', "true", "{", "[" * 2_000, "[" * 200_000, '{"a":' * 200_000, "",
        '{"w":null}', '{"w":[]}', '{"w":{}}', '{"w":{"dtype":"F32","shape":[1]}}', "{" + W + "," + W,
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[4]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":null}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,1e400]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":["0","4"]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551616]}}',
        '{"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        '{"w":{"dtype":"F32","shape":[0,4611686018427387904,4611686018427387904],"data_offsets":[0,0]}}',
        '{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"' + "F" * 9_000 + '","shape":[1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":7,"shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":[],' + W + "}", '{"__metadata__":{"a":1},' + W + "}", '{"__metadata__":7,' + W + "}",
        '{"' + "n" * 5_000 + '":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[' + ",".join(["1"] * 100) + '],"data_offsets":[0,4]}}',
    ],
)  # fmt: skip
def test_safetensors_headers(tmp_path: Path, header: str) -> None:
    path = tmp_path / "m.safetensors"
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    for read in (open_checkpoint, Pool.open):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_header_lengths(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: "):
        open_checkpoint(path)


def test_a_name_twice_in_a_header_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    text = ("{" + W + "," + W + "}").encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    assert open_checkpoint(path).shapes == {"w": (1,)}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "not an index"), (None, "not an index"), (7, "not an index"), ({}, "not an index"),
        ({"weight_map": []}, "not an index"), ({"weight_map": None}, "not an index"),
        ({"weight_map": {}}, "not an index"),
        ({"weight_map": {"w": 7}}, "must give a file name"), ({"weight_map": {"w": None}}, "must give a file name"),
        ({"weight_map": {"w": ["a.bin"]}}, "must give a file name"),
        ({"weight_map": {"w": "a" * 5_000 + ".bin"}}, "not in its folder"),
        ({"weight_map": {"w": "a\0b.bin"}}, "not in its folder"),
        ({"weight_map": {"w": "\ud800.bin"}}, "not in its folder"),
        ({"weight_map": {"w": "a" * 5_000}}, "is not a plain file name"), ({"weight_map": {"w": ""}}, "is not a plain"),
        ({"weight_map": {"n" * 5_000: "good.safetensors"}}, "places tensor"),
        ({"weight_map": {"\ud800": "good.safetensors"}}, "places tensor"),
    ],
)  # fmt: skip
def test_indexes_of_any_shape(tmp_path: Path, index: Any, message: str) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "good.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"", b"{", b"\x00" * 100, '{"weight_map"'.encode("utf-16")])
def test_indexes_that_are_no_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        open_checkpoint(tmp_path)


ODD = (
    "itself",
    "list in itself",
    "other keys",
    "parameter",
    "complex",
    "sparse",
    "compressed rows",
    "without data",
    "nested",
    "a name too long",
    "half a character",
    "no tensors",
    "only other keys",
    "a list",
    "a tensor",
    "nothing",
)


def odd_states() -> dict[str, Any]:
    weight = torch.randn(2, 3)
    itself: dict[str, Any] = {"w": weight}
    itself["itself"] = itself
    around: list[Any] = []
    around.append(around)
    return {
        "itself": itself,
        "list in itself": {"w": weight, "around": around},
        "other keys": {"w": weight, 5: weight, None: weight, (1, 2): weight, 2.5: weight, True: weight, b"k": weight},
        "parameter": {"w": torch.nn.Parameter(weight)},
        "complex": {"w": weight.to(torch.complex64)},
        "sparse": {"w": weight.to_sparse()},
        "compressed rows": {"w": weight.to_sparse_csr()},
        "without data": {"w": torch.empty(2, 3, device="meta")},
        "nested": {"w": torch.nested.nested_tensor([weight, weight[:1]])},
        "a name too long": {"n" * 5_000: weight},
        "half a character": {"\ud800": weight},
        "no tensors": {"w": [], "v": None},
        "only other keys": {5: weight},
        "a list": [weight],
        "a tensor": weight,
        "nothing": None,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_odd_state_dicts(tmp_path: Path, name: str, legacy: bool) -> None:
    path = tmp_path / "m.pt"
    states = odd_states()
    assert tuple(states) == ODD
    torch.save(states[name], path, _use_new_zipfile_serialization=not legacy)
    if name in ("itself", "list in itself", "other keys", "parameter", "complex"):
        with open_checkpoint(path).open() as reader:
            assert tuple(reader) == ("w",)
            assert reader["w"].shape == (2, 3)
        return
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 2_000


class Named(torch.Tensor):
    pass


def test_a_subclass_of_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(3).as_subclass(Named)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"it holds .*Named, which is not plain tensor data"):
        open_checkpoint(tmp_path / "m.pt")


# What radin writes beside a soup's tensors

RECIPES: tuple[Any, ...] = (
    "null", "[]", "7", "{}", '{"members":null}', '{"members":7}', '{"members":{}}', '{"members":["a"]}', "{", "",
    '{"members":[{}]}', '{"members":[{"name":"a","fingerprint":"f","weight":"1"}]}', "[" * 200_000, "\x00",
    '{"members":[{"name":"a","fingerprint":[],"weight":1}]}',
    '{"members":[{"name":null,"fingerprint":"f","weight":1}]}',
    '{"members":[{"name":"a","fingerprint":"f","weight":NaN}]}', '{"members":[{"name":"a","fingerprint":"f"}]}',
    '{"members":[{"name":"a","fingerprint":"f","weight":1e999}]}', '{"members":[[1,2,3]]}',
    '{"members":[{"name":"a","fingerprint":"f","weight":1' + "0" * 400 + "}]}",
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_recipes_of_any_shape(tmp_path: Path, suffix: str, recipe: str) -> None:
    path = tmp_path / f"soup{suffix}"
    save({"w": torch.ones(2)}, path, metadata={RECIPE_KEY: recipe})
    with pytest.raises(RadinError) as caught:
        Recipe.from_json(read_recipe(path), ["f"])
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "text", ["null", "[]", "7", '{"a":1}', '{"a":null}', "{", "", "[" * 200_000, " " * 5_000_000 + "{}", "\x00"]
)
def test_metadata_of_any_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "radin.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"radin\.json: damaged, or not written by radin"):
        read_metadata(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "soup.pt")
    with zipfile.ZipFile(tmp_path / "soup.pt", "a") as archive:
        archive.writestr("archive/radin.json", text)
    with pytest.raises(CheckpointError, match=r"soup\.pt: damaged, or not written by torch\.save"):
        read_metadata(tmp_path / "soup.pt")


def test_an_old_file_has_no_metadata(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_metadata(tmp_path / "old.pt") == {}
    with pytest.raises(CheckpointError, match="carries no recipe"):
        read_recipe(tmp_path / "old.pt")


def test_a_soup_in_the_form_of_a_member_that_holds_what_cannot_be_written(tmp_path: Path) -> None:
    deep: Any = ()
    for _ in range(400):
        deep = [deep]
    torch.save({"model": {"w": torch.ones(2)}, "other": deep}, tmp_path / "m.pt")
    pool = Pool.open(tmp_path / "m.pt")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        with pytest.raises(CheckpointError, match="nested too deeply"):
            write_alike({"w": torch.ones(2)}, pool[0].checkpoint, tmp_path / "soup.pt", {})
    finally:
        sys.setrecursionlimit(before)
