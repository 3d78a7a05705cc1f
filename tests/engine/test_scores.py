"""The members' scores from CSV and JSON files."""

import json
from pathlib import Path

import numpy as np
import pytest

from radin import RadinError
from radin.engine.scores import read_scores

NAMES = ("run-1/best", "run-2/best", "run-10/best")


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{name}.pt" for name in NAMES]
    for path in found:
        path.parent.mkdir()
        path.touch()
    return found


@pytest.mark.parametrize(
    "text",
    [
        "run-10/best,0.3\nrun-1/best,0.1\nrun-2/best,0.2\n",
        "\ufeffname,score\nrun-10/best,0.3\nrun-1/best,0.1\nrun-2/best,0.2",
        "Epoch;Score;Checkpoint\n3;.3;run-10/best.pt\n4;.1;run-1/best.pt\n\n# note\n4;.2;run-2/best.pt\n",
        "model\taccuracy\nrun-10/best\t0.3\nrun-1/best\t0.1\nrun-2/best\t0.2\n",
        '"run-10/best", 0.3\n"FOLDER/run-1/best.pt", 0.1\nrun-2/best.pt, 0.2\n',
        '[{"name": "run-10/best", "score": 0.3}, {"path": "FOLDER/run-1/best.pt", "score": "0.1"},\n'
        '{"file": "run-2/best", "score": 0.2}]',
        '{"run-10/best": 0.3, "run-1/best": {"score": 0.1}, "run-2/best": 0.2}',
        '{"metric": "accuracy", "members": [{"name": "run-10/best", "score": 0.3},\n'
        '{"name": "run-1/best", "score": 0.1}, {"name": "run-2/best", "score": 0.2}]}',
    ],
)  # fmt: skip
def test_scores_come_in_the_order_of_the_pool(tmp_path, paths, text):
    for name in ("scores.txt", "scores.csv"):
        (tmp_path / name).write_text(text.replace("FOLDER", str(tmp_path)))
        assert read_scores(tmp_path / name, NAMES, paths).tolist() == [0.1, 0.2, 0.3]


def test_a_path_counts_from_the_working_directory_or_the_file(tmp_path, paths, monkeypatch):
    monkeypatch.chdir(tmp_path / "run-1")
    (tmp_path / "scores.csv").write_text("best.pt,1\nrun-2/best.pt,2\n../run-10/best.pt,nan\n")
    found = read_scores(Path("../scores.csv"), NAMES, paths)
    assert np.array_equal(found, [1, 2, np.nan], equal_nan=True)


def test_a_path_that_repeats_a_member_may_be_there_too(tmp_path, paths):
    (tmp_path / "scores.csv").write_text("".join(f"{p},1\n" for p in [*paths, tmp_path / "run-3/best.pt"]))
    assert len(read_scores(tmp_path / "scores.csv", NAMES, paths, dropped=[tmp_path / "run-3/best.pt"])) == 3
    with pytest.raises(RadinError, match=r"not in the pool: .*run-3/best\.pt"):
        read_scores(tmp_path / "scores.csv", NAMES, paths)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run-1/best,0.1\n", "the scores do not fit the pool of 3 members; not in it: run-2/best, run-10/best"),
        ("run-1/best,1\nrun-2/best,2\nrun-10/best,3\nrun-4/best,4\n", "; not in the pool: run-4/best"),
        ("run-1/best,1\nrun-1/best.pt,2\nrun-2/best,2\nrun-2/best,2\nrun-10/best,3\n",
         "; given twice: run-1/best (as run-1/best and as run-1/best.pt), run-2/best"),
        ("best.pt,1\nrun-1/best,1\nrun-2/best,2\nrun-10/best,3\n", "; not in the pool: best.pt"),
        ("name,score\nrun-1/best,good\n", "the score of run-1/best must be a number; got 'good'"),
        ("name,epoch,loss\nrun-1/best,3,4\n",
         "expected columns called name (or path) and score; its first line is name, epoch, loss"),
        ("run-1/best\n", "expected columns called name"),
        ("name,score\nrun-1/best\n", "expected a name or path and a score in each line; got 'run-1/best'"),
        ("\n", "holds no scores"),
        ('{"run-1/best": null}', "the score of run-1/best must be a number; got None"),
        ("[1, 2]", 'every entry needs a "name" or "path" and a "score"; got 1'),
        ("[{", "is not JSON"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, paths, text, said):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(RadinError) as caught:
        read_scores(tmp_path / "scores.csv", NAMES, paths)
    assert str(caught.value).startswith(str(tmp_path / "scores.csv"))
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path, paths):
    with pytest.raises(RadinError, match="cannot be read as scores: No such file"):
        read_scores(tmp_path / "none.csv", NAMES, paths)
    (tmp_path / "table.json").write_text(json.dumps(3))
    with pytest.raises(RadinError, match="expected a list"):
        read_scores(tmp_path / "table.json", NAMES, paths)
