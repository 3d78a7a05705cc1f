"""Each experiment from an empty folder to its table, on real pictures in the formats of the data sets; small models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.spending.play import Group, Point
from PIL import Image
from safetensors.torch import load_file

import radin
import toy
from experiments import cifar10, domainnet, models, running, shifts, standins, training
from experiments.__main__ import main
from experiments.default import Defaults
from experiments.pictures import Pictures
from experiments.scores import Streamed
from radin import RadinError, Task
from radin.engine.device import Device

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.long
TIMM, CLIP = "test_resnet", standins.TINY_CLIP
LABELS = set(running.STRATEGIES)


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> None:
    standins.tiny_clip(tmp_path_factory.mktemp("configs"))


def run(experiment: str, *arguments: Any, draws: int = 1, most: int = 2) -> list[dict[str, Any]]:
    usual = ["--draws", draws, "--members", 3, "--most", most, "--device", "cpu"]
    return main([str(a) for a in (experiment, *arguments, *usual)])


def score(table: dict[str, Any], strategy: str, field: str, budget: int = 1) -> float:
    (row,) = (r for r in table["rows"] if (r["strategy"], r["budget"]) == (strategy, budget))
    return row[field][0]


def accuracy(model: torch.nn.Module, prepare: Any, pictures: Pictures) -> float:
    with torch.no_grad():
        seen = model.eval()(torch.stack([prepare(pictures.open(k)) for k in range(len(pictures))]))
    return float((seen.argmax(1).numpy() == pictures.labels).mean())


def test_cifar10_from_its_files_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = standins.cifar10(tmp_path / "cifar-10-batches-bin", training=300, test=150)
    out = tmp_path / "out"
    asked = ["--data", data, "--train", 4, "--model", f"timm:{TIMM},img_size=32", "--out", out, "--hold-out", 0.3]
    asked += ["--rates", -3, -2, "--epochs", 1, 2, "--train-batch", 32, "--start-epochs", 3]
    (found,) = run("cifar10", *asked, draws=2)
    assert {row["strategy"] for row in found["rows"]} == LABELS
    splits = cifar10.splits(data, 0.3)
    sizes = [found["facts"][name] for name in ("pool", "validation", "test")]
    assert sizes == [4, len(splits.validation), 150]
    assert sizes[1] + len(splits.fitting) == 300
    assert score(found, "best single", "test") > 0.2
    assert "| RADIN, lambda 0 |" in capsys.readouterr().out
    assert json.loads((out / "table.json").read_text()) == json.loads(json.dumps(found))

    # the members and the soup that cook wrote, by timm alone
    test = splits.test
    config = timm.data.resolve_data_config({"img_size": 32}, model=(model := timm.create_model(TIMM, num_classes=10)))
    prepare = timm.data.create_transform(**config)
    singles = []
    for k in range(4):
        model.load_state_dict(torch.load(out / "members" / f"model_{k}.pt", weights_only=True))
        singles.append(round(accuracy(model, prepare, test), 6))
    assert found["facts"]["calibration"] > 0  # the network has BatchNorm
    chosen = json.loads((out / "run" / "result.json").read_text())
    model.load_state_dict(load_file(out / "run" / "soup.safetensors"))
    assert chosen["test"]["best"]["score"] == pytest.approx(accuracy(model, prepare, test), abs=1e-9)
    drawn = [line.split(",") for line in (out / "points.csv").read_text().splitlines()]
    place = drawn[0].index("test")
    single = {float(row[place]) for row in drawn[1:] if row[3] == "best single"}
    assert single <= {float(f"{value:.6g}") for value in singles}

    (again,) = run("cifar10", *asked, draws=2)
    assert again["facts"]["passes"] == 0
    assert again["rows"] == found["rows"]


def clip_members(folder: Path, pictures: Pictures, count: int = 4) -> None:
    """State dicts as the Model Soups paper released them: its ModelWrapper, fine-tuned a little from one start."""

    class ModelWrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = open_clip.create_model(CLIP)
            self.classification_head = torch.nn.Linear(16, 10)
            delattr(self.model, "transformer")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.model.encode_image(images)
            return self.classification_head(features / features.norm(dim=-1, keepdim=True))

    folder.mkdir()
    prepare = open_clip.create_model_and_transforms(CLIP)[2]
    inputs = torch.stack([prepare(pictures.open(k)) for k in range(len(pictures))])
    targets = torch.from_numpy(pictures.labels)
    torch.manual_seed(0)
    model = ModelWrapper()
    start = None
    for seed in range(count + 1):
        if start is not None:
            model.load_state_dict(start)
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2 if start is None else 3e-3)
        for _ in range(4 if start is None else 2):
            for rows in torch.randperm(len(targets)).split(16):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
        if start is None:
            start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        else:
            torch.save(model.state_dict(), folder / f"model_{seed - 1}.pt")


def test_shifts_of_members_as_model_soups_released_them(tmp_path: Path) -> None:
    data = standins.imagenet(tmp_path / "data", training=300, test=100, shift=60)
    splits = shifts.splits(data, 0.3)
    clip_members(tmp_path / "soups", splits.fitting)
    out = tmp_path / "out"
    asked = ["--data", data, "--checkpoints", tmp_path / "soups", "--model", f"open_clip:{CLIP}", "--out", out]
    (found,) = run("shifts", *asked, "--hold-out", 0.3)
    assert {row["strategy"] for row in found["rows"]} == LABELS
    row = next(r for r in found["rows"] if (r["strategy"], r["budget"]) == ("uniform", 1))
    assert list(row["shifts"]) == ["V2", "Sketch", "A", "R", "ObjectNet"]
    assert all(0 <= mean <= 1 for mean, _ in row["shifts"].values())
    assert "| strategy | test | V2 | Sketch | A | R | ObjectNet | mean |" in (out / "table.md").read_text()

    # what cook reports of R, whose four classes alone count, by a plain loop over the soup's outputs
    prepare = open_clip.create_model_and_transforms(CLIP)[2]
    state = load_file(out / "run" / "soup.safetensors")
    model = Classifier(state).eval()
    files = sorted((data / "imagenet-r").glob("*/*.jpg"))
    own = [0, 2, 3, 9]
    right = 0
    with torch.no_grad():
        for path in files:
            logits = model(prepare(Image.open(path).convert("RGB"))[None])[0].tolist()
            right += standins.WORDNET[max(own, key=logits.__getitem__)] == path.parent.name
    chosen = json.loads((out / "run" / "result.json").read_text())
    assert chosen["shifts"]["R"]["best"]["score"] == pytest.approx(right / len(files), abs=1e-9)


def test_imagenet_trained_from_a_whole_clip_model(tmp_path: Path) -> None:
    data = standins.imagenet(tmp_path / "data", training=200, test=60, shift=10)
    torch.manual_seed(3)
    torch.save(open_clip.create_model(CLIP).state_dict(), tmp_path / "clip.pt")
    out = tmp_path / "out"
    asked = ["--data", data, "--train", 3, "--start", tmp_path / "clip.pt", "--model", f"open_clip:{CLIP}"]
    asked += ["--out", out, "--hold-out", 0.3, "--rates", -3, -2, "--epochs", 1, 1, "--train-batch", 20]
    (found,) = run("imagenet", *asked, "--start-epochs", 2)
    assert {row["strategy"] for row in found["rows"]} == LABELS
    assert found["facts"]["same"]
    assert "shifts" not in found["rows"][0]
    start = torch.load(out / "start.pt", weights_only=True)
    given = torch.load(tmp_path / "clip.pt", weights_only=True)
    assert torch.equal(start["model.visual.conv1.weight"], given["visual.conv1.weight"])  # the head alone was trained
    assert start["classification_head.weight"].abs().sum() > 0
    with pytest.raises(SystemExit, match=r"holds members trained otherwise \(epochs\); give another --out"):
        run("imagenet", *asked, "--epochs", 2, 2, "--start-epochs", 2)


def test_domainnet_reports_the_domain_left_out(tmp_path: Path) -> None:
    data = standins.domainnet(tmp_path / "data", training=90, test=30)
    out = tmp_path / "out"
    asked = ["--data", data, "--train", 3, "--model", f"open_clip:{CLIP}", "--out", out, "--domains", "noisy", "plain"]
    asked += ["--rates", -3, -2, "--epochs", 1, 1, "--train-batch", 16, "--start-epochs", 3]
    found = run("domainnet", *asked)
    assert [table["facts"]["title"] for table in found] == ["domainnet without noisy", "domainnet without plain"]
    for table in found:
        assert table["facts"]["validation"] == 36  # a fifth of two domains' 90
        assert table["facts"]["test"] == 120
        assert {row["strategy"] for row in table["rows"]} == LABELS
        assert list(table["rows"][0]["shifts"]) == ["in domain"]

    # the best single member on the domain left out, by a model built here
    chosen = json.loads((out / "noisy" / "run" / "result.json").read_text())["best_single"]
    assert chosen["score"] == pytest.approx(score(found[0], "best single", "validation"), abs=1e-6)
    name = chosen["recipe"]["members"][0]["name"]
    state = torch.load(out / "noisy" / "members" / f"{name}.pt", weights_only=True)
    prepare = open_clip.create_model_and_transforms(CLIP)[2]
    expected = accuracy(Classifier(state), prepare, domainnet.splits(data, "noisy").test)
    assert 0 < expected == pytest.approx(score(found[0], "best single", "test"), abs=1e-6)


class Classifier(torch.nn.Module):
    """A member of --train, put together by hand."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.clip = open_clip.create_model(CLIP)
        inside = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
        assert not self.clip.load_state_dict(inside, strict=False).unexpected_keys
        self.weight, self.bias = state["classification_head.weight"], state["classification_head.bias"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_image(images, normalize=True) @ self.weight.T + self.bias


def test_a_pool_with_a_task_file(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pool" / "members").mkdir(parents=True)
    for path in toy_folder.glob("*.safetensors"):
        shutil.copy(path, tmp_path / "pool" / "members")
    shutil.copy(toy_folder / "task.py", tmp_path / "pool")
    (found,) = run("pool", tmp_path / "pool", "--out", tmp_path / "out", draws=3, most=4)
    assert found["facts"]["title"] == "pool"
    assert score(found, "ours", "validation", 4) >= score(found, "best single", "validation")
    assert score(found, "RADIN, lambda 1", "spent", 1) == 1
    assert all(row["test"][1] is not None for row in found["rows"])
    with pytest.raises(SystemExit, match=r"expected task.py and members/ in it"):
        run("pool", tmp_path, "--out", tmp_path / "out")
    assert toy.TEST is not None


OWN = """
import numpy as np
import torch

def network():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10), torch.nn.BatchNorm1d(10))

def transform(picture):
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
"""


def test_the_default_is_cooked_once_where_it_learns(toy_folder: Path, tmp_path: Path) -> None:
    pool, task = radin.Pool.open(toy_folder), toy_folder / "task.py"
    scores = Streamed(pool, Task.load(task), tmp_path, Device.create("cpu"))
    group = Group.of(scores, "0", [0, 2, 5], seed=4)
    ours = [Point("toy", "0", 3, "ours", b, 0.5 + 0.01 * b, 0.4, {"noisy": 0.3}, 2, b - 0.1) for b in range(1, 10)]
    defaults = Defaults(scores, [member.path for member in pool], task, tmp_path, device="cpu")
    found = defaults.points(ours, group, 9)
    assert found[:7] == [replace(point, strategy="default") for point in ours[:7]]

    chosen = [pool[k].path for k in group.members]
    alone = radin.cook(chosen, task, budget=8, out=tmp_path / "alone", seed=4, device="cpu")
    assert alone.strategy["name"] == "learned-by-layer"
    best = alone.best
    splits = {name: score for name, (score, _) in best.splits.items()}
    shifts = {"noisy": splits["shifts/noisy"]}
    spent = alone.passes.soups
    expected = Point("toy", "0", 3, "default", 8, best.score, splits["test"], shifts, best.recipe.size, spent)
    assert found[7] == expected
    assert found[8] == replace(expected, budget=9, shifts=None)
    assert defaults.passes == pytest.approx(spent)
    assert list((tmp_path / "cooking").iterdir()) == []

    again = Defaults(scores, [], task, tmp_path, device="cpu")  # no members: nothing is left to cook
    assert again.points(ours, group, 9) == found
    assert again.passes == 0


def test_a_model_of_ones_own_has_a_task_file_too(tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(OWN)
    text = f"torch:{tmp_path / 'networks.py'}:network"
    data = standins.cifar10(tmp_path / "bin", training=60, test=20)
    shapes = models.new_shapes(text, 10)
    assert shapes["2.running_mean"] == (10,)
    part = models.model_part(text, shapes)
    path = models.write_task(tmp_path / "task.py", "cifar10", [data, 0.5, 0], part, shapes, batch_size=7)
    task = Task.load(path)
    batches = list(task.batches("test"))
    assert [len(labels) for _, labels in batches] == [7, 7, 6]
    expected = (data / "test_batch.bin").read_bytes()
    assert torch.cat([labels for _, labels in batches]).tolist() == list(expected[::3073])
    assert batches[0][0][2, 1, 5, 9].item() == pytest.approx(expected[2 * 3073 + 1 + 1024 + 5 * 32 + 9] / 255)
    assert sum(len(labels) for _, labels in task.batches("calibration")) == len(cifar10.splits(data, 0.5).fitting)
    (tmp_path / "networks.py").write_text(OWN.replace("def transform", "def other"))
    with pytest.raises(RadinError, match="put a `transform`"):
        models.model_part(f"torch:{renamed(tmp_path)}:network", {})
    with pytest.raises(RadinError, match="experiments take timm:NAME, open_clip:NAME or torch:module:function"):
        models.model_part("hf", {})


def renamed(folder: Path) -> Path:
    """Under another name, so that it is imported anew."""
    return (folder / "networks.py").rename(folder / "networks_without.py")


def trainer(pictures: Pictures, epochs: int = 2) -> training.Trainer:
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))

    def prepare(picture: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(picture.resize((32, 32))).copy()).permute(2, 0, 1) / 255

    ranges = training.Ranges(rates=(-3, -2), epochs=(epochs, epochs), batch_size=16, start_epochs=1)
    return training.Trainer(build, prepare, pictures, 10, ranges, 0, torch.device("cpu"), say=lambda text: None)


def test_training_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures(*standins.pictures(64))
    whole = trainer(pictures).members(tmp_path / "whole", 2, None, {"model": "linear"})
    usual = training._schedule

    def killed(step: int, total: int, warmup: int) -> float:
        if (tmp_path / "killed" / "members" / "model_1.pt.partial").exists():
            raise KeyboardInterrupt
        return usual(step, total, warmup)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_schedule", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer(pictures).members(tmp_path / "killed", 2, None, {"model": "linear"})
    assert (tmp_path / "killed" / "members" / "model_0.pt").is_file()
    found = trainer(pictures).members(tmp_path / "killed", 2, None, {"model": "linear"})
    for one, other in zip(whole, found, strict=True):
        first, second = (torch.load(path, weights_only=True) for path in (one, other))
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list((tmp_path / "killed").rglob("*.partial"))
    with pytest.raises(RadinError, match=r"members trained otherwise \(model\)"):
        trainer(pictures).members(tmp_path / "killed", 2, None, {"model": "other"})


def test_hyperparameters_lie_where_those_of_the_released_members_do() -> None:
    found = [training.drawn(k, training.Ranges(), seed=0) for k in range(300)]
    assert all(1e-6 <= one.rate <= 1e-4 and 10**-4.1 <= one.decay <= 10**-0.2 for one in found)
    assert {one.epochs for one in found} == set(range(4, 17))
    assert 0.4 < np.mean([one.mixup == 0 for one in found]) < 0.6
    assert max(one.smoothing for one in found) <= 0.25
    assert 0.25 < np.mean([one.augmentation is None for one in found]) < 0.42
    assert found[7] == training.drawn(7, training.Ranges(), seed=0) != training.drawn(7, training.Ranges(), seed=1)


@pytest.mark.parametrize("name", ["rand-m0-n2", "rand-m20-n2"])
def test_augmentation_works_at_the_ends_of_its_range(name: str) -> None:
    images, labels = standins.pictures(20)
    data = training.Augmented(Pictures(images, labels), lambda p: torch.from_numpy(np.asarray(p).copy()), name)
    training._seed(0)
    first = [data[k][0] for k in range(20)]
    training._seed(0)
    assert all(torch.equal(a, data[k][0]) for k, a in enumerate(first))
    assert any(a.shape != (32, 32, 3) or not np.array_equal(a.numpy(), images[k]) for k, a in enumerate(first))
    assert all(data[k][1] == labels[k] for k in range(20))
