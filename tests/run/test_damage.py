"""A damaged file of a run is noticed, named, and made again or refused: never believed, never left as it is."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import radin
import toy
from radin.checksums import damage, file_checksum, sealed
from radin.errors import OutputsError, RadinError, RunError
from radin.run.ledger import Ledger
from radin.run.result import Result

BUDGET = 4


@pytest.fixture(scope="module")
def whole(toy_pool, tmp_path_factory):
    """A finished run, as a folder to copy, and its task."""
    task = radin.Task(
        model=toy.model,
        validation=lambda: toy.batches(toy.VALIDATION),
        test=lambda: toy.batches(toy.TEST),
        calibration=lambda: toy.batches(toy.TRAINING),
    )
    out = tmp_path_factory.mktemp("whole") / "run"
    radin.cook(toy_pool, task, budget=BUDGET, out=out)
    return out, task


@pytest.fixture
def copied(whole, tmp_path):
    out, task = whole
    shutil.copytree(out, tmp_path / "run")
    return tmp_path / "run", task


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


FILES = ("ledger.sqlite", "run.json", "result.json", "recipe.json", "soup.safetensors", "compiled", "targets", "member")


@pytest.mark.parametrize("which", FILES)
def test_one_flipped_bit_anywhere_is_made_good_or_named(toy_pool, copied, whole, which):
    out, task = copied
    folder = out / "outputs"
    member = next(p for p in sorted(folder.glob("*.safetensors")) if len(p.stem) == 32)
    path = {"member": member}.get(which, folder / f"{which}.safetensors")
    path = path if path.exists() else out / which
    before = path.read_bytes()
    bits = random.Random(which).sample(range(len(before) * 8), 6)
    refused = 0
    for bit in bits:
        flip(path, bit)
        try:
            again = radin.cook(toy_pool, task, budget=BUDGET, out=out)
        except RadinError as error:
            said = str(error)
        else:
            said = ""
        if said:
            refused += 1
            assert str(path) in said
            shutil.rmtree(out)
            shutil.copytree(whole[0], out)
            continue
        assert toy.what_matters(out) == toy.what_matters(whole[0])
        assert again.soup.read_bytes() == (whole[0] / "soup.safetensors").read_bytes()
        if which in ("compiled", "member", "soup.safetensors"):
            assert which == "compiled" or path.read_bytes() == before
            assert any(str(path) in note for note in again.notes)
        assert Result.load(out).best.score == again.best.score
    assert refused == {"run.json": len(bits)}.get(which, refused)
    if which not in ("run.json", "ledger.sqlite"):
        assert refused == 0


def test_a_damaged_result_or_recipe_is_not_read(copied, toy_folder, radin_command, tmp_path):
    out, _ = copied
    for name in ("result.json", "recipe.json"):
        text = (out / name).read_text()
        (out / name).write_text(text.replace('"size": ', '"size": 1', 1))
    with pytest.raises(RunError, match=r"result\.json is damaged \(its content does not match its checksum\)"):
        Result.load(out)
    done = radin_command("average", toy_folder, "--recipe", out / "recipe.json", "-o", tmp_path / "soup.safetensors")
    assert done.returncode == 2
    assert "does not match its checksum" in done.stderr


@pytest.mark.parametrize("table", ["evaluations", "questions", "sessions"])
def test_an_edited_row_is_made_again_or_refused(toy_pool, copied, whole, table):
    out, task = copied
    column = {"evaluations": "score", "questions": "score", "sessions": "created"}[table]
    with sqlite3.connect(out / "ledger.sqlite") as db:
        db.execute(f"UPDATE {table} SET {column} = {column} + 0.01 WHERE id = 1")
    if table == "evaluations":
        result = radin.cook(toy_pool, task, budget=BUDGET, out=out)
        assert toy.what_matters(out) == toy.what_matters(whole[0])
        assert any("row 1 of its evaluations does not match its checksum" in note for note in result.notes)
        assert not any("evaluations" in note for note in radin.cook(toy_pool, task, budget=BUDGET, out=out).notes)
    else:
        with pytest.raises(RunError, match=rf"ledger.sqlite is damaged: row 1 of its {table} .* start anew"):
            radin.cook(toy_pool, task, budget=BUDGET, out=out)


def test_a_members_damaged_evaluation_is_made_again_without_outputs_too(toy_pool, whole, tmp_path):
    _, task = whole
    first = radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", keep_outputs=False)
    before = toy.what_matters(tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.execute("UPDATE evaluations SET score = score + 0.01 WHERE id = 2 AND kind = 'member'")
    again = radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", keep_outputs=False)
    assert toy.what_matters(tmp_path / "run") == before
    assert again.best.recipe == first.best.recipe
    assert any("row 2 of its evaluations" in note for note in again.notes)


def test_rows_that_vanish_are_missed(toy_pool, copied):
    out, task = copied
    with sqlite3.connect(out / "ledger.sqlite") as db:
        db.execute("DELETE FROM questions WHERE id = 2")
    with pytest.raises(RunError, match="what was asked and told is not all there"):
        radin.cook(toy_pool, task, budget=BUDGET, out=out)


@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
def test_a_ledger_that_is_gone_is_said_and_not_begun_anew(toy_pool, copied, how):
    out, task = copied
    path = out / "ledger.sqlite"
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 9000 if how == "cut" else 0])
    with pytest.raises(RunError, match=r"ledger.sqlite is (gone or empty|damaged).*with --outputs .*no passes again"):
        radin.cook(toy_pool, task, budget=BUDGET, out=out)
    assert not path.exists() or path.stat().st_size in (0, 9000)


def test_another_runs_ledger_is_refused(toy_pool, copied, tmp_path):
    out, task = copied
    radin.cook(toy_pool, task, budget=BUDGET, out=tmp_path / "other", seed=7)
    shutil.copyfile(tmp_path / "other" / "ledger.sqlite", out / "ledger.sqlite")
    with pytest.raises(RunError, match=r"ledger\.sqlite is another run's"):
        radin.cook(toy_pool, task, budget=BUDGET, out=out)


def test_a_new_run_goes_on_from_the_outputs_of_a_damaged_one(toy_pool, copied, tmp_path):
    out, task = copied
    (out / "ledger.sqlite").unlink()
    result = radin.cook(toy_pool, task, budget=1, out=tmp_path / "new", outputs=out / "outputs")
    assert result.passes.members == 0


def test_margins_without_outputs_are_made_again_by_a_reading(toy_pool, whole, tmp_path):
    _, task = whole
    first = radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", keep_outputs=False)
    path = tmp_path / "run" / "outputs" / "compiled.safetensors"
    before = path.read_bytes()
    flip(path, 8 * len(before) - 100)
    again = radin.cook(toy_pool, task, budget=2, out=tmp_path / "run", keep_outputs=False)
    assert damage(path) is None
    assert again.best.recipe == first.best.recipe
    assert any("made again by a reading of all members" in note for note in again.notes)


def test_what_killed_runs_left_half_written_is_removed(toy_pool, copied):
    out, task = copied
    left = [
        out / ".soup.safetensors.0123abcd-99-0123abcd.tmp",
        out / ".tmpAb3dE5",
        out / ".result.json.0123abcd-99-0123abcd.tmp",
    ]
    for path in left:
        path.write_text("half")
    (out / ".mine.tmp").write_text("a user's")
    radin.cook(toy_pool, task, budget=BUDGET, out=out)
    assert not any(path.exists() for path in left)
    assert (out / ".mine.tmp").exists()


@pytest.mark.parametrize(
    "value", [None, 3, "x", [], [[]], {}, {"identity": 3}, {"format": 3}, {"format": 3, "identity": [], "settings": {}}]
)
def test_json_of_any_shape_is_refused_in_one_message(toy_pool, copied, value):
    out, task = copied
    for content in (value, sealed(value) if isinstance(value, dict) else value):
        for name in ("run.json", "result.json"):
            (out / name).write_text(json.dumps(content))
        with pytest.raises(RunError, match=r"(run\.json (is damaged|was written by an))"):
            radin.cook(toy_pool, task, budget=BUDGET, out=out)
        with pytest.raises(RunError, match=r"(result\.json is damaged|no result of this version)"):
            Result.load(out)
    (out / "run.json").write_text("[" * 200_000)
    with pytest.raises(RunError, match="nested too deeply"):
        radin.cook(toy_pool, task, budget=BUDGET, out=out)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("metric", "name"), 3),
        (("examples",), "many"),
        (("best", "score"), [1]),
        (("passes", "soups"), {}),
        (("notes",), [None]),
        (("seconds",), {"total": "long"}),
        (("gain", "difference"), "x"),
        (("optimism",), []),
        (("versions",), [1]),
    ],
)
def test_a_result_of_other_kinds_is_refused_though_its_checksum_is_right(copied, place, value):
    path = copied[0] / "result.json"
    found = json.loads(path.read_text())
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(sealed(found)))
    with pytest.raises(RunError, match="no result of this version of radin"):
        Result.load(copied[0])


def test_members_of_another_shape_in_run_json_are_refused(toy_pool, copied):
    out, task = copied
    found = json.loads((out / "run.json").read_text())
    for members in (["a"], {"a": 3}, "x"):
        found["identity"]["members"] = members
        (out / "run.json").write_text(json.dumps(sealed(found)))
        with pytest.raises(RunError, match=r"run\.json is damaged \(its members"):
            radin.cook(toy_pool, task, budget=BUDGET, out=out)


def test_a_ledger_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_add", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Ledger(tmp_path / "ledger.sqlite", run="mine")
    ledger = Ledger(tmp_path / "ledger.sqlite", run="mine")
    ledger.close()


def test_a_bit_in_what_the_ledgers_tables_are_called_is_one_message(toy_pool, copied):
    out, task = copied
    path = out / "ledger.sqlite"
    whole = path.read_bytes()
    for at in range(1900, 2100, 20):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
        with pytest.raises(RunError, match=r"ledger\.sqlite is damaged"):
            radin.cook(toy_pool, task, budget=BUDGET, out=out)


def test_saved_outputs_of_a_run_are_checked_where_they_are_used_again(copied):
    from radin.outputs.files import open_array, open_targets

    folder = copied[0] / "outputs"
    member = next(p for p in sorted(folder.glob("*.safetensors")) if len(p.stem) == 32)
    for path, opened in ((member, open_array), (folder / "targets.safetensors", open_targets)):
        opened(path)
        flip(path, 8 * path.stat().st_size - 9)
        with pytest.raises(OutputsError, match=f"{path.name}.*does not match its checksum"):
            opened(path)


def test_the_checksum_of_a_folder_is_of_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = file_checksum(tmp_path)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    second = file_checksum(tmp_path)
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, second, file_checksum(tmp_path)}) == 3


MANY = """
import resource, sys
from pathlib import Path
import torch
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
torch.set_num_threads(1)
import radin, toy
from safetensors.torch import load_file, save_file
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
start = load_file(toy.build(folder / "start", 1)[0])
(folder / "many").mkdir()
for k in range(300):
    torch.manual_seed(k)
    moved = {n: t + 0.05 * torch.randn_like(t) if t.is_floating_point() else t for n, t in start.items()}
    moved["1.running_var"] = start["1.running_var"]
    save_file(moved, folder / "many" / f"{k}.safetensors")
task = radin.Task(model=toy.model, validation=lambda: toy.batches(toy.VALIDATION))
result = radin.cook(folder / "many", task, budget=2, out=out)
print(result.passes.members, result.best.recipe.size)
"""


@pytest.mark.long
def test_three_hundred_members_work_with_512_open_files(tmp_path):
    command = [sys.executable, "-c", MANY, str(tmp_path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("300 ")


def environment():
    import os

    return os.environ | {"PYTHONPATH": str(Path(toy.__file__).parent), "RADIN_CACHE": "off"}
