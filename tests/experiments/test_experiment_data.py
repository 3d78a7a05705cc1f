"""The data sets' file formats, read as they are distributed, against plain readings of the same files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import cifar10, domainnet, imagenet, shifts, standins
from experiments.pictures import Pictures, Prepared, held_out, outputs
from radin import RadinError

pytestmark = pytest.mark.long


def array(pictures: Pictures, place: int) -> np.ndarray:
    return np.asarray(pictures.open(place))


def test_cifar10_records_are_label_red_green_blue(tmp_path: Path) -> None:
    folder = standins.cifar10(tmp_path / "bin", training=100, test=30)
    raw = (folder / "data_batch_2.bin").read_bytes()
    pictures, labels = cifar10.read(folder / "data_batch_2.bin", 10)
    assert len(labels) == len(raw) // 3073 == 20
    for k, row, column, channel in ((0, 3, 20, 0), (7, 16, 9, 1), (19, 30, 11, 2)):
        assert labels[k] == raw[3073 * k]
        assert pictures[k, row, column, channel] == raw[3073 * k + 1 + 1024 * channel + 32 * row + column]
    found = cifar10.splits(folder, hold_out=0.3, seed=1)
    assert (len(found.fitting) + len(found.validation), len(found.test), found.classes) == (100, 30, 10)
    held = {item.tobytes() for item in found.validation.items}
    assert held.isdisjoint(item.tobytes() for item in found.fitting.items)
    again = cifar10.splits(folder, hold_out=0.3, seed=1)
    np.testing.assert_array_equal(found.validation.items, again.validation.items)
    assert array(found.test, 4).shape == (32, 32, 3)


def test_cifar10_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(RadinError, match=r"no batches.meta.txt; expected .*cifar-10-binary.tar.gz"):
        cifar10.splits(tmp_path)
    folder = standins.cifar10(tmp_path / "bin", training=50, test=10)
    path = folder / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-1])
    with pytest.raises(RadinError, match=r"data_batch_3.bin: expected records of 3073 bytes, got 30729 bytes"):
        cifar10.splits(folder)
    content[3073] = 12
    path.write_bytes(content)
    with pytest.raises(RadinError, match=r"label 12, and batches.meta.txt names 10 classes"):
        cifar10.splits(folder)


def test_as_many_of_each_class_are_held_out_as_were_asked() -> None:
    labels = np.repeat([0, 1, 2], [10, 40, 30])
    rest, held = held_out(labels, 0.1, seed=3)
    np.testing.assert_array_equal(np.bincount(labels[held]), [1, 4, 3])
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held])), np.arange(80))
    assert not np.array_equal(held, held_out(labels, 0.1, seed=4)[1])
    np.testing.assert_array_equal(np.bincount(labels[held_out(labels, 7.0)[1]]), [7, 7, 7])
    with pytest.raises(RadinError, match="class 0 has 10 training pictures, of which 26 would be held out"):
        held_out(labels, 26.0)


def test_imagenet_holds_out_what_the_marks_say_where_they_are_there(tmp_path: Path) -> None:
    folder = standins.imagenet(tmp_path, training=80, test=20, shift=10)
    files = sorted((folder / "imagenet" / "train").glob("*/*.JPEG"))
    marks = (np.arange(80) % 5 == 2).astype(np.int64)
    np.save(folder / imagenet.INDICES, marks)
    found = imagenet.splits(folder)
    assert found.validation.items == [path for path, mark in zip(files, marks, strict=True) if mark]
    assert [standins.WORDNET[k] for k in found.validation.labels] == [p.parent.name for p in found.validation.items]
    assert (len(found.fitting), len(found.test), found.classes) == (64, 20, 10)
    np.save(folder / imagenet.INDICES, marks[:-1])
    with pytest.raises(RadinError, match=r"imagenet_98_idxs.npy: expected 80 marks 0 or 1"):
        imagenet.splits(folder)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standins.imagenet(tmp_path_factory.mktemp("in"), training=100, test=20, shift=60)


def test_shift_sets_have_their_own_classes(shifted: Path) -> None:
    found = shifts.splits(shifted, 0.2).shifts
    assert list(found) == ["V2", "Sketch", "A", "R", "ObjectNet"]
    v2, rendition = found["V2"], found["R"]
    assert [str(k) for k in v2.labels] == [path.parent.name for path in v2.items]
    assert v2.group is None
    own = [standins.WORDNET[k] for k in (0, 2, 3, 9)]  # of the stand-in's R
    assert [own[k] for k in rendition.labels] == [path.parent.name for path in rendition.items]
    assert rendition.group is not None
    np.testing.assert_array_equal(rendition.group, [0, -1, 1, 2, -1, -1, -1, -1, -1, 3])


def test_objectnet_counts_the_largest_of_the_classes_that_a_label_stands_for(shifted: Path) -> None:
    objects = shifts.splits(shifted, 0.2).shifts["ObjectNet"]
    folders = {"bag": (8,), "shoe_boot": (5, 7, 9), "upper_garment": (0, 2, 6)}  # as standins.OBJECTS says
    assert {path.parent.name for path in objects.items} == set(folders)
    logits = torch.randn(len(objects), 10, generator=torch.Generator().manual_seed(0))
    inputs = {"images": logits, "group": torch.from_numpy(objects.group).expand(len(objects), -1)}
    chosen = outputs(torch.nn.Identity(), inputs).argmax(1).tolist()
    right = 0
    for k, path in enumerate(objects.items):
        best = max(folders, key=lambda name: max(logits[k, c].item() for c in folders[name]))
        right += best == path.parent.name
        assert (chosen[k] == objects.labels[k]) == (best == path.parent.name)
    assert 0 < right < len(objects)
    picture = array(objects, 0)
    assert picture.shape == (32, 32, 3)  # the frame is cut off
    assert not ((picture[..., 0] == 255) & (picture[..., 1] == 0)).any()


def test_what_is_not_as_objectnet_maps_it_is_told(shifted: Path, tmp_path: Path) -> None:
    with pytest.raises(RadinError, match="no shift set; expected one or more of imagenetv2-matched"):
        shifts.splits(standins_without_shifts(tmp_path))
    mapping = shifted / "objectnet-1.0" / "mappings" / "objectnet_to_imagenet_1k.json"
    before = mapping.read_text()
    try:
        mapping.write_text(json.dumps({"Bag": "thing 8, object 8; no such thing"}))
        with pytest.raises(RadinError, match="'Bag' stands for 'no such thing', which is none of the model's classes"):
            shifts.splits(shifted, 0.2)
    finally:
        mapping.write_text(before)


def standins_without_shifts(folder: Path) -> Path:
    for split in ("train", "val"):
        images, labels = standins.pictures(600)
        standins._class_folders(folder / "imagenet" / split, images, labels, standins.WORDNET, ".png")
    return folder


def test_domainnet_leaves_a_domain_out(tmp_path: Path) -> None:
    folder = standins.domainnet(tmp_path, training=60, test=15)
    found = domainnet.splits(folder, "rotated", seed=2)
    assert {path.parts[-3] for path in [*found.validation.items, *found.fitting.items]} == {"plain", "noisy"}
    assert {path.parts[-3] for path in found.test.items} == {"rotated"}
    assert (len(found.validation), len(found.fitting), len(found.test)) == (24, 96, 75)
    assert len(found.shifts["in domain"]) == 30
    assert [path.parts[-2] for path in found.test.items] == [f"class_{k}" for k in found.test.labels]
    with pytest.raises(RadinError, match=r"no list sketch_train.txt; there are noisy, plain, rotated"):
        domainnet.splits(folder, "sketch")
    lists = folder / "plain_train.txt"
    lists.write_text(lists.read_text() + "/etc/passwd 3\n")
    with pytest.raises(RadinError, match=r"plain_train.txt, line 61: expected .* got '/etc/passwd 3'"):
        domainnet.splits(folder, "rotated")


def test_pictures_come_prepared_with_their_label() -> None:
    images, labels = standins.pictures(3)
    data = Prepared(Pictures(images, labels), lambda picture: torch.from_numpy(np.asarray(picture).copy()))
    inputs, label = data[2]
    np.testing.assert_array_equal(inputs.numpy(), images[2])
    assert label == labels[2]
