"""Members and models that name the same tensors differently: fitted whole, said, never half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from radin.engine.load import check_fits, load_weights
from radin.errors import CheckpointError, PoolError, TaskError
from radin.recipe import Recipe
from radin.weights import Pool, average, open_checkpoint, read_recipe
from radin.weights.alike import write_alike


def state(prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}0.weight": torch.randn(3, 2, generator=generator),
        f"{prefix}1.weight": torch.randn(3, 3, generator=generator),
    }


def uniform(pool: Pool) -> dict[str, Tensor]:
    return average(pool, Recipe.uniform(range(len(pool)), len(pool)))


def opened(folder: Path, *states: dict[str, Tensor]) -> Pool:
    for k, tensors in enumerate(states):
        torch.save(tensors, folder / f"m{k}.pt")
    return Pool.open([folder / f"m{k}.pt" for k in range(len(states))])


def test_a_compiled_part_of_a_model(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 1)

    plain = Net()
    names = sorted(plain.state_dict())
    compiled = Net()
    compiled.body = torch.compile(compiled.body)  # type: ignore[assignment]
    assert any("_orig_mod" in name for name in compiled.state_dict())
    pool = opened(tmp_path, compiled.state_dict(), plain.state_dict())
    assert list(pool.names) == names
    assert pool.notes == ("m0: stripped _orig_mod. inside 4 of 6 keys (a compiled part of the model)",)
    # and it is written under the names that it came with
    write_alike(uniform(pool), pool[0].checkpoint, tmp_path / "soup.pt", {})
    compiled.load_state_dict(torch.load(tmp_path / "soup.pt"))


def test_inner_wrappers_stay_where_taking_them_out_would_clash(tmp_path: Path) -> None:
    torch.save({"a._orig_mod.w": torch.ones(1), "a.w": torch.ones(1)}, tmp_path / "half.pt")
    assert open_checkpoint(tmp_path / "half.pt").names == ("a._orig_mod.w", "a.w")
    torch.save({"a.module.w": torch.ones(1), "b.w": torch.ones(1)}, tmp_path / "module.pt")
    assert open_checkpoint(tmp_path / "module.pt").names == ("a.module.w", "b.w"), "a module may well be called module"


@pytest.mark.parametrize(
    ("prefix", "other"), [("net.", ""), ("", "net."), ("model.", "backbone."), ("a.module.", "a."), ("a.", "a.module.")]
)
def test_members_that_differ_by_a_wrapper(tmp_path: Path, prefix: str, other: str) -> None:
    pool = opened(tmp_path, state(prefix), state(prefix, 1), state(other, 2))
    assert pool.names == tuple(sorted(state(prefix)))
    assert any(note.startswith("m2: ") and "all 2 names, to fit the other members" in note for note in pool.notes)
    want = sum(state("", seed)["0.weight"].double() for seed in range(3)) / 3
    assert torch.equal(uniform(pool)[f"{prefix}0.weight"], want.float())
    written = write_alike(uniform(pool), pool[2].checkpoint, tmp_path / "soup.pt", {})
    assert sorted(torch.load(written)) == sorted(state(other)), "in the form of a member, with its own names"


def test_half_a_fit_is_none(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="does not fit"):
        opened(tmp_path, state(), {"net.0.weight": torch.ones(3, 2), "1.weight": torch.ones(3, 3)})
    with pytest.raises(PoolError, match="does not fit"):
        opened(tmp_path, state(), {"net.0.weight": torch.ones(3, 2), "net.1.weight": torch.ones(3, 4)})


# The task's model


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class Wrapping(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, Inner())

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)


@pytest.mark.parametrize("model", [Inner(), Wrapping("model"), Wrapping("net"), nn.DataParallel(Inner())])
@pytest.mark.parametrize("prefix", ["", "net.", "model.", "module."])
def test_a_models_wrapper_on_either_side(model: nn.Module, prefix: str) -> None:
    source = Inner()
    tensors = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    note = check_fits(model, shapes, "m0")
    called = load_weights(model, tensors, "m0")
    own = dict(model.state_dict())
    assert (note is None) == (set(own) == set(tensors))
    assert note is None or "all 7 names" in note
    for name, tensor in own.items():
        assert torch.equal(tensor, tensors[called.get(name, name)])


def test_a_model_that_fits_by_half_is_refused_with_what_does_not_fit() -> None:
    shapes: dict[str, Any] = {"net." + name: tuple(t.shape) for name, t in Inner().state_dict().items()}
    shapes["net.linear.weight"] = (3, 5)
    with pytest.raises(TaskError, match="7 tensors of the model are not in the checkpoint"):
        check_fits(Inner(), shapes, "m0")


def test_statistics_are_estimated_again_under_the_members_names(tmp_path: Path) -> None:
    from radin.data.task import Task
    from radin.engine.device import Device
    from radin.engine.evaluate import Evaluator
    from radin.run.preflight import preflight

    (tmp_path / "task.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))\n"
        "    def forward(self, x):\n        return self.body(x)\n"
        "def model(): return Net()\n"
        "x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + 5\n"
        "def validation(): return [(x, torch.arange(64) % 3)]\n"
        "def calibration(): return [x]\n"
    )
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    tensors = dict(net.state_dict())
    task, engine = Task.load(tmp_path / "task.py"), Device.create("cpu", "float32", None)
    metric = task.get_metric()
    found = preflight(task, {n: tuple(t.shape) for n, t in tensors.items()}, "m0", lambda: tensors, engine, metric)
    assert any("prefix body. put before all 7 names" in note for note in found.notes)
    _, final = Evaluator(task, engine, metric).prepare(tensors, "soup", calibrate=True)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + 5
    assert final.keys() == tensors.keys()
    assert torch.allclose(final["1.running_mean"], net[0](x).mean(0), atol=1e-5)


# Tied pairs


def language_model(seed: int, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def test_a_tied_pair_that_transformers_leaves_out_and_torch_save_does_not(tmp_path: Path) -> None:
    models = [language_model(k, tmp_path / f"hf{k}") for k in range(2)]
    torch.save(models[1].state_dict(), tmp_path / "whole.bin")
    save_file(
        {n: t.clone() for n, t in language_model(2, tmp_path / "hf2").state_dict().items()},
        tmp_path / "twice.safetensors",
    )
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "hf0").names
    pool = Pool.open([tmp_path / "hf0", tmp_path / "whole.bin", tmp_path / "twice.safetensors"])
    assert "lm_head.weight" in pool.names
    assert any("lm_head.weight is tied to model.embed_tokens.weight" in note for note in pool.notes)
    soup = uniform(pool)
    assert soup["lm_head.weight"] is soup["model.embed_tokens.weight"]
    states = [language_model(k, tmp_path / "again").state_dict() for k in range(3)]
    want = sum(s["model.embed_tokens.weight"].double() for s in states) / 3
    torch.testing.assert_close(soup["lm_head.weight"], want.float(), rtol=1e-6, atol=0)
    import transformers

    written = write_alike(soup, pool[0].checkpoint, tmp_path / "soup", {})
    loaded = transformers.AutoModelForCausalLM.from_pretrained(written)
    assert torch.equal(loaded.lm_head.weight.detach(), soup["lm_head.weight"])


def test_a_pair_that_is_not_tied_is_refused(tmp_path: Path) -> None:
    base = {"embed": torch.randn(3, 2), "head": torch.randn(3, 2), "w": torch.randn(2)}
    with pytest.raises(PoolError, match=r"lacks 1 tensor \(head\)|adds 1 tensor \(head\)"):
        opened(tmp_path, base, {name: t for name, t in base.items() if name != "head"})


def test_which_of_two_equal_tensors_it_is_tied_to_is_not_guessed(tmp_path: Path) -> None:
    zeros = {name: torch.zeros(3) for name in ("a", "b", "c")}
    with pytest.raises(PoolError, match=r"\(c\)"):
        opened(tmp_path, {**zeros, "w": torch.randn(2)}, {"a": torch.zeros(3), "b": torch.ones(3), "w": torch.randn(2)})


# Written in the members' form


def test_average_writes_what_the_members_are(tmp_path: Path) -> None:
    from radin.run.average import average_files

    for k in range(2):
        for ending in (".pth.tar", ".ckpt", ""):
            torch.save({"state_dict": state("module.", k), "epoch": k, "arch": "x"}, tmp_path / f"m{k}{ending}")
    for ending in (".pth.tar", ".ckpt", ".bin", ".pt"):
        given = ".pth.tar" if ending == ".pth.tar" else ".ckpt"
        out = tmp_path / f"soup{ending}"
        paths = [tmp_path / f"m{k}{given}" for k in range(2)]
        average_files(paths, None, ["m0=1,m1=3"], None, out, None)
        found = torch.load(out, weights_only=True)
        if ending in (".bin", ".pt"):
            assert sorted(found) == sorted(state())
            continue
        assert found["epoch"] == 1, "in the form of the member with the largest ratio"
        want = (state("", 0)["0.weight"].double() + 3 * state("", 1)["0.weight"].double()) / 4
        assert torch.equal(found["state_dict"]["module.0.weight"], want.float())
        assert Recipe.from_json(read_recipe(out), Pool.open(paths).fingerprints).weights == (0.25, 0.75)
    with pytest.raises(CheckpointError, match=r"a \.nemo file is written as the members are, and none of them is one"):
        average_files([tmp_path / "m0.ckpt", tmp_path / "m1.ckpt"], None, [], None, tmp_path / "soup.nemo", None)
