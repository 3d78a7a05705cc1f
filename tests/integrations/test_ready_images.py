"""timm, transformers and a model of one's own on folders of pictures and on tables with a column of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import radin
import ready_made
from radin import Pool, Task, TaskError
from radin.engine.device import Device
from radin.ready.images import CALIBRATION
from radin.run.commands import evaluate_pool

timm = pytest.importorskip("timm")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.long
NAME = "test_efficientnet"  # timm's own for tests: BatchNorm, 360 thousand weights
READY = f"timm:{NAME},img_size=32"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pictures = ready_made.pictures(folder / "pictures")
    return SimpleNamespace(
        folder=folder, pictures=pictures, members=ready_made.timm_members(folder / "runs", NAME, 3, pictures)
    )


@pytest.fixture(scope="module")
def pool(made):
    return Pool.open(made.members)


def scores(pool, task, split="validation"):
    found = evaluate_pool(pool, task, split, Device.create("cpu"))
    return [member.score for member in found.members], found.data


def by_timm(tensors, folder):
    """(accuracy, negative log-likelihood) by timm's own dataset, transform and model."""
    model = timm.create_model(NAME, num_classes=3)
    model.load_state_dict(tensors)
    config = timm.data.resolve_data_config({"img_size": 32}, model=model)
    data = timm.data.ImageDataset(str(folder), transform=timm.data.create_transform(**config))
    with torch.no_grad():
        outputs = model.eval()(torch.stack([x for x, _ in data]))
    targets = torch.tensor([y for _, y in data])
    loss = torch.nn.functional.cross_entropy(outputs, targets).item()
    return (outputs.argmax(1) == targets).double().mean().item(), loss


def test_checkpoints_of_timm_are_cooked_by_the_command_and_the_soup_scores_the_same_in_timm(
    made, tmp_path, radin_command
):
    ready = ("--model", READY, "--data", f"imagefolder:{made.pictures}")
    done = radin_command("cook", *made.members, *ready, "--budget", 3, "--uniform", "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "note: classes in sorted order: blue 0, green 1, red 2\n" in done.stderr
    soup = load_file(tmp_path / "run" / "soup.safetensors")
    assert result["best"]["score"] == pytest.approx(by_timm(soup, made.pictures / "val")[0], abs=1e-12)
    assert result["test"]["best"]["score"] == pytest.approx(by_timm(soup, made.pictures / "test")[0], abs=1e-12)
    assert result["reestimated"] is not None  # the training pictures are there for BatchNorm


def test_members_score_as_by_timm_and_the_printed_file_gives_the_same(made, pool, tmp_path):
    ready = radin.ready_task(pool, READY, f"imagefolder:{made.pictures}", metric="nll")
    expected = [by_timm(pool.tensors(k), made.pictures / "val")[1] for k in range(3)]
    found = scores(pool, ready)
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert np.ptp(expected) > 1e-2
    (tmp_path / "task.py").write_text(ready.text)
    assert scores(pool, tmp_path / "task.py") == found
    assert scores(pool, tmp_path / "task.py", "test") == scores(pool, ready, "test")


def test_the_printed_file_is_in_the_form_that_a_formatter_leaves_alone(made, pool, tmp_path):
    path = tmp_path / "task.py"
    path.write_text(radin.ready_task(pool, READY, f"imagefolder:{made.pictures}").text)
    for command in (("format", "--check"), ("check", "--select", "E,F,I", "--ignore", "E501")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length=120", str(path)],
            capture_output=True,
            text=True,
            cwd=tmp_path,  # where radin is a library like others
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_splits_are_found_by_the_folders_names_and_training_pictures_are_for_batchnorm(made, pool, tmp_path):
    pictures = made.pictures
    whole = Task.load(radin.ready_task(pool, READY, f"imagefolder:{pictures}"))
    assert [len(getattr(whole, split)()) for split in ("validation", "test", "calibration")] == [24, 24, 24]
    one = Task.load(radin.ready_task(pool, READY, f"imagefolder:{pictures / 'val'}"))
    assert (len(one.validation()), one.test, one.calibration) == (24, None, None)
    named = f"imagefolder:{pictures / 'val'},test={pictures / 'test'},train={pictures / 'train'}"
    named_task = Task.load(radin.ready_task(pool, READY, named))
    assert [len(getattr(named_task, split)()) for split in ("validation", "test", "calibration")] == [24, 24, 24]
    vit = timm.create_model("test_vit", num_classes=3, img_size=32)
    paths = [tmp_path / f"vit-{k}.pt" for k in range(2)]
    for k, path in enumerate(paths):
        torch.save({name: tensor + 0.01 * k for name, tensor in vit.state_dict().items()}, path)
    without = Task.load(radin.ready_task(Pool.open(paths), "timm:test_vit,img_size=32", f"imagefolder:{pictures}"))
    assert without.calibration is None
    assert without.validation()[0][0].shape == (3, 32, 32)
    assert without.build_model().state_dict()["pos_embed"].shape == vit.state_dict()["pos_embed"].shape
    assert CALIBRATION == 1000


def test_a_class_without_validation_pictures_keeps_its_place(made, pool, tmp_path):
    shutil.copytree(made.pictures, tmp_path / "pictures")
    shutil.rmtree(tmp_path / "pictures" / "val" / "green")
    task = Task.load(radin.ready_task(pool, READY, f"imagefolder:{tmp_path / 'pictures'}"))
    assert sorted({y for _, y in task.validation()}) == [0, 2]


def table_of(folder, split):
    """The pictures as datasets keeps them, in its own order of classes."""
    names = ("red", "blue", "green")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(names)))
    rows = [(path, k) for k, name in enumerate(names) for path in sorted((folder / split / name).iterdir())]
    content = {"image": [{"bytes": p.read_bytes(), "path": None} for p, _ in rows], "label": [k for _, k in rows]}
    return datasets.Dataset.from_dict(content, features)


@pytest.mark.parametrize("kind", ["datasets", "parquet", "csv"])
def test_a_model_of_transformers_scores_tables_of_pictures_by_its_own_processor_and_names(made, tmp_path, kind):
    torch.manual_seed(0)
    labels = dict(enumerate(ready_made.COLOURS))
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label=labels,
        label2id={name: k for k, name in labels.items()},
    )
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3)
    model = transformers.ViTForImageClassification(config)
    pool = Pool.open(ready_made.noisy(tmp_path / "runs", model, scale=0.5, beside=[processor]))
    table = table_of(made.pictures, "val")
    if kind == "datasets":
        table.save_to_disk(tmp_path / "saved")
        data = f"datasets:{tmp_path / 'saved'}"
    elif kind == "csv":
        inside = [sorted((made.pictures / "val" / name).iterdir()) for name in ("red", "blue", "green")]
        lines = [f"{path},{path.parent.name}" for paths in inside for path in paths]
        (tmp_path / "val.csv").write_text("\n".join(["path,class", *lines]))
        data = f"csv:{tmp_path / 'val.csv'}"
    else:
        table.to_parquet(tmp_path / "val.parquet")
        data = f"parquet:{tmp_path / 'val.parquet'}"
    found, _ = scores(pool, radin.ready_task(pool, "hf", data, metric="nll"))
    for k in range(3):
        alone = transformers.AutoModelForImageClassification.from_pretrained(pool[k].path)
        inputs = processor([picture.convert("RGB") for picture in table["image"]], return_tensors="pt")
        with torch.no_grad():
            said = alone.eval()(**inputs).logits.log_softmax(1)
        true = [alone.config.label2id[table.features["label"].int2str(y)] for y in table["label"]]
        assert found[k] == pytest.approx(-said[range(len(true)), true].mean().item(), rel=1e-4)
    assert np.ptp(found) > 1e-2


def paths_of(folder, split, kind, place):
    """A table of the pictures' paths, which start at its own folder, and the names of their classes."""
    rows = [(str(path.relative_to(folder)), path.parent.name) for path in sorted((folder / split).rglob("*.*"))]
    if kind == "csv":
        lines = ["file_name,label", *(f"{path},{name}" for path, name in rows)]
        (folder / place).write_text("\n".join(lines) + "\n")
    else:
        columns = {"file_name": [path for path, _ in rows], "label": [name for _, name in rows]}
        datasets.Dataset.from_dict(columns).to_parquet(folder / place)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_of_paths_score_as_the_folders_do_and_the_printed_file_too(made, pool, tmp_path, kind):
    shutil.copytree(made.pictures, tmp_path / "pictures")
    for split in ("val", "test"):
        paths_of(tmp_path / "pictures", split, kind, f"{split}.{kind}")
    places = [tmp_path / "pictures" / f"{split}.{kind}" for split in ("val", "test")]
    ready = radin.ready_task(pool, READY, f"{kind}:{places[0]},test={places[1]}", metric="nll")
    folder = radin.ready_task(pool, READY, f"imagefolder:{made.pictures}", metric="nll")
    for split in ("validation", "test"):
        assert scores(pool, ready, split) == scores(pool, folder, split)  # the data have the same fingerprint
    path = tmp_path / "task.py"
    path.write_text(ready.text)
    assert scores(pool, path) == scores(pool, folder)
    command = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--line-length=120", str(path)]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_files_of_several_folders_each_have_their_own_paths(made, pool, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(made.pictures / "val", tmp_path / name / "val")
        paths_of(tmp_path / name, "val", "parquet", "part.parquet")
    (tmp_path / "b" / "val" / "red" / "0.png").unlink()
    data = f"parquet:{tmp_path}/*/part.parquet"
    with pytest.raises(TaskError, match=r"'file_name' of validation, row 41: no picture .*/b/val/red/0\.png"):
        radin.ready_task(pool, READY, data)
    shutil.copy(made.pictures / "test" / "red" / "0.png", tmp_path / "b" / "val" / "red" / "0.png")
    other = Task.load(radin.ready_task(pool, READY, data)).validation()
    assert len(other) == 48
    same = [bool((other[k][0] == other[k + 24][0]).all()) for k in range(24)]
    assert same.index(False) == 16
    assert same.count(False) == 1


def test_a_column_without_pictures_is_told(pool, tmp_path):
    (tmp_path / "val.csv").write_text("image,label\nnone.png,red\n")
    with pytest.raises(TaskError, match=r"'image' of validation, row 1: no picture .*none\.png; paths are absolute"):
        radin.ready_task(pool, READY, f"csv:{tmp_path / 'val.csv'}")
    table = datasets.Dataset.from_dict({"image": [3], "label": [0]})
    table.to_parquet(tmp_path / "val.parquet")
    with pytest.raises(TaskError, match="'image' holds int 3 and no pictures; expected paths of their files"):
        radin.ready_task(pool, READY, f"parquet:{tmp_path / 'val.parquet'}")
    table.save_to_disk(tmp_path / "saved")
    with pytest.raises(TaskError, match=r"expected them as datasets\.Image, by cast_column before save_to_disk"):
        radin.ready_task(pool, READY, f"datasets:{tmp_path / 'saved'}")


def test_each_picture_is_decoded_once_for_all_passes(made, pool, monkeypatch):
    from PIL import Image

    opened = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *more: opened.append(str(path)) or plain(path, *more))
    task = Task.load(radin.ready_task(pool, READY, f"imagefolder:{made.pictures}"))
    for split in ("validation", "calibration"):
        opened.clear()
        batches = [[x.clone() for x, _ in task.batches(split, 10)] for _ in range(3)]
        assert len(opened) == len(set(opened)) == 24
        assert all(torch.equal(a, b) for again in batches[1:] for a, b in zip(batches[0], again, strict=True))


def test_a_model_and_data_of_ones_own(made, tmp_path, monkeypatch, radin_command):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def model():\n    return torch.nn.Linear(4, 3)\n"
        "def examples():\n    g = torch.Generator().manual_seed(0)\n"
        "    x = torch.randn(90, 4, generator=g)\n    return [(x, x[:, :3].argmax(1))]\n"
        "def more():\n    return [(x + 1, y) for x, y in examples()]\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for k in range(2):
        weight = torch.eye(3, 4) + 0.5 * torch.randn(3, 4)
        torch.save({"weight": weight, "bias": torch.zeros(3)}, tmp_path / f"run-{k}.pt")
    for place in ("mine", str(tmp_path / "mine.py")):
        arguments = ("--model", f"torch:{place}:model", "--data", f"python:{place}:examples,test={place}:more")
        done = radin_command("evaluate", "run-0.pt", "run-1.pt", *arguments, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
        y = x[:, :3].argmax(1)
        for k, member in enumerate(json.loads(done.stdout)["members"]):
            weight = torch.load(tmp_path / f"run-{k}.pt")["weight"]
            assert member["score"] == pytest.approx(((x @ weight.T).argmax(1) == y).double().mean().item())


def bad_images():
    return {
        "name": (
            "timm:tset_efficientnet",
            "imagefolder:{good}",
            "has no model 'tset_efficientnet'; did you mean test_ef",
        ),
        "other model": ("timm:resnet18", "imagefolder:{good}", "have no classifier of it.*Is it this model"),
        "classes": (READY, "imagefolder:{fewer}", "2 classes .blue, green., and the checkpoints have 3"),
        "no folder": (READY, "imagefolder:{good}/none", "none: no such folder"),
        "no pictures": (READY, "imagefolder:{empty}", "no pictures for validation; expected one subfolder for each"),
        "only training": (READY, "imagefolder:{training}", "has train and no folder val"),
        "columns": (READY, "csv:{good}/x.csv", "x.csv: no such file"),
        "size": ("timm:test_efficientnet,img_size=big", "imagefolder:{good}", "img_size must be a positive whole"),
        "own": (
            "torch:random:random",
            "imagefolder:{good}",
            "not known for a model of your own.*python:module:function",
        ),
        "not there": ("torch:random:nothing", "imagefolder:{good}", "random has no 'nothing'"),
    }


@pytest.mark.parametrize("kind", [*bad_images()])
def test_what_cannot_be_is_one_clear_message(made, pool, tmp_path, kind):
    places = {"good": made.pictures, **{name: tmp_path / name for name in ("fewer", "empty", "training")}}
    shutil.copytree(made.pictures / "val", tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer" / "red")
    (tmp_path / "empty" / "blue").mkdir(parents=True)
    shutil.copytree(made.pictures / "train", tmp_path / "training" / "train")
    model, data, words = bad_images()[kind]
    with pytest.raises(TaskError, match=words):
        radin.ready_task(pool, model, data.format(**places))


def test_a_picture_that_cannot_be_read_is_named(made, pool, tmp_path):
    shutil.copytree(made.pictures / "val", tmp_path / "val")
    (tmp_path / "val" / "red" / "9.png").write_bytes(b"no picture")
    ready = radin.ready_task(pool, READY, f"imagefolder:{tmp_path / 'val'}")
    with pytest.raises(radin.RadinError, match=r"cannot identify image file .*9\.png"):
        evaluate_pool(pool, ready, "validation", Device.create("cpu"))


def test_a_missing_library_is_one_line_with_the_command(made, pool, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TaskError) as caught:
        radin.ready_task(pool, READY, f"imagefolder:{made.pictures}")
    assert str(caught.value) == f"--model {READY} needs timm: pip install timm"
