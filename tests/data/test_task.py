import pytest
import torch

from radin import metrics
from radin.data.task import Task, UserCodeError
from radin.engine.forward import outputs_of
from radin.engine.load import check_fits, load_weights
from radin.errors import TaskError

GOOD = """
import torch
def model(): return torch.nn.Linear(2, 3)
def validation(): return [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]
metric = "nll"
"""


def write(tmp_path, text, name="task.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_task_file_gives_a_task(tmp_path):
    task = Task.load(write(tmp_path, GOOD))
    assert task.get_metric() is metrics.get("nll")
    assert task.build_model()(torch.ones(1, 2)).shape == (1, 3)
    assert len(list(task.batches("validation"))) == 1
    assert task.test is None


def test_an_object_inside_a_file_or_module_may_be_the_task(tmp_path, monkeypatch):
    path = write(tmp_path, GOOD + "class Mine:\n    model = model\n    validation = validation\n", "mine_tasks.py")
    assert Task.load(f"{path}:Mine").metric == "accuracy"
    monkeypatch.syspath_prepend(tmp_path)
    assert Task.load("mine_tasks:Mine").metric == "accuracy"
    assert Task.load("mine_tasks").metric == "nll"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"must define model\(\) and validation\(\)"):
        Task.load(write(tmp_path, "x = 1"))
    with pytest.raises(TaskError, match=r"no task file nowhere\.py"):
        Task.load("nowhere.py")
    with pytest.raises(TaskError, match="no task file or module 'no_such_module'"):
        Task.load("no_such_module")


def test_an_error_in_the_task_file_shows_its_own_traceback_only(tmp_path):
    with pytest.raises(UserCodeError, match="ZeroDivisionError") as caught:
        Task.load(write(tmp_path, "def helper():\n    return 1 / 0\nhelper()\n"))
    assert "in helper" in caught.value.traceback
    assert "radin/passes" not in caught.value.traceback
    assert "importlib" not in caught.value.traceback


def test_a_one_time_iterator_is_refused():
    task = Task(model=torch.nn.Linear(2, 2), validation=iter([1]))
    with pytest.raises(TaskError, match=r"validation\(\) is a one-time iterator"):
        task.batches("validation")


def test_a_metric_function_needs_its_direction():
    task = Task(model=torch.nn.Linear(2, 2), validation=[], metric=lambda outputs, targets: 1.0)
    with pytest.raises(TaskError, match="higher_is_better"):
        task.get_metric()


def test_the_wrong_architecture_is_described():
    model = torch.nn.Linear(2, 3)
    with pytest.raises(TaskError, match=r"first weight: the model has \(3, 2\), the checkpoint \(4, 2\)"):
        check_fits(model, {"weight": (4, 2), "bias": (3,)}, "run-1")
    with pytest.raises(TaskError, match="1 tensors of the model are not in the checkpoint: bias"):
        check_fits(model, {"weight": (3, 2)}, "run-1")
    with pytest.raises(TaskError, match=r"1 tensors of the checkpoint are not in the model: head\.weight"):
        check_fits(model, {"weight": (3, 2), "bias": (3,), "head.weight": (1,)}, "run-1")


def test_a_tied_name_may_be_missing():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(4, 2)
            self.head = torch.nn.Linear(2, 4, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    load_weights(model, {"embed.weight": torch.full((4, 2), 7.0)}, "run-1")
    assert model.head.weight.unique().tolist() == [7.0]


def test_outputs_come_from_tensors_logits_and_tuples():
    rows = torch.ones(3, 2)
    named = type("Output", (), {"logits": rows})()
    for value in (rows, {"logits": rows}, named, (rows, "more")):
        assert outputs_of(value, 3) is rows
    assert outputs_of(torch.ones(3), 3).shape == (3, 1)
    with pytest.raises(TaskError, match=r"one row of outputs per example, \(3, classes\); got \(3, 2, 4\)"):
        outputs_of(torch.ones(3, 2, 4), 3)


def test_what_a_task_file_computes_fails_as_the_users_own(tmp_path):
    text = (
        GOOD
        + "def __getattr__(name):\n    if name == 'test': raise OSError('no such disk')\n    raise AttributeError\n"
    )
    with pytest.raises(UserCodeError, match=r"failed with OSError: no such disk"):
        Task.load(write(tmp_path, text))


def test_shifts_have_texts_for_names(tmp_path):
    task = Task.load(write(tmp_path, GOOD + "def shifts(): return {3: validation}\n"))
    with pytest.raises(TaskError, match=r"shifts\(\) must name each shift by a text; got 3"):
        task.shift_sources()


def test_data_that_fail_when_they_are_asked_what_they_are_fail_as_the_users_own(tmp_path):
    text = (
        GOOD
        + """
class Odd:
    def __getattr__(self, name): raise ValueError("odd")
def test(): return Odd()
"""
    )
    with pytest.raises(UserCodeError, match=r"test\(\) failed with ValueError: odd"):
        Task.load(write(tmp_path, text)).batches("test")
