"""Each tracker with its own library, without a network, read back as the library reads it."""

from __future__ import annotations

import builtins
import json
import logging
import sys
import time
from pathlib import Path

import pytest

import radin
from radin.errors import RadinError
from radin.events import several
from radin.integrations import trackers


@pytest.fixture
def cook(toy_folder, tmp_path):
    """A run that a tracker is told of; the result and the events."""

    def run(*listeners):
        events = []
        listener = several(events.append, *listeners)
        result = radin.cook(toy_folder, toy_folder / "task.py", budget=2, out=tmp_path / "run", on_event=listener)
        return result, events

    return run


def members(events):
    return [e.fields["score"] for e in events if e.kind == "member_evaluated" and not e.fields["reestimated"]]


def bests(events):
    return [(round(100 * e.fields["spent"]), e.fields["score"]) for e in events if e.kind == "best_changed"]


def test_tensorboard(cook, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result, events = cook(trackers.TensorBoard(tmp_path / "board"))
    found = accumulator.EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert [e.value for e in found.Scalars("radin/member")] == pytest.approx(members(events))
    seen = [(e.step, e.value) for e in found.Scalars("radin/best")]
    assert seen[:-1] == [(step, pytest.approx(score)) for step, score in bests(events)]
    assert seen[-1][1] == pytest.approx(result.best.score)
    assert found.Scalars("radin/gain")[-1].value == pytest.approx(result.gain.difference)
    assert found.Scalars("radin/test")[-1].value == pytest.approx(result.best.splits["test"][0])
    assert "parameters/text_summary" in found.Tags()["tensors"]


def test_mlflow(cook, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its successor, SQLite, takes the whole of mlflow
    uri = (tmp_path / "mlruns").as_uri()
    tracker = trackers.MLflow("soups", uri=uri)
    result, events = cook(tracker)
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["strategy"] == "adaptive"
    assert run.data.params["members"] == "6"
    history = client.get_metric_history(tracker.run_id, "member")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == members(events)
    assert run.data.metrics["best"] == result.best.score
    assert run.data.metrics["shifts/noisy"] == result.best.splits["shifts/noisy"][0]


@pytest.mark.clock
def test_wandb(cook, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = trackers.WandB(project="soups", mode="offline", dir=str(tmp_path))
    result, events = cook(tracker)
    (stored,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 120  # wandb's own process writes it, also after its run was finished
    while True:
        history = [dict(_numbers(record.history)) for record in _records(stored) if record.HasField("history")]
        if (history and "gain" in history[-1]) or time.monotonic() > until:
            break
        time.sleep(0.2)
    assert [row["member"] for row in history if "member" in row] == members(events)
    seen = [(row["step"], row["best"]) for row in history if "best" in row]
    assert seen == [*bests(events), (seen[-1][0], result.best.score)]
    assert history[-1]["gain"] == result.gain.difference
    assert history[-1]["test"] == result.best.splits["test"][0]
    assert b"adaptive" in stored.read_bytes()


def _records(path):
    """What wandb keeps offline: protocol buffers in LevelDB's log format, blocks of 32 KiB after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    raw, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(raw):
        if 32768 - place % 32768 < 7:  # no room for another header
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        if place + 7 + length > len(raw):  # it is still being written
            return
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def _numbers(history):
    for item in history.item:
        yield item.key or ".".join(item.nested_key), json.loads(item.value_json)


def test_trackio(cook, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        import trackio
    except ImportError as error:
        pytest.skip(f"trackio needs pillow below 13, beside which the libraries of the tests do not install: {error}")
    from trackio.sqlite_storage import SQLiteStorage

    result, events = cook(trackers.Trackio(project="soups", name="first", auto_log_cpu=False, auto_log_gpu=False))
    (run,) = trackio.Api().runs("soups")
    assert run.config["strategy"] == "adaptive"
    rows = SQLiteStorage.get_logs("soups", "first")
    assert [row["member"] for row in rows if "member" in row] == members(events)
    seen = [(row["step"], row["best"]) for row in rows if "best" in row]
    assert sorted(seen) == sorted([*bests(events), (seen[-1][0], result.best.score)])
    assert [row["gain"] for row in rows if "gain" in row] == [result.gain.difference]


def test_a_run_that_fails_is_marked_so(toy_folder, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    tracker = trackers.MLflow(uri=uri)
    command = radin.Command(f"{sys.executable} -c 'raise SystemExit(3)' {{soup}}")
    with pytest.raises(RadinError):
        radin.cook(toy_folder, command, budget=2, out=tmp_path / "run", on_event=tracker)
    assert mlflow.MlflowClient(tracking_uri=uri).get_run(tracker.run_id).info.status == "FAILED"


def test_a_tracker_that_fails_ends_nothing_and_is_said_once(cook, caplog):
    told = []

    def broken(event):
        told.append(event)
        raise ConnectionError("the server is gone")

    with caplog.at_level(logging.WARNING, "radin"):
        result, events = cook(broken)
    assert len(told) == 1
    assert events[-1].kind == "finished"
    assert result.best.score >= result.best_single.score
    (record,) = [r for r in caplog.records if "the server is gone" in r.getMessage()]
    assert "'started'" in record.getMessage()


def test_the_command_line_names_trackers(toy_folder, tmp_path, radin_command):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = ["cook", toy_folder, "--task", toy_folder / "task.py", "--budget", 2, "--out", tmp_path / "run", "--json"]
    done = radin_command(*words, "--track", "tensorboard", "--track", f"tensorboard:{tmp_path / 'board'}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for folder in (tmp_path / "run" / "tensorboard", tmp_path / "board"):
        found = accumulator.EventAccumulator(str(folder))
        found.Reload()
        assert found.Scalars("radin/best")[-1].value == pytest.approx(result["best"]["score"])
        assert len(found.Scalars("radin/member")) == 6
    again = radin_command(*words, "--track", "tensorboard")  # what lies in the run's folder is in nobody's way
    assert (again.returncode, json.loads(again.stdout)["best"]) == (0, result["best"])


def test_trackers_by_name_take_their_place_from_the_line_or_the_environment(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for text, place in (("mlflow", "mine"), ("mlflow:soups", "soups")):
        assert trackers.tracker(text, tmp_path / "run")._experiment == place
    for text, place in (("wandb", "mine"), ("wandb:soups", "soups")):
        assert trackers.tracker(text, tmp_path / "run")._options == {"project": place, "name": "run"}


@pytest.mark.parametrize("text", ["board", "tensorboard:", "TensorBoard", ""])
def test_a_tracker_that_is_none_is_refused_by_name(text, tmp_path):
    with pytest.raises(RadinError, match="--track takes mlflow, wandb, tensorboard, trackio, or"):
        trackers.tracker(text, tmp_path)


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (trackers.MLflow, "mlflow"),
        (trackers.WandB, "wandb"),
        (lambda: trackers.TensorBoard("board"), "tensorboard"),
        (trackers.Trackio, "trackio"),
        (lambda: trackers.tracker("wandb", Path("run")), "wandb"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(make, package, monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    for name in [n for n in sys.modules if n.split(".")[0] == package or n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", lacking)
    monkeypatch.setattr(sys, "meta_path", [_Lacks(package), *sys.meta_path])
    with pytest.raises(RadinError, match=f"pip install {package}$"):
        make()


class _Lacks:
    def __init__(self, package):
        self._package = package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
