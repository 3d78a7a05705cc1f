"""Weights that are integers are refused by name: a soup would have one member's of them, whatever its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from radin.errors import CheckpointError, PoolError
from radin.weights import Pool, open_checkpoint, remembered

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated, and there


def write(folder: Path, *states: dict[str, Any], suffix: str = ".safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    for k, state in enumerate(states):
        path = folder / f"m{k}{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return folder


def weights(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def int8(seed: int) -> dict[str, Tensor]:
    scale = weights(seed).abs().max() / 127
    return {"fc.weight": (weights(seed) / scale).round().to(torch.int8), "fc.scale": scale, "fc.bias": torch.ones(4)}


def packed(seed: int) -> dict[str, Tensor]:
    """As GPTQ stores a layer: eight values of four bits in each int32."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "qweight": torch.randint(-(2**31), 2**31, (3, 8), generator=generator, dtype=torch.int32),
        "qzeros": torch.full((1, 8), 77, dtype=torch.int32),
        "scales": torch.rand(1, 8, generator=generator).half(),
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(("state", "name"), [(int8, "fc.weight"), (packed, "qweight")])
def test_integer_weights_are_refused_by_name(tmp_path: Path, state: Any, name: str, suffix: str) -> None:
    folder = write(tmp_path / "pool", *map(state, range(3)), suffix=suffix)
    with pytest.raises(PoolError, match=rf"integers cannot be averaged, and there are 1 tensor \({name}\)") as caught:
        Pool.open(folder)
    assert str(folder / f"m0{suffix}") in str(caught.value)
    assert "quantize the soup" in str(caught.value)


def test_and_so_when_the_fingerprints_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "RACY_NS", -(10**10))
    folder = write(tmp_path / "pool", int8(0), int8(1))
    for _ in range(2):
        with pytest.raises(PoolError, match=r"fc\.weight"):
            Pool.open(folder)
    assert len(list((tmp_path / "cache" / "fingerprints").iterdir())) == 2


def test_buffers_that_are_the_same_and_counters_are_copied(tmp_path: Path) -> None:
    def state(k: int) -> dict[str, Tensor]:
        return {
            "w": weights(k),
            "num_batches_tracked": torch.tensor(100 * k),
            "position_ids": torch.arange(6).reshape(1, 6).to(torch.int32 if k else torch.int64),
            "mask": torch.tensor([True, False]),
            "frozen.weight": torch.ones(2, 2, dtype=torch.int8),
        }

    assert len(Pool.open(write(tmp_path / "pool", *map(state, range(3))))) == 3


@pytest.mark.parametrize(
    "odd",
    [
        torch.tensor([True, True]),
        torch.tensor([1, 0]),
        torch.tensor([False, False]),
    ],
)
def test_masks_and_indices_that_differ_are_refused(tmp_path: Path, odd: Tensor) -> None:
    same = torch.tensor([True, False]) if odd.dtype == torch.bool else torch.tensor([0, 1])
    folder = write(tmp_path / "pool", {"w": weights(0), "where": same}, {"w": weights(1), "where": odd})
    with pytest.raises(PoolError, match="'where'"):
        Pool.open(folder)


def test_tied_in_one_member_and_apart_in_another(tmp_path: Path) -> None:
    index = torch.tensor([1, 2])
    write(tmp_path / "pool", {"w": weights(0), "a": index, "b": index}, suffix=".pt")
    torch.save({"w": weights(1), "a": index, "b": torch.tensor([2, 1])}, tmp_path / "pool" / "m1.pt")
    with pytest.raises(PoolError, match=r"tensor \(b\)"):
        Pool.open(tmp_path / "pool")


def test_nothing_but_integers_is_nothing_to_average(tmp_path: Path) -> None:
    folder = write(tmp_path / "pool", {"a": torch.tensor(1)}, {"a": torch.tensor(2)})
    with pytest.raises(PoolError, match="none of floats: there is nothing to average"):
        Pool.open(folder)


def test_float8_with_scales_is_refused(tmp_path: Path) -> None:
    def state(k: int) -> dict[str, Tensor]:
        return {"fc.weight": weights(k).to(torch.float8_e4m3fn), "fc.weight_scale_inv": torch.tensor(1.0 + k)}

    with pytest.raises(PoolError, match=r"tensor \(fc\.weight\) of float8 with a scale beside each"):
        Pool.open(write(tmp_path / "pool", *map(state, range(2))))
    plain = [{"fc.weight": state(k)["fc.weight"]} for k in range(2)]
    assert len(Pool.open(write(tmp_path / "plain", *plain))) == 2


# torch.ao keeps the weights of a linear layer in a tuple, packed; scale and zero point beside it are the same in all


def dynamic(seed: int, dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=dtype).state_dict()


def static(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2)).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("onednn")
    torch.backends.quantized.engine = "onednn"
    prepared = torch.ao.quantization.prepare(model)
    prepared(torch.randn(3, 1, 2, 2))
    return torch.ao.quantization.convert(prepared).state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_packed_weights_are_refused_by_name(tmp_path: Path, dtype: torch.dtype, key: str | None, legacy: bool) -> None:
    state = dynamic(0, dtype)
    path = tmp_path / "m.pt"
    torch.save({key: state} if key else state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"packed or quantized \(0\._packed_params\._packed_params, 2\._packed_params"
    ):
        open_checkpoint(path)


def test_static_quantization_is_refused(tmp_path: Path) -> None:
    torch.save(static(0), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"packed or quantized|tensor '1.weight' is quantized"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_quantized_tensor_is_refused_however_deep(tmp_path: Path) -> None:
    tensor = torch.quantize_per_tensor(weights(0), 0.1, 0, torch.quint8)
    torch.save({"w": weights(0), "other": {"inner": {"fc": tensor}}}, tmp_path / "deep.pt")
    with pytest.raises(CheckpointError, match=r"packed or quantized \(other\)"):
        open_checkpoint(tmp_path / "deep.pt")
    torch.save({"w": weights(0), "fc": tensor}, tmp_path / "flat.pt")
    with pytest.raises(CheckpointError, match="tensor 'fc' is quantized"):
        open_checkpoint(tmp_path / "flat.pt")
