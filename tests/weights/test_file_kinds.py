"""Files as the libraries write them, under whatever name: known by content, and written again in the same form."""

from __future__ import annotations

import functools
import io
import logging
import os
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from radin.errors import CheckpointError, NoWeightsError
from radin.recipe import Recipe
from radin.run.average import average_files
from radin.weights import Pool, average, open_checkpoint, read_recipe
from radin.weights.alike import write_alike
from radin.weights.kinds import is_checkpoint_file, stem

UNIFORM = Recipe.uniform(range(2), 2)


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.randn(4, generator=generator)}


def read(path: Path, key: str | None = None) -> dict[str, Tensor]:
    with open_checkpoint(path, key=key).open() as reader:
        return {name: reader[name].clone() for name in reader}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return sorted(left) == sorted(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["m.pth.tar", "m.tar", "m.pkl", "m", "m.safetensors", "step.1000", "m.PT"])
def test_a_torch_file_under_any_name(tmp_path: Path, name: str) -> None:
    torch.save(state(), tmp_path / name)
    assert same(read(tmp_path / name), state())


@pytest.mark.parametrize("name", ["m.pt", "m.bin", "m", "m.st"])
def test_safetensors_under_any_name(tmp_path: Path, name: str) -> None:
    save_file(state(), tmp_path / name)
    assert same(read(tmp_path / name), state())


def test_a_name_that_says_the_wrong_kind_is_written_as_its_content_is(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "m.pt")
    write_alike(state(1), open_checkpoint(tmp_path / "m.pt"), tmp_path / "soup.pt", {"radin.x": "1"})
    assert same(read(tmp_path / "soup.pt"), state(1))
    assert (tmp_path / "soup.pt").read_bytes()[8:9] == b"{"


def test_what_is_no_checkpoint_is_told_as_that(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("train/1.png"))
    with pytest.raises(CheckpointError, match=r"a tar archive without model_weights\.ckpt"):
        open_checkpoint(tmp_path / "data.tar")
    assert not is_checkpoint_file(tmp_path / "data.tar")
    (tmp_path / "notes").write_text("hello")
    with pytest.raises(CheckpointError, match="unknown kind of file"):
        open_checkpoint(tmp_path / "notes")


def test_stems() -> None:
    names = ["model_best.pth.tar", "m.tar", "last.ckpt", "epoch=1-val.2", "x.nemo"]
    assert [stem(Path(name)).name for name in names] == ["model_best", "m", "last", "epoch=1-val.2", "x"]


def test_timm_saver(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import load_checkpoint
    from timm.utils import CheckpointSaver

    logging.disable(logging.INFO)
    model = timm.create_model("test_vit", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(1, 3, 160, 160)).sum().backward()
    optimizer.step()
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), max_history=2)
    saver.save_checkpoint(0, metric=0.5)
    with torch.no_grad():
        model.head.bias.add_(1.0)
    saver.save_checkpoint(1, metric=0.7)
    pool = Pool.open([tmp_path / f"checkpoint-{k}.pth.tar" for k in (0, 1)])
    assert pool.member_names == ("checkpoint-0", "checkpoint-1")
    soup = average(pool, UNIFORM)
    written = write_alike(soup, pool[0].checkpoint, tmp_path / "soup.pth.tar", {})
    load_checkpoint(model, str(written))  # strict
    for name, value in model.state_dict().items():
        assert torch.equal(value, soup[name])
    assert "optimizer" not in torch.load(written, weights_only=False)


def test_icefall_takes_the_model_and_says_how_to_take_its_average(tmp_path: Path) -> None:
    # As icefall/checkpoint.py save_checkpoint writes epoch-N.pt; model_avg is kept in float64 since training began.
    content = {
        "model": state(), "model_avg": {name: t.double() * 2 for name, t in state().items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "scheduler": {"epoch": 1}, "grad_scaler": {"scale": 1.0}, "sampler": None, "batch_idx_train": 10,
    }  # fmt: skip
    torch.save(content, tmp_path / "epoch-1.pt")
    checkpoint = open_checkpoint(tmp_path / "epoch-1.pt")
    assert checkpoint.notes == (
        "took model",
        "left out model_avg, an average over all of training; key model_avg takes it",
    )
    assert same(read(tmp_path / "epoch-1.pt"), state())
    assert read(tmp_path / "epoch-1.pt", key="model_avg")["a.bias"].dtype == torch.float64


def nemo(path: Path, weights: dict[str, Tensor]) -> None:
    """As NeMo's SaveRestoreConnector makes one: an uncompressed tar of a folder's files."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with tarfile.open(path, "w:") as archive:
        for name, content in (("./model_config.yaml", b"target: x\n"), ("./model_weights.ckpt", buffer.getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_nemo_is_read_in_place_and_written_again(tmp_path: Path) -> None:
    for seed in (0, 1):
        nemo(tmp_path / f"m{seed}.nemo", state(seed))
    pool = Pool.open([tmp_path / "m0.nemo", tmp_path / "m1.nemo"])
    assert pool.member_names == ("m0", "m1")
    assert pool[0].checkpoint.mapped
    assert same(read(tmp_path / "m1.nemo"), state(1))
    written = write_alike(average(pool, UNIFORM), pool[0].checkpoint, tmp_path / "soup.nemo", {"radin.x": "1"})
    with tarfile.open(written) as archive:
        assert archive.getnames() == ["./model_config.yaml", "./model_weights.ckpt"]
        config, weights = (archive.extractfile(name).read() for name in archive.getnames())  # type: ignore[union-attr]
    assert config == b"target: x\n"
    soup = torch.load(io.BytesIO(weights), weights_only=True)
    assert torch.equal(soup["a.bias"], (state(0)["a.bias"] + state(1)["a.bias"]) / 2)
    average_files([tmp_path / "m0.nemo", tmp_path / "m1.nemo"], None, [], None, tmp_path / "average.nemo", None)
    assert same(read(tmp_path / "average.nemo"), dict(soup))
    assert Recipe.from_json(read_recipe(tmp_path / "average.nemo"), pool.fingerprints).weights == (0.5, 0.5)
    (tmp_path / "average.nemo").unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m0.nemo", "m1.nemo", "soup.nemo"]


def test_a_damaged_nemo_is_one_message(tmp_path: Path) -> None:
    nemo(tmp_path / "m.nemo", state())
    whole = (tmp_path / "m.nemo").read_bytes()
    for keep in (600, 1500, 2500):
        (tmp_path / "cut.nemo").write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=r"cut\.nemo: "):
            open_checkpoint(tmp_path / "cut.nemo")


# Files that name classes beside their weights


class Settings:
    """A class of the training script's, which radin does not have."""

    def __init__(self, *values: Any) -> None:
        self.values = values
        self.own = (self,)  # a tuple that holds itself


class Ran:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


ODDITIES: dict[str, Any] = {
    "an object": Settings(1, 1 << 3000, torch.ones(2)),
    "a class": Settings,
    "a class that is known": OrderedDict,
    "a partial": functools.partial(torch.add, 1),
    "a set of odd things": frozenset({Path("x"), b"bytes"}),
    "a module": nn.Linear(2, 2),
    "a key": {Path("x"): 1},
}


@pytest.mark.parametrize("what", ODDITIES)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_classes_beside_the_weights_are_stood_in_for_and_not_kept(tmp_path: Path, what: str, protocol: int) -> None:
    content = {"state_dict": state(), "epoch": 3, "config": ODDITIES[what]}
    torch.save(content, tmp_path / "m.ckpt", pickle_protocol=protocol)
    assert same(read(tmp_path / "m.ckpt"), state())
    written = write_alike(state(1), open_checkpoint(tmp_path / "m.ckpt"), tmp_path / "soup.ckpt", {})
    soup = torch.load(written, weights_only=True)
    assert soup.keys() == {"state_dict", "epoch"}
    assert same(dict(soup["state_dict"]), state(1))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_beside_the_weights_never_runs(tmp_path: Path, legacy: bool) -> None:
    sentinel, path = tmp_path / "ran", tmp_path / "m.pt"
    content = {"model": state(), "extra": Ran(sentinel)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    pool = Pool.open(path)
    assert "names posix.mkdir beside its weights: not data, so it was neither run nor kept" in pool.notes[0] + "".join(
        pool.notes
    )
    assert same(read(path), state())
    written = write_alike(state(1), pool[0].checkpoint, tmp_path / "soup.pt", {})
    assert b"mkdir" not in written.read_bytes()
    assert not sentinel.exists()
    torch.load(path, weights_only=False)
    assert sentinel.exists(), "the file would not have run code; this test proved nothing"


class Whole(nn.Linear):
    pass


@pytest.mark.parametrize(
    "content",
    [
        {"model": Whole(2, 2), "epoch": 1},
        {"model": {**state(), "b": Settings()}},
        {"model": {**state(), "packed": [Settings()]}},
        {"model": {**state(), "b": torch.ones(2).as_subclass(type("Odd", (torch.Tensor,), {}))}},
    ],
)
def test_weights_that_code_would_make_are_refused(tmp_path: Path, content: Any, monkeypatch: Any) -> None:
    found = content["model"]
    if isinstance(found, dict) and isinstance(found.get("b"), Tensor):
        monkeypatch.setitem(globals(), "Odd", type(found["b"]))
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"refused, because it holds .*which is not plain tensor data"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_layers_extra_state_is_left_out_whatever_it_is(tmp_path: Path) -> None:
    torch.save({**state(), "a._extra_state": io.BytesIO(b"x")}, tmp_path / "m.pt")
    assert same(read(tmp_path / "m.pt"), state())
    assert open_checkpoint(tmp_path / "m.pt").notes[0] == "left out 1 entries that are not tensors: a._extra_state"


def test_an_optimizers_state_holds_no_weights(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "m.pt")
    with pytest.raises(NoWeightsError, match="holds no tensors"):
        open_checkpoint(tmp_path / "m.pt")


# Lightning


def test_lightning_files_with_classes_in_their_settings(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 3, loss: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Linear(2, width)
            self.loss = loss

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    logging.disable(logging.INFO)
    keep = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[keep], logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    lightning.seed_everything(0, verbose=False)
    trainer.fit(Net(5, Settings(1)), torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=4))
    paths = [tmp_path / "epoch=0.ckpt", tmp_path / "epoch=1.ckpt"]
    pool = Pool.open(paths)
    assert pool.names == ("net.bias", "net.weight")
    assert any("Settings" in note for note in pool.notes)
    soup = average(pool, UNIFORM)
    written = write_alike(soup, pool[1].checkpoint, tmp_path / "soup.ckpt", {})
    loaded = Net.load_from_checkpoint(written)
    assert loaded.net.out_features == 5, "settings that are plain stay"
    assert loaded.loss is None, "what stood for a class is not kept"
    average_files(paths, None, [], None, tmp_path / "average.ckpt", None)
    again = Net.load_from_checkpoint(tmp_path / "average.ckpt")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in loaded.state_dict().items())
    want = sum(torch.load(path, weights_only=False)["state_dict"]["net.weight"].double() for path in paths) / 2
    assert torch.equal(loaded.net.weight.detach(), want.float())
