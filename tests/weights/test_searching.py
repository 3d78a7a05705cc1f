"""What folders, patterns, lists and braces stand for: what is taken, what is left out, and what is said of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from radin.errors import CheckpointError, PoolError
from radin.weights import Pool
from radin.weights.braces import expanded
from radin.weights.paths import find_checkpoints, look_for
from radin.weights.searching import DEPTH, is_initial, is_not_weights


def write(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        torch.save({"w": torch.randn(3)}, path)


def found(*given: str | Path, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in look_for(given).paths]


def test_a_study_is_searched_downward(tmp_path: Path) -> None:
    write(
        tmp_path, "trial_10/best.pt", "trial_2/best.pt", "trial_2/.cache/x.pt", "trial_3/lightning_logs/v0/c/e=1.ckpt"
    )
    (tmp_path / "trial_4").mkdir()
    (tmp_path / "trial_4" / "log.txt").write_text("diverged")
    assert found(tmp_path, root=tmp_path) == [
        "trial_2/best.pt", "trial_3/lightning_logs/v0/c/e=1.ckpt", "trial_10/best.pt",
    ]  # fmt: skip
    pool = Pool.open(tmp_path)
    assert pool.notes[0] == (
        f"{tmp_path}: took 3 checkpoints from 3 folders below: trial_10/best.pt, trial_2/best.pt, "
        "trial_3/lightning_logs/v0/c/e=1.ckpt"
    )
    assert pool.reordered([2, 1, 0]).notes == pool.notes


def test_files_beside_weights_are_left_out_and_said(tmp_path: Path) -> None:
    write(tmp_path, "run/checkpoints/a.pt", "run/checkpoints/b.pth.tar", "run/checkpoints/c")
    beside = [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "training_args.bin",
        "scaler.pt",
        "random_states_0.pkl",
    ]
    write(tmp_path / "run/checkpoints", *beside)
    names = ["run/checkpoints/a.pt", "run/checkpoints/b.pth.tar", "run/checkpoints/c"]
    assert found(tmp_path, root=tmp_path) == names
    assert any("left out" in note and "optimizer.pt" in note for note in Pool.open(tmp_path).notes)
    assert found(str(tmp_path / "run/*/*"), root=tmp_path) == names
    assert found(str(tmp_path / "run/*/*.pt"), root=tmp_path) == names[:1]
    [note] = look_for(str(tmp_path / "run/*/*.pt")).notes
    assert "passed over 3 matches that hold no weights" in note


def test_what_holds_no_weights_by_its_content_is_left_out_of_a_search_and_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.pt")
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{}]}, tmp_path / "adam_state.pt")
    pool = Pool.open(tmp_path)
    assert pool.member_names == ("a", "b")
    assert any("left out, for want of weights" in note and "adam_state.pt" in note for note in pool.notes)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        Pool.open([tmp_path / "a.pt", tmp_path / "adam_state.pt"])


def test_an_init_is_left_out_unless_it_is_named(tmp_path: Path) -> None:
    write(tmp_path, "init.pt", "a.pt", "b.pt")
    assert found(tmp_path, root=tmp_path) == ["a.pt", "b.pt"]
    assert found(str(tmp_path / "*.pt"), root=tmp_path) == ["a.pt", "b.pt"]
    assert found(tmp_path, tmp_path / "init.pt", root=tmp_path) == ["a.pt", "b.pt", "init.pt"]
    assert found(str(tmp_path / "{a,init}.pt"), root=tmp_path) == ["a.pt", "init.pt"]
    assert any("init.pt: by its name" in note and "Name the file itself" in note for note in Pool.open(tmp_path).notes)
    write(tmp_path / "only", "pretrained.pt")
    assert found(tmp_path / "only", root=tmp_path) == ["only/pretrained.pt"]


@pytest.mark.parametrize("name", ["init.pt", "model_init.ckpt", "pretrained", "zeroshot.pt", "base", "init/model.pt"])
def test_names_of_what_members_began_with(name: str) -> None:
    assert is_initial(Path("pool") / name)


@pytest.mark.parametrize("name", ["init-lr-3.pt", "last.ckpt", "baseline.pt", "base/best.pt", "model.pt"])
def test_names_of_members(name: str) -> None:
    assert not is_initial(Path("pool") / name)


@pytest.mark.parametrize("name", ["model.bin", "optimal.pt", "scheduled.pt", "best_optimizer_adam.pt", "rng.pt"])
def test_names_that_are_not_passed_over(name: str) -> None:
    assert not is_not_weights(name)


def test_a_trainers_output_folder(tmp_path: Path) -> None:
    write(tmp_path, *(f"out/checkpoint-{k}/pytorch_model.bin" for k in (5, 10)), "out/checkpoint-10/optimizer.pt")
    assert found(tmp_path / "out", root=tmp_path) == ["out/checkpoint-5", "out/checkpoint-10"]
    write(tmp_path, "out/pytorch_model.bin")
    assert found(tmp_path / "out", root=tmp_path) == ["out"]
    [note] = look_for(tmp_path / "out").notes
    assert "left out checkpoint-" in note
    assert "earlier states of a run whose final model is taken; to have them too, name them" in note
    assert found(str(tmp_path / "out/checkpoint-*"), root=tmp_path) == ["out/checkpoint-5", "out/checkpoint-10"]


def test_a_run_of_radins_own_is_no_pool(tmp_path: Path) -> None:
    write(tmp_path, "runs/a/best.pt", "runs/soup/soup.pt")
    for name in ("run.json", "ledger.sqlite"):
        (tmp_path / "runs/soup" / name).write_text("{}")
    assert found(tmp_path / "runs", root=tmp_path) == ["runs/a/best.pt"]
    (tmp_path / "runs/soup/ledger.sqlite").unlink()
    (tmp_path / "runs/soup/journal").mkdir()  # where the ledger is kept as whole files
    assert found(tmp_path / "runs", root=tmp_path) == ["runs/a/best.pt"]
    assert any("soup (a run of radin's)" in note for note in look_for(tmp_path / "runs").notes)


def test_the_walk_ends(tmp_path: Path) -> None:
    write(tmp_path, "a/m.pt", "/".join("abcdefghijkl"[: DEPTH + 2]) + "/deep.pt")
    (tmp_path / "b").mkdir()
    os.symlink(tmp_path, tmp_path / "b" / "round")
    assert found(tmp_path, root=tmp_path) == ["a/m.pt"]
    nothing = tmp_path / "c"
    nothing.mkdir()
    with pytest.raises(PoolError, match=r"it is a folder with no file ending in .* and no folder below it has one"):
        find_checkpoints(nothing)


def test_a_list(tmp_path: Path) -> None:
    write(tmp_path, "a.pt", "b.pt", "sub/c.pt", "sub/d.pt")
    (tmp_path / "sub/list.txt").write_text("# members\n\nd.pt\n../a.pt\n*.pt\n" + str(tmp_path / "b.pt") + "\n")
    names = [os.path.basename(path) for path in look_for(f"@{tmp_path / 'sub/list.txt'}").paths]
    assert names == ["d.pt", "a.pt", "c.pt", "b.pt"]
    (tmp_path / "bad.txt").write_text("@sub/list.txt\n")
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "gone.txt").write_text("gone.pt\n")
    for name, message in (("bad", "no such file"), ("none", "names nothing"), ("gone", "gone.pt: no such file")):
        with pytest.raises(PoolError, match=message):
            find_checkpoints(f"@{tmp_path / name}.txt")
    with pytest.raises(PoolError, match="the list cannot be read: No such file"):
        find_checkpoints(f"@{tmp_path / 'nowhere.txt'}")


def test_braces(tmp_path: Path) -> None:
    write(tmp_path, "x1/a.pt", "x2/a.pt", "y/a.pt", "{q,r}.pt")
    assert found(str(tmp_path / "{y,x{2,1}}/a.pt"), root=tmp_path) == ["y/a.pt", "x2/a.pt", "x1/a.pt"]
    assert found(str(tmp_path / "{y,x*}/a.pt"), root=tmp_path) == ["y/a.pt", "x1/a.pt", "x2/a.pt"]
    assert found(tmp_path / "{q,r}.pt", root=tmp_path) == ["{q,r}.pt"]
    with pytest.raises(PoolError, match=r"y/b\.pt: no such file"):
        find_checkpoints(str(tmp_path / "y/{a,b}.pt"))
    with pytest.raises(PoolError, match="stand for more than"):
        find_checkpoints("{0,1}" * 20)


@pytest.mark.parametrize(
    "text",
    [
        "{1..3}.pt", "{3..1}", "r{01..12}", "{1..010}", "{-2..1}", "{a..e..2}", "{1..10..3}", "{9..1..4}",
        "{a{1,2},b}{c,d}", "x{y,{1..2}{p,q}}z", "{a{1..2}}", "{a}", "{}", "a{b", "a}b{c,d}", "{,x}y", "{1..a}",
        "{a,b}{",
    ],
)  # fmt: skip
def test_braces_stand_for_what_a_shell_makes_of_them(text: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash to compare with")
    done = subprocess.run([bash, "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    assert expanded(text) == done.stdout.splitlines()


def test_braces_that_stand_for_too_many() -> None:
    for text, message in (
        ("{1..20000}", "more than 10,000"),
        ("{1..999}{1..999}", "more than 10,000"),
        ("{" * 101, "100"),
    ):
        with pytest.raises(PoolError, match=message):
            find_checkpoints(text)


@pytest.mark.filterwarnings("ignore")
def test_what_transformers_trainer_leaves(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    data = [{"input_ids": [k, 3], "attention_mask": [1, 1], "labels": k % 2} for k in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=4, save_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(transformers.BertForSequenceClassification(config), arguments, train_dataset=data)
    trainer.train()
    beside = {path.name for path in (tmp_path / "out/checkpoint-4").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "training_args.bin"} <= beside, "the Trainer writes other files now"
    pool = Pool.open(tmp_path)
    assert pool.member_names == ("checkpoint-2", "checkpoint-4")
    names = ["out/checkpoint-2/model.safetensors", "out/checkpoint-4/model.safetensors"]
    assert found(str(tmp_path / "out/*/*.*t*"), root=tmp_path) == names
    trainer.save_model(str(tmp_path / "out"))
    assert found(tmp_path, root=tmp_path) == ["out"]
