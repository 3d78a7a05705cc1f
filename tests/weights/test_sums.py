"""Sums of members, bit for bit those of a plain float64 loop, on values that are chosen to be hard."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from radin.recipe import Recipe
from radin.weights import Pool, Soup, layout, raw, sums
from radin.weights.content import Content
from radin.weights.pool import Opened

averaging = importlib.import_module("radin.weights.averaging")  # the package's own name is the function

SIZE = 1500
SAME_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several leaves, parts and blocks in a tensor, none of them whole at its end; three members at a time."""
    for module in (layout, raw, sums):
        monkeypatch.setattr(module, "LEAF", 700)
    monkeypatch.setattr(sums, "_PART", 300)
    monkeypatch.setattr(sums, "_BLOCK", 128)
    monkeypatch.setattr(sums, "_BLOCK_OF_PRODUCTS", 32)
    monkeypatch.setattr(sums, "_TOGETHER", 3)


def hard(kind: str, dtype: torch.dtype, members: int, seed: int) -> list[Tensor]:
    """One tensor of each member."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.finfo(dtype)

    def normal() -> Tensor:
        return torch.randn(SIZE, generator=generator, dtype=torch.float64)

    def any_bits() -> Tensor:
        """Every exponent, sign and subnormal; what is not finite taken out."""
        bits = torch.randint(0, 256, (SIZE * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        return bits.view(dtype).nan_to_num(0.0, 1.0, -1.0)

    if kind == "normal":
        return [normal().to(dtype) for _ in range(members)]
    if kind == "any bits":
        return [any_bits() for _ in range(members)]
    if kind == "cancelling":  # pairs that leave a few digits, or nothing, of one sign or the other
        found = [normal().to(dtype) for _ in range(members)]
        for k in range(1, members, 2):
            found[k] = -found[k - 1] * (1 + (normal() > 0.5).to(dtype) * limits.eps)
        return [each.to(dtype) for each in found]
    if kind == "near halves":  # sums next to the middle of two values: a last digit, and far smaller ones
        one = normal().to(dtype)
        digits = one.double().abs() * limits.eps / 4
        small = [(digits * (1 + normal().sign() * 2.0**-k)).to(dtype) for k in range(members)]
        return [one, *small[1:]]
    if kind == "huge":
        return [(normal().sign() * limits.max * (1 - k / 64)).to(dtype) for k in range(members)]
    if kind == "subnormal":
        smallest = torch.randint(-40, 40, (members, SIZE), generator=generator).double() * limits.tiny * limits.eps
        return list(smallest.to(dtype))
    assert kind == "zeros"
    return [torch.where(normal() < 0, 0.0, -0.0).to(dtype) for _ in range(members)]


KINDS = ["normal", "any bits", "cancelling", "near halves", "huge", "subnormal", "zeros"]


def soup_of(folder: Path, tensors: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """From files, without the check that they are finite and differ."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"m{k}.safetensors" for k in range(len(tensors))]
    for path, tensor in zip(paths, tensors, strict=True):
        save_file({"w": tensor.contiguous()}, path)
    pool = Pool.of(Opened.of(paths), [Content(str(k)) for k in range(len(paths))])
    return Soup(pool, recipe)["w"]


def plain(tensors: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """Each product rounded to float64, each sum too, and the last one rounded as torch rounds."""
    first, *rest = recipe.members
    total = recipe.weights[first] * tensors[first].double()
    for k in rest:
        total = total + recipe.weights[k] * tensors[k].double()
    return total.to(tensors[0].dtype)


def assert_same_bits(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype
    assert torch.equal(one.isnan(), other.isnan())
    bits = SAME_BITS[one.dtype.itemsize]
    assert torch.equal(one[~one.isnan()].view(bits), other[~other.isnan()].view(bits))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_a_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, threads: int
) -> None:
    monkeypatch.setattr(averaging, "threads_here", lambda: threads)
    monkeypatch.setattr(averaging, "_SMALL", 0)
    for members in (2, 4, 8):  # one group and several; ratios that are powers of two, and others
        tensors = hard(kind, dtype, members, seed=members)
        for weights in ([1.0] * members, [1.0 + k for k in range(members)], [0.5] * (members - 1) + [0.0]):
            recipe = Recipe.normalized(weights)
            assert_same_bits(soup_of(tmp_path / str(members), tensors, recipe), plain(tensors, recipe))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weights=st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 1 / 3, 1e-9, 1e-300]), min_size=2, max_size=8),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 10**6),
)
def test_any_ratios(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float], kind: str, dtype: torch.dtype, seed: int
) -> None:
    if sum(weights) < 0.1:
        weights[0] = 1.0
    tensors = hard(kind, dtype, len(weights), seed)
    recipe = Recipe.normalized(weights)
    assert_same_bits(soup_of(tmp_path_factory.mktemp("pool"), tensors, recipe), plain(tensors, recipe))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [[1.0] * 4, [3.0, 1.0, 2.0, 5.0]])
def test_infinities_and_nans_go_where_they_would(tmp_path: Path, dtype: torch.dtype, weights: list[float]) -> None:
    tensors = hard("any bits", dtype, 4, seed=1)
    tensors[0][::7], tensors[1][::5], tensors[3][::11] = float("inf"), float("-inf"), float("nan")
    recipe = Recipe.normalized(weights)
    found = soup_of(tmp_path, tensors, recipe)
    assert_same_bits(found, plain(tensors, recipe))
    assert found.isnan().sum() > found.isinf().sum() / 10 > 0


def test_members_of_different_dtypes_in_one_group(tmp_path: Path) -> None:
    tensors = [hard("normal", dtype, 1, k)[0] for k, dtype in enumerate([torch.float32, torch.bfloat16, torch.float16])]
    for weights in ([1.0, 1.0, 2.0], [0.5, 0.5, 0.0], [1.0, 2.0, 3.0]):
        recipe = Recipe.normalized(weights)
        found = soup_of(tmp_path, tensors, recipe)
        assert_same_bits(found, plain([tensors[0], *(each.float() for each in tensors[1:])], recipe))
