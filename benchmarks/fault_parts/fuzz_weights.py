"""Hostile and damaged checkpoints, made from small real ones, and whether radin reads or refuses each.

``corpus`` writes them one after another, ``probe`` reads one as ``radin average`` would. The formats are taken apart
and put together again (a safetensors header as JSON, a torch file's archive and pickle, an index of shards), so that
most of the damage gets past the first check that it meets.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from radin.errors import RadinError
from radin.recipe import Recipe
from radin.weights import Pool, average, read_metadata, read_recipe

_GOOD = "good.safetensors"
_LONGEST_MESSAGE = 3_000  # characters; a message is for reading

_NUMBERS = (0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = ("", "w", "a" * 5_000, "\x1b[31m\u202e\x00", "é\ud800", "../../etc/passwd", "F32", "I8", "F4", "C128")
_LISTS: tuple[Any, ...] = ([], [None], [0], [0, 0], [1] * 70, [2**40] * 3, [-1, 2])
_DICTS: tuple[Any, ...] = (
    *({}, {"": None}, {"members": 1}, {"weight_map": {}}),
    {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
)
_OTHERS = (None, True, False, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"))
_VALUES: tuple[Any, ...] = (*_NUMBERS, *_TEXTS, *_LISTS, *_DICTS, *_OTHERS)
_OPCODES = (
    b"c R\x81bQ(t\x85\x86\x87)]}\x8fN\x88\x89aesuJKMG\x8aXUhjqr\x80.0122BCVIFLSp g\x93\x94\x95\x8c\x8d\x8e\x90\x91\x92"
)


def corpus(seed: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """(what was done, file or folder), without end; each is gone when the next is asked for. folder: to write in."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _GOOD).write_bytes(save(_state(1)))
    ways: tuple[Callable[[random.Random, Path], tuple[str, Path]], ...] = (
        _safetensors_header, _safetensors_bytes, _archive, _archive, _pickle, _pickle, _archive_bytes, _legacy_bytes,
        _odd_state, _sharded, _sharded, _metadata,
    )  # fmt: skip
    while True:
        label, path = chance.choice(ways)(chance, folder)
        yield label, path
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def probe(path: Path) -> str:
    """Open a checkpoint with a good one, average them, and read its recipe: "ok", or "refused" with a RadinError.

    Raises whatever else happens, and AssertionError for a refusal that nobody could read.
    """
    try:
        pool = Pool.open([path, path.parent / _GOOD])
        average(pool, Recipe.uniform(range(len(pool)), len(pool)))
        if read_metadata(path):
            read_recipe(path)
    except RadinError as error:
        if not 0 < len(str(error)) < _LONGEST_MESSAGE:
            raise AssertionError(f"a message of {len(str(error)):,} characters") from error
        return "refused"
    return "ok"


def _state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(3, 5, generator=generator),
        "layer.bias": torch.randn(5, generator=generator).half(),
        "norm.num_batches_tracked": torch.tensor(seed),
        "empty": torch.empty(0, 4),
    }


def _number(chance: random.Random) -> int:
    return chance.choice(_NUMBERS) if chance.random() < 0.7 else chance.randrange(-10, 5_000)


def _changed(chance: random.Random, value: Any, depth: int = 0) -> Any:
    """A JSON value with one node of it replaced, removed, doubled or renamed."""
    if isinstance(value, dict | list) and value and chance.random() < 0.9 - 0.1 * depth:
        copy: Any = value.copy()
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        way = chance.randrange(8)
        if way == 0:
            del copy[key]
        elif way == 1 and isinstance(copy, dict):
            copy[str(chance.choice(_VALUES))[:6000]] = copy.pop(key)
        elif way == 2 and isinstance(copy, list):
            copy.insert(key, chance.choice(_VALUES))
        else:
            copy[key] = _changed(chance, copy[key], depth + 1)
        return copy
    return _number(chance) if isinstance(value, int) and chance.random() < 0.5 else chance.choice(_VALUES)


def _text(chance: random.Random, value: Any) -> bytes:
    """JSON, now and then with something that json.dumps does not write: brackets without end, keys twice, no end."""
    text = json.dumps(value)
    way = chance.randrange(16)
    if way == 0:
        text = chance.choice("[{") * chance.choice((10, 2_000, 200_000))
    elif way == 1:
        text = text[:-1] + ", " + text[1:]
    elif way == 2:
        text = text[: chance.randrange(len(text) + 1)]
    elif way == 3:
        place = chance.randrange(len(text) + 1)
        text = (
            text[:place]
            + chance.choice(('{"a":' * 5_000, "[" * 5_000, "\x00", "\ufeff", "1e999", "-", "//"))
            + text[place:]
        )
    return text.encode("utf-8", "surrogatepass") if way != 4 else text.encode("utf-16")


def _damaged(chance: random.Random, data: bytes, within: tuple[int, int] | None = None) -> bytes:
    """Bytes with one to six of them flipped, numbers put in, parts cut or doubled."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 6))):
        low, high = within or (0, len(changed))
        place = min(chance.randrange(low, max(high, low + 1)), max(len(changed) - 1, 0))
        way = chance.randrange(6)
        if way <= 1 and changed:
            changed[place] ^= 1 << chance.randrange(8)
        elif way == 2:
            size = chance.choice((1, 2, 4, 8))
            changed[place : place + size] = (_number(chance) % 256**size).to_bytes(size, "little")
        elif way == 3:
            del changed[place : place + chance.choice((1, 4, 100, 10_000))]
        elif way == 4:
            changed[place:place] = changed[place : place + chance.choice((1, 8, 64))]
        else:
            changed[place:place] = chance.randbytes(chance.choice((1, 4, 30)))
    return bytes(changed)


def _safetensors_header(chance: random.Random, folder: Path) -> tuple[str, Path]:
    whole = save(_state(0), metadata={"format": "pt", "tied": "layer.bias"})
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for _ in range(chance.choice((1, 1, 2, 4))):
        header = _changed(chance, header)
    text = _text(chance, header)
    promised = len(text) if chance.random() < 0.9 else _number(chance) % 2**64
    path = folder / "header.safetensors"
    path.write_bytes(struct.pack("<Q", promised) + text + whole[8 + length :])
    return "a safetensors header edited", path


def _safetensors_bytes(chance: random.Random, folder: Path) -> tuple[str, Path]:
    path = folder / "bytes.safetensors"
    path.write_bytes(_damaged(chance, save(_state(0)), (0, 400) if chance.random() < 0.7 else None))
    return "a safetensors file's bytes damaged", path


def _saved(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _wrapped(chance: random.Random) -> Any:
    return chance.choice((_state(0), {"state_dict": _state(0), "epoch": 3, "best": [1.5, {"x": (1, 2)}]}))


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _packed(chance: random.Random, entries: list[tuple[str, bytes]]) -> bytes:
    """A zip archive of these, each stored or compressed as chance has it."""
    buffer = io.BytesIO()
    method = chance.choice((None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) if method is None else method
            with archive.open(info, "w", force_zip64=chance.random() < 0.2) as file:
                file.write(content)
    return buffer.getvalue()


def _archive(chance: random.Random, folder: Path) -> tuple[str, Path]:
    """Entries dropped, longer, shorter, under other names, in another order, compressed."""
    entries = _entries(_saved(_wrapped(chance)))
    for _ in range(chance.choice((0, 1, 1, 2))):
        place = chance.randrange(len(entries))
        name, content = entries[place]
        way = chance.randrange(7)
        if way == 0:
            del entries[place]
        elif way == 1:
            entries[place] = (name, content[: chance.randrange(len(content) + 1)])
        elif way == 2:
            entries[place] = (name, content + chance.randbytes(chance.choice((1, 4, 1000))))
        elif way == 3:
            entries[place] = (chance.choice(("archive/x", "data.pkl", "../" + name, "", "é" * 500, name[:-1])), content)
        elif way == 4:
            chance.shuffle(entries)
        elif way == 5:
            entries[place] = (name, _damaged(chance, content))
        else:
            entries.insert(place, ("archive/" + "p" * chance.randrange(9), b"x" * chance.randrange(9)))
        if not entries:
            break
    path = folder / "archive.pt"
    path.write_bytes(_packed(chance, entries))
    return "a torch file packed again", path


def _pickle(chance: random.Random, folder: Path) -> tuple[str, Path]:
    """The pickle in it damaged, or with instructions put in."""
    entries = _entries(_saved(_wrapped(chance)))
    edited = []
    for name, content in entries:
        if name.endswith("data.pkl"):
            if chance.random() < 0.5:
                content = _damaged(chance, content)
            for _ in range(chance.choice((0, 1, 3))):
                place = chance.randrange(len(content) + 1)
                code = bytes([chance.choice(_OPCODES)]) + chance.randbytes(chance.choice((0, 0, 1, 4)))
                content = content[:place] + code * chance.choice((1, 1, 2, 3_000)) + content[place:]
        edited.append((name, content))
    path = folder / "pickle.pt"
    path.write_bytes(_packed(chance, edited))
    return "a torch file's pickle edited", path


def _archive_bytes(chance: random.Random, folder: Path) -> tuple[str, Path]:
    data = _saved(_wrapped(chance)) if chance.random() < 0.5 else _packed(chance, _entries(_saved(_wrapped(chance))))
    table = data.rindex(b"PK\x01\x02", 0, data.index(b"PK\x01\x02") + 4)
    path = folder / "bytes.pt"
    path.write_bytes(_damaged(chance, data, (table, len(data)) if chance.random() < 0.6 else None))
    return "a torch file's bytes damaged", path


def _legacy_bytes(chance: random.Random, folder: Path) -> tuple[str, Path]:
    path = folder / "legacy.pt"
    path.write_bytes(_damaged(chance, _saved(_wrapped(chance), legacy=True)))
    return "an old torch file's bytes damaged", path


def _odd_state(chance: random.Random, folder: Path) -> tuple[str, Path]:
    """What torch.save writes and nobody averages."""
    state: dict[Any, Any] = dict(_state(0))
    itself: list[Any] = []
    itself.append(itself)
    deep: Any = ()
    for _ in range(200):
        deep = (deep,)
    shared: Any = [1]
    for _ in range(40):
        shared = [shared, shared]
    weight = state["layer.weight"]
    odd = (
        itself, deep, shared, weight.to_sparse(), weight.to_sparse_csr(), torch.empty(3, 5, device="meta"),
        torch.ones(1).expand(10**6), torch.ones(1, 1).expand(10**9, 10**9), torch.nn.Parameter(weight), weight.T,
        weight.to(torch.complex64).conj(), [weight], (weight, None), {"w": weight}, torch.empty(0), torch.tensor(7),
        torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), OrderedDict(a=weight), None, 5, "x" * 5_000, b"\xff",
        torch.float32, torch.device("meta"), torch.Size([1]), {1, 2}, 2**2000, float("nan"), weight.to(torch.int8),
        torch.full((3, 5), float("nan")), torch.ones(3, 5, dtype=torch.bool), torch.finfo, torch.nn.Linear(1, 1), print,
    )  # fmt: skip
    for _ in range(chance.choice((1, 1, 2, 5))):
        key = chance.choice(
            (*state, "new", "n" * 5_000, "é\ud800", "\x00\x1b[31m", 5, None, 2.5, (1, 2), True, b"key", "module.")
        )
        state[key] = chance.choice(odd)
    if chance.random() < 0.3:
        state = {chance.choice(("state_dict", "model", "net")): state, "x": chance.choice(odd)}
    if chance.random() < 0.1:
        state["itself"] = state
    path = folder / f"odd{chance.choice(('.pt', '.pth', '.ckpt', '.bin'))}"
    path.write_bytes(_saved(state if chance.random() < 0.95 else chance.choice(odd), chance.random() < 0.3))
    return "an odd state dict", path


def _sharded(chance: random.Random, folder: Path) -> tuple[str, Path]:
    """A folder of shards with its index or its shards changed."""
    path = folder / "sharded"
    path.mkdir()
    torch_format = chance.random() < 0.5
    stem, suffix = ("pytorch_model", ".bin") if torch_format else ("model", ".safetensors")
    names = list(_state(0))
    shards = {f"{stem}-0000{k + 1}-of-00002{suffix}": names[2 * k : 2 * k + 2] for k in range(2)}
    for shard, held in shards.items():
        part = {name: _state(0)[name] for name in held}
        data = _saved(part) if torch_format else save(part)
        (path / shard).write_bytes(_damaged(chance, data) if chance.random() < 0.15 else data)
    index: Any = {
        "metadata": {"total_size": 70},
        "weight_map": {n: shard for shard, held in shards.items() for n in held},
    }
    for _ in range(chance.choice((0, 1, 1, 3))):
        index = _changed(chance, index)
    (path / f"{stem}{suffix}.index.json").write_bytes(_text(chance, index))
    shard = path / chance.choice(list(shards))
    way = chance.randrange(12)
    if way == 0:
        shard.unlink()
    elif way == 1:
        shard.unlink()
        shard.symlink_to(chance.choice(("/dev/zero", "/dev/null", "/nowhere", str(shard), "..", "/etc/passwd")))
    elif way == 2:
        shard.unlink()
        shard.mkdir()
    return "a folder of shards changed", path


def _metadata(chance: random.Random, folder: Path) -> tuple[str, Path]:
    """A soup of radin's whose metadata and recipe have other shapes."""
    recipe = {
        "members": [
            {"name": "a", "fingerprint": "0" * 64, "weight": 0.5},
            {"name": "b", "fingerprint": "1" * 64, "weight": 0.5},
        ]
    }
    for _ in range(chance.choice((0, 1, 2))):
        recipe = _changed(chance, recipe)
    metadata: Any = {"radin.recipe": _text(chance, recipe).decode("latin1"), "radin.version": "0"}
    way = chance.randrange(3)
    if way == 0:
        path = folder / "soup.safetensors"
        path.write_bytes(save(_state(0), metadata=metadata))
        return "a soup's metadata", path
    metadata = _changed(chance, metadata) if chance.random() < 0.5 else metadata
    if way == 1:
        path = folder / "soup.pt"
        path.write_bytes(
            _packed(chance, [*_entries(_saved(_state(0))), ("archive/radin.json", _text(chance, metadata))])
        )
        return "a soup's metadata in a torch file", path
    path = folder / "soup"
    path.mkdir()
    (path / "model.safetensors").write_bytes(save(_state(0)))
    (path / "radin.json").write_bytes(_text(chance, metadata))
    return "a soup's metadata in a folder", path
