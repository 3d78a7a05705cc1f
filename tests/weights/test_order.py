"""The order of members is the user's, and no result depends on it."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import radin
from radin import Pool, Recipe
from radin.errors import RadinError
from radin.run.average import average_pool, recipe_of
from radin.weights.averaging import read_metadata
from radin.weights.paths import Lookup, find_checkpoints, short_names


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """m0 .. m10 holding their own number, in natural order."""
    paths = [tmp_path / "pool" / f"m{k}.safetensors" for k in range(11)]
    paths[0].parent.mkdir()
    for k, path in enumerate(paths):
        save_file({"w": torch.full((3,), float(k))}, path)
    return paths


def test_files_keep_the_order_in_which_they_are_given(files: list[Path]) -> None:
    assert find_checkpoints([files[2], files[0], files[10]]) == [files[2], files[0], files[10]]
    assert Pool.open([files[2], files[0]]).member_names == ("m2", "m0")


def test_folders_and_patterns_expand_in_natural_order_at_their_place(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "a-first-by-name.safetensors"
    save_file({"w": torch.full((3,), 99.0)}, other)
    assert find_checkpoints([files[5].parent, other]) == [*files, other]
    pattern = str(files[0].parent / "m1*.safetensors")
    assert find_checkpoints([files[3], pattern, files[1], files[2]]) == [files[3], files[1], files[10], files[2]]


def test_what_is_given_twice_keeps_its_first_place(files: list[Path]) -> None:
    assert find_checkpoints([files[4], files[1], files[4]]) == [files[4], files[1]]
    pool = Pool.open([files[4], files[0].parent])
    assert pool.member_names[0] == "m4"
    assert len(pool) == 11


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        (["1,0"], [1, 0]),
        (["3,1"], [0.75, 0.25]),
        (["m0=1"], [0, 1]),
        (["m2=3,m0=1"], [0.75, 0.25]),
        (["m0=1", "m2=3"], [0.75, 0.25]),
        (["m0.safetensors=1"], [0, 1]),
        (["pool/m2=0.5,m0=.5"], [0.5, 0.5]),
        (["1e308,1e308"], [0.5, 0.5]),
        (["5e-324,5e-324"], [0.5, 0.5]),
        ([], [0.5, 0.5]),
    ],
)
def test_ratios_by_place_or_by_name(files: list[Path], ratios: list[str], expected: list[float]) -> None:
    pool = Pool.open([files[2], files[0]])
    assert recipe_of(pool, ratios).weights == tuple(expected)


def test_a_whole_path_names_a_member(files: list[Path]) -> None:
    pool = Pool.open([files[2], files[0]])
    assert recipe_of(pool, [f"{files[0]}=2"]).weights == (0, 1)


def test_names_may_hold_commas_and_equals_signs(tmp_path: Path) -> None:
    for k, name in enumerate(("lr=0.1,wd=0", "lr=0.1,wd=1")):
        save_file({"w": torch.full((3,), float(k))}, tmp_path / f"{name}.safetensors")
    pool = Pool.open(tmp_path)
    assert recipe_of(pool, ["lr=0.1,wd=1=3,lr=0.1,wd=0=1"]).weights == (0.25, 0.75)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (["m7=1"], "is meant by 'm7'; members: m2, m0"),
        (["m0=1,m0=2"], "gives m0 two ratios"),
        (["m0=x"], "'x' is not a number, for 'm0'"),
        (["m0=1,3"], "is meant by '3'"),
        (["m0=0"], "must have a positive sum; all are 0"),
        (["1,2,3"], "3 numbers for 2 checkpoints, in this order: m2, m0"),
        (["0,0"], "must have a positive sum; all are 0"),
        (["nan,1"], "ratio 0 is nan"),
        (["1,inf"], "ratio 1 is inf"),
        (["-1,2"], "ratio 0 is -1.0"),
        ([""], "must be numbers, or NAME=NUMBER"),
        (["m0=-1"], "finite and not negative"),
        (["a\nradin: fine=1"], r"'a\nradin: fine'"),
    ],
)
def test_ratios_that_are_none(files: list[Path], ratios: list[str], words: str) -> None:
    pool = Pool.open([files[2], files[0]])
    with pytest.raises(RadinError) as caught:
        recipe_of(pool, ratios)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dropped_duplicate_may_be_named(files: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(files[0].read_bytes())
    pool = Pool.open([files[2], files[0], copy])
    assert recipe_of(pool, ["copy.safetensors=1"]).weights == (0, 1)
    with pytest.raises(RadinError, match="repeats another file"):
        recipe_of(pool, ["1,0,0"])
    with pytest.raises(RadinError, match="two ratios"):
        recipe_of(pool, ["m0=1", f"{copy}=1"])
    (tmp_path / "link.safetensors").symlink_to(copy)
    linked = Pool.open([files[2], files[0], copy, tmp_path / "link.safetensors"])
    assert recipe_of(linked, ["link.safetensors=1"]).weights == (0, 1)


def test_the_file_written_says_which_ratio_went_to_which_file(files: list[Path], tmp_path: Path, radin_command) -> None:
    out = tmp_path / "soup.safetensors"
    arguments = ("average", files[2], files[0], files[7], "--weights", "1,0,3", "--force", "-o", out)
    done = radin_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert load_file(out)["w"][0] == 0.25 * 2 + 0.75 * 7
    assert f"0.25 of {files[2]}\n0.75 of {files[7]}\nnothing of {files[0]}\n" in done.stdout
    found = json.loads(radin_command(*arguments, "--json").stdout)
    assert [(r["path"], r["ratio"]) for r in found["ratios"]] == list(
        zip(map(str, (files[2], files[0], files[7])), (0.25, 0, 0.75), strict=True)
    )
    even = radin_command("average", files[2], files[0], "--force", "-o", out).stdout
    assert f"0.5 each of {files[2]}, {files[0]}\n" in even


def test_a_recipe_and_ratios_are_one_too_many(files: list[Path], tmp_path: Path) -> None:
    pool = Pool.open(files[:2])
    with pytest.raises(RadinError, match="not both"):
        average_pool(pool, ["1,0"], tmp_path / "recipe.json", tmp_path / "soup.pt", None)


def test_a_recipe_of_ratios_too_large_to_add() -> None:
    assert Recipe.normalized([1e308, 1e308, 1e308, 0]).weights == (1 / 3, 1 / 3, 1 / 3, 0)
    with pytest.raises(RadinError, match="sum to 1"):
        Recipe((1e308, 1e308))


def test_any_order_gives_the_identical_run_and_goes_on_in_any_other(toy_folder, toy_task, tmp_path) -> None:
    files = sorted(toy_folder.glob("*.safetensors"))
    mixed = [files[k] for k in (3, 0, 5, 1, 4, 2)]
    task = replace(toy_task, test=None)
    there = radin.cook(files, task, budget=5, out=tmp_path / "there", seed=3)
    back = radin.cook(mixed, task, budget=5, out=tmp_path / "back", seed=3)
    assert back.member_names == tuple(path.stem for path in mixed)
    soups = [load_file(tmp_path / name / "soup.safetensors") for name in ("there", "back")]
    assert all(torch.equal(tensor, soups[1][name]) for name, tensor in soups[0].items())
    assert read_metadata(tmp_path / "there/soup.safetensors") == read_metadata(tmp_path / "back/soup.safetensors")
    again = radin.cook(files[::-1], task, budget=5, out=tmp_path / "back", seed=3)
    half = radin.cook(mixed, task, budget=2, out=tmp_path / "half", seed=3, uniform=False)
    assert half.passes.soups <= 2
    grown = radin.cook(files[::-1], task, budget=2, out=tmp_path / "half", seed=3, uniform=False)
    assert [(e.recipe.identity(grown.fingerprints), e.score) for e in grown.evaluations] == [
        (e.recipe.identity(half.fingerprints), e.score) for e in half.evaluations
    ]
    for found in (back, again):
        assert found.best.score == there.best.score
        assert found.best.estimate == there.best.estimate
        assert found.ensemble.score == there.ensemble.score
        assert found.best.recipe.identity(found.fingerprints) == there.best.recipe.identity(there.fingerprints)
        weights = dict(zip(found.fingerprints, found.best.recipe.weights, strict=True))
        assert [weights[f] for f in there.fingerprints] == list(there.best.recipe.weights)
        assert found.passes.started == there.passes.started


def test_scores_in_a_list_are_in_the_order_of_the_pool(toy_folder, tmp_path) -> None:
    files = sorted(toy_folder.glob("*.safetensors"))[:3]
    scorer = tmp_path / "score.py"
    scorer.write_text("print(0.5)")
    command = radin.Command(f"python3 {scorer} {{soup}}")
    found = radin.cook(files[::-1], command, budget=1, out=tmp_path / "run", scores=[0.9, 0.1, 0.2], strategy="greedy")
    assert found.member_names[found.best_single.recipe.members[0]] == files[2].stem
    assert found.best_single.score == 0.9


def test_an_engine_of_the_users_is_asked_in_the_order_of_its_own_pool(toy_folder, tmp_path) -> None:
    from radin.engine.base import Engine
    from radin.metrics import get
    from radin.question import Answer

    files = sorted(toy_folder.glob("*.safetensors"))[:3]

    class Table(Engine):
        metric = get("accuracy")

        def __init__(self) -> None:
            self.asked: list[radin.Question] = []

        def identity(self) -> dict[str, str]:
            return {}

        def submit(self, question) -> None:
            self.asked.append(question)

        def wait(self, timeout=None):
            done, self.asked = self.asked, []
            scores = np.array([0.9, 0.1, 0.2])
            return [(q, Answer(float(scores @ np.array(q.recipe.weights)), float("nan"), 0, 0.0)) for q in done]

        def write(self, recipe, path) -> None:
            radin.save(radin.average(Pool.open(files[::-1]), recipe), path)

        def close(self) -> None:
            return

    found = radin.cook(files[::-1], Table(), budget=1, out=tmp_path / "run", strategy="greedy")
    assert found.best_single.recipe.weights == (1, 0, 0)
    assert found.member_names[0] == files[2].stem


def test_lookup_finds_by_name_path_and_the_end_of_one(files: list[Path]) -> None:
    found = Lookup(["m0", "m1"], files[:2])
    assert [found.find(key) for key in ("m1", str(files[0]), "pool/m1", "m1.safetensors", "m9", "", "\0")] == [
        *(1, 0, 1, 1),
        *(None, None, None),
    ]


def test_names_are_printable_and_still_unique(tmp_path: Path) -> None:
    names = ["a\x1b.pt", "a\\x1b.pt", "b\n.pt", "c.pt"]
    for name in names:
        (tmp_path / name).touch()
    shown = short_names([tmp_path / name for name in names])
    assert len(set(shown)) == 4
    assert all(name.isprintable() for name in shown)
    assert short_names([tmp_path / names[0], tmp_path / names[3]]) == (r"a\x1b", "c")


def test_reading_ends_at_once_when_it_is_interrupted(files: list[Path], monkeypatch) -> None:
    """Threads that read other checkpoints do not keep it: pools are hundreds of gigabytes."""

    def slow(checkpoint, report):
        for _ in range(1000):
            time.sleep(0.05)
            report(1)
        return checkpoint.path.name

    def interrupt(number, frame):
        raise KeyboardInterrupt

    monkeypatch.setattr("radin.weights.pool.remembered_content", slow)
    before = signal.signal(signal.SIGALRM, interrupt)
    started = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            Pool.open(files)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 40  # each of them takes fifty
