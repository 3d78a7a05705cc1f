"""Folders of outputs that users bring."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from radin import OutputsError, Pool
from radin.checksums import BLANK, KEY, seal
from radin.outputs.files import read_outputs

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(3, 7, 4)).astype(np.float32)
TARGETS = RNG.integers(0, 4, 7)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    for k in range(3):
        (folder / f"run{k}").mkdir()
        save_file({"w": np.full(3, k, np.float32)}, folder / f"run{k}" / "best.safetensors")
    return Pool.open(folder / "run*" / "best.safetensors")


def save_as_radin(path, outputs, member):
    metadata = {"member": member, "data": "d", "precision": "float32", KEY: BLANK}
    save_file({"outputs": outputs}, path, metadata=metadata)
    seal(path)


@pytest.fixture
def folder(tmp_path, pool):
    """One member's outputs in each of the forms: .npy, .safetensors, and as radin itself writes them."""
    (tmp_path / "run0").mkdir()
    np.save(tmp_path / "run0/best.npy", OUTPUTS[0])
    save_file({"logits": OUTPUTS[1], "other": np.zeros(2)}, tmp_path / "run1_best.safetensors")
    print_ = pool[2].fingerprint
    save_as_radin(tmp_path / f"{print_[:32]}.safetensors", OUTPUTS[2], print_)
    np.save(tmp_path / "targets.npy", TARGETS)
    return tmp_path


def test_outputs_come_in_the_pools_order_and_memory_mapped(folder, pool):
    found = read_outputs(folder, pool)
    for array, expected in zip(found.outputs, OUTPUTS, strict=True):
        assert isinstance(array, np.memmap)
        assert np.array_equal(array, expected)
    assert np.array_equal(found.targets, TARGETS)
    (folder / "targets.npy").unlink()
    save_file({"targets": TARGETS}, folder / "targets.safetensors")
    assert np.array_equal(read_outputs(folder, pool).targets, TARGETS)


def test_half_precision_and_a_single_tensor_of_any_name(folder, pool):
    save_file({"y": OUTPUTS[1].astype(np.float16)}, folder / "run1_best.safetensors")
    found = read_outputs(folder, pool).outputs[1]
    assert np.array_equal(found, OUTPUTS[1].astype(np.float16))
    assert found.dtype == np.float16


def test_what_is_missing_or_does_not_fit_is_named(folder, pool):
    def refused(said: str) -> None:
        with pytest.raises(OutputsError) as caught:
            read_outputs(folder, pool)
        assert said in str(caught.value)

    np.save(folder / "run0/best.npy", OUTPUTS[0, :5])
    refused("run0/best.npy holds the outputs of 5 examples; there are 7 targets")
    np.save(folder / "run0/best.npy", OUTPUTS[0, :, :3])
    refused("run1_best.safetensors has 4 outputs per example, ")
    np.save(folder / "run0/best.npy", OUTPUTS)
    refused("outputs must have the shape (examples, classes); got (3, 7, 4)")
    np.save(folder / "run0/best.npy", OUTPUTS[0])
    save_file({"a": OUTPUTS[1], "b": OUTPUTS[1]}, folder / "run1_best.safetensors")
    refused("run1_best.safetensors: which of its tensors are the outputs? Call them outputs or logits")
    save_file({"a": TARGETS}, folder / "run1_best.safetensors")
    refused("run1_best.safetensors: outputs are stored as I64; expected F64, F32, F16")
    save_as_radin(folder / "run1_best.safetensors", OUTPUTS[1], pool[0].fingerprint)
    refused(f"run1_best.safetensors holds the outputs of other weights ({pool[0].fingerprint[:12]})")
    (folder / "run1_best.safetensors").write_bytes(b"12345678901")
    refused("run1_best.safetensors is not a whole .safetensors file")
    (folder / "run1_best.safetensors").unlink()
    (folder / "run0/best.npy").unlink()
    refused("has no outputs of run0/best and 1 more; looked for best.npy, best.safetensors")
    np.save(folder / "run0/best.npy", OUTPUTS[0])
    np.save(folder / "run1_best.npy", OUTPUTS[1])
    (folder / "targets.npy").unlink()
    refused("has no targets.npy or targets.safetensors, one target per example")
    with pytest.raises(OutputsError, match="is no folder of outputs"):
        read_outputs(folder / "none", pool)
