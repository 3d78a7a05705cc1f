"""open_clip: whole models that classify by prompts, and image encoders with a head, against open_clip alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import radin
import ready_made
from radin import Pool, TaskError
from radin.engine.device import Device
from radin.run.commands import evaluate_pool

open_clip = pytest.importorskip("open_clip")

pytestmark = pytest.mark.long
NAME = "radin-tests-tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model of open_clip, small and of its own name, with a few members."""
    import json

    folder = tmp_path_factory.mktemp("clip")
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    (folder / "configs").mkdir()
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    (folder / "configs" / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "configs")
    torch.manual_seed(0)
    start = open_clip.create_model(NAME).state_dict()
    paths = []
    for k in range(3):
        torch.manual_seed(k)
        moved = {name: t + 0.3 * torch.randn_like(t) if t.ndim > 1 else t for name, t in start.items()}
        paths.append(folder / f"epoch-{k}.pt")
        torch.save({"epoch": k, "state_dict": moved}, paths[-1])
    return SimpleNamespace(folder=folder, pictures=ready_made.pictures(folder / "pictures"), members=paths)


def pictures_by_open_clip(folder):
    """(inputs, targets): classes in sorted order, preprocessed as open_clip does."""
    from PIL import Image

    prepare = open_clip.create_model_and_transforms(NAME)[2]
    files = [(path, k) for k, name in enumerate(ready_made.COLOURS) for path in sorted((folder / name).iterdir())]
    return torch.stack([prepare(Image.open(path)) for path, _ in files]), torch.tensor([k for _, k in files])


def losses(pool, model, data, **more):
    ready = radin.ready_task(pool, model, data, metric="nll", **more)
    return [member.score for member in evaluate_pool(pool, ready, "validation", Device.create("cpu")).members]


def test_a_whole_model_classifies_by_the_names_of_the_folders(made):
    pool = Pool.open(made.members)
    found = losses(pool, f"open_clip:{NAME},prompt=a drawing of {{}}", f"imagefolder:{made.pictures / 'val'}")
    images, targets = pictures_by_open_clip(made.pictures / "val")
    tokens = open_clip.get_tokenizer(NAME)([f"a drawing of {name}" for name in ready_made.COLOURS])
    for k in range(3):
        model = open_clip.create_model(NAME)
        model.load_state_dict(pool.tensors(k))
        with torch.no_grad():
            seen, read, scale = model.eval()(images, tokens)
        expected = torch.nn.functional.cross_entropy(scale * seen @ read.T, targets).item()
        assert found[k] == pytest.approx(expected, rel=1e-4)
    assert np.ptp(found) > 1e-2


@pytest.mark.parametrize("kind", ["csv", "numbers"])
def test_tables_name_the_classes_for_prompts_as_folders_do(made, tmp_path, kind):
    pool = Pool.open(made.members)
    expected = losses(pool, f"open_clip:{NAME}", f"imagefolder:{made.pictures / 'val'}")
    rows = [
        (path, k)
        for k, name in enumerate(ready_made.COLOURS)
        for path in sorted((made.pictures / "val" / name).iterdir())
    ]
    if kind == "csv":
        lines = ["image,label", *(f"{path},{ready_made.COLOURS[k]}" for path, k in rows)]
        (tmp_path / "val.csv").write_text("\n".join(lines))
        data = f"csv:{tmp_path / 'val.csv'}"
    else:
        datasets = pytest.importorskip("datasets")
        names = list(reversed(ready_made.COLOURS))
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        content = {"image": [str(path) for path, _ in rows], "label": [2 - k for _, k in rows]}
        datasets.Dataset.from_dict(content, features).save_to_disk(tmp_path / "saved")
        data = f"datasets:{tmp_path / 'saved'}"
    assert losses(pool, f"open_clip:{NAME}", data) == pytest.approx(expected, rel=1e-5)


def test_numbers_without_names_are_no_classes_for_prompts(made, tmp_path):
    picture = next((made.pictures / "val" / "red").iterdir())
    (tmp_path / "val.csv").write_text(f"image,label\n{picture},0\n{picture},1\n")
    with pytest.raises(TaskError, match="'label' holds numbers without names, and the model classifies by names"):
        radin.ready_task(Pool.open(made.members), f"open_clip:{NAME}", f"csv:{tmp_path / 'val.csv'}")


def test_an_image_encoder_with_a_head_as_the_model_soups_are(made, tmp_path):
    """As that paper's ModelWrapper: the text encoder's transformer deleted, normalized features, a linear head."""

    class ModelWrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = open_clip.create_model(NAME)
            self.classification_head = torch.nn.Linear(8, 3)
            delattr(self.model, "transformer")

        def forward(self, images):
            features = self.model.encode_image(images)
            return self.classification_head(features / features.norm(dim=-1, keepdim=True))

    images, targets = pictures_by_open_clip(made.pictures / "val")
    expected = []
    for k in range(2):
        torch.manual_seed(k)
        model = ModelWrapper().eval()
        torch.save(model.state_dict(), tmp_path / f"model_{k}.pt")
        with torch.no_grad():
            expected.append(torch.nn.functional.cross_entropy(model(images), targets).item())
    pool = Pool.open([tmp_path / "model_0.pt", tmp_path / "model_1.pt"])
    assert losses(pool, f"open_clip:{NAME}", f"imagefolder:{made.pictures}") == pytest.approx(expected, rel=1e-4)
    assert np.ptp(expected) > 1e-2


def test_what_cannot_be_is_one_clear_message(made, toy_pool):
    pool, data = Pool.open(made.members), f"imagefolder:{made.pictures}"
    for used, model, given, words in (
        (pool, "open_clip:radin-test-tiny", data, f"no model 'radin-test-tiny'; did you mean {NAME}"),
        (toy_pool, f"open_clip:{NAME}", data, "expected a whole CLIP model .*named like 0.bias"),
        (pool, f"open_clip:{NAME},prompt=a thing", data, "must hold {}, where the class's name goes"),
        (pool, f"open_clip:{NAME}", "python:random:random", "classifies by names of classes; give imagefolder:DIR"),
    ):
        with pytest.raises(TaskError, match=words):
            radin.ready_task(used, model, given)
